"""The store on disk: an OCI layout (blobs by digest, index.json with names), changed by one process at a time.

Whatever is made is made under a temporary name and renamed when it is complete, so a reader never needs the lock
and a killed writer leaves only scratch, which the next writer removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from bench.errors import HostError, ImageError
from bench.images.oci import NAME, SIZES, Descriptor, Index, decode, hex_of
from bench.images.stream import CHUNK

_MAX_JSON = 8 << 20  # bytes; manifests and configurations are a few KiB


class Layout:
    """An OCI layout folder. Nothing is created before the first `lock`; methods that write need it held."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._scratch = root / "tmp"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store against other processes; waits for them. Raises HostError if it can't be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                self._prepare()
                yield
            finally:
                os.close(fd)
        except OSError as error:
            hint = "make room, or set BENCH_CACHE to a folder you can write, on a file system with more"
            raise HostError(f"the image store {self.root} can't be written: {error}", hint=hint) from error

    def _prepare(self) -> None:
        remove_tree(self._scratch)  # we hold the lock: whatever is there, its writer was killed
        self._scratch.mkdir()
        (self.root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        marker = self.root / "oci-layout"
        if not marker.exists():
            self._replace(marker, b'{"imageLayoutVersion":"1.0.0"}')

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of our own on the store's file system, private to us; gone afterwards. Needs the lock."""
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            yield folder
        finally:
            remove_tree(folder)

    def blob(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / hex_of(digest, str(self.root))

    def read_json(self, digest: str) -> bytes:
        """The bytes of a small blob, verified. Raises ImageError if it is missing or damaged."""
        path = self.blob(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}; import the image again") from error
        if sha256(data) != digest:
            hint = f"rm {path}, and import the image again"
            raise ImageError(f"{path}: damaged: its content is {sha256(data)}", hint=hint)
        return data

    def put(self, source: BinaryIO, descriptor: Descriptor, where: str) -> None:
        """Store a blob of ours or from `where`, verified against `descriptor`. Needs the lock.

        Raises ImageError that names `where` and what was expected.
        """
        with self.scratch() as folder:
            copy = folder / "blob"
            digest, size = copy_hashed(source, copy)
            if (digest, size) != (descriptor.digest, descriptor.size):
                expected = f"expected {descriptor.size} bytes with {descriptor.digest}"
                raise ImageError(f"{where}: truncated or corrupt: {expected}, found {size} bytes with {digest}")
            publish(copy, self.blob(descriptor.digest))

    def put_bytes(self, data: bytes, media_type: str) -> Descriptor:
        """Store what we made ourselves. Needs the lock."""
        descriptor = Descriptor(media_type, sha256(data), len(data))
        path = self.blob(descriptor.digest)
        if not path.exists() or path.read_bytes() != data:
            self._replace(path, data)
        return descriptor

    def entries(self) -> tuple[Descriptor, ...]:
        """The images' descriptors, as index.json holds them; empty if there is no store yet."""
        path = self.root / "index.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            hint = "run as the user that owns the cache, or set BENCH_CACHE"
            raise HostError(f"{path}: {error.strerror}", hint=hint) from error
        return decode(data, Index, str(path)).manifests

    def add(self, manifest: Descriptor, name: str, sizes: tuple[int, ...]) -> Descriptor:
        """List an image under `name`, in place of what had that name. Needs the lock."""
        notes = {NAME: name, SIZES: ",".join(map(str, sizes))}
        entry = msgspec.structs.replace(manifest, platform=None, annotations=notes)
        others = [other for other in self.entries() if other.name != name]
        if entry not in self.entries():
            index = Index(manifests=(*others, entry))
            self._replace(self.root / "index.json", msgspec.json.encode(index))
        return entry

    def _replace(self, path: Path, data: bytes) -> None:
        with self.scratch() as folder:
            copy = folder / "new"
            with copy.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            publish(copy, path)


def copy_hashed(source: BinaryIO, target: Path) -> tuple[str, int]:
    """Copy a stream into a new file, on disk when this returns: its digest and size in bytes."""
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as file:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return f"sha256:{digest.hexdigest()}", size


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def publish(made: Path, path: Path) -> None:
    """Give what is complete its final name; the name is on disk when this returns."""
    made.replace(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_small(file: BinaryIO, where: str) -> bytes:
    """All of a JSON file; raises ImageError if it is far larger than any is."""
    data = file.read(_MAX_JSON + 1)
    if len(data) > _MAX_JSON:
        raise ImageError(f"{where}: larger than {_MAX_JSON} bytes, refused")
    return data


def remove_tree(folder: Path) -> None:
    """Remove a tree of ours, if it is there. Never follows a symlink out of it."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
