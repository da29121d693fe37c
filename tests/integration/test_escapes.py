"""Attacks from inside the default container. Each has a control: without the boundary the same attack gets through."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.container.groups import layout
from bench.container.spec import default_mounts
from bench.container.spec_records import Capabilities, DeviceRule, Mount, Resources, User
from bench.errors import BenchError, LaunchError
from bench.process import run, spawn
from tests.integration.boxes import (
    ALL_CAPABILITIES,
    PROBE,
    Boxes,
    changed,
    hostile,
    namespaces,
    probe,
    sh,
    state,
    trusted,
)

pytestmark = pytest.mark.root

ALL_DEVICES = Resources(devices=(DeviceRule(True, "rwm"),))


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes.open() as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_left(boxes: Boxes) -> Iterator[None]:
    yield
    assert boxes.instances() == []


@pytest.fixture
def canary(boxes: Boxes) -> Iterator[Path]:
    """A folder of the host's with one file; nobody inside may see or change it."""
    folder = boxes.folder / "canary"
    folder.mkdir()
    (folder / "file").write_text("of the host\n")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def bare(boxes: Boxes, *words: object) -> str:
    """The same probe as a process of the host, in a mount namespace of its own."""
    argv = ["unshare", "--mount", str(boxes.image / "bin/probe"), *map(str, words)]
    return run(argv, timeout=30, check=False).stdout.strip()


def without(*names: str) -> Any:
    """A recipe without these steps."""

    def tamper(fields: dict[str, Any]) -> None:
        for kind in ("steps", "exec_steps"):
            fields[kind] = [step for step in fields[kind] if step[0] not in names]

    return tamper


# --- the launcher's program, descriptors, folders, environment ------------------------------------------------------


def test_nothing_of_the_launcher_is_inherited(boxes: Boxes) -> None:
    script = "ls -l /proc/self/fd; readlink /proc/1/exe /proc/1/cwd; tr '\\0' '\\n' < /proc/1/environ"
    with boxes.running(sh("echo up; sleep 100; true", env=("ONLY=this", "PATH=/bin"))) as box:
        box.wait_for("up")
        fds = {os.readlink(f"/proc/{box.pid}/fd/{fd}").partition(":")[0] for fd in os.listdir(f"/proc/{box.pid}/fd")}
        assert fds == {"/dev/null", "pipe"}
        assert len(os.listdir(f"/proc/{box.pid}/fd")) == 3
        assert Path(f"/proc/{box.pid}/environ").read_bytes() == b"ONLY=this\0PATH=/bin\0"
        said = box.exec("/bin/sh", "-c", script)
        links = [line.split("-> ")[1] for line in said.stdout.splitlines() if "-> " in line]
        assert [link.partition(":")[0] for link in links] == ["/dev/null", "pipe", "pipe"]
        assert "BENCH" not in said.stdout


def test_standard_input_is_not_the_hosts_null_device(boxes: Boxes) -> None:
    """Of that one root could change mode and owner for everyone, through the descriptor."""
    node = os.stat("/dev/null")

    def same(pid: int) -> bool:
        found = os.stat(f"/proc/{pid}/fd/0")
        return (found.st_dev, found.st_ino) == (node.st_dev, node.st_ino)

    with boxes.running(sh("echo up; sleep 100")) as box:
        box.wait_for("up")
        assert not same(box.pid)
        theirs = box.exec("/bin/stat", "-L", "-c", "%d:%i", "/proc/self/fd/0", "/dev/null").stdout.split()
        assert theirs[0] == theirs[1] != f"{node.st_dev}:{node.st_ino}"
    with boxes.running(sh("echo up; sleep 100"), tamper=without("own_null")) as box:
        box.wait_for("up")
        assert same(box.pid)


def test_an_exec_does_not_open_a_fifo_in_place_of_the_null_device(boxes: Boxes) -> None:
    script = "rm /dev/null; mkfifo /dev/null; echo up; sleep 100 0</dev/zero"
    with boxes.running(sh(script)) as box:
        box.wait_for("up")
        with pytest.raises(LaunchError, match="not the null device"):
            box.exec("/bin/true")


def _watched(boxes: Boxes, *argv: str, **where: Any) -> list[str]:
    """What a container's program reached of 30 processes joining it."""
    with boxes.running(probe("watch", 1500, "w"), **where) as box:
        for _ in range(30):
            box.exec(*argv)
        return box.finish().lines


def test_who_joins_by_exec_can_not_be_reached_from_inside(boxes: Boxes) -> None:
    """/proc/PID/exe is the host's Python until exec: written to, it would run on the host with all rights."""
    before = hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest()
    safe = _watched(boxes, "/bin/true")
    assert "reached 0 written 0" in safe[-1]
    assert int(safe[-1].split()[1]) > 0, "it saw nobody at all"
    assert any("python" in line for line in _watched(boxes, "/bin/true", tamper=without("hide")))
    assert hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest() == before


def test_who_joins_a_pid_namespace_can_not_be_reached_either(boxes: Boxes) -> None:
    def reached(**where: Any) -> list[str]:
        with boxes.running(probe("watch", 1500, "n")) as box:
            kinds = namespaces("mount", "network", "uts", "ipc", "cgroup", pid=f"/proc/{box.pid}/ns/pid")
            for _ in range(15):
                boxes.run(sh("true", namespaces=kinds, sysctl={}), **where)
            return box.finish().lines

    assert "reached 0 written 0" in reached()[-1]
    assert any("python" in line for line in reached(tamper=without("hide")))


def test_a_reaper_of_ours_can_not_be_reached(boxes: Boxes) -> None:
    """It stays, with the host's Python as its program and the launcher's memory."""
    script = (
        "sleep 0.3; readlink /proc/1/exe || echo hidden; ls /proc/1/fd; head -c 1 /proc/1/maps; chmod 777 /proc/1/exe"
    )
    with boxes.running(sh(script), reaper=True) as box:
        host = Path(f"/proc/{box.pid}/exe").stat().st_mode
        told = box.finish()
    assert told.lines[0] == "hidden"
    assert told.output.count("Permission denied") == 2, told.output
    assert not [line for line in told.lines if line.isdecimal()], "descriptors"
    assert "python" not in told.output
    assert Path(sys.executable).resolve().stat().st_mode == host
    ptrace = Capabilities(**dict.fromkeys(("bounding", "effective", "permitted"), ("CAP_SYS_PTRACE",)))
    assert "python" in boxes.run(sh("sleep 0.3; readlink /proc/1/exe", capabilities=ptrace), reaper=True).output


def test_its_own_program_is_the_images(boxes: Boxes) -> None:
    told = boxes.run(sh("readlink /proc/1/exe; stat -L -c %d /proc/1/exe; stat -c %d /"))
    assert told.lines[0] == "/bin/busybox"
    assert told.lines[1] == told.lines[2]


def test_no_descriptor_makes_a_working_folder_outside(boxes: Boxes, canary: Path) -> None:
    leaked, errors = [], set[str]()
    for link in (
        *(f"/proc/self/fd/{number}" for number in range(24)),
        "/proc/self/cwd",
        "/proc/self/root",
        "/proc/1/cwd",
    ):
        try:
            told = boxes.run(sh(f"cat .{canary}/file ..{canary}/file ../../../../..{canary}/file", cwd=link))
        except LaunchError as error:
            errors.add(error.message.partition(" /")[0])
            continue
        if "of the host" in told.output:
            leaked.append(link)
    assert not leaked
    assert errors == {"working directory"}
    with boxes.running(sh("sleep 100")) as box:
        said = box.exec("/bin/sh", "-c", f"cat /proc/*/root{canary}/file /proc/*/cwd{canary}/file ..{canary}/file")
    assert "of the host" not in said.stdout
    assert (
        run(["sh", "-c", f"exec 9</; cd /proc/self/fd/9 && cat .{canary}/file"], timeout=10).stdout == "of the host\n"
    )


# --- leaving the root ------------------------------------------------------------------------------------------------


def test_two_chroots_do_not_lead_out(boxes: Boxes, canary: Path) -> None:
    path = f"{canary}/file"
    assert boxes.run(probe("climb", path)).output == "errno 2\n"
    out = run(["chroot", boxes.image, "/bin/probe", "climb", path], timeout=10, check=False)
    assert out.stdout.startswith("ok"), "a chroot alone is no boundary"
    (boxes.image / "tmp/below").rmdir()


def _old_root_last(fields: dict[str, Any]) -> None:
    steps = [step for step in fields["steps"] if step[0] not in ("drop_old_root", "contained")]
    fields["steps"] = [*steps[: steps.index(["own_null"])], ["drop_old_root"], *steps[steps.index(["own_null"]) :]]


def test_dots_of_an_image_do_not_lead_to_the_old_root(boxes: Boxes, canary: Path, tmp_path: Path) -> None:
    """`/dev -> ../CANARY`, without a file system on /dev: devices are made where the link leads."""
    image = hostile(boxes, tmp_path / "image", dev=f"..{canary}")
    before = state(canary)
    spec = sh("true", mounts=(), masked_paths=(), readonly_paths=(), sysctl={})
    with pytest.raises(BenchError):
        boxes.run(spec, image=image)
    assert state(canary) == before
    (image / str(canary).lstrip("/")).mkdir(parents=True)
    boxes.run(spec, image=image)
    assert state(canary) == before
    with pytest.raises(BenchError):  # the devices went elsewhere
        boxes.run(spec, image=image, tamper=_old_root_last)
    assert len(state(canary)) > len(before)


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "etc"])
@pytest.mark.parametrize(
    "target", ["../{}", "/../../{}", "{}", "/proc/self/root/{}", "/proc/1/cwd/{}", "/proc/self/fd/3"]
)
def test_links_in_place_of_the_usual_folders(
    boxes: Boxes, canary: Path, tmp_path: Path, name: str, target: str
) -> None:
    image = hostile(boxes, tmp_path / "image", **{name: target.format(str(canary).lstrip("/"))})
    before = state(canary)
    with contextlib.suppress(LaunchError):
        told = boxes.run(sh(f"cat {canary}/file; cat /proc/keys"), image=image)
        assert "of the host" not in told.output
        assert "keyring" not in told.output
    assert state(canary) == before


def test_a_file_of_the_host_by_its_inode(boxes: Boxes, canary: Path, tmp_path: Path) -> None:
    """The way in is anything bound from the host's file system, such as a name server's address."""
    bound = boxes.folder / "bound"
    bound.touch()
    words = ("handle", "/etc/bound", (canary / "file").stat().st_ino)
    mounts = (*default_mounts(), Mount("/etc/bound", "bind", str(bound), ("bind", "ro")))
    attack = probe(*words, mounts=mounts)
    assert boxes.run(attack).output == "errno 1\n"
    assert "of the host" in boxes.run(trusted(attack)).output
    bound.unlink()


# --- mounts and devices ----------------------------------------------------------------------------------------------

MOUNT, UMOUNT2, REMOUNT = 165, 166, 32
TRIES = {
    "proc": (MOUNT, "s:x", "s:/tmp", "s:proc"),
    "tmpfs": (MOUNT, "s:x", "s:/tmp", "s:tmpfs"),
    "overlay": (MOUNT, "s:x", "s:/tmp", "s:overlay", 0, "s:lowerdir=/bin:/etc"),
    "cgroup": (MOUNT, "s:x", "s:/tmp", *(("s:cgroup", 0, "s:memory") if layout().v1 else ("s:cgroup2",))),
    "bind": (MOUNT, "s:/proc/sys", "s:/tmp", "s:", 4096),
    "proc rw": (MOUNT, "s:x", "s:/proc/sys", "s:", REMOUNT | 4096),
    "sys rw": (MOUNT, "s:x", "s:/sys", "s:", REMOUNT),
    "unmask": (UMOUNT2, "s:/proc/keys", 0),
    "unmask folder": (UMOUNT2, "s:/sys/firmware", 0),
    "uncover sys": (UMOUNT2, "s:/proc/sys", 0),
    "move": (MOUNT, "s:/proc/sys", "s:/tmp", "s:", 8192),
}


@pytest.mark.parametrize("name", TRIES)
def test_no_mount_is_made_changed_or_taken_away(boxes: Boxes, name: str) -> None:
    assert boxes.run(probe("call", *TRIES[name])).output == "errno 1\n"
    assert boxes.run(probe("call", *TRIES[name], seccomp=None)).output == "errno 1\n", "capabilities alone must do too"
    assert boxes.run(trusted(probe("call", *TRIES[name]))).output == "ok 0\n"


def test_the_host_s_disk_can_not_be_opened_nor_mounted(boxes: Boxes) -> None:
    disk = os.stat("/").st_dev
    attack = probe("device", "b", os.major(disk), os.minor(disk), "/tmp/disk")
    assert boxes.run(attack).output == "errno 1\n"
    assert boxes.run(trusted(attack)).output == "errno 1\n", "the device rules alone must do too"
    try:
        os.close(os.open("/dev/loop0", os.O_RDONLY))
    except OSError:
        pytest.skip("no disk here that the host's root may open: it proves nothing")
    free = changed(probe("device", "b", 7, 0, "/tmp/disk"), resources=ALL_DEVICES)
    assert boxes.run(free).output.startswith("ok")  # on some hosts nobody at all may open the real one
    assert boxes.run(changed(free, resources=Resources())).output == "errno 1\n"


@pytest.mark.parametrize(
    ("kind", "major", "minor"),
    [
        ("c", 1, 1),
        ("c", 1, 2),
        ("c", 1, 4),
        ("c", 1, 11),
        ("c", 10, 229),
        ("b", 7, 0),
        ("c", 10, 237),
        ("c", 10, 232),
        ("c", 10, 200),
    ],
)
def test_no_device_but_the_usual_ones_can_be_opened(boxes: Boxes, kind: str, major: int, minor: int) -> None:
    """Memory, ports, the kernel's log, FUSE, loops, KVM, tun."""
    attack = probe("device", kind, major, minor, "/tmp/node")
    assert boxes.run(attack).output == "errno 1\n"
    open_to_all = boxes.run(trusted(changed(attack, resources=ALL_DEVICES))).output
    assert open_to_all.startswith("ok") or open_to_all in ("errno 6\n", "errno 19\n"), "no such device in this kernel"


def test_a_bound_device_node_is_subject_to_the_rules_too(boxes: Boxes) -> None:
    if not os.path.exists("/dev/loop0"):
        pytest.skip("no /dev/loop0; remedy: modprobe loop")
    mounts = (*default_mounts(), Mount("/dev/loop0", "bind", "/dev/loop0", ("bind",)))
    assert "not permitted" in boxes.run(sh("cat /dev/loop0", mounts=mounts)).output
    assert boxes.run(sh("cat /dev/loop0 && echo read", mounts=mounts, resources=ALL_DEVICES)).lines[-1] == "read"


# --- the kernel's own files -------------------------------------------------------------------------------------------

SYSCTLS = (
    "kernel/core_pattern",
    "kernel/modprobe",
    "vm/drop_caches",
    "kernel/hostname",
    "net/ipv4/ip_forward",
    "fs/file-max",
    "kernel/sysrq",
)


def test_no_setting_of_the_kernel_can_be_opened_for_writing(boxes: Boxes) -> None:
    files = [f"/proc/sys/{name}" for name in SYSCTLS if os.path.exists(f"/proc/sys/{name}")]
    script = "for one in " + " ".join(files) + "; do ( : >> $one ) && echo open $one; done"
    told = boxes.run(sh(script))
    assert "open" not in told.output
    assert told.output.count("Read-only file system") == len(files)
    free = trusted(sh(script, readonly_paths=()))
    assert boxes.run(free).output.count("open /proc/sys/") == len(files)  # opened only: nothing is written


def test_other_ways_to_the_kernel(boxes: Boxes) -> None:
    script = """
    for one in /proc/sysrq-trigger /sys/kernel/uevent_helper /sys/power/state /sys/module/*/parameters/*; do
        [ -e $one ] && ( : >> $one ) && echo reached $one
    done
    cat /proc/kcore /proc/keys /proc/timer_list; ls -A /sys/firmware /proc/acpi
    """
    told = boxes.run(sh(script))
    assert "reached" not in told.output
    assert "keyring" not in told.output
    assert [
        line
        for line in told.lines
        if line.startswith(("/sys/firmware:", "/proc/acpi:")) is False
        and "ead-only" not in line
        and "No such" not in line
        and line
    ] == []
    free = boxes.run(trusted(sh("cat /proc/keys", masked_paths=())))
    assert "keyring" in free.output


def test_no_release_agent_is_in_reach(boxes: Boxes) -> None:
    """Neither through a mount of its own, nor with every right in its cgroup namespace."""
    mount = "mkdir /tmp/c && mount -t cgroup -o memory none /tmp/c; ls /tmp/c"
    assert "release_agent" not in boxes.run(sh(mount)).output
    if not layout().v1:
        pytest.skip("only cgroup v1 has release agents")
    inside = boxes.run(trusted(sh(mount))).output
    assert "memory.limit_in_bytes" in inside
    assert "release_agent" not in inside
    host = run(
        ["unshare", "--mount", "sh", "-c", "mount -t cgroup -o memory none /mnt && ls /mnt"], timeout=10, check=False
    )
    assert "release_agent" in host.stdout


# --- system calls -----------------------------------------------------------------------------------------------------

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000
CALLS: dict[str, tuple[object, ...]] = {
    "keyctl": (250, 0, -3, 0), "add_key": (248, "s:user", "s:bench", "s:x", 1, -1),
    "request_key": (249, "s:user", "s:x", 0, 0),
    "bpf": (321, 999, "z:64", 64), "perf_event_open": (298, "z:120", 0, -1, -1, 0), "unshare mount": (272, CLONE_NEWNS),
    "unshare user": (272, CLONE_NEWUSER), "clone user": (56, CLONE_NEWUSER | 17, 0, 0, 0, 0), "setns": (308, 0, 0),
    "init_module": (175, 0, 0, "s:"), "finit_module": (313, -1, "s:", 0), "delete_module": (176, "s:nosuch", 0),
    "kexec_load": (246, 0, 0, 0, 0), "reboot": (169, 1, 2, 3), "sethostname": (170, 0, 5), "swapon": (167, 0, 0),
    "acct": (163, "s:/nosuch"), "settimeofday": (164, 1, 0), "clock_settime": (227, 0, 1), "iopl": (172, 3),
    "ioperm": (173, 0, 1, 1), "quotactl": (179, 0x800002 << 8, 0, 0, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "open_by_handle_at": (304, -100, "z:16", 0), "pivot_root": (155, "s:/nosuch", "s:/nosuch"),
    "fsopen": (430, "s:nosuch", 0),
    "open_tree": (428, -100, "s:/", 1), "mount_setattr": (442, -100, "s:/", 0, "z:32", 32),
    "io_uring_setup": (425, 0, 0),
    "userfaultfd": (323, 0xFFFF), "kcmp": (312, 1, 1, 0, 0, 0), "syslog": (103, 10, 0, 0),
    "move_pages": (279, 1, 0, 0, 0, 0, 0),
    "lookup_dcookie": (212, 0, 0, 0), "fanotify_init": (300, 0xFFFF, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_reach_for_the_host_are_refused(boxes: Boxes, name: str) -> None:
    refused = boxes.run(probe("call", *CALLS[name])).output
    assert refused == "errno 1\n"
    reached = boxes.run(trusted(probe("call", *CALLS[name]))).output
    assert reached != refused, "refused without the boundary too: it proves nothing"


def test_keys_of_the_host_s_session_are_not_found_without_the_filter_either(boxes: Boxes) -> None:
    """Its serial number is enough to ask for what is in it."""
    ask = (250, 0, -3, 0)  # of the session keyring
    theirs = bare(boxes, "call", *ask)
    assert theirs.startswith("ok")
    free = probe("call", *ask, seccomp=None)
    assert boxes.run(free).output.startswith("ok")
    assert boxes.run(free).output.strip() != theirs
    with boxes.running(sh("sleep 100", seccomp=None)) as box:
        assert box.exec(PROBE, "call", *map(str, ask)).stdout.strip() != theirs
    with boxes.running(free, tamper=without("own_keyring")) as box:
        assert box.finish().output.strip() == theirs


def test_no_more_rights_by_a_set_id_program_than_the_bounding_set(boxes: Boxes, tmp_path: Path) -> None:
    raised = tmp_path / "probe"
    shutil.copy(boxes.image / "bin/probe", raised)
    raised.chmod(0o4755)
    mounts = (*default_mounts(), Mount("/data/probe", "bind", str(raised), ("bind",)))

    def asked(*words: object, **changes: Any) -> str:
        spec = sh(f"exec /data/probe call {' '.join(map(str, words))}", mounts=mounts, user=User(1000, 1000), **changes)
        return boxes.run(spec).output

    geteuid, unshare = 107, 272
    assert asked(geteuid) == "ok 0\n"
    assert asked(geteuid, no_new_privileges=True) == "ok 1000\n"
    assert asked(unshare, CLONE_NEWNS, seccomp=None) == "errno 1\n"
    wide = Capabilities(bounding=ALL_CAPABILITIES)
    assert asked(unshare, CLONE_NEWNS, seccomp=None, capabilities=wide) == "ok 0\n"


# --- processes, names, sockets ---------------------------------------------------------------------------------------


def test_processes_of_the_host_can_not_be_signalled_nor_traced(boxes: Boxes) -> None:
    ptrace_attach = (101, 16)
    with spawn(["sleep", "100"]) as victim:
        assert boxes.run(probe("call", 62, victim.pid, 9)).output == "errno 3\n"
        assert boxes.run(probe("call", *ptrace_attach, victim.pid)).output in ("errno 1\n", "errno 3\n")
        assert boxes.run(trusted(probe("call", 62, victim.pid, 9))).output == "errno 3\n", (
            "the pid namespace alone must do"
        )
        assert str(victim.pid) not in boxes.run(sh("ls /proc")).lines
        boxes.run(sh("kill -9 -1"))  # all it can see: nobody
        assert victim.poll() is None
        assert bare(boxes, "call", 62, victim.pid, 9) == "ok 0"
        assert victim.wait(10) == -9


def test_a_host_name_of_its_own(boxes: Boxes) -> None:
    before = os.uname().nodename
    script = "hostname evil && hostname"
    assert "evil\n" not in boxes.run(sh(script)).output.replace("hostname: ", "")
    assert boxes.run(trusted(sh(script))).output == "evil\n"
    assert os.uname().nodename == before


def test_sockets_of_the_host_are_out_of_sight(boxes: Boxes) -> None:
    name = f"bench-escape-{os.getpid()}"
    look = f"grep -c {name} /proc/net/unix; ls /sys/class/net"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{name}")
        assert boxes.run(sh(look)).lines[0] == "0"
        assert boxes.run(sh(look)).lines[1:] == ["lo"] or "eth0" not in boxes.run(sh(look)).lines
        shared = namespaces("mount", "uts", "pid", "ipc", "cgroup")
        assert boxes.run(sh(look, namespaces=shared, sysctl={})).lines[0] == "1"


def test_system_v_objects_of_the_host_are_out_of_sight(boxes: Boxes) -> None:
    made = run(["ipcmk", "-Q"], timeout=10, check=False).stdout.split()
    if not made:
        pytest.skip("no ipcmk; remedy: apt-get install util-linux-extra")
    try:
        look = "wc -l < /proc/sysvipc/msg"
        assert boxes.run(sh(look)).output.strip() == "1"
        assert int(boxes.run(sh(look, namespaces=namespaces("mount", "network", "uts", "pid", "cgroup"))).output) > 1
    finally:
        run(["ipcrm", "-q", made[-1]], timeout=10)
