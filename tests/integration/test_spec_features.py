"""Each field of a spec does what it says, as the kernel tells from inside; what is unsupported is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.container.spec import decode, default_mounts, encode, load
from bench.container.spec_records import (
    Capabilities,
    Device,
    Hook,
    Hooks,
    IdMapping,
    Linux,
    Mount,
    Process,
    Resources,
    Rlimit,
    Seccomp,
    Spec,
    SyscallArg,
    SyscallRule,
    User,
)
from bench.errors import ConfigError, LaunchError
from bench.process import run
from tests.integration.boxes import Boxes, capabilities, changed, namespaces, probe, sh

pytestmark = pytest.mark.root

ALL = ("mount", "network", "uts", "pid", "ipc", "cgroup")
MAPS = (IdMapping(0, 100_000, 65_536),)
MAPPED: dict[str, Any] = {
    "namespaces": namespaces(*ALL, "user"), "uid_mappings": MAPS, "gid_mappings": MAPS, "sysctl": {}
}  # fmt: skip
RUNC = shutil.which("runc", path="/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes.open() as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_left(boxes: Boxes) -> Iterator[None]:
    yield
    assert boxes.instances() == []


def status(boxes: Boxes, **changes: Any) -> dict[str, str]:
    """/proc/self/status of a container's first process."""
    lines = boxes.run(sh("exec cat /proc/self/status", **changes)).lines
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def with_mounts(script: str, *mounts: Mount, **changes: Any) -> Spec:
    return sh(script, mounts=(*default_mounts(), *mounts), **changes)


# --- the process -------------------------------------------------------------------------------------------------


def test_arguments_and_environment_are_given_whole(boxes: Boxes) -> None:
    spec = changed(
        sh(""), args=("/bin/sh", "-c", 'printf "[%s]" "$@"; env', "sh", "a b", "", "*", "é"), env=("A=1=2", "B=")
    )
    told = boxes.run(spec)
    assert told.output.startswith("[a b][][*][é]")
    assert {"A=1=2", "B="} <= set(told.output[len("[a b][][*][é]") :].splitlines())
    assert "BENCH" not in told.output
    assert "PYTHON" not in told.output


def test_a_program_is_looked_up_in_the_path_of_the_spec(boxes: Boxes) -> None:
    assert boxes.run(changed(sh(""), args=("echo", "hi"), env=("PATH=/nowhere:/bin",))).output == "hi\n"
    with pytest.raises(LaunchError, match="exec echo"):
        boxes.run(changed(sh(""), args=("echo", "hi"), env=("PATH=/nowhere",)))


def test_the_working_folder_must_be_there(boxes: Boxes) -> None:
    assert boxes.run(sh("pwd", cwd="/data")).output == "/data\n"
    with pytest.raises(LaunchError, match="working directory /nosuch"):
        boxes.run(sh("pwd", cwd="/nosuch"))


def test_user_groups_and_umask(boxes: Boxes) -> None:
    told = boxes.run(sh("id; umask; touch /tmp/x; stat -c '%a %u %g' /tmp/x", user=User(1000, 1001, 0o27, (7, 8))))
    assert told.lines == ["uid=1000 gid=1001 groups=7,8", "0027", "640 1000 1001"]
    assert boxes.run(sh("id -G; umask")).lines == ["0", "0022"]


def test_five_capability_sets_of_root(boxes: Boxes) -> None:
    sets = Capabilities(
        bounding=("CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"), effective=("CAP_CHOWN",),
        permitted=("CAP_CHOWN", "CAP_KILL"),
        inheritable=("CAP_KILL",), ambient=(),
    )  # fmt: skip
    seen = status(boxes, capabilities=sets)
    assert int(seen["CapBnd"], 16) == 1 << 0 | 1 << 5 | 1 << 13
    assert int(seen["CapInh"], 16) == 1 << 5
    # A program that root starts gets all of the bounding set: that one is the limit.
    assert int(seen["CapEff"], 16) == int(seen["CapPrm"], 16) == int(seen["CapBnd"], 16)
    assert int(seen["CapAmb"], 16) == 0


def test_no_capabilities_at_all(boxes: Boxes) -> None:
    seen = status(boxes, capabilities=Capabilities())
    assert {seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}


def test_capabilities_of_an_ordinary_user_are_the_ambient_ones(boxes: Boxes) -> None:
    user = User(1000, 1000)
    kept = capabilities("NET_RAW", "KILL", inheritable=("NET_RAW",), ambient=("NET_RAW",))
    seen = status(boxes, user=user, capabilities=kept)
    assert {int(seen[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {1 << 13}
    assert int(seen["CapBnd"], 16) == 1 << 13 | 1 << 5
    seen = status(boxes, user=user)
    assert {int(seen[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}


def test_limits_of_the_process(boxes: Boxes) -> None:
    limits = (
        Rlimit("RLIMIT_NOFILE", 100, 200),
        Rlimit("RLIMIT_CORE", 0, 0),
        Rlimit("RLIMIT_STACK", 1 << 20, (1 << 64) - 1),
    )
    told = boxes.run(sh("ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Ss; ulimit -Hs", rlimits=limits))
    assert told.lines == ["100", "200", "0", "1024", "unlimited"]


def test_new_privileges_can_be_given_up(boxes: Boxes) -> None:
    assert status(boxes)["NoNewPrivs"] == "0"
    seen = status(boxes, no_new_privileges=True)
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")


def test_oom_score_adj(boxes: Boxes) -> None:
    script = "cat /proc/self/oom_score_adj"
    assert boxes.run(sh(script, oom_score_adj=700)).output == "700\n"
    ours = Path("/proc/self/oom_score_adj").read_text()
    assert boxes.run(sh(script, oom_score_adj=None)).output == ours
    assert boxes.run(sh(script, **MAPPED), owner=100_000, image=boxes.shifted(100_000)).output == "500\n"


def test_a_program_that_is_not_there_is_named(boxes: Boxes) -> None:
    with pytest.raises(LaunchError, match="exec /bin/nosuch"):
        boxes.run(changed(sh(""), args=("/bin/nosuch",)))


# --- names and namespaces ----------------------------------------------------------------------------------------


def test_host_and_domain_name(boxes: Boxes) -> None:
    told = boxes.run(sh("hostname; cat /proc/sys/kernel/domainname", hostname="inside", domainname="of.it"))
    assert told.lines == ["inside", "of.it"]
    assert os.uname().nodename != "inside"


KINDS = {"mount": "mnt", "network": "net", "uts": "uts", "pid": "pid", "ipc": "ipc", "cgroup": "cgroup"}


def _namespaces(pid: int | str) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{name}") for kind, name in KINDS.items()}


def test_every_namespace_is_new_or_the_hosts_as_asked(boxes: Boxes) -> None:
    ours = _namespaces("self")
    with boxes.running(sh("sleep 100")) as box:
        assert not set(_namespaces(box.pid).items()) & set(ours.items())
    few = sh("sleep 100", namespaces=namespaces("mount"), sysctl={})
    with boxes.running(few) as box:
        theirs = _namespaces(box.pid)
        assert theirs.pop("mount") != ours.pop("mount")
        assert theirs == ours


@pytest.mark.parametrize("kind", ["network", "uts", "pid", "ipc", "cgroup"])
def test_a_namespace_joined_by_its_path(boxes: Boxes, kind: str) -> None:
    with boxes.running(sh("sleep 100")) as box:
        path = f"/proc/{box.pid}/ns/{KINDS[kind]}"
        joined = namespaces(*(one for one in ALL if one != kind), **{kind: path})
        with boxes.running(sh("sleep 100", namespaces=joined, sysctl={})) as other:
            same = {one for one, link in _namespaces(other.pid).items() if link == _namespaces(box.pid)[one]}
            assert same == {kind}


def test_joining_a_mount_namespace_and_what_is_not_there_is_refused(boxes: Boxes) -> None:
    with pytest.raises(ConfigError, match="new mount namespace"):
        decode(encode(sh("true", namespaces=namespaces("pid", mount="/proc/self/ns/mnt"))))
    with pytest.raises(LaunchError, match="join /nosuch"):
        boxes.run(sh("true", namespaces=namespaces("mount", "pid", network="/nosuch"), sysctl={}))
    with pytest.raises(LaunchError, match="join /proc/self/ns/uts"):  # another kind of namespace
        boxes.run(sh("true", namespaces=namespaces("mount", "pid", network="/proc/self/ns/uts"), sysctl={}))


def _mapped(boxes: Boxes, script: str, **changes: Any) -> Any:
    return boxes.running(sh(script, **{**MAPPED, **changes}), owner=100_000, image=boxes.shifted(100_000))


def test_a_user_namespace_maps_ids(boxes: Boxes) -> None:
    with _mapped(
        boxes,
        "id -u; cat /proc/self/uid_map; touch /tmp/made; stat -c %u /tmp/made; echo up; sleep 100",
    ) as box:
        box.wait_for("up")
        said = box.said.split()
        assert said[:5] == ["0", "0", "100000", "65536", "0"]
        assert (box.folder / "upper/tmp/made").stat().st_uid == 100_000
        assert os.stat(f"/proc/{box.pid}").st_uid == 100_000
        assert os.readlink(f"/proc/{box.pid}/ns/user") != os.readlink("/proc/self/ns/user")
        assert box.exec("/bin/id", "-u").stdout == "0\n"
        assert box.exec("/bin/sh", "-c", "echo > /dev/null && head -c 3 /dev/zero | wc -c").stdout.strip() == "3"


def test_an_ordinary_user_in_a_user_namespace(boxes: Boxes) -> None:
    with _mapped(boxes, "id; sleep 100", user=User(5, 6, None, (7,))) as box:
        box.wait_for("uid=5 gid=6 groups=7")
        assert os.stat(f"/proc/{box.pid}").st_uid == 100_005


def test_a_user_namespace_can_be_joined(boxes: Boxes) -> None:
    with _mapped(boxes, "sleep 100") as box:
        paths = {
            kind: f"/proc/{box.pid}/ns/{name}" for kind, name in {**KINDS, "user": "user"}.items() if kind != "mount"
        }
        spec = sh("id -u; touch /tmp/made; echo up; sleep 100", namespaces=namespaces("mount", **paths), sysctl={})
        with boxes.running(spec, owner=100_000, image=boxes.shifted(100_000)) as other:
            other.wait_for("up")
            assert other.said.split()[0] == "0"
            assert (other.folder / "upper/tmp/made").stat().st_uid == 100_000


def test_a_device_of_a_user_namespace_must_be_the_hosts(boxes: Boxes) -> None:
    for device in (Device("c", "/dev/nosuch", 1, 3), Device("b", "/dev/loop0", 7, 1), Device("c", "/dev/full", 1, 8)):
        with (
            pytest.raises(ConfigError, match=f"linux.devices: {device.path}"),
            _mapped(boxes, "true", devices=(device,)),
        ):
            pass


# --- devices, groups, filters, sysctls -----------------------------------------------------------------------------


def test_devices_are_made_as_asked(boxes: Boxes) -> None:
    devices = (
        Device("c", "/dev/deep/null", 1, 3, 0o640, 7, 8), Device("b", "/dev/disk", 7, 0, 0o600),
        Device("p", "/dev/pipe", file_mode=0o622, uid=5), Device("u", "/dev/zero", 1, 5, 0o444),
    )  # fmt: skip
    script = """
    stat -c '%n %A %u:%g %t:%T' /dev/deep/null /dev/disk /dev/pipe /dev/zero /dev/null
    echo x > /dev/deep/null && echo wrote; cat /dev/disk
    """
    told = boxes.run(sh(script, devices=devices))
    assert told.lines[:6] == [
        "/dev/deep/null crw-r----- 7:8 1:3", "/dev/disk brw------- 0:0 7:0", "/dev/pipe prw--w--w- 5:0 0:0",
        "/dev/zero cr--r--r-- 0:0 1:5", "/dev/null crw-rw-rw- 0:0 1:3", "wrote",
    ]  # fmt: skip
    assert "Operation not permitted" in told.lines[6]  # made, but no rule lets it be opened


def test_links_in_dev(boxes: Boxes) -> None:
    told = boxes.run(sh("for one in fd stdin stdout stderr ptmx; do readlink /dev/$one; done"))
    assert told.lines == ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"]


def rules(*denied: tuple[str, dict[str, Any]], action: str = "SCMP_ACT_ERRNO") -> Seccomp:
    made = tuple(SyscallRule((name,), action, **more) for name, more in denied)  # type: ignore[arg-type]
    return Seccomp("SCMP_ACT_ALLOW", architectures=("SCMP_ARCH_X86_64",), syscalls=made)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"no_new_privileges": True},
        {"user": User(1000, 1000)},
        {"user": User(1000, 1000), "no_new_privileges": True},
    ],
    ids=str,
)
def test_a_filter_answers_as_told(boxes: Boxes, changes: dict[str, Any]) -> None:
    getppid, getpgid = 110, 121
    with_errno = rules(("getppid", {"errno_ret": 77}), ("getpgid", {"args": (SyscallArg(0, 5, "SCMP_CMP_EQ"),)}))

    def answer(*words: int) -> str:
        return boxes.run(probe("call", *words, seccomp=with_errno, **changes)).output

    assert answer(getppid) == "errno 77\n"
    assert answer(getpgid, 5) == "errno 1\n"
    assert answer(getpgid, 0).startswith("ok")
    killing = rules(("getppid", {}), action="SCMP_ACT_KILL_PROCESS")
    assert boxes.run(probe("call", getppid, seccomp=killing, **changes)).status == 128 + 31  # SIGSYS
    assert boxes.run(probe("call", getppid, seccomp=None, **changes)).output == "ok 0\n"


def test_sysctls_of_its_own_namespaces(boxes: Boxes) -> None:
    wanted = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "1234", "net.ipv4.conf.lo.forwarding": "1"}
    told = boxes.run(
        sh(
            "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/net/ipv4/conf/lo/forwarding",
            sysctl=wanted,
        )
    )
    assert told.lines == ["1", "1234", "1"]
    assert Path("/proc/sys/kernel/msgmax").read_text() != "1234\n"
    with pytest.raises(LaunchError, match="sysctl net/ipv4/nosuch"):
        boxes.run(sh("true", sysctl={"net.ipv4.nosuch": "1"}))


# --- hooks -------------------------------------------------------------------------------------------------------


def hook(path: Path, script: str, timeout: int | None = None) -> Hook:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Hook(str(path), ("hook", "one"), ("SAID=x",), timeout)


def test_hooks_run_where_and_when_they_should(boxes: Boxes, tmp_path: Path) -> None:
    log = tmp_path / "log"
    tell = f'{{ echo "$0 $1 $SAID"; hostname; readlink /proc/self/ns/mnt; cat; echo; }} >> {log}'
    runtime, create = hook(tmp_path / "runtime", tell), hook(tmp_path / "create", tell)
    start = Hook("/bin/sh", ("sh", "-c", "{ readlink /proc/self/ns/mnt; cat; echo; } > /tmp/hooked"))
    spec = sh(
        "cat /tmp/hooked; readlink /proc/self/ns/mnt",
        hostname="inside",
        hooks=Hooks(create_runtime=(runtime,), create_container=(create,), start_container=(start,)),
    )
    told = boxes.run(spec)
    lines = log.read_text().splitlines()
    assert len(lines) == 8
    assert (lines[0], lines[4]) == (f"{runtime.path} one x", f"{create.path} one x")
    by_namespace = {lines[at + 2]: json.loads(lines[at + 3]) for at in (0, 4)}
    host = os.readlink("/proc/self/ns/mnt")
    assert by_namespace.pop(host)["status"] == "creating"
    [(inside, state)] = by_namespace.items()
    assert state["status"] == "creating"
    assert (told.lines[0], told.lines[-1]) == (inside, inside)
    assert json.loads(told.lines[1])["status"] == "created"


@pytest.mark.parametrize("kind", ["create_runtime", "create_container", "prestart"])
def test_a_hook_that_fails_or_hangs_ends_it_all(boxes: Boxes, tmp_path: Path, kind: str) -> None:
    ran = tmp_path / "ran"
    mount = Mount("/data", "bind", str(tmp_path), ("bind",))
    for script, timeout, said in (("exit 3", None, "status 3"), ("sleep 100", 1, "longer than 1 s")):
        spec = with_mounts(
            "touch /data/ran", mount, hooks=Hooks(**{kind: (hook(tmp_path / "failing", script, timeout),)})
        )
        with pytest.raises(LaunchError, match=f"failing.*{said}"):
            boxes.run(spec)
        assert not ran.exists()


def test_a_failing_start_hook_is_named(boxes: Boxes) -> None:
    with pytest.raises(LaunchError, match=r"/bin/false.*status 1"):
        boxes.run(sh("true", hooks=Hooks(start_container=(Hook("/bin/false"),))))


def test_a_start_hook_gets_nothing_of_the_hosts(boxes: Boxes) -> None:
    """It is a program of the image: no descriptors but the container's own, no more rights than the container."""
    say = "ls -l /proc/self/fd > /tmp/fds; grep -E 'CapEff|Seccomp:' /proc/self/status >> /tmp/fds"
    told = boxes.run(sh("cat /tmp/fds", hooks=Hooks(start_container=(Hook("/bin/sh", ("sh", "-c", say)),))))
    assert "CapEff:\t00000000a80425fb" in told.output
    links = [line.split("-> ")[1] for line in told.lines if "-> " in line]
    assert links
    assert not [link for link in links if link.startswith("/") and link not in ("/tmp/fds", "/dev/null")], links


# --- bundles -----------------------------------------------------------------------------------------------------


def bundle(boxes: Boxes, folder: Path, spec: Spec) -> Path:
    folder.mkdir()
    shutil.copytree(boxes.image, folder / "root", symlinks=True)
    (folder / "config.json").write_bytes(encode(spec))
    return folder


SCRIPT = """
id; pwd; hostname; umask; ulimit -n; cat /proc/self/oom_score_adj
grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status
cut -d' ' -f2-4 /proc/self/mounts | sort
stat -c '%n %A %t:%T' /dev/* | sort
cat /etc/image > /etc/copy && cat /etc/copy; echo x > /data/x; echo $?
mknod /tmp/disk b 7 0; cat /tmp/disk; ls /proc/self/fd
cat /proc/keys; cat /proc/sys/net/ipv4/ip_unprivileged_port_start
"""


def _bundled(name: str) -> Spec:
    return sh(
        SCRIPT, hostname="bundled", user=User(0, 0, 0o27, (7,)), cwd="/tmp", cgroups_path=name,
        rlimits=(Rlimit("RLIMIT_NOFILE", 100, 200),), readonly_paths=(*sh("").linux.readonly_paths, "/data"),
    )  # fmt: skip


def test_a_bundle_runs_in_its_own_root(boxes: Boxes, tmp_path: Path) -> None:
    folder = bundle(boxes, tmp_path / "bundle", _bundled(""))
    told = boxes.run(load(folder), bundle=folder)
    assert told.lines[:6] == ["uid=0(root) gid=0 groups=7", "/tmp", "bundled", "0027", "100", "500"]
    assert (folder / "root/etc/copy").read_text() == "of the image\n"


@pytest.mark.skipif(RUNC is None, reason="no runc; remedy: apt-get install --no-install-recommends runc")
def test_runc_answers_the_same_for_the_same_bundle(boxes: Boxes, tmp_path: Path) -> None:
    name = f"bench-features-{os.getpid()}"
    folder = bundle(boxes, tmp_path / "bundle", _bundled(f"/{name}"))
    ours = boxes.run(load(folder), bundle=folder)
    shutil.rmtree(folder / "root")
    shutil.copytree(boxes.image, folder / "root", symlinks=True)
    said = run([str(RUNC), "--root", tmp_path / "state", "run", "--bundle", folder, name], timeout=60, check=False)
    theirs = said.stdout.splitlines() + said.stderr.splitlines()
    assert sorted(_comparable(ours.lines)) == sorted(_comparable(theirs))


def _comparable(lines: list[str]) -> list[str]:
    """Without what has no meaning: atime options, the fourth descriptor, which is ls's own."""
    return [line.replace(",relatime", "").replace(",size=0k", "") for line in lines if "/proc/self/fd" not in line]


def test_a_runc_template_runs(boxes: Boxes, tmp_path: Path) -> None:
    """Its device rules refuse all: the usual devices are to work all the same."""
    if RUNC is None:
        pytest.skip("no runc; remedy: apt-get install --no-install-recommends runc")
    run([RUNC, "spec", "--bundle", tmp_path], timeout=20)
    document = json.loads((tmp_path / "config.json").read_bytes())
    document["process"] |= {
        "terminal": False,
        "args": ["/bin/sh", "-c", "echo x > /dev/null && head -c 2 /dev/zero | wc -c; mknod /tmp/d b 7 0"],
    }
    document["root"] = {"path": "root", "readonly": False}
    (tmp_path / "config.json").write_text(json.dumps(document))
    shutil.copytree(boxes.image, tmp_path / "root", symlinks=True)
    assert boxes.run(load(tmp_path), bundle=tmp_path).lines[0] == "2"


# --- never ignored -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("process.apparmorProfile", "p"), ("process.selinuxLabel", "l"),
        ("process.scheduler", {"policy": "SCHED_FIFO"}),
        ("process.ioPriority", {}), ("process.execCPUAffinity", {}), ("linux.mountLabel", "l"), ("linux.intelRdt", {}),
        ("linux.personality", {"domain": "LINUX32"}), ("linux.timeOffsets", {}), ("linux.netDevices", {}),
        ("linux.resources.hugepageLimits", []), ("linux.resources.network", {}), ("linux.resources.rdma", {}),
        ("linux.resources.unified", {}), ("linux.resources.memory", {"kernel": 1}),
        ("linux.resources.memory", {"disableOOMKiller": True}),
        ("linux.resources.cpu", {"realtimeRuntime": 1}), ("linux.resources.blockIO", {"throttleReadBpsDevice": []}),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_NOTIFY"}),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/x"}),
        ("linux.namespaces", [{"type": "mount"}, {"type": "time"}]), ("linux.sysctl", {"vm.swappiness": "1"}),
        ("solaris", {}), ("vm", {}),
        ("mounts", [{"destination": "/x", "type": "bind", "source": "/", "options": ["bind", "idmap"]}]),
    ],
)  # fmt: skip
def test_what_is_unsupported_is_refused_by_name(key: str, value: object) -> None:
    document = json.loads(encode(sh("true")))
    at = document
    *folders, name = key.split(".")
    for folder in folders:
        at = at.setdefault(folder, {})
    at[name] = value
    with pytest.raises(ConfigError) as caught:
        decode(json.dumps(document).encode())
    assert folders == [] or folders[-1] in caught.value.message or name in caught.value.message
    assert name in caught.value.message


def test_every_field_of_a_spec_is_exercised() -> None:
    """A field added to the records has to be added to these tests."""
    text = "".join(
        Path(__file__).with_name(f"test_{name}.py").read_text() for name in ("spec_features", "spec_mounts", "limits")
    )
    elsewhere = {
        "terminal",
        "console_size",
        "annotations",
        "oci_version",
        "apparmor_profile",
        "selinux_label",
        "mount_label",
        "poststart",
        "poststop",
    }
    for record in (Spec, Process, Linux, Resources, Hooks):
        for name in record.__struct_fields__:
            assert name in text or name in elsewhere, f"{record.__name__}.{name}"


@pytest.mark.parametrize("changes", [{}, {"no_new_privileges": True}], ids=str)
def test_a_set_up_that_its_own_filter_kills_is_told_from_a_payload_that_dies(
    boxes: Boxes, changes: dict[str, Any]
) -> None:
    call = "execve" if changes else "capset"
    killing = rules((call, {}), action="SCMP_ACT_KILL_PROCESS")
    with pytest.raises(LaunchError, match="killed by signal 31 before it was the payload: its seccomp filter"):
        boxes.run(sh("true", seccomp=killing, **changes))
    late = rules(("getppid", {}), action="SCMP_ACT_KILL_PROCESS")
    assert boxes.run(probe("call", 110, seccomp=late, **changes)).status == 128 + 31, "control: it was started"


def test_a_child_that_is_killed_while_it_borrows_takes_the_launcher_along_and_all_it_launched() -> None:
    """What `container.borrow` keeps from happening: here it is made to."""
    killing = rules(("capset", {}), action="SCMP_ACT_KILL_PROCESS")
    died = pytest.raises(LaunchError, match="the launcher died")
    with Boxes.open() as mine, died, mine.running(sh("sleep 100")) as other:
        mine.run(sh("true", seccomp=killing), tamper=lambda fields: fields.update(borrows=True))
    stat = Path(f"/proc/{other.pid}/stat")
    assert not stat.exists() or ") Z " in stat.read_text(), "a zombie is for whoever adopted it to reap"
