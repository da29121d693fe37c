"""What a container's own mounts are made of: plain functions that a child runs after clone, in order.

Up to `pivot` paths are the host's, after it the container's own: so a symlink of the image leads nowhere else. What is
to be bound from the host is picked up before (`open_tree`) and put in place after. The old root goes last: a procfs may
be mounted in a user namespace only where another one is still in sight.
"""

from __future__ import annotations

import errno
import os
import stat

from bench.linux import syscalls as sys

SAFE = sys.MS_NOSUID | sys.MS_NODEV | sys.MS_NOEXEC


def escaped(path: str) -> str:
    """Overlay options split at `:` and `,`; a backslash keeps a character as it is."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def propagation(flags: int) -> None:
    """`flags` for every mount: MS_PRIVATE or MS_SLAVE with MS_REC, so that nothing from here on reaches the host."""
    sys.mount("none", "/", "", flags)


def overlay_root(lower: str, options: str) -> None:
    """The root, in the working folder: `lower` is overlay's lowerdir, what the container writes is in `upper`.

    Relative paths: so all containers of one kind share their recipe.
    """
    for folder in ("upper", "work", "root"):
        make_folder(folder)
    sys.mount("overlay", "root", "overlay", 0, f"lowerdir={lower},upperdir=upper,workdir=work{options}")


def bind_root(path: str) -> None:
    """The root is a folder that exists; with what is mounted below it."""
    sys.mount(path, path, "", sys.MS_BIND | sys.MS_REC)


def pivot(path: str) -> None:
    """Make `path` the root; the old one stays mounted over it, out of reach of any path, until `drop_old_root`."""
    os.chdir(path)
    sys.pivot_root(".", ".")


def drop_old_root() -> None:
    sys.umount2(".", sys.MNT_DETACH)
    os.chdir("/")


def make_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    except FileNotFoundError:
        os.makedirs(path, 0o755, exist_ok=True)


def make_file(path: str) -> None:
    """An empty file to mount a file on."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644))


def filesystem(fstype: str, target: str, flags: int, data: str, source: str) -> None:
    """A file system of its own: proc, sysfs, tmpfs, devpts, mqueue."""
    make_folder(target)
    sys.mount(source, target, fstype, flags, data)


def cgroups(target: str, flags: int, hierarchies: list[str]) -> None:
    """The container's groups as its cgroup namespace shows them, as roots. `hierarchies`: v1's controllers of each."""
    filesystem("tmpfs", target, flags & ~sys.MS_RDONLY, "mode=755", "cgroup")
    for controllers in hierarchies:
        filesystem("cgroup", f"{target}/{controllers}", flags, controllers, "cgroup")
    if flags & sys.MS_RDONLY:
        remount(target, flags)


def place(tree: int, target: str, folder: bool) -> None:
    """Put a tree that `open_tree` picked up where it belongs."""
    if folder:
        make_folder(target)
    elif not os.path.lexists(target):
        make_file(target)
    sys.move_mount(tree, target)
    os.close(tree)


def propagate(target: str, flags: int) -> None:
    sys.mount("none", target, "", flags)


def remount(target: str, flags: int) -> None:
    """Change a bind mount's flags; those that were set before stay, as far as the kernel shows them."""
    sys.mount("none", target, "", sys.MS_BIND | sys.MS_REMOUNT | flags | _kept(target))


def _kept(target: str) -> int:
    """Flags that hold already: a remount without them would lift them, or, in a user namespace, be refused."""
    shown = os.statvfs(target).f_flag
    pairs = ((1, sys.MS_RDONLY), (2, sys.MS_NOSUID), (4, sys.MS_NODEV), (8, sys.MS_NOEXEC), (1024, 1024), (2048, 2048))
    return sum(flag for bit, flag in pairs if shown & bit)


def device(path: str, kind: int, major: int, minor: int, mode: int, uid: int, gid: int) -> None:
    """A device made where it is needed: a bind mount costs more and pins the host's node. `kind`: S_IFCHR, S_IFBLK."""
    number = os.makedev(major, minor)
    try:
        os.mknod(path, kind | mode, number)
    except FileExistsError:  # the image's own /dev
        if os.lstat(path).st_rdev != number or os.path.islink(path):
            os.unlink(path)
            os.mknod(path, kind | mode, number)
    os.chmod(path, mode)  # whatever the umask was
    if uid or gid:
        os.chown(path, uid, gid)


def fifo(path: str, mode: int, uid: int, gid: int) -> None:
    os.mkfifo(path, mode)
    os.chown(path, uid, gid)


def symlink(source: str, path: str) -> None:
    """A link that is there already, as the image wants it, stays."""
    try:
        os.symlink(source, path)
    except FileExistsError:
        if not stat.S_ISLNK(os.lstat(path).st_mode):
            raise


def read_only(target: str) -> None:
    """Make a path read-only by a bind mount on itself; a path that is not there needs no protection."""
    try:
        sys.mount(target, target, "", sys.MS_BIND | sys.MS_REC)
    except FileNotFoundError:
        return
    sys.mount("none", target, "", sys.MS_BIND | sys.MS_REMOUNT | sys.MS_RDONLY | SAFE)


def mask(target: str) -> None:
    """Hide a path: a file behind /dev/null, a folder behind an empty read-only tmpfs."""
    try:
        sys.mount("/dev/null", target, "", sys.MS_BIND)
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            sys.mount("tmpfs", target, "tmpfs", sys.MS_RDONLY, "size=0")
        elif error.errno != errno.ENOENT:
            raise


ACTIONS = {
    action.__name__: action
    for action in (
        propagation, bind_root, overlay_root, pivot, drop_old_root, make_folder, filesystem, cgroups, propagate,
        remount, device, fifo, symlink, read_only, mask,
    )
}  # fmt: skip
"""By name, as a recipe's steps call them; `place` needs a tree that only the child's own state knows."""
