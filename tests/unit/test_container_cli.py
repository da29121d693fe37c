"""Containers by hand, as far as no container is needed: options, names, users, records, and who passes what to whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bench.cli import cli
from bench.container import adjust, control, monitor, rootless
from bench.container.adjust import Options, adjusted
from bench.container.bundle import user_of
from bench.container.groups import Groups
from bench.container.idmaps import write_maps
from bench.container.monitor import Relay
from bench.container.recipe import Kitchen, describe, recipe
from bench.container.spec import default_spec
from bench.container.spec_records import Cpu, Hook, Hooks, IdMapping, Memory, Mount, Pids, Rlimit, User
from bench.container.state import NameTaken, Record, Records, UnknownContainer, check_name, new_run, registered
from bench.errors import BenchError, ConfigError, HostError, LaunchError, UsageError
from bench.linux.births import born, open_process
from bench.verbs.registry import entries

SPEC = default_spec(["/bin/sh"], root="root", env=["PATH=/bin", "A=1"])
NO_GROUPS = Groups({}, {}, False)


# --- options -----------------------------------------------------------------------------------------------------


def test_options_become_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "passed")
    options = Options(
        argv=("/bin/true",), env=("A=2", "OURS", "NOT_SET"), workdir="/tmp", user=User(1, 2), terminal=True,
        volumes=("/etc:/host:ro",), tmpfs=("/scratch:size=1m",), memory="64m", memory_swap="-1", cpus=0.5,
        cpu_shares=512, cpuset_cpus="0", pids_limit=7, read_only=True, no_new_privileges=True, hostname="h",
        ulimits=("nofile=10:unlimited", "core=0"), sysctls=("net.ipv4.ip_forward=1",), security=("seccomp=unconfined",),
        userns=("0:100000:65536",),
    )  # fmt: skip
    made = adjusted(SPEC, options)
    process, resources = made.process, made.linux.resources
    assert (process.args, process.cwd, process.user, process.terminal) == (("/bin/true",), "/tmp", User(1, 2), True)
    assert process.env == ("PATH=/bin", "A=2", "OURS=passed")
    assert process.rlimits == (Rlimit("RLIMIT_NOFILE", 10, (1 << 64) - 1), Rlimit("RLIMIT_CORE", 0, 0))
    assert made.mounts[-2:] == (
        Mount("/host", "bind", "/etc", ("rbind", "ro")),
        Mount("/scratch", "tmpfs", "tmpfs", ("nosuid", "nodev", "noexec", "size=1m")),
    )
    assert resources.memory == Memory(64 << 20, None, -1)
    assert resources.cpu == Cpu(512, 50_000, 100_000, "0")
    assert resources.pids == Pids(7)
    assert made.root.readonly
    assert made.linux.seccomp is None
    assert made.linux.sysctl["net.ipv4.ip_forward"] == "1"
    assert made.linux.uid_mappings == made.linux.gid_mappings == (IdMapping(0, 100_000, 65_536),)


def test_no_options_change_nothing() -> None:
    assert adjusted(SPEC, Options()) == SPEC


def test_capabilities_are_dropped_first_and_then_added() -> None:
    made = adjusted(SPEC, Options(cap_drop=("all",), cap_add=("NET_ADMIN", "cap_chown"))).process.capabilities
    assert set(made.effective) == set(made.bounding) == {"CAP_NET_ADMIN", "CAP_CHOWN"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"volumes": ("/a",)}, "-v /a"),
        ({"volumes": ("/a:b",)}, "-v /a:b"),
        ({"volumes": ("/a:/b:fast",)}, "no option 'fast'"),
        ({"volumes": ("/a:/b/../c",)}, "no place to mount on"),
        ({"volumes": ("/a:/",)}, "no place to mount on"),
        ({"tmpfs": ("x",)}, "--tmpfs x"),
        ({"memory": "1x"}, "--memory 1x"),
        ({"memory": "-2"}, "--memory -2"),
        ({"cpus": 0.0}, "--cpus 0"),
        ({"cpus": float("nan")}, "--cpus nan"),
        ({"cap_add": ("FLY",)}, "--cap-add FLY"),
        ({"ulimits": ("nofile",)}, "--ulimit nofile"),
        ({"ulimits": ("files=1",)}, "--ulimit files=1"),
        ({"ulimits": ("nofile=x",)}, "'x' is no number"),
        ({"sysctls": ("kernel.panic=1",)}, "kernel.panic"),
        ({"sysctls": ("net.ipv4",)}, "--sysctl net.ipv4"),
        ({"security": ("apparmor=x",)}, "--security apparmor=x"),
        ({"security": ("seccomp=/nosuch",)}, "/nosuch can't be read"),
        ({"userns": ("0:0",)}, "--userns 0:0"),
        ({"userns": ("0:100000:0",)}, "--userns 0:100000:0"),
        ({"env": ("=x",)}, "-e '=x'"),
        ({"workdir": "tmp"}, "absolute"),
        ({"hostname": "x" * 65}, "hostname"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        adjusted(SPEC, Options(**options))
    assert said in caught.value.message


@given(st.text())
def test_any_text_is_a_volume_or_refused(text: str) -> None:
    try:
        made = adjust.volume(text)
    except UsageError:
        return
    assert made.destination.startswith("/")
    assert ".." not in made.destination.split("/")
    assert os.path.isabs(made.source)


@given(st.text(max_size=70))
def test_a_name_is_a_path_of_one_safe_word(text: str) -> None:
    try:
        name = check_name(text)
    except UsageError:
        return
    assert os.path.basename(name) == name not in ("", ".", "..")
    assert name.isascii()
    assert not name.startswith("-")


@pytest.mark.parametrize("text", ["TERM", "term", "SIGTERM", "15"])
def test_signals_have_names(text: str) -> None:
    assert control.signal_number(text) == signal.SIGTERM
    for wrong in ("NOSUCH", "0", "-1", "999", ""):
        with pytest.raises(UsageError):
            control.signal_number(wrong)


def test_the_default_is_said_in_help() -> None:
    for words in (["container"], *(["container", name] for name in cli.commands["container"].commands)):  # type: ignore[attr-defined]
        done = CliRunner().invoke(cli, [*words, "--help"])
        assert done.exit_code == 0
        assert "Exit codes:" in done.output


def test_the_command_line_loads_only_what_it_needs() -> None:
    code = "import sys, bench.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"msgspec", "bench.container", "bench.images", "termios"} & set(done.stdout.split())


# --- users of an image -------------------------------------------------------------------------------------------


@pytest.fixture
def trees(tmp_path: Path) -> list[Path]:
    for number in (0, 1):
        (tmp_path / str(number) / "etc").mkdir(parents=True)
    (tmp_path / "0/etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/srv:/bin/sh\nbroken\nx:x:y:z:::\n"
    )
    (tmp_path / "0/etc/group").write_text("root:x:0:\nweb:x:34:\nlog:x:50:other,web\n")
    return [tmp_path / "0", tmp_path / "1"]


def test_users_by_name_and_number(trees: list[Path]) -> None:
    assert user_of(trees, "") == user_of(trees, "root") == User(0, 0)
    assert user_of(trees, "web") == user_of(trees, "33") == User(33, 34, additional_gids=(50,))
    assert user_of(trees, "web:log") == User(33, 50)
    assert user_of(trees, "7:8") == User(7, 8)
    for wrong in ("nosuch", "web:nosuch", "x", "-1"):
        with pytest.raises(UsageError, match="no "):
            user_of(trees, wrong)


def test_the_topmost_layer_counts_and_its_links_are_not_followed(trees: list[Path]) -> None:
    (trees[1] / "etc/passwd").symlink_to("/etc/passwd")
    assert user_of(trees, "web").uid == 33
    (trees[1] / "etc/passwd").unlink()
    (trees[1] / "etc/passwd").write_text("web:x:99:99::/:\n")
    assert user_of(trees, "web").uid == 99


# --- records -----------------------------------------------------------------------------------------------------


def record_in(records: Records, name: str, **changes: Any) -> Record:
    made = Record(run=new_run(0), number=1, name=name, created=1, monitor=1, spec=SPEC, groups=NO_GROUPS, **changes)
    records.folder(made).mkdir(parents=True)
    return records.write(made)


def test_records_are_found_by_name_and_id(tmp_path: Path) -> None:
    records = Records(tmp_path)
    made = record_in(records, "web")
    assert records.find("web") == records.find(made.id) == made
    with pytest.raises(UnknownContainer, match="there are: web"):
        records.find("nosuch")
    with pytest.raises(NameTaken), records.naming("web"):
        pass
    records.drop(made)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_record_is_left_out(tmp_path: Path) -> None:
    records = Records(tmp_path)
    made = record_in(records, "web")
    path = records.folder(made) / "record.json"
    path.write_bytes(path.read_bytes()[:-20])
    assert records.all() == []


def test_clean_knows_a_runtime_while_it_lives_and_not_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_STATE", str(tmp_path))
    run, records = new_run(0), Records(tmp_path)
    with registered(tmp_path, run):
        assert [entry.run for entry in entries()] == [run]
        made = Record(run=run, number=1, name="x", created=1, monitor=1, spec=SPEC, groups=NO_GROUPS)
        records.folder(made).mkdir()
        records.write(made)
        assert records.attended(made)
    assert entries() == []
    assert not records.attended(made)
    assert control.status(records, made) == "dead"
    assert control.status(records, replace(made, status="exited", exit_status=0)) == "exited"


def test_a_process_is_its_number_and_its_start() -> None:
    start = born(os.getpid())
    assert start is not None
    os.close(open_process(os.getpid(), start))
    with pytest.raises(ProcessLookupError):
        open_process(os.getpid(), start + 1)


# --- an ordinary user --------------------------------------------------------------------------------------------


def test_ranges_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/subuid").write_text("other:1:2\nbroken\nroot:100000:65536\n")
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert rootless.id_maps(0, tmp_path) == ((IdMapping(0, 0, 1),), (IdMapping(0, os.getgid(), 1),))
    (tmp_path / "etc/subgid").write_text("0:200000:65536\n")
    users, groups = rootless.id_maps(0, tmp_path)
    assert users == (IdMapping(0, 0, 1), IdMapping(1, 100_000, 65_536))
    assert groups[1:] == (IdMapping(1, 200_000, 65_536),)


def test_limits_are_refused_where_nothing_enforces_them() -> None:
    with pytest.raises(HostError, match="--memory needs cgroups"):
        rootless.without_root(SPEC, Options(memory="1m").limited)
    assert rootless.without_root(SPEC, None).linux.new("user")


def test_a_map_that_is_refused_names_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(OSError, match="newuidmap"):
        write_maps(0, "0 0 1\n1 100000 2\n", "0 0 1\n")


# --- the set-up --------------------------------------------------------------------------------------------------


def test_what_starts_with_the_payload_comes_after_the_hold() -> None:
    spec = replace(SPEC, hooks=Hooks(start_container=(Hook("/start"),), create_container=(Hook("/create"),)))
    lines = describe(recipe(spec, Kitchen(None, Path("/b"), NO_GROUPS, hold=True, reaper=True)))
    order = [lines.index(line) for line in ("hook /create", "hold", "start hook /start", "reaper")]
    assert order == sorted(order)


def test_a_command_inside_is_hidden_until_it_is_what_it_shall_be() -> None:
    process = replace(SPEC.process, terminal=True)
    names = [
        step[0] for step in recipe(replace(SPEC, process=process), Kitchen(None, Path("/b"), NO_GROUPS))["exec_steps"]
    ]
    assert names.index("hide") < names.index("join_target") < names.index("fork") < names.index("terminal")
    assert names.count("session") == 2


# --- relaying ----------------------------------------------------------------------------------------------------


def test_all_that_was_said_before_the_end_is_copied() -> None:
    said, say = os.pipe()
    kept, keep = os.pipe()
    gone, closed = os.pipe()
    os.close(gone)
    with subprocess.Popen(["true"]) as child:
        pidfd = os.pidfd_open(child.pid)
    os.write(say, b"last words")
    relay = Relay(pidfd, lambda number: None)
    relay.copy(said, closed, keep)
    relay.run()
    assert os.read(kept, 100) == b"last words"
    for fd in (said, say, kept, keep, closed, pidfd):
        os.close(fd)


def test_signals_are_passed_on() -> None:
    got: list[int] = []
    child = subprocess.Popen(["sleep", "10"])
    pidfd = os.pidfd_open(child.pid)

    def passing(number: int) -> None:
        got.append(number)
        child.kill()

    handler = signal.getsignal(signal.SIGUSR1)
    said, say = os.pipe()
    relay = Relay(pidfd, passing)
    helper = subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -USR1 {os.getpid()}"])
    relay.run()
    assert got == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) == handler
    for process in (child, helper):
        process.wait()
    for fd in (pidfd, said, say):
        os.close(fd)


def test_a_monitor_that_fails_first_says_why() -> None:
    heard: list[str] = []

    def work(parent: monitor.Parent) -> None:
        parent.say("trying")
        raise ConfigError("no such thing", hint="another")

    with pytest.raises(LaunchError, match="no such thing") as caught:
        monitor.detach(work, heard.append)
    assert (heard, caught.value.hint) == (["trying"], "another")
    with pytest.raises(BenchError, match="monitor died"):
        monitor.detach(lambda parent: os._exit(3), heard.append)
    assert monitor.detach(lambda parent: parent.ready("web"), heard.append) == "web"
