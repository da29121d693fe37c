"""A file system made for one run: a sparse file, a loop device, a mount, all below one folder and found by its path.

The loop device goes with the last mount (autoclear). What a killed run left is found in /proc/self/mountinfo and
/sys/block, without any record of ours.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import HostError
from bench.images.tools import run_tool
from bench.linux import syscalls
from bench.linux.mountinfo import mounts
from bench.model import MIB, Leftover

log = logging.getLogger(__name__)

SMALLEST = 320 * MIB  # mkfs.xfs refuses less than 300 MiB
# What a file system puts off would be done, and counted, while instances come and go.
_NOW = "lazy_itable_init=0,lazy_journal_init=0"
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", _NOW),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-m", "single"),
}
_LOOP_CLR_FD = 0x4C01
_PATIENCE = 5.0  # seconds for the kernel to take down mount namespaces that still hold the file system


@contextmanager
def scratch_filesystem(folder: Path, kind: str, size: int) -> Iterator[Path]:
    """An empty file system of `kind` (ext4, xfs, btrfs) of at most `size` bytes, mounted in `folder`; gone afterwards.

    Raises HostError if it can't be made, with the remedy.
    """
    if size < SMALLEST:
        raise HostError(f"a scratch file system of {size} bytes is too small", hint=f"at least {SMALLEST}")
    folder.mkdir(parents=True, exist_ok=True)
    disk, mount = folder / "disk", folder / "mnt"
    mount.mkdir()
    try:
        _make(disk, mount, kind, size)
        yield mount
    finally:
        release(folder)
        disk.unlink(missing_ok=True)
        mount.rmdir()


def _make(disk: Path, mount: Path, kind: str, size: int) -> None:
    with disk.open("xb") as file:
        file.truncate(size)
    run_tool([*_MAKE[kind], disk], timeout=60)
    done = run_tool(["mount", "-t", kind, "-o", "loop,noatime", disk, mount], timeout=60, check=False)
    if done.status:
        hint = "it needs a free loop device (losetup -f) and the right to mount; the overlay storage needs neither"
        raise HostError(f"can't mount a {kind} scratch file system: {done.stderr.strip()}", hint=hint)


def release(folder: Path) -> list[Leftover]:
    """Unmount all that is mounted below `folder` and free its loop devices; idempotent. What was found."""
    found = []
    for path in mounts_below(folder):
        found.append(Leftover("mount", path))
        _unmount(path)
    for device in loops_below(folder):
        found.append(Leftover("loop", device))
        _free(device)
    return found


def _unmount(path: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            syscalls.umount2(path)
            return
        except OSError as error:
            if error.errno == errno.EINVAL:  # no mount point any more
                return
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                break
        time.sleep(0.05)
    log.warning("%s is still in use: detached, it ends with its last user", path)
    syscalls.umount2(path, syscalls.MNT_DETACH)


def _free(device: str) -> None:
    """Free a loop device that autoclear has not: one that was never mounted, or whose unmount is not through."""
    with contextlib.suppress(OSError):  # ENXIO: it went by itself
        fd = os.open(f"/dev/{device}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_CLR_FD)
        finally:
            os.close(fd)


def mounts_below(folder: Path, proc: Path = Path("/proc")) -> list[str]:
    """Mount points in `folder`, latest first: the order in which they can be unmounted."""
    inside = f"{folder.absolute()}/"
    return [mount.point for mount in reversed(mounts(proc)) if mount.point.startswith(inside)]


def loops_below(folder: Path, block: Path = Path("/sys/block")) -> list[str]:
    """Loop devices whose file is in `folder`, also if that is deleted."""
    inside = f"{folder.absolute()}/"
    found = []
    for entry in sorted(block.glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):  # freed since it was listed
            if entry.read_text().startswith(inside):
                found.append(entry.parent.parent.name)
    return found
