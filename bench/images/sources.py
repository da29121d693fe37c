"""Where an image is imported from: files by name, in a folder or in a tar (of which gzip may have been made)."""

from __future__ import annotations

import gzip
import posixpath
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from bench.errors import ImageError
from bench.images.stream import CHUNK, MAX_LAYER

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_ARCHIVE = 4 * MAX_LAYER  # bytes of a .tar.gz when unpacked
_MAX_MEMBERS = 100_000


class Source(Protocol):
    """Files of an image to import. `label` is what its user called it."""

    @property
    def label(self) -> str: ...

    def has(self, name: str) -> bool: ...

    def open(self, name: str) -> BinaryIO:
        """Raises ImageError if it is not there."""
        ...


class FolderSource:
    def __init__(self, folder: Path, label: str) -> None:
        self._folder = folder
        self.label = label

    def has(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def open(self, name: str) -> BinaryIO:
        path = self._folder / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a fifo would wait for ever
                raise ImageError(f"{path}: not a regular file")
            return path.open("rb")
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}") from error


class TarSource:
    def __init__(self, tar: tarfile.TarFile, label: str) -> None:
        self._tar = tar
        self.label = label
        self._members: dict[str, tarfile.TarInfo] = {}
        for member in tar:
            self._members[posixpath.normpath(member.name).lstrip("/")] = member
            if len(self._members) > _MAX_MEMBERS:
                raise ImageError(f"{label}: more than {_MAX_MEMBERS} files, refused: not an image archive")

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def open(self, name: str) -> BinaryIO:
        member = self._find(name)
        if member is None:
            raise ImageError(f"{self.label}: incomplete: {name} is missing in it")
        return cast(BinaryIO, self._tar.extractfile(member))

    def _find(self, name: str) -> tarfile.TarInfo | None:
        """The regular file `name`; older `docker save` wrote a layer it had already written as a symlink to it."""
        name = posixpath.normpath(name)
        member = self._members.get(name)
        if member is not None and member.issym():
            name = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            member = self._members.get(name)
        return member if member is not None and member.isreg() else None


@contextmanager
def open_source(path: Path, scratch: Path) -> Iterator[Source]:
    """The files in the folder or archive `path`; `scratch` holds an archive that has to be gunzipped first.

    Raises ImageError if it is missing, truncated, or neither.
    """
    label = str(path)
    if path.is_dir():
        yield FolderSource(path, label)
        return
    with _explained(label), tarfile.open(_plain(path, scratch), mode="r:") as tar:
        yield TarSource(tar, label)


@contextmanager
def _explained(label: str) -> Iterator[None]:
    """Also around what is done with the source: a truncated archive is noticed only when its end is read."""
    try:
        yield
    except tarfile.TarError as error:
        raise ImageError(f"{label}: truncated, or not a tar archive of an image: {error}") from error


def _plain(path: Path, scratch: Path) -> Path:
    """`path` itself, or what it is when gunzipped: archives are read in another order than they are written."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(f"{path}: neither a regular file nor a folder")
        with path.open("rb") as file:
            if file.read(2) != _GZIP_MAGIC:
                return path
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    plain = scratch / "archive.tar"
    try:
        _gunzip(path, plain)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ImageError(f"{path}: truncated or corrupt gzip data ({error})") from error
    return plain


def _gunzip(path: Path, plain: Path) -> None:
    left = _MAX_ARCHIVE
    with gzip.open(path) as file, plain.open("xb") as out:
        while chunk := file.read(CHUNK):
            left -= len(chunk)
            if left < 0:
                raise ImageError(f"{path}: unpacks to more than {_MAX_ARCHIVE} bytes, refused")
            out.write(chunk)
