"""Writing a layer's tar: the same entries give the same bytes, and `layers.unpack` gives the same files back.

What is read may change meanwhile, and whoever changes it may be hostile (a container that runs on): files are opened
by name in a folder that is open already, and no symlink is ever followed.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from bench.errors import ImageError
from bench.images.layers import MAX_DEPTH, MAX_ENTRIES, OPAQUE, WHITEOUT, XATTR, is_mark, wanted_xattr
from bench.images.stream import CHUNK, MAX_LAYER

_BLOCK = 512  # unit of a tar
_NANO = 1_000_000_000
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE, stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE,
}  # fmt: skip


class LayerWriter:
    """Entries in the order they are given; a folder goes before what is in it. Paths are relative, joined by `/`.

    Raises ImageError for what no layer can hold, or what we would refuse to unpack.
    """

    def __init__(self, file: BinaryIO, limit: int = MAX_LAYER, max_entries: int = MAX_ENTRIES) -> None:
        self._file = file
        self._limit = limit
        self._max_entries = max_entries
        self._size = 0  # bytes written
        self._entries = 0
        self._links: dict[tuple[int, int], str] = {}  # a file of several names -> the first one written

    def folder(self, path: str, fd: int, *, opaque: bool = False) -> None:
        """The open folder `fd` itself; the empty path is the root. `opaque`: hide what lower layers have in it."""
        status = os.fstat(fd)
        self._put(_header(path or ".", status, _xattrs(fd)), path)
        if opaque:
            self._mark(f"{path}/{OPAQUE}" if path else OPAQUE)

    def whiteout(self, path: str) -> None:
        """Remove what lower layers have under this name."""
        parent, slash, base = path.rpartition("/")
        _check_name(base, path)
        self._mark(f"{parent}{slash}{WHITEOUT}{base}")

    def file(self, path: str, folder: int, name: str, status: os.stat_result) -> None:
        """Anything but a folder: `name` in the open `folder`, with its `status` as just read."""
        key = (status.st_dev, status.st_ino)
        if key in self._links:
            link = _header(path, status, {})
            link.type, link.linkname = tarfile.LNKTYPE, self._links[key]
            self._put(link, path)
            return
        if status.st_nlink > 1:
            self._links[key] = path
        if stat.S_ISREG(status.st_mode):
            self._regular(path, folder, name)
            return
        if is_mark(status):
            raise ImageError(f"{path!r}: a character device 0:0 means a removal in an image", hint=f"rm {path}")
        info = _header(path, status, {})
        if stat.S_ISLNK(status.st_mode):
            info.linkname = os.readlink(name, dir_fd=folder)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        self._put(info, path)

    def finish(self) -> None:
        """Write the end mark."""
        self._write(bytes(2 * _BLOCK))

    def _regular(self, path: str, folder: int, name: str) -> None:
        with opened(name, folder) as fd:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise changed(path)
            info = _header(path, status, _xattrs(fd))
            info.size = status.st_size
            self._check_size(info.size)  # before a sparse file of terabytes fills the disk
            self._put(info, path)
            self._content(fd, info.size, path)

    def _content(self, fd: int, size: int, path: str) -> None:
        left = size
        while left:
            chunk = os.read(fd, min(CHUNK, left))
            if not chunk:
                raise changed(path)
            self._write(chunk)
            left -= len(chunk)
        self._write(bytes(-size % _BLOCK))

    def _mark(self, path: str) -> None:
        info = tarfile.TarInfo(path)
        info.mode = 0o600
        self._write_header(info, path)

    def _put(self, info: tarfile.TarInfo, path: str) -> None:
        if path:
            _check_name(path.rpartition("/")[2], path)
        self._write_header(info, path)

    def _write_header(self, info: tarfile.TarInfo, path: str) -> None:
        self._entries += 1
        if self._entries > self._max_entries:
            raise ImageError(f"more than {self._max_entries} files in one layer, refused")
        check_depth(path)
        self._write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _write(self, data: bytes) -> None:
        self._check_size(len(data))
        self._size += len(data)
        self._file.write(data)

    def _check_size(self, more: int) -> None:
        if self._size + more > self._limit:
            raise ImageError(f"more than {self._limit} bytes in one layer, refused")


def check_depth(path: str) -> None:
    """Raises ImageError for a path deeper than we unpack."""
    if path.count("/") >= MAX_DEPTH:
        raise ImageError(f"{path[:60]!r}...: more than {MAX_DEPTH} folders deep, refused")


def changed(path: str) -> ImageError:
    return ImageError(f"{path!r}: changed while it was read", hint="pause or stop what writes there, then do it again")


@contextmanager
def opened(name: str, folder: int | None = None, flags: int = 0) -> Iterator[int]:
    """A file or folder open for reading, only if it is no symlink; opening a fifo does not wait."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def in_a_layer(status: os.stat_result) -> bool:
    """Whether a layer can hold a file of this type: it can't hold sockets, which mean nothing without their server."""
    return not stat.S_ISSOCK(status.st_mode)


def _header(path: str, status: os.stat_result, xattrs: dict[str, bytes]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type = _TYPES[stat.S_IFMT(status.st_mode)]
    info.mode, info.uid, info.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    info.mtime = status.st_mtime_ns // _NANO
    info.pax_headers = {f"{XATTR}{name}": value.decode("utf-8", "surrogateescape") for name, value in xattrs.items()}
    if status.st_mtime_ns % _NANO:
        info.pax_headers["mtime"] = _seconds(status.st_mtime_ns)
    return info


def _seconds(moment: int) -> str:
    """Nanoseconds as decimal seconds, exactly: a float has too few digits for them."""
    whole, part = divmod(abs(moment), _NANO)
    return f"{'-' if moment < 0 else ''}{whole}.{part:09d}"


def _xattrs(fd: int) -> dict[str, bytes]:
    names = [name for name in sorted(os.listxattr(fd)) if wanted_xattr(name)]
    if bad := [name for name in names if "=" in name]:
        raise ImageError(f"extended attribute {bad[0]!r}: no layer can hold a name with = in it", hint="setfattr -x")
    return {name: os.getxattr(fd, name) for name in names}


def _check_name(base: str, path: str) -> None:
    if base.startswith(WHITEOUT):
        raise ImageError(f"{path!r}: in an image, a name that starts with {WHITEOUT} is a removal", hint="rename it")
