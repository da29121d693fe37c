"""What the kernel knows of a file: where its blocks lie, and how much of it is in the page cache."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP
_HEAD = struct.Struct("=QQLLLL")  # struct fiemap: start, length, flags, mapped, room, reserved
_EXTENT = struct.Struct("=QQQ16xL12x")  # struct fiemap_extent: logical, physical, length, flags
_ROOM = 128  # extents asked for at once
_LAST, _INLINE, _SHARED = 0x1, 0x200, 0x2000
# Not where the data lie: not known yet, not allocated yet, compressed or encrypted, beside the inode.
_ELSEWHERE = 0x2 | 0x4 | 0x8 | _INLINE

_SYS_CACHESTAT = 451  # x86-64; since Linux 6.5
_PAGE = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)


class Extent(NamedTuple):
    """Bytes of a file that lie together on its file system. `shared`: another file (or snapshot) has them as well."""

    physical: int
    length: int
    shared: bool


class Placement(NamedTuple):
    """Where a file's data lie. `inline`: beside its inode, in blocks that are the file system's own."""

    extents: tuple[Extent, ...]
    inline: bool


def placement(path: str | Path) -> Placement:
    """Of a regular file; what has no place of its own yet, or none to be told, is in none of its extents.

    Raises OSError: EOPNOTSUPP where the file system can't say (tmpfs, overlayfs).
    """
    found: list[tuple[int, int, int, int]] = []
    with _opened(path) as fd:
        while some := _ask(fd, found[-1][0] + found[-1][2] if found else 0):
            found += some
            if some[-1][3] & _LAST:
                break
    placed = tuple(
        Extent(physical, length, bool(flags & _SHARED))
        for _, physical, length, flags in found
        if not flags & _ELSEWHERE
    )
    return Placement(placed, any(flags & _INLINE for *_, flags in found))


def _ask(fd: int, start: int) -> list[tuple[int, int, int, int]]:
    buffer = bytearray(_HEAD.size + _ROOM * _EXTENT.size)
    _HEAD.pack_into(buffer, 0, start, (1 << 64) - 1 - start, 0, 0, _ROOM, 0)
    fcntl.ioctl(fd, _FIEMAP, buffer)
    count = _HEAD.unpack_from(buffer)[3]
    return [_EXTENT.unpack_from(buffer, _HEAD.size + number * _EXTENT.size) for number in range(count)]


def cached(path: str | Path, start: int = 0, length: int = 0) -> int | None:
    """Bytes of a regular file, or of `length` from `start` (0: to its end), that are in the page cache.

    None before Linux 6.5. Raises OSError.
    """
    with _opened(path) as fd:
        part, counts = (ctypes.c_uint64 * 2)(start, length), (ctypes.c_uint64 * 5)()
        try:
            _call(_libc.syscall(_SYS_CACHESTAT, fd, part, counts, 0), f"cachestat {path}")
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return None
            raise
        return int(counts[0]) * _PAGE


def uncache(path: str | Path) -> None:
    """Write out a regular file and let go of its pages, as far as nobody maps them. Raises OSError."""
    with _opened(path) as fd:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def flush(path: str | Path) -> None:
    """Write out the file system that holds `path`, so that what it counts as used is what it holds. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call(_libc.syncfs(fd), f"syncfs {path}")
    finally:
        os.close(fd)


def _call(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[int]:
    """Not through links, nor for as long as a fifo would make us wait."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
