"""What of a file is in the page cache, and how to get it out. Pages that a program has mapped, or that are not yet
written, stay whatever one says (posix_fadvise(2), POSIX_FADV_DONTNEED)."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
OBJECTS, ALL = "2", "3"  # what to write there: dentries and inodes; those and the page cache

_PAGE = mmap.PAGESIZE
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def files_of(paths: Iterable[str]) -> Iterator[str]:
    """Regular files among `paths` and in the trees below them; links are not followed, nor are mounts left out."""
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            for folder, _, names in os.walk(path):
                yield from (one for name in names if _regular(one := os.path.join(folder, name)))
        elif _regular(os.path.realpath(path)):
            yield os.path.realpath(path)


def resident(path: str) -> int:
    """Bytes of the file in the page cache, in whole pages; to ask brings none in. Raises OSError."""
    with _opened(path) as fd:
        size = os.fstat(fd).st_size
        if not size:
            return 0
        at = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if at == _FAILED:
            raise _error("mmap", path)
        try:
            pages = ctypes.create_string_buffer(-(-size // _PAGE))
            if _libc.mincore(at, size, pages):
                raise _error("mincore", path)
            return _PAGE * sum(page & 1 for page in pages.raw)  # the other bits are not defined
        finally:
            _libc.munmap(at, size)


def evict(path: str) -> None:
    """Take the file's unmapped pages out of the page cache; those not yet written are, first. Raises OSError."""
    with _opened(path) as fd:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOATIME)
    try:
        yield fd
    finally:
        os.close(fd)


def _error(call: str, path: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}", path)
