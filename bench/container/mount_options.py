"""The `options` of a mount, as the OCI runtime specification and mount(8) spell them -> what mount(2) takes."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from bench.errors import ConfigError

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT, MS_MANDLOCK = 1, 2, 4, 8, 16, 32, 64
MS_DIRSYNC, MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME = 128, 256, 1024, 2048
MS_BIND, MS_REC, MS_SILENT = 4096, 16384, 32768
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_I_VERSION, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 23, 1 << 24, 1 << 25

_SET = {
    "ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "sync": MS_SYNCHRONOUS,
    "remount": MS_REMOUNT, "mand": MS_MANDLOCK, "dirsync": MS_DIRSYNC, "nosymfollow": MS_NOSYMFOLLOW,
    "noatime": MS_NOATIME, "nodiratime": MS_NODIRATIME, "bind": MS_BIND, "rbind": MS_BIND | MS_REC, "silent": MS_SILENT,
    "relatime": MS_RELATIME, "iversion": MS_I_VERSION, "strictatime": MS_STRICTATIME, "lazytime": MS_LAZYTIME,
    "defaults": 0,
}  # fmt: skip
_CLEAR = {
    "rw": MS_RDONLY, "suid": MS_NOSUID, "dev": MS_NODEV, "exec": MS_NOEXEC, "async": MS_SYNCHRONOUS,
    "nomand": MS_MANDLOCK, "symfollow": MS_NOSYMFOLLOW, "atime": MS_NOATIME, "diratime": MS_NODIRATIME,
    "loud": MS_SILENT, "norelatime": MS_RELATIME, "noiversion": MS_I_VERSION, "nostrictatime": MS_STRICTATIME,
    "nolazytime": MS_LAZYTIME,
}  # fmt: skip
PROPAGATION = {
    "private": MS_PRIVATE, "rprivate": MS_PRIVATE | MS_REC, "shared": MS_SHARED, "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE, "rslave": MS_SLAVE | MS_REC, "unbindable": MS_UNBINDABLE, "runbindable": MS_UNBINDABLE | MS_REC,
}  # fmt: skip
# What would need mount_setattr(2) or copying of our own. As data for the file system some of it would go unnoticed.
_UNSUPPORTED = frozenset((
    "idmap", "ridmap", "tmpcopyup", "rro", "rrw", "rnosuid", "rsuid", "rnodev", "rdev", "rnoexec", "rexec",
    "rnodiratime", "rdiratime", "rrelatime", "rnorelatime", "rnoatime", "ratime", "rstrictatime", "rnostrictatime",
    "rnosymfollow", "rsymfollow",
))  # fmt: skip
_MAX_DATA = 4095  # the kernel takes one page, with the closing zero


class MountOptions(Struct, frozen=True):
    """`flags` to set; `cleared`: flags asked to be off, which matters to a bind mount, whose source may have them on;
    `propagation`: one mount(2) call each, after mounting; `data`: what only the file system understands."""

    flags: int = 0
    cleared: int = 0
    propagation: tuple[int, ...] = ()
    data: str = ""

    @property
    def bind(self) -> bool:
        return bool(self.flags & MS_BIND)


def parse(options: Sequence[str], fstype: str = "") -> MountOptions:
    """Later options win. Type `bind` means a bind mount also without the option. Raises ConfigError naming one."""
    flags, cleared, propagation, data = MS_BIND if fstype == "bind" else 0, 0, [], []
    for option in options:
        if option in _UNSUPPORTED:
            raise ConfigError(f"option {option!r} is not supported")
        if option in _SET:
            flags, cleared = flags | _SET[option], cleared & ~_SET[option]
        elif option in _CLEAR:
            flags, cleared = flags & ~_CLEAR[option], cleared | _CLEAR[option]
        elif option in PROPAGATION:
            propagation.append(PROPAGATION[option])
        else:
            data.append(option)
    return MountOptions(flags, cleared, tuple(propagation), _data(data, bool(flags & MS_BIND)))


def _data(options: Sequence[str], bind: bool) -> str:
    if bind and options:
        raise ConfigError(f"option {options[0]!r} means nothing to a bind mount")
    text = ",".join(options)
    if (size := len(text.encode(errors="surrogatepass"))) > _MAX_DATA:
        raise ConfigError(f"options take {size} bytes; the kernel takes {_MAX_DATA}")
    return text
