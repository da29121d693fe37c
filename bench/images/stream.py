"""Reading layers: forward only, hashed, counted and limited; a hostile or broken stream ends in an ImageError."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from bench.errors import ImageError
from bench.model import GIB, MIB

CHUNK = MIB
MAX_LAYER = 16 * GIB
"""Bytes of one layer as uncompressed tar; more is taken for a bomb."""
_MAX_READ = 16 * MIB  # of one read: tar headers hold a length that tarfile would allocate


class LayerReader(io.RawIOBase):
    """What `tarfile` needs of a seekable file, over a stream that can only go forward."""

    def __init__(self, raw: BinaryIO, label: str, limit: int = MAX_LAYER) -> None:
        self._raw = raw
        self._label = label
        self._limit = limit
        self._hash = hashlib.sha256()
        self.size = 0  # bytes read so far
        self.last = b""  # what the latest read returned

    @property
    def digest(self) -> str:
        """Of what was read so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise ImageError(f"{self._label}: a tar header asks for {size} bytes at once")
        pieces: list[bytes] = []
        while size and (piece := self._pull(size)):  # a short read is not the end
            pieces.append(piece)
            size -= len(piece)
        self.last = b"".join(pieces)
        return self.last

    def tell(self) -> int:
        return self.size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self.size:
            raise ImageError(f"{self._label}: a tar header points backwards")
        while offset > self.size and self._pull(min(CHUNK, offset - self.size)):
            pass
        return self.size

    def drain(self) -> None:
        """Read to the end, so that size and digest are the whole stream's."""
        while self._pull(CHUNK):
            pass

    def _pull(self, size: int) -> bytes:
        try:
            piece = self._raw.read(size)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ImageError(f"{self._label}: truncated or corrupt gzip data ({error})") from error
        self.size += len(piece)
        if self.size > self._limit:
            raise ImageError(f"{self._label}: unpacks to more than {self._limit} bytes, refused")
        self._hash.update(piece)
        return piece


@contextmanager
def open_layer(blob: Path, *, compressed: bool, label: str) -> Iterator[LayerReader]:
    """The uncompressed tar inside the blob of a layer."""
    with blob.open("rb") as raw:
        if not compressed:
            yield LayerReader(raw, label)
            return
        with gzip.GzipFile(fileobj=raw) as unzipped:
            yield LayerReader(cast(BinaryIO, unzipped), label)
