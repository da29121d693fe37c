"""What a container's own mounts are made of: steps of a recipe -> the operations of a child's program, in order.

Up to `pivot` paths are the host's, after it the container's own: so a symlink of the image leads nowhere else. What is
to be bound from the host is picked up before (`open_tree`) and put in place after. The old root goes right after the
pivot: mounted over the new one it is where `..` of `/` leads. Only in a user namespace it goes last: there a procfs may
be mounted only where another one is still in sight, and each path is checked before (`contained`).
"""

from __future__ import annotations

import errno
import os
import stat

from bench.linux import program
from bench.linux import syscalls as sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.linux.program import Op

NULL = os.makedev(1, 3)


def escaped(path: str) -> str:
    """Overlay options split at `:` and `,`; a backslash keeps a character as it is."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


OVERLAY_ROOT = "work"
"""Where `overlay_root` mounts, in the working folder."""

SAFE = sys.MS_NOSUID | sys.MS_NODEV | sys.MS_NOEXEC


def propagation(flags: int) -> Op:
    """`flags` for every mount: MS_PRIVATE or MS_SLAVE with MS_REC, so that nothing from here on reaches the host."""
    return program.mount("none", "/", "", flags)


def overlay_root(lower: str, options: str) -> Iterator[Op]:
    """The root, in the working folder: `lower` is overlay's lowerdir, what the container writes is in `upper`.

    Relative paths: so all containers of one kind share their recipe. It is mounted over its own work folder, where
    nobody has anything to look for: one folder less to make.
    """
    for folder in ("upper", OVERLAY_ROOT):
        yield from program.mkdir(folder)
    data = f"lowerdir={lower},upperdir=upper,workdir={OVERLAY_ROOT}{options}"
    yield program.mount("overlay", OVERLAY_ROOT, "overlay", 0, data)


def overlay_read_only(lower: str) -> Iterator[Op]:
    """The same without a place to write, which overlay takes from no user namespace on the host's file system; an
    empty folder above, because one layer alone is none to it."""
    for folder in ("upper", OVERLAY_ROOT):
        yield from program.mkdir(folder)
    yield program.mount("overlay", OVERLAY_ROOT, "overlay", 0, f"lowerdir=upper:{lower}")


def bind_root(path: str) -> Op:
    """The root is a folder that exists; with what is mounted below it."""
    return program.mount(path, path, "", sys.MS_BIND | sys.MS_REC)


def pivot(path: str) -> Iterator[Op]:
    """Make `path` the root; the old one stays mounted over it until `drop_old_root`."""
    return program.pivot_root(path)


def drop_old_root() -> Iterator[Op]:
    return program.drop_old_root()


def make_folder(path: str) -> Iterator[Op]:
    return program.mkdir(path)


def filesystem(fstype: str, target: str, flags: int, data: str, source: str) -> Iterator[Op]:
    """A file system of its own: proc, sysfs, tmpfs, devpts, mqueue."""
    yield from program.mkdir(target)
    yield program.mount(source, target, fstype, flags, data)


def cgroups(target: str, flags: int, hierarchies: list[str]) -> Iterator[Op]:
    """The container's groups as its cgroup namespace shows them, as roots. `hierarchies`: v1's controllers of each."""
    yield from filesystem("tmpfs", target, flags & ~sys.MS_RDONLY, "mode=755", "cgroup")
    for controllers in hierarchies:
        yield from filesystem("cgroup", f"{target}/{controllers}", flags, controllers, "cgroup")
    if flags & sys.MS_RDONLY:
        yield remount(target, flags)


def propagate(target: str, flags: int) -> Op:
    return program.mount("none", target, "", flags)


def remount(target: str, flags: int, cleared: int = 0) -> Op:
    """Change a bind mount's flags; those set before stay unless `cleared`, as far as the kernel shows them."""
    return (lambda: _remount(target, flags, cleared)), None


def _remount(target: str, flags: int, cleared: int) -> None:
    sys.mount("none", target, "", sys.MS_BIND | sys.MS_REMOUNT | flags | _kept(target) & ~cleared)


_SHOWN = (
    (1, sys.MS_RDONLY), (2, sys.MS_NOSUID), (4, sys.MS_NODEV), (8, sys.MS_NOEXEC), (1024, 1024), (2048, 2048),
    (8192, 256),
)  # fmt: skip
"""statvfs(3)'s bit -> mount(2)'s; the last ones are noatime, nodiratime, nosymfollow."""


def _kept(target: str) -> int:
    """Flags that hold already: a remount without them would lift them, or, in a user namespace, be refused."""
    shown = os.statvfs(target).f_flag
    return sum(flag for bit, flag in _SHOWN if shown & bit)


def contained(path: str) -> Op:
    """Refuse a path that leads through a link of a procfs to a process: its root and folders may be the host's."""
    return (lambda: _contained(path)), None


def _contained(path: str) -> None:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    if not os.path.samestat(os.stat(path), os.stat(os.path.realpath(path))):
        raise OSError(errno.ELOOP, "leads out of the container", path)


def device(path: str, kind: int, major: int, minor: int, mode: int, uid: int, gid: int) -> Iterator[Op]:
    """A device made where it is needed: a bind mount costs more and pins the host's node. `kind`: S_IFCHR, S_IFBLK."""
    number = os.makedev(major, minor)
    yield from program.mknod(path, kind | mode, number, lambda: _replace_device(path, kind | mode, number))
    if uid or gid:
        yield program.chown(path, uid, gid)


def _replace_device(path: str, mode: int, number: int) -> None:
    """The image's own /dev has something there, or the folder is missing."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    os.mknod(path, mode, number)


def fifo(path: str, mode: int, uid: int, gid: int) -> Iterator[Op]:
    yield from program.mknod(path, stat.S_IFIFO | mode, 0, lambda: _replace_device(path, stat.S_IFIFO | mode, 0))
    yield program.chown(path, uid, gid)


def symlink(source: str, path: str) -> Iterator[Op]:
    """A link that is there already, as the image wants it, stays."""
    return program.symlink(source, path, lambda: _expect_link(path))


def _expect_link(path: str) -> None:
    if not stat.S_ISLNK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "the image has something else there", path)


def read_only(target: str) -> Iterator[Op]:
    """Make a path read-only by a bind mount on itself; a path that is not there needs no protection."""
    yield program.mount(target, target, "", sys.MS_BIND | sys.MS_REC, "", {errno.ENOENT: 1})
    if target.startswith(("/proc/", "/sys/")):  # no need to look, after the fork, at what holds already
        yield program.mount("none", target, "", sys.MS_BIND | sys.MS_REMOUNT | sys.MS_RDONLY | SAFE)
    else:
        yield remount(target, sys.MS_RDONLY)


def mask(target: str, folder: Callable[[], object]) -> Iterator[Op]:
    """Hide a path: a file behind /dev/null; `folder`: how, if it is one."""
    yield program.mount("/dev/null", target, "", sys.MS_BIND, "", {0: 1, errno.ENOENT: 1, errno.ENOTDIR: 0})
    yield folder, None


def mask_folder(target: str, other: str | None) -> None:
    """Behind an empty read-only tmpfs: that over `other` once more, for a new one costs as much as several steps."""
    if other is None:
        sys.mount("tmpfs", target, "tmpfs", sys.MS_RDONLY, "size=0")
    else:
        sys.mount(other, target, "", sys.MS_BIND)


ACTIONS = {
    action.__name__: action
    for action in (
        propagation, bind_root, overlay_root, overlay_read_only, pivot, drop_old_root, make_folder, filesystem,
        cgroups, propagate, remount, contained, device, fifo, symlink, read_only,
    )
}  # fmt: skip
"""By name, as a recipe's steps call them."""


# --- for steps that need to know more than their recipe does ---


def make_file(path: str) -> None:
    """An empty file to mount a file on."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644))


def place(tree: int, target: str, folder: bool) -> None:
    """Put a tree that `open_tree` picked up where it belongs."""
    if folder:
        os.makedirs(target, 0o755, exist_ok=True)
    elif not os.path.lexists(target):
        make_file(target)
    sys.move_mount(tree, target)
    os.close(tree)


def open_null() -> int:
    """What is at /dev/null inside, if it is the null device."""
    fd = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    if os.fstat(fd).st_rdev != NULL:
        raise OSError(errno.ENXIO, "is not the null device", "/dev/null")
    return fd
