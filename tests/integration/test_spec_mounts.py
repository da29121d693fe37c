"""The root, what is mounted in it, and what is hidden: options, propagation, links of the image, cgroups."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bench.container.groups import layout
from bench.container.spec import default_mounts
from bench.container.spec_records import Mount, Root, Spec
from bench.errors import ConfigError, LaunchError
from bench.linux import syscalls
from tests.integration.boxes import Boxes, capabilities, namespaces, sh

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes.open() as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_left(boxes: Boxes) -> Iterator[None]:
    yield
    assert boxes.instances() == []


def mounts_of(text: str) -> dict[str, str]:
    """Where -> options, of lines of /proc/self/mounts."""
    return {words[1]: words[3] for words in (line.split() for line in text.splitlines()) if len(words) == 6}


def with_mounts(script: str, *mounts: Mount, **changes: Any) -> Spec:
    return sh(script, mounts=(*default_mounts(), *mounts), **changes)


def test_a_read_only_root(boxes: Boxes) -> None:
    script = "touch /etc/x; touch /tmp/x; touch /dev/shm/x && echo shm"
    told = boxes.run(sh(script, root=Root("root", readonly=True)))
    assert told.output.count("Read-only file system") == 2
    assert told.lines[-1] == "shm"
    assert boxes.run(sh("touch /etc/x && echo fine")).output == "fine\n"


def test_a_bind_mount_is_the_hosts_folder(boxes: Boxes, tmp_path: Path) -> None:
    (tmp_path / "seen").write_text("host\n")
    told = boxes.run(
        with_mounts("cat /data/seen; echo box > /data/made", Mount("/data", "bind", str(tmp_path), ("bind",)))
    )
    assert told.output == "host\n"
    assert (tmp_path / "made").read_text() == "box\n"


def test_options_of_a_bind_mount_hold(boxes: Boxes, tmp_path: Path) -> None:
    mount = Mount("/new/folder", "none", str(tmp_path), ("rbind", "ro", "nosuid", "nodev", "noexec", "noatime"))
    told = boxes.run(with_mounts("cat /proc/self/mounts; touch /new/folder/x", mount))
    options = mounts_of(told.output)["/new/folder"].split(",")
    assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(options)
    assert "Read-only" in told.output
    assert not list(tmp_path.iterdir())


def test_the_source_s_own_restrictions_stay_unless_lifted(boxes: Boxes, tmp_path: Path) -> None:
    syscalls.mount("tmpfs", str(tmp_path), "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
    try:
        stays = Mount("/data/stays", "bind", str(tmp_path), ("bind", "ro"))
        lifted = Mount("/data/lifted", "bind", str(tmp_path), ("bind", "exec", "dev"))
        seen = mounts_of(boxes.run(with_mounts("cat /proc/self/mounts", stays, lifted)).output)
    finally:
        syscalls.umount2(str(tmp_path))
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(seen["/data/stays"].split(","))
    assert {"rw", "nosuid"} <= set(seen["/data/lifted"].split(","))
    assert not {"noexec", "nodev"} & set(seen["/data/lifted"].split(","))


def test_rbind_takes_along_what_is_mounted_below_and_bind_does_not(boxes: Boxes, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    syscalls.mount("tmpfs", str(tmp_path / "sub"), "tmpfs")
    try:
        (tmp_path / "sub/deep").touch()
        script = "ls /data/one/sub; echo -; ls /data/all/sub"
        one, every = (
            Mount(f"/data/{name}", "none", str(tmp_path), (kind,)) for name, kind in (("one", "bind"), ("all", "rbind"))
        )
        assert boxes.run(with_mounts(script, one, every)).lines == ["-", "deep"]
    finally:
        syscalls.umount2(str(tmp_path / "sub"))


def test_a_single_file_twice_and_in_folders_that_are_missing(boxes: Boxes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("bound\n")
    mount = Mount("/a/b/file", "bind", str(tmp_path / "file"), ("bind", "ro"))
    assert boxes.run(with_mounts("cat /a/b/file; echo x > /a/b/file", mount, mount)).output.startswith("bound\n")
    assert (tmp_path / "file").read_text() == "bound\n"


def test_a_bind_mount_of_nothing_is_refused_by_name(boxes: Boxes) -> None:
    with pytest.raises(ConfigError, match="nothing to bind at /nosuch"):
        boxes.run(with_mounts("true", Mount("/data", "bind", "/nosuch", ("bind",))))


def test_symlinks_of_the_image_lead_nowhere_else(boxes: Boxes, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    image = tmp_path / "image"
    shutil.copytree(boxes.image, image, symlinks=True)
    for name, target in (
        ("out", str(canary)),
        ("up", f"../../../..{canary}"),
        ("self", "/proc/self/root/" + str(canary)),
    ):
        (image / name).symlink_to(target)
    source = tmp_path / "source"
    source.mkdir()
    (source / "bound").touch()
    (image / str(canary).lstrip("/")).mkdir(parents=True)
    mounts = [Mount(f"/{name}/{name}", "bind", str(source), ("bind",)) for name in ("out", "up", "self")]
    told = boxes.run(with_mounts(f"ls {canary}/out {canary}/up {canary}/self", *mounts), image=image)
    assert told.lines.count("bound") == 3
    assert list(canary.iterdir()) == []


def test_a_link_of_a_shared_procfs_leads_nowhere_else_either(boxes: Boxes, tmp_path: Path) -> None:
    """With the host's pids in sight /proc/PID/root is the host's root."""
    canary = tmp_path / "canary"
    canary.mkdir()
    image = tmp_path / "image"
    shutil.copytree(boxes.image, image, symlinks=True)
    (image / "out").symlink_to(f"/proc/{os.getpid()}/root{canary}")
    (image / str(canary).lstrip("/")).mkdir(parents=True)
    spec = with_mounts(
        "true", Mount("/out/made", "tmpfs", "tmpfs"), namespaces=namespaces("mount", "network", "uts", "ipc", "cgroup")
    )
    with pytest.raises(LaunchError, match=r"contained /out/made.*leads out"):
        boxes.run(spec, image=image)
    assert list(canary.iterdir()) == []


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A mount of the host's that passes on what is mounted below it."""
    folder = tmp_path / "shared"
    folder.mkdir()
    syscalls.mount("tmpfs", str(folder), "tmpfs")
    syscalls.mount("none", str(folder), "", 1 << 20)
    (folder / "sub").mkdir()
    try:
        yield folder
    finally:
        while os.path.ismount(folder / "sub"):
            syscalls.umount2(str(folder / "sub"))
        syscalls.umount2(str(folder))


MOUNTER = capabilities("SYS_ADMIN")


@pytest.mark.parametrize(
    ("option", "comes_in", "goes_out"),
    [("rprivate", False, False), ("", False, False), ("rslave", True, False), ("rshared", True, True)],
)
def test_propagation(boxes: Boxes, shared: Path, option: str, comes_in: bool, goes_out: bool) -> None:
    mount = Mount("/data", "bind", str(shared), ("rbind", *([option] if option else [])))
    script = """
    mkfifo /tmp/go; echo up; read -t 10 _ < /tmp/go; ls /data/sub; umount /data/sub 2>/dev/null
    mount -t tmpfs none /data/sub && touch /data/sub/mine; echo done; sleep 100
    """
    spec = with_mounts(script, mount, capabilities=MOUNTER, seccomp=None)
    with boxes.running(spec) as box:
        box.wait_for("up")
        syscalls.mount("tmpfs", str(shared / "sub"), "tmpfs")
        (shared / "sub/theirs").touch()
        box.exec("/bin/sh", "-c", "echo > /tmp/go")
        box.wait_for("done")
        assert ("theirs" in box.said) == comes_in
        assert (shared / "sub/mine").exists() == goes_out
        assert goes_out or (shared / "sub/theirs").exists()


def test_the_root_s_propagation(boxes: Boxes) -> None:
    def tags(**changes: Any) -> list[str]:
        line = next(line for line in boxes.run(sh("cat /proc/self/mountinfo", **changes)).lines if " / / " in line)
        return line.partition(" - ")[0].split()[6:]

    assert tags() == []
    assert tags(rootfs_propagation="rshared")[0].startswith("shared:")
    assert tags(rootfs_propagation="unbindable") == ["unbindable"]
    assert tags(rootfs_propagation="rprivate") == []


def test_file_systems_of_its_own(boxes: Boxes) -> None:
    told = boxes.run(
        with_mounts(
            "cat /proc/self/mounts; mount | grep -c host",
            Mount("/t", "tmpfs", "tmpfs", ("size=1m", "mode=711", "uid=7", "nr_inodes=9")),
        )
    )
    kinds = {words[1]: words[2] for words in (line.split() for line in told.lines) if len(words) > 3}
    wanted = {
        "/proc": "proc",
        "/sys": "sysfs",
        "/dev": "tmpfs",
        "/dev/pts": "devpts",
        "/dev/shm": "tmpfs",
        "/dev/mqueue": "mqueue",
    }
    assert wanted.items() <= kinds.items()
    assert {"size=1024k", "mode=711", "uid=7", "nr_inodes=9"} <= set(mounts_of(told.output)["/t"].split(","))


def test_a_tmpfs_holds_no_more_than_its_size(boxes: Boxes) -> None:
    script = "dd if=/dev/zero of=/t/x bs=1M count=4; stat -c %s /t/x"
    small, large = (Mount("/t", "tmpfs", "tmpfs", (f"size={size}m",)) for size in (1, 8))
    told = boxes.run(with_mounts(script, small))
    assert "No space left" in told.output
    assert int(told.lines[-1]) == 1 << 20
    assert int(boxes.run(with_mounts(script, large)).lines[-1]) == 4 << 20


CGROUPS = Mount("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "ro"))
GROUPS = [f"/sys/fs/cgroup/{name}" for name in ("memory", "pids")] if layout().v1 else ["/sys/fs/cgroup"]


def test_the_cgroup_mount_shows_its_own_groups_as_roots(boxes: Boxes) -> None:
    told = boxes.run(
        with_mounts(
            f"cat /proc/self/mounts /proc/1/cgroup; find /sys/fs/cgroup -name 'b*'; echo > {GROUPS[-1]}/cgroup.procs",
            CGROUPS,
        )
    )
    assert set(GROUPS) <= mounts_of(told.output).keys()
    assert "bench-" not in told.output
    assert "Read-only" in told.output


def test_a_cgroup_mount_without_its_namespace_shows_its_own_groups_too(boxes: Boxes) -> None:
    script = f"""
    cat {GROUPS[0]}/cgroup.procs; find /sys/fs/cgroup -name 'bench*' -o -name release_agent
    echo > {GROUPS[-1]}/pids.max
    """
    told = boxes.run(with_mounts(script, CGROUPS, namespaces=namespaces("mount", "network", "uts", "pid", "ipc")))
    assert told.lines[0] == "1"
    assert "bench" not in told.output
    assert "release_agent" not in told.output
    assert "Read-only" in told.output
    with pytest.raises(ConfigError, match="only one cgroup mount"):
        boxes.run(with_mounts("true", CGROUPS, CGROUPS))


@pytest.mark.parametrize(
    "mount", [replace(CGROUPS, options=("remount", "ro")), Mount("/proc", "proc", "proc", ("remount", "ro"))]
)
def test_remounting_what_may_be_the_hosts_is_refused(boxes: Boxes, mount: Mount) -> None:
    with pytest.raises(ConfigError, match="remount"):
        boxes.run(with_mounts("true", mount))


def test_masked_and_read_only_paths(boxes: Boxes) -> None:
    script = "cat /etc/image; ls -A /home; echo x > /data/x; /data/run; touch /proc/sys/x"
    ran = "cp /bin/busybox /tmp/; "
    told = boxes.run(
        sh(ran + script, masked_paths=("/etc/image", "/home", "/nosuch"), readonly_paths=("/data", "/nosuch2"))
    )
    assert "of the image" not in told.output
    assert told.output.count("Read-only file system") == 1  # /data; /proc/sys is not in this list
    told = boxes.run(sh("cat /etc/image; echo x > /data/x && echo wrote"))
    assert told.lines == ["of the image", "wrote"]


def test_programs_on_a_read_only_path_still_run(boxes: Boxes) -> None:
    assert boxes.run(sh("/bin/busybox echo ran; touch /bin/x", readonly_paths=("/bin",))).output.startswith("ran\n")
