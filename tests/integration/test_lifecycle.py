"""Containers by hand: every verb of `bench container`, as root, for real; and nothing left of any."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bench.container import control
from bench.container.adjust import Options
from bench.container.bundle import of_folder, of_image
from bench.container.client import Launcher, Placed
from bench.container.groups import layout
from bench.container.runtime import Container, Runtime, Wanted
from bench.container.spec import default_spec, encode
from bench.container.spec_records import Hook, Hooks, Pids, Spec
from bench.container.state import NameTaken, NotRunning, Records, UnknownContainer
from bench.errors import CommandError, ConfigError, LaunchError, UsageError
from bench.images.build import find_busybox
from bench.images.store import ImageStore
from tests.integration.by_hand import ByHand, Terminal
from tests.integration.traces import traces

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of our own, filled once: commits add to it."""
    folder = tmp_path_factory.mktemp("cache")
    images = ImageStore(folder / "images")
    images.layer_trees(images.resolve("default"))
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def bench(state: Path, cache: Path) -> Iterator[ByHand]:
    made = ByHand(state, cache)
    yield made
    assert made.clear() == []


@pytest.fixture
def runtime(state: Path, cache: Path) -> Iterator[Runtime]:
    with Runtime(state, images=ImageStore(cache / "images")) as made:
        yield made
    assert traces(made.run) == []
    assert not any(state.iterdir())


def box(runtime: Runtime, *argv: str, wanted: Wanted | None = None, **options: Any) -> Container:
    bundle = of_image(runtime.images, "default", Options(argv=argv, **options))
    return runtime.create(bundle, wanted or Wanted())


LOOP = "while :; do echo >> /count; done"


# --- the library -------------------------------------------------------------------------------------------------


def test_it_does_nothing_before_its_start(runtime: Runtime) -> None:
    made = box(runtime, "sh", "-c", "echo hello; exit 7")
    time.sleep(0.1)
    assert made.record.status == "created"
    assert made.logs() == b""
    assert made.wait(0) is None
    made.start()
    assert made.wait(10) == 7
    assert made.logs() == b"hello\n"
    made.delete()
    made.delete()


def test_one_that_never_starts_is_deleted_too(runtime: Runtime) -> None:
    made = box(runtime, "sleep", "100")
    made.delete()
    assert made.wait(0) == 137
    assert not any(path.is_dir() for path in runtime.home.glob("c*"))


def test_exec_joins_it(runtime: Runtime) -> None:
    made = box(runtime, "sleep", "100")
    made.start()
    done = made.exec(
        ["sh", "-c", "hostname; cat /proc/1/comm; echo $HERE; exit 3"], timeout=10, env=("HERE=there", "PATH=/bin")
    )
    assert (done.status, done.stdout) == (3, f"{made.record.id}\nsleep\nthere\n")
    with pytest.raises(LaunchError, match="exec /nosuch"):
        made.exec(["/nosuch"], timeout=10)


def test_a_command_that_took_too_long_does_not_keep_it_from_ending(runtime: Runtime) -> None:
    """Killed, it is an orphan in the pid namespace, which ends when the last in it has been reaped."""
    made = box(runtime, "sh", "-c", "sleep 0.5; exit 4")
    made.start()
    with pytest.raises(CommandError, match="still running"):
        made.exec(["sleep", "100"], timeout=0.1)
    assert made.wait(10) == 4


def test_a_signal_and_its_end(runtime: Runtime) -> None:
    made = box(runtime, "sh", "-c", "trap 'exit 9' USR1; while :; do sleep 0.05; done")
    made.start()
    time.sleep(0.3)
    made.kill(signal.SIGUSR1)
    assert made.wait(10) == 9
    with pytest.raises(NotRunning):
        made.kill(signal.SIGUSR1)


def test_with_its_first_process_all_goes(runtime: Runtime) -> None:
    made = box(runtime, "sh", "-c", "sleep 100 & sleep 100 & sleep 0.8; true")
    made.start()
    time.sleep(0.4)
    assert len(control.processes(made.record)) == 4
    assert made.wait(10) == 0
    assert control.processes(made.record) == ()


def test_a_counter_stops_while_paused(runtime: Runtime) -> None:
    made = box(runtime, "sh", "-c", LOOP)
    made.start()
    count = Path(made.record.changed, "count")
    time.sleep(0.3)
    made.pause()
    assert control.status(runtime.records, made.record) == "paused"
    before = count.stat().st_size
    time.sleep(0.3)
    assert count.stat().st_size == before > 0
    made.resume()
    time.sleep(0.3)
    assert count.stat().st_size > before


def test_one_that_is_paused_can_be_killed(runtime: Runtime) -> None:
    made = box(runtime, "sleep", "100")
    made.start()
    made.pause()
    made.kill(signal.SIGKILL)
    assert made.wait(10) == 137


def test_stats_count(runtime: Runtime) -> None:
    made = box(runtime, "sh", "-c", "sleep 100 & " + LOOP)
    made.start()
    time.sleep(0.5)
    found = made.stats()
    assert found.pids == 2
    assert found.cpu is not None
    assert 0.1 < found.cpu < 3
    assert found.memory is not None
    assert 100_000 < found.memory < 50_000_000


def test_zombies_are_reaped_with_init_and_pile_up_without(runtime: Runtime) -> None:
    script = "for i in 1 2 3 4 5; do sh -c 'sleep 0.4 & exit'; done; "
    for init in (False, True):
        # exec: a shell as pid 1 would reap them itself
        made = box(runtime, "sh", "-c", script + "exec sleep 100", wanted=Wanted(init=init))
        made.start()
        time.sleep(1)
        zombies = made.exec(["sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"], timeout=10)
        assert int(zombies.stdout) == (0 if init else 5)


def test_init_passes_signals_on_and_ends_as_the_payload_does(runtime: Runtime) -> None:
    made = box(runtime, "sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.05; done", wanted=Wanted(init=True))
    made.start()
    time.sleep(0.3)
    made.kill(signal.SIGTERM)
    assert made.wait(10) == 6
    dead = box(runtime, "sh", "-c", "kill -9 $$", wanted=Wanted(init=True))
    dead.start()
    assert dead.wait(10) == 137


def test_init_keeps_its_secrets(runtime: Runtime) -> None:
    """pid 1 is the host's Python: a container that may write to /proc/1/exe could change it for everybody."""
    made = box(runtime, "sleep", "100", wanted=Wanted(init=True))
    made.start()
    for path in ("exe", "fd/0", "mem", "environ"):
        assert made.exec(["sh", "-c", f"cat < /proc/1/{path} | head -c 1"], timeout=10).stdout == ""
    assert os.listdir(f"/proc/{made.pid}/fd") == []
    with pytest.raises(UsageError, match="SYS_PTRACE"):
        box(runtime, "true", wanted=Wanted(init=True), cap_add=("SYS_PTRACE",))


def test_a_recycled_pid_is_never_joined(runtime: Runtime) -> None:
    made = box(runtime, "sleep", "100")
    made.start()
    wrong = replace(made.record, born=made.record.born - 1)
    assert not control.running(wrong)
    with pytest.raises(NotRunning):
        control.kill(wrong, signal.SIGKILL)
    with Launcher() as launcher:
        number = launcher.learn(control.exec_recipe(wrong, control.exec_process(wrong, ["true"])))
        with pytest.raises(LaunchError, match="No such process"):
            launcher.attach(number, Placed(wrong.id, argv=("true",)), wrong.pid, (0, 1, 2), born=wrong.born)
    assert made.wait(0) is None


def test_names_and_bad_input(runtime: Runtime) -> None:
    made = box(runtime, "sleep", "100", wanted=Wanted(name="web"))
    with pytest.raises(NameTaken, match="web"):
        box(runtime, "true", wanted=Wanted(name="web"))
    for name in ("../x", "a/b", "-f", "", "x" * 64, "a b", "ä"):
        if name:
            with pytest.raises(UsageError, match="name"):
                box(runtime, "true", wanted=Wanted(name=name))
    with pytest.raises(UnknownContainer, match="there are: web"):
        runtime.records.find("nosuch")
    made.start()
    assert control.status(runtime.records, runtime.records.find("web")) == "running"


def test_a_failing_set_up_names_its_step_and_leaves_nothing(runtime: Runtime) -> None:
    with pytest.raises(LaunchError, match=r"sysctl net/nosuch 1: .*No such file"):
        box(runtime, "true", sysctls=("net.nosuch=1",))
    assert runtime.records.all() == []
    assert not any(path.is_dir() for path in runtime.home.glob("c*"))


# --- bundles and hooks -------------------------------------------------------------------------------------------


def bundle_at(folder: Path, *argv: str, hooks: Hooks = Hooks()) -> Spec:  # noqa: B008 - frozen
    (folder / "rootfs/bin").mkdir(parents=True)
    (folder / "rootfs/bin/busybox").write_bytes(find_busybox().read_bytes())
    (folder / "rootfs/bin/busybox").chmod(0o755)
    for name in ("sh", "sleep", "cat", "true"):
        (folder / "rootfs/bin" / name).symlink_to("busybox")
    spec = replace(default_spec(argv, root="rootfs"), hooks=hooks)
    (folder / "config.json").write_bytes(encode(spec))
    return spec


def hook(folder: Path, name: str, script: str = "") -> Hook:
    """Notes its name, what it was told, and in which network namespace it runs."""
    text = f'{script or "true"}; read told; echo "{name} $told $(readlink /proc/self/ns/net)" >> {folder}/hooks.log'
    return Hook("/bin/sh", ("sh", "-c", text))


def test_hooks_run_in_order_in_the_right_place(runtime: Runtime, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    inside = Hook("/bin/sh", ("sh", "-c", "cat > /start-container"))
    hooks = Hooks(
        prestart=(hook(tmp_path, "prestart"),), create_runtime=(hook(tmp_path, "createRuntime"),),
        create_container=(hook(tmp_path, "createContainer"),), start_container=(inside,),
        poststart=(hook(tmp_path, "poststart"),), poststop=(hook(tmp_path, "poststop"),),
    )  # fmt: skip
    folder.mkdir()
    bundle_at(folder, "/bin/sh", "-c", "cat /start-container; exit 3", hooks=hooks)
    made = runtime.create(of_folder(folder))
    told = [line.split(" ", 1) for line in (tmp_path / "hooks.log").read_text().splitlines()]
    names = [name for name, _ in told]
    assert names.index("prestart") < names.index("createRuntime")
    assert sorted(names) == ["createContainer", "createRuntime", "prestart"]
    assert not (folder / "rootfs/start-container").exists(), "that one is for start"
    made.start()
    assert made.wait(10) == 3
    assert json.loads(made.logs())["status"] == "created"
    made.delete()
    states = {}
    for line in (tmp_path / "hooks.log").read_text().splitlines():
        name, rest = line.split(" ", 1)
        text, namespace = rest.rsplit(" ", 1)
        states[name] = (json.loads(text), namespace)
    assert [*states][-2:] == ["poststart", "poststop"]
    assert {name: told["status"] for name, (told, _) in states.items()} == {
        "prestart": "creating", "createRuntime": "creating", "createContainer": "creating", "poststart": "running",
        "poststop": "stopped",
    }  # fmt: skip
    assert states["createRuntime"][0]["pid"] == made.pid
    assert states["createRuntime"][0]["bundle"] == str(folder)
    ours = os.readlink("/proc/self/ns/net")
    assert states["createRuntime"][1] == ours
    assert states["createContainer"][1] != ours


@pytest.mark.parametrize("place", ["prestart", "create_runtime", "create_container", "start_container"])
def test_a_failing_hook_ends_the_set_up_by_name(runtime: Runtime, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    failing = {place: (Hook("/bin/sh", ("sh", "-c", "exit 4")),)}
    bundle_at(folder, "/bin/true", hooks=Hooks(**failing))  # type: ignore[arg-type]
    with pytest.raises(LaunchError, match=r"hook /bin/sh.*ended with status 4"):
        runtime.create(of_folder(folder)).start()


def test_hooks_of_what_has_happened_may_fail(
    runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are told of, by the path as it is written, and those behind them run."""
    folder, script = tmp_path / "bundle", tmp_path / "my_own_hook"
    folder.mkdir()
    script.write_text("#!/bin/sh\nexit 4\n")
    script.chmod(0o755)
    failing, hanging = Hook(str(script)), Hook("/bin/sleep", ("sleep", "60"), (), 1)
    missing = Hook(str(tmp_path / "no_such_hook"))
    hooks = Hooks(
        poststart=(failing, missing, hook(tmp_path, "poststart")), poststop=(hanging, hook(tmp_path, "poststop"))
    )
    bundle_at(folder, "/bin/sh", "-c", "sleep 60", hooks=hooks)
    made = runtime.create(of_folder(folder))
    assert not (tmp_path / "hooks.log").exists(), "not before it runs"
    made.start()
    assert made.wait(0.1) is None, "it runs all the same"
    assert [line.split()[0] for line in (tmp_path / "hooks.log").read_text().splitlines()] == ["poststart"]
    made.delete()
    assert (tmp_path / "hooks.log").read_text().splitlines()[-1].startswith("poststop")
    for said in (f"hook {script}: ended with status 4", "no_such_hook", "hook /bin/sleep: took longer than 1 s"):
        assert said in caplog.text


def test_a_failing_hook_is_named_by_its_path_as_it_is(runtime: Runtime, tmp_path: Path) -> None:
    folder, script = tmp_path / "bundle", tmp_path / "my_own_hook"
    folder.mkdir()
    script.write_text("#!/bin/sh\nexit 4\n")
    script.chmod(0o755)
    bundle_at(folder, "/bin/true", hooks=Hooks(create_runtime=(Hook(str(script)),)))
    with pytest.raises(LaunchError, match="/my_own_hook"):
        runtime.create(of_folder(folder))


# --- where its groups are ----------------------------------------------------------------------------------------


def _groups_of(pid: int) -> list[str]:
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return [path for _, name, path in lines if "bench-" in path and name != "devices"]  # which many share, on v1


def test_groups_go_where_the_spec_wants_them_below_our_own(runtime: Runtime, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    spec = bundle_at(folder, "/bin/sleep", "60")
    linux = replace(spec.linux, cgroups_path="my_team/web", resources=replace(spec.linux.resources, pids=Pids(17)))
    (folder / "config.json").write_bytes(encode(replace(spec, linux=linux)))
    made, other = runtime.create(of_folder(folder)), runtime.create(of_folder(folder))
    made.start()
    found = _groups_of(made.pid)
    token = made.record.run[-6:]
    assert found
    assert all(path.startswith(f"/bench-{token}/my_team/web") for path in found)
    assert all(path.endswith(f"/{made.record.id}") for path in found), "each has its own, though they share the path"
    assert made.stats().pids is not None
    limits = [path for path in Path("/sys/fs/cgroup").glob(f"**/my_team/web/**/{made.record.id}/pids.max")]
    assert [path.read_text().strip() for path in limits] == ["17"]
    assert not set(found) & set(_groups_of(other.pid))
    made.delete()
    assert not [path for path in limits if path.exists()]
    assert _groups_of(other.pid), "what they share stays"
    other.delete()


@pytest.mark.parametrize("path", ["/elsewhere", "../elsewhere", "a/../../elsewhere"])
def test_groups_do_not_go_out_of_our_own(runtime: Runtime, tmp_path: Path, path: str) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    spec = bundle_at(folder, "/bin/true")
    (folder / "config.json").write_bytes(encode(replace(spec, linux=replace(spec.linux, cgroups_path=path))))
    with pytest.raises(ConfigError, match="cgroupsPath"):
        runtime.create(of_folder(folder))


# --- what it says ------------------------------------------------------------------------------------------------

ATTACK = """echo before
for way in 'echo -n "" > /proc/self/fd/1' 'truncate -s 0 /proc/self/fd/1' 'chmod 4777 /proc/self/fd/1' \
    'echo over 1<> /proc/self/fd/1' 'dd if=/dev/zero of=/proc/self/fd/1 bs=1 count=0 seek=0'; do
    eval "$way" 2> /dev/null
done
echo after
"""


def test_what_was_said_cannot_be_unsaid(runtime: Runtime, tmp_path: Path) -> None:
    """The log is not in the container's hands; the control is one that was given a file."""
    made = box(runtime, "sh", "-c", ATTACK)
    log = runtime.records.log(made.record)
    made.start()
    assert made.wait(10) == 0
    assert made.logs().splitlines()[0] == b"before"
    assert made.logs().splitlines()[-1] == b"after"
    assert log.stat().st_mode & 0o7000 == 0
    made.delete()
    given = tmp_path / "given"
    with given.open("ab") as file, open(os.devnull, "rb") as null:
        bundle = of_image(runtime.images, "default", Options(argv=("sh", "-c", ATTACK)))
        control = runtime.create(bundle, streams=(null.fileno(), file.fileno(), file.fileno()))
        control.start()
        control.wait(10)
        control.delete()
    assert b"before" not in given.read_bytes()
    assert given.stat().st_mode & 0o4000


def test_much_output_and_last_words_are_all_in_the_log(runtime: Runtime) -> None:
    made = box(runtime, "sh", "-c", "dd if=/dev/zero bs=64k count=64 2>/dev/null; echo; echo the end")
    made.start()
    assert made.wait(20) == 0
    assert len(made.logs()) == (4 << 20) + len("\nthe end\n")
    assert made.logs().endswith(b"\nthe end\n")
    made.delete()


# --- run ---------------------------------------------------------------------------------------------------------


def test_run_ends_as_its_payload_and_keeps_its_streams_apart(bench: ByHand) -> None:
    done = bench("run", "--name", "one", "default", "sh", "-c", "echo out; echo err >&2; exit 42", status=42)
    assert done.stdout == "out\n"
    assert done.stderr.endswith("err\n")
    assert bench.ps()["one"]["status"] == "exited"
    assert bench.ps()["one"]["exit_status"] == 42
    assert sorted(bench("logs", "one").stdout.split()) == ["err", "out"]
    assert "one" in bench("run", "--name", "one", "default", "true", status=125).stderr
    bench("rm", "one")
    assert bench.ps() == {}
    assert "there are: none" in bench("logs", "one", status=2).stderr


def test_run_rm_leaves_nothing_by_itself(bench: ByHand, state: Path) -> None:
    bench("run", "--rm", "--memory", "32m", "--pids-limit", "9", "default", "true")
    assert list(state.iterdir()) == []
    assert bench("run", "--rm", "-i", "default", "cat", stdin=b"typed").stdout == "typed"
    assert bench("run", "--rm", "default", "cat", stdin=b"typed").stdout == ""
    assert bench("run", "--rm", "default", "sh", "-c", "kill -9 $$; sleep 1", status=None).status in (0, 137)


def test_who_and_where_the_payload_is(bench: ByHand) -> None:
    options = ("-e", "A=b", "-w", "/tmp", "-u", "1000:1001", "--hostname", "h", "--ulimit", "nofile=64:128")
    done = bench("run", "--rm", *options, "default", "sh", "-c", "id -u; id -g; pwd; echo $A; hostname; ulimit -n")
    assert done.stdout.split() == ["1000", "1001", "/tmp", "b", "h", "64"]


def test_rights_are_given_and_taken(bench: ByHand) -> None:
    show = ("default", "sh", "-c", "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status")
    usual = bench("run", "--rm", *show).stdout.split()
    assert usual == ["CapEff:", "00000000a80425fb", "NoNewPrivs:", "0", "Seccomp:", "2"]
    bare = ("--cap-drop", "ALL", "--cap-add", "chown", "--no-new-privileges", "--security", "seccomp=unconfined")
    found = bench("run", "--rm", *bare, *show).stdout
    assert "0000000000000001" in found
    assert "NoNewPrivs:\t1" in found
    assert "Seccomp:\t0" in found
    assert bench("run", "--rm", "--read-only", "default", "touch", "/x", status=1).stderr.count("Read-only") == 1


def test_volumes_bypass_the_union(bench: ByHand, tmp_path: Path, state: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/old").write_text("old")
    volume = f"{tmp_path}/data:/data"
    bench("run", "--name", "v", "-v", volume, "default", "sh", "-c", "cat /data/old > /data/new")
    assert (tmp_path / "data/new").read_text() == "old"
    (upper,) = state.glob("*/c1/upper")
    assert not any(path.is_file() for path in upper.rglob("*")), "nothing was copied up"
    refused = bench("run", "--rm", "-v", f"{volume}:ro", "default", "touch", "/data/x", status=1)
    assert "Read-only" in refused.stderr
    tmpfs = ("--tmpfs", "/scratch:size=1m")
    done = bench("run", "--rm", *tmpfs, "default", "sh", "-c", "grep -c '/scratch tmpfs.*size=1024k' /proc/mounts")
    assert done.stdout == "1\n"


def test_limits_hold(bench: ByHand) -> None:
    script = "i=0; while [ $i -lt 20 ]; do sleep 2 & i=$((i+1)); done; wait"
    assert "fork" in bench("run", "--rm", "--pids-limit", "5", "default", "sh", "-c", script, status=None).stderr
    fill = "head -c 40000000 /dev/zero | tail -c 39999999 > /dev/null; echo $?"
    full = bench("run", "--rm", "--memory", "16m", "default", "sh", "-c", fill, status=None)
    assert full.status == 137 or full.stdout == "137\n", "the kernel takes the one that fills, or the shell above it"
    assert bench("run", "--rm", "--memory", "256m", "default", "sh", "-c", fill).stdout == "0\n"


def test_the_set_up_can_be_read_before_it_runs(bench: ByHand) -> None:
    done = bench("run", "--rm", "--memory", "32m", "--init", "default", "true")
    lines = done.stderr.splitlines()
    assert lines[0] == "clone: new namespaces mount network uts pid ipc"
    assert any("memory.limit_in_bytes=33554432" in line or "memory.max=33554432" in line for line in lines)
    assert "reaper" in lines
    assert lines[-1] == "exec: true"


def test_a_container_in_the_network_of_another(bench: ByHand) -> None:
    bench("run", "-d", "--name", "server", "--network", "bridge", "default", "sleep", "100")
    address = bench.ps()["server"]["address"]
    assert address
    done = bench("run", "--rm", "--network", "container:server", "default", "ip", "-4", "addr", "show", "eth0")
    assert address in done.stdout
    alone = bench("run", "--rm", "default", "ip", "link")
    assert "eth0" not in alone.stdout


def test_a_published_port_answers(bench: ByHand) -> None:
    serve = ("sh", "-c", "mkdir /w; echo hello > /w/x; exec httpd -f -p 80 -h /w")
    bench("run", "-d", "--network", "bridge", "--publish", "127.0.0.1:18473:80", "default", *serve)

    def answers() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", 18473), timeout=2) as link:
                link.sendall(b"GET /x HTTP/1.0\r\n\r\n")
                return b"hello" in link.makefile("rb").read()
        except OSError:
            return False

    bench.until(answers)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run",), "name an image or a bundle"),
        (("run", "nosuch", "true"), "no image 'nosuch'"),
        (("run", "--name", "../x", "default", "true"), "can't be a container's name"),
        (("run", "-v", "/nosuch:/x", "default", "true"), "nothing to bind at /nosuch"),
        (("run", "-v", "x", "default", "true"), "not understood"),
        (("run", "-u", "nobodyhere", "default", "true"), "no user 'nobodyhere'"),
        (("run", "--cap-add", "FLY", "default", "true"), "no such capability"),
        (("run", "--memory", "lots", "default", "true"), "no size"),
        (("run", "--sysctl", "kernel.panic=1", "default", "true"), "sysctl"),
        (("run", "--storage", "floppy", "default", "true"), "floppy"),
        (("run", "--network", "elsewhere", "default", "true"), "elsewhere"),
        (("run", "--network", "container:nosuch", "default", "true"), "no container 'nosuch'"),
        (("run", "--publish", "1:2", "default", "true"), "nothing can be published"),
        (("run", "-d", "-i", "default", "true"), "don't go together"),
        (("run", "--console-socket", "/x", "default", "true"), "add -t"),
        (("run", "-w", "tmp", "default", "true"), "absolute path"),
        (("run", "--security", "seccomp=/nosuch", "default", "true"), "/nosuch can't be read"),
        (("run", "default", "/nosuch"), "exec /nosuch"),
        (("exec", "nosuch", "true"), "no container 'nosuch'"),
    ],
)
def test_bad_input_is_named_and_starts_nothing(bench: ByHand, state: Path, words: tuple[str, ...], said: str) -> None:
    done = bench(*words, status=125)
    assert said in done.stderr
    assert not state.exists() or list(state.iterdir()) == []


# --- in the background -------------------------------------------------------------------------------------------


def test_a_detached_one_lives_on_and_is_followed(bench: ByHand) -> None:
    script = "echo one; until test -e /go; do sleep 0.1; done; sleep 1; echo two >&2; exit 5"
    assert bench("run", "-d", "--name", "d", "default", "sh", "-c", script).stdout == "d\n"
    assert bench.ps()["d"]["status"] == "running"
    assert bench("logs", "d").stdout == "one\n"
    bench("exec", "d", "touch", "/go")
    assert bench("logs", "-f", "d").stdout == "one\ntwo\n"
    assert bench.ps()["d"]["exit_status"] == 5
    bench("rm", "d")


def test_verbs_on_a_running_one(bench: ByHand) -> None:
    bench("run", "-d", "--name", "d", "--memory", "64m", "default", "sleep", "100")
    assert bench("exec", "d", "sh", "-c", "echo out; exit 8", status=8).stdout == "out\n"
    assert bench("exec", "-i", "d", "cat", stdin=b"in").stdout == "in"
    who = ("-u", "7:8", "-w", "/tmp", "-e", "X=y")
    assert bench("exec", *who, "d", "sh", "-c", "id -u; pwd; echo $X").stdout.split() == ["7", "/tmp", "y"]
    assert "exec /nosuch" in bench("exec", "d", "/nosuch", status=125).stderr
    assert json.loads(bench("stats", "--json", "d").stdout)[0]["stats"]["pids"] == 1
    bench("pause", "d")
    assert bench.ps()["d"]["status"] == "paused"
    assert "is paused" in bench("exec", "d", "true", status=125).stderr
    bench("resume", "d")
    assert "is running" in bench("rm", "d", status=2).stderr
    assert "no signal" in bench("kill", "-s", "NOSUCH", "d", status=2).stderr
    bench("kill", "d")
    bench.until(lambda: bench.ps()["d"]["status"] == "exited")
    assert bench.ps()["d"]["exit_status"] == 137
    assert "exited" in bench("exec", "d", "true", status=125).stderr
    assert "does not run" in bench("kill", "d", status=2).stderr


def test_one_command_in_its_groups_counts_against_its_limits(bench: ByHand) -> None:
    bench("run", "-d", "--name", "d", "--pids-limit", "3", "default", "sleep", "100")
    script = "sleep 1 & sleep 1 & sleep 1 & wait"
    assert "fork" in bench("exec", "d", "sh", "-c", script, status=None).stderr


def test_what_was_committed_runs(bench: ByHand) -> None:
    bench("run", "-d", "--name", "c", "default", "sh", "-c", "echo made > /made; rm /bin/payload-touch; sleep 100")
    bench.until(lambda: bench("exec", "c", "cat", "/made", status=None).stdout == "made\n")
    digest = bench("commit", "c", "made:1").stdout.strip()
    assert digest.startswith("sha256:")
    assert bench.ps()["c"]["status"] == "running", "not paused any more"
    done = bench("run", "--rm", "made:1", "sh", "-c", "cat /made; ls /bin/payload-touch", status=1)
    assert done.stdout == "made\n"
    bench("rm", "-f", "c")


def test_a_killed_monitor_leaves_a_dead_one_that_rm_removes(bench: ByHand) -> None:
    bench("run", "-d", "--name", "k", "--network", "bridge", "--memory", "64m", "default", "sleep", "100")
    (record,) = Records(bench.state).all()
    os.kill(record.monitor, signal.SIGKILL)
    bench.until(lambda: bench.ps()["k"]["status"] == "dead")
    assert any("cgroup" in trace for trace in traces(record.run)), "there is something to remove"
    assert "k" in bench("run", "--name", "k", "default", "true", status=125).stderr
    bench("rm", "-f", "k")
    assert traces(record.run) == []
    assert list(bench.state.iterdir()) == []


def test_one_that_was_paused_when_its_monitor_was_killed_is_removed_too(bench: ByHand) -> None:
    bench("run", "-d", "--name", "k", "default", "sleep", "100")
    (record,) = Records(bench.state).all()
    bench("pause", "k")
    os.kill(record.monitor, signal.SIGKILL)
    bench.until(lambda: bench.ps()["k"]["status"] == "dead")
    frozen = f"process {record.pid}" in traces(record.run)
    assert frozen == bool(layout().v1), "what v1 has frozen does not die; what v2 has, does"
    assert f"removed {f'process pid {record.pid}' if frozen else 'cgroup'}" in bench("rm", "-f", "k").stderr
    assert traces(record.run) == []


def test_clean_takes_the_dead_and_leaves_the_living_and_the_ended(bench: ByHand) -> None:
    for name in ("dead", "alive"):
        bench("run", "-d", "--name", name, "--network", "bridge", "default", "sleep", "100")
    bench("run", "--name", "ended", "default", "true")
    records = Records(bench.state)
    dead = records.find("dead")
    os.kill(dead.monitor, signal.SIGKILL)
    bench.until(lambda: bench.ps()["dead"]["status"] == "dead")
    argv = [*bench.argv("ps")[:3], "clean"]
    done = subprocess.run(argv, env=bench.env, capture_output=True, text=True, timeout=60, check=True)
    assert "left alone" in done.stdout
    assert traces(dead.run) == []
    found = {name: one["status"] for name, one in bench.ps().items()}
    assert found == {"alive": "running", "ended": "exited"}
    bench("exec", "alive", "true")


def test_signals_to_the_command_reach_the_payload(bench: ByHand) -> None:
    script = "trap 'exit 33' TERM; echo up; while :; do sleep 0.05; done"
    argv = bench.argv("run", "--name", "s", "default", "sh", "-c", script)
    with subprocess.Popen(argv, env=bench.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        bench.note(f"bench-{Records(bench.state).find('s').run[-6:]}/")
        child.terminate()
        assert child.wait(10) == 33


# --- terminals ---------------------------------------------------------------------------------------------------


def test_a_terminal(bench: ByHand) -> None:
    user = Terminal(bench.argv("run", "--rm", "--name", "t", "-t", "-i", "default", "sh"), bench.env)
    user.expect("# ")
    user.type("tty; stty size; echo on the con''sole > /dev/console\n")
    user.expect("/dev/pts/0")
    user.expect("30 100")
    user.expect("on the console")
    user.resize(40, 120)
    time.sleep(0.3)
    user.type("stty size; echo $TERM-\n")
    user.expect("40 120")
    user.expect("xterm-")
    user.type("sleep 50\n")
    time.sleep(0.5)
    user.type("\x03")
    user.type("echo status $?\n")
    user.expect("status 130")
    user.type("exit 21\n")
    assert user.status() == 21


def test_a_terminal_of_a_command_inside(bench: ByHand) -> None:
    bench("run", "-d", "--name", "t", "default", "sleep", "100")
    user = Terminal(bench.argv("exec", "-t", "-i", "t", "sh"), bench.env, 25, 90)
    user.expect("# ")
    user.type("tty; stty size; sleep 50\n")
    user.expect("/dev/pts/0")
    user.expect("25 90")
    time.sleep(0.5)
    user.type("\x03")
    user.type("echo status $?\n")
    user.expect("status 130")
    user.type("exit 22\n")
    assert user.status() == 22


def test_a_terminal_under_init_has_job_control(bench: ByHand) -> None:
    user = Terminal(bench.argv("run", "--rm", "-t", "-i", "--init", "default", "sh"), bench.env)
    user.expect("# ")
    user.type("sleep 50\n")
    time.sleep(0.5)
    user.type("\x1a")
    user.expect("Stopped")
    user.type("kill -9 %1; wait; exit 23\nexit 23\n")
    assert user.status() == 23


def test_the_console_socket_gets_the_master(bench: ByHand, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        bench("run", "-d", "-t", "--name", "c", "--console-socket", path, "default", "sh")
        link, _ = server.accept()
        with link:
            _, ancillary, _, _ = link.recvmsg(100, socket.CMSG_SPACE(4))
    (master,) = array.array("i", ancillary[0][2])
    os.write(master, b"echo he''llo; exit 3\n")
    said = b""
    while b"hello" not in said:
        said += os.read(master, 1000)
    os.close(master)
    bench.until(lambda: bench.ps()["c"]["status"] == "exited")
    refused = bench("run", "-t", "--console-socket", str(tmp_path / "none"), "default", "sh", status=125)
    assert "--console-socket" in refused.stderr
