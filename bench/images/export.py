"""Images out: `docker save` archives and OCI layouts, the same bytes each time, every blob verified on its way."""

from __future__ import annotations

import io
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

import msgspec

from bench.errors import HostError, ImageError, UsageError
from bench.images import oci
from bench.images.layout import Layout, sha256
from bench.images.oci import Config, Descriptor, DockerManifest, Index, Manifest, decode
from bench.images.stream import CHUNK, LayerReader, open_layer

Form = Literal["docker-archive", "oci", "oci-archive"]
"""`docker save`'s archive, an OCI layout folder, a tar of one: skopeo's names for them."""

_LAYOUT_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_REPOSITORY = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_TAGGED = re.compile(
    rf"(?P<name>(?:[A-Za-z0-9.-]+(?::\d+)?/)?{_REPOSITORY}(?:/{_REPOSITORY})*)(?P<tag>:[\w][\w.-]{{0,127}})?"
)


def export(layout: Layout, entry: Descriptor, path: Path, form: Form) -> None:
    """Write the image `entry` of the store to `path`, complete or not at all.

    Raises UsageError if something is there already, ImageError if a blob is damaged, HostError if it can't be written.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists already", hint=f"rm -r {path}, or choose another name")
    with _beside(path) as scratch:
        made = scratch / "made"
        if form == "oci":
            _write_folder(layout, entry, made)
        else:
            with tarfile.open(made, "x:", format=tarfile.PAX_FORMAT) as tar:
                _WRITERS[form](layout, entry, tar)
        made.rename(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A private folder on the file system of `path`; gone afterwards."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".bench-export-", dir=path.absolute().parent))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch)
    except OSError as error:
        hint = f"df {path.parent}; ls -ld {path.parent}"
        raise HostError(f"{path}: can't be written: {error.strerror}", hint=hint) from error


# --- OCI -------------------------------------------------------------------------------------------------------


def _oci_files(layout: Layout, entry: Descriptor) -> tuple[dict[str, bytes], tuple[Descriptor, ...]]:
    """The small files by name, and the layers."""
    manifest = decode(layout.read_json(entry.digest), Manifest, f"image {entry.name}")
    notes = {oci.NAME: entry.name} if entry.name else None
    index = Index(manifests=(msgspec.structs.replace(entry, annotations=notes),))
    small = {digest: layout.read_json(digest) for digest in (manifest.config.digest, entry.digest)}
    files = {_blob_name(digest): data for digest, data in small.items()}
    layers = {layer.digest: layer for layer in manifest.layers}  # each once
    return {"oci-layout": _LAYOUT_VERSION, "index.json": msgspec.json.encode(index), **files}, tuple(layers.values())


def _write_folder(layout: Layout, entry: Descriptor, folder: Path) -> None:
    files, layers = _oci_files(layout, entry)
    (folder / "blobs/sha256").mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for layer in layers:
        with _blob(layout, layer) as file, (folder / _blob_name(layer.digest)).open("xb") as target:
            shutil.copyfileobj(file, target, CHUNK)


def _write_oci_archive(layout: Layout, entry: Descriptor, tar: tarfile.TarFile) -> None:
    files, layers = _oci_files(layout, entry)
    for name, data in files.items():
        _add(tar, name, len(data), io.BytesIO(data))
    for layer in layers:
        with _blob(layout, layer) as file:
            _add(tar, _blob_name(layer.digest), layer.size, file)


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{oci.hex_of(digest, 'index.json')}"


@contextmanager
def _blob(layout: Layout, layer: Descriptor) -> Iterator[BinaryIO]:
    """A layer's blob, verified when it has been read to its end."""
    path = layout.blob(layer.digest)
    with _reading(path), open_layer(path, compressed=False, label=str(path)) as reader:
        yield cast(BinaryIO, reader)
        _verify(reader, layer.digest, path)


# --- docker save -----------------------------------------------------------------------------------------------


def _write_docker(layout: Layout, entry: Descriptor, tar: tarfile.TarFile) -> None:
    """Layers go unpacked, named by their diff ids, as Docker itself writes them."""
    where = f"image {entry.name}"
    manifest = decode(layout.read_json(entry.digest), Manifest, where)
    config = layout.read_json(manifest.config.digest)
    diff_ids = decode(config, Config, where).rootfs.diff_ids
    names = tuple(f"{oci.hex_of(diff_id, where)}/layer.tar" for diff_id in diff_ids)
    listed = DockerManifest(f"{sha256(config).partition(':')[2]}.json", names, _tags(entry.name))
    rows = zip(names, manifest.layers, diff_ids, oci.sizes_of(entry), strict=True)
    for name, layer, diff_id, size in {row[0]: row for row in rows}.values():
        _add_unpacked(layout, tar, name, layer, diff_id, size)
    for name, data in ((listed.config, config), ("manifest.json", msgspec.json.encode([listed]))):
        _add(tar, name, len(data), io.BytesIO(data))


def _add_unpacked(layout: Layout, tar: tarfile.TarFile, name: str, layer: Descriptor, diff_id: str, size: int) -> None:
    path = layout.blob(layer.digest)
    with _reading(path), open_layer(path, compressed=oci.is_gzip(layer, name), label=str(path)) as reader:
        _add(tar, name, size, cast(BinaryIO, reader))
        _verify(reader, diff_id, path)


def _tags(name: str | None) -> tuple[str, ...] | None:
    """The name as Docker takes names; None if it can't be one."""
    found = _TAGGED.fullmatch((name or "").removeprefix("docker://"))
    return (f"{found['name']}{found['tag'] or ':latest'}",) if found else None


# --- both ------------------------------------------------------------------------------------------------------


def _add(tar: tarfile.TarFile, name: str, size: int, content: BinaryIO) -> None:
    """A file of root's, dated 1970: nothing but the image decides the archive's bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    tar.addfile(info, content)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A blob that is missing or too short is the store's fault, not the target's."""
    try:
        yield
    except FileNotFoundError as error:
        raise _damaged(path, "is missing") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, "is too short") from error  # tarfile's own complaint


def _verify(reader: LayerReader, digest: str, path: Path) -> None:
    reader.drain()
    if reader.digest != digest:
        raise _damaged(path, f"holds {reader.digest}, expected {digest}")


def _damaged(path: Path, what: str) -> ImageError:
    return ImageError(f"{path}: damaged: {what}", hint=f"rm -f {path}, and import the image again")


_WRITERS = {"docker-archive": _write_docker, "oci-archive": _write_oci_archive}
