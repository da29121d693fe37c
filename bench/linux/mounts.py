"""The set-up of a root file system as a list of steps: each can be described, tested as data, and executed.

Steps travel as JSON lists to the launcher; a child of it runs them after clone, in order. Targets are below the new
root while it is being built, and absolute paths inside it after `PivotRoot`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from bench.linux import syscalls as sys

Json = list[str | int]


class Step:
    """One step. Fields are strings and numbers, so that `pack` and `unpack` need no schema of their own."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, *values: str | int) -> None:
        for name, value in zip(self.__slots__, values, strict=True):
            setattr(self, name, value)

    def pack(self) -> Json:
        return [type(self).__name__, *(getattr(self, name) for name in self.__slots__)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.pack() == other.pack()

    def __hash__(self) -> int:
        return hash(tuple(self.pack()))

    def describe(self) -> str:
        raise AssertionError(type(self))

    def execute(self) -> None:
        raise AssertionError(type(self))


def _escaped(path: str) -> str:
    """Overlay options split at `:` and `,`; a backslash keeps a character as it is."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


class Propagation(Step):
    """Nothing mounted from here on reaches the host."""

    __slots__ = ()

    def describe(self) -> str:
        return "mount propagation: private, recursive"

    def execute(self) -> None:
        sys.mount("none", "/", "", sys.MS_REC | sys.MS_PRIVATE)


class Overlay(Step):
    """`lower`: layer trees joined by newlines, lowest first. `volatile`: an instance's root is thrown away with it."""

    __slots__ = ("lower", "target", "upper", "work")
    lower: str
    upper: str
    work: str
    target: str

    def options(self) -> str:
        lower = ":".join(_escaped(path) for path in reversed(self.lower.split("\n")))
        return f"lowerdir={lower},upperdir={_escaped(self.upper)},workdir={_escaped(self.work)}"

    def describe(self) -> str:
        return f"overlay on {self.target}: {self.options()}"

    def execute(self) -> None:
        for folder in (self.upper, self.work, self.target):
            os.makedirs(folder, exist_ok=True)
        sys.mount("overlay", self.target, "overlay", 0, self.options())


def overlay(lower: Sequence[str], upper: str, work: str, target: str) -> Overlay:
    return Overlay("\n".join(lower), target, upper, work)


class FileSystem(Step):
    """A file system with no source: proc, sysfs, tmpfs, devpts, mqueue."""

    __slots__ = ("data", "flags", "fstype", "target")
    fstype: str
    target: str
    flags: int
    data: str

    def describe(self) -> str:
        return f"{self.fstype} on {self.target} flags={self.flags:#x} {self.data}".rstrip()

    def execute(self) -> None:
        os.makedirs(self.target, exist_ok=True)
        sys.mount(self.fstype, self.target, self.fstype, self.flags, self.data)


def filesystem(fstype: str, target: str, flags: int, data: str = "") -> FileSystem:
    return FileSystem(data, flags, fstype, target)


class Device(Step):
    """A character device made where it is needed: a bind mount costs more and pins the host's node."""

    __slots__ = ("major", "minor", "target")
    target: str
    major: int
    minor: int

    def describe(self) -> str:
        return f"device {self.target} c {self.major}:{self.minor}"

    def execute(self) -> None:
        os.mknod(self.target, stat.S_IFCHR | 0o666, os.makedev(self.major, self.minor))
        os.chmod(self.target, 0o666)  # whatever the umask was


class Symlink(Step):
    __slots__ = ("source", "target")
    source: str
    target: str

    def describe(self) -> str:
        return f"symlink {self.target} -> {self.source}"

    def execute(self) -> None:
        os.symlink(self.source, self.target)


class PivotRoot(Step):
    """Make `target` the root. Old and new on one another, then the old one detached: no folder for it is needed."""

    __slots__ = ("target",)
    target: str

    def describe(self) -> str:
        return f"pivot_root {self.target}"

    def execute(self) -> None:
        os.chdir(self.target)
        sys.pivot_root(".", ".")
        sys.umount2(".", sys.MNT_DETACH)
        os.chdir("/")


class ReadOnly(Step):
    """Make a path read-only by a bind mount on itself; a path that is not there needs no protection."""

    __slots__ = ("target",)
    target: str

    def describe(self) -> str:
        return f"read-only {self.target}"

    def execute(self) -> None:
        if os.path.exists(self.target):
            keep = sys.MS_NOSUID | sys.MS_NODEV | sys.MS_NOEXEC
            sys.mount(self.target, self.target, "", sys.MS_BIND | sys.MS_REC)
            sys.mount("none", self.target, "", sys.MS_BIND | sys.MS_REMOUNT | sys.MS_RDONLY | keep)


class Mask(Step):
    """Hide a path: a file behind /dev/null, a folder behind an empty read-only tmpfs."""

    __slots__ = ("target",)
    target: str

    def describe(self) -> str:
        return f"mask {self.target}"

    def execute(self) -> None:
        try:
            sys.mount("/dev/null", self.target, "", sys.MS_BIND)
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                sys.mount("tmpfs", self.target, "tmpfs", sys.MS_RDONLY, "size=0")
            elif error.errno != errno.ENOENT:
                raise


_STEPS = {
    kind.__name__: kind for kind in (Propagation, Overlay, FileSystem, Device, Symlink, PivotRoot, ReadOnly, Mask)
}


def unpack(packed: Json) -> Step:
    """The step that `pack` made. Raises KeyError for an unknown kind."""
    kind, *values = packed
    return _STEPS[str(kind)](*values)
