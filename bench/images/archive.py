"""Importing an image into the store: OCI layouts and `docker save` archives, verified blob by blob."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from bench.errors import ImageError
from bench.images import oci
from bench.images.layout import Layout, copy_hashed, publish, read_small
from bench.images.oci import Config, Descriptor, DockerManifest, Index, Manifest, decode
from bench.images.sources import Source, open_source
from bench.images.stream import open_layer

_MAX_NESTING = 4  # index in index; real images have two levels
_GZIP_MAGIC = b"\x1f\x8b"
_CONTAINERD_NAME = "io.containerd.image.name"


def import_path(layout: Layout, path: Path, name: str | None = None) -> Descriptor:
    """Import the one image in the folder or archive `path`; needs the lock. Named `name`, else as it names itself.

    Raises ImageError that names the file if it is missing, truncated, damaged, or not for linux/amd64.
    """
    with layout.scratch() as scratch, open_source(path, scratch) as source:
        if source.has("index.json"):
            return _import_oci(layout, source, name, _stem(path))
        if source.has("manifest.json"):
            return _import_docker(layout, source, name, _stem(path))
        raise ImageError(
            f"{path}: holds no image: neither index.json (an OCI layout) nor manifest.json (`docker save`)",
            hint="`docker export` archives have no image in them; use `docker save`",
        )


def _stem(path: Path) -> str:
    name = path.absolute().name
    for ending in (".gz", ".tgz", ".tar"):
        name = name.removesuffix(ending)
    return name or "image"


# --- OCI layout ------------------------------------------------------------------------------------------------


def _import_oci(layout: Layout, source: Source, name: str | None, stem: str) -> Descriptor:
    where = f"{source.label}: index.json"
    with source.open("index.json") as file:
        index = decode(read_small(file, where), Index, where)
    found = _only(_manifests(source, index.manifests), source.label)
    manifest = decode(_read(source, found), Manifest, f"{source.label}: manifest {found.digest}")
    for layer in manifest.layers:
        oci.is_gzip(layer, source.label)  # a type we don't read is refused before gigabytes are copied
    for descriptor in (found, manifest.config, *manifest.layers):
        _copy(layout, source, descriptor)
    return adopt(layout, found, manifest, name or _given_name(found, stem), source.label)


def _given_name(found: Descriptor, stem: str) -> str:
    """What the image is called: in many layouts that is a bare tag, which says little among other images."""
    notes = found.annotations or {}
    name = notes.get(_CONTAINERD_NAME) or notes.get(oci.NAME) or ""
    if not name or name == "latest":
        return f"{stem}:latest"
    return name if "/" in name or ":" in name else f"{stem}:{name}"


def _manifests(source: Source, entries: Sequence[Descriptor], depth: int = 0) -> list[Descriptor]:
    """The image manifests for this architecture; the name of an index goes to what is in it."""
    if depth > _MAX_NESTING:
        raise ImageError(f"{source.label}: indexes nested more than {_MAX_NESTING} deep")
    found: list[Descriptor] = []
    for entry in entries:
        if entry.media_type in oci.MANIFESTS:
            found.append(entry)
        elif entry.media_type in oci.INDEXES:
            where = f"{source.label}: index {entry.digest}"
            inner = decode(_read(source, entry), Index, where).manifests
            named = [msgspec.structs.replace(one, annotations=entry.annotations) for one in inner]
            found += _manifests(source, named, depth + 1)
    return found


def _only(found: Sequence[Descriptor], label: str) -> Descriptor:
    """The one image for linux/amd64. A manifest that does not name its platform is judged by its configuration."""
    fitting = [one for one in found if one.platform is None or _fits(one.platform.architecture, one.platform.os)]
    named = [one for one in fitting if one.platform is not None] or fitting
    named = [one for one in named if one.platform is None or one.platform.variant is None] or named
    if len({one.digest for one in named}) == 1:
        return named[0]
    if not named:
        have = ", ".join(f"{one.platform.os}/{one.platform.architecture}" for one in found if one.platform) or "nothing"
        raise ImageError(f"{label}: no image for {oci.SYSTEM}/{oci.ARCHITECTURE}, it holds {have}")
    names = ", ".join(one.name or one.digest for one in named)
    raise ImageError(f"{label}: holds several images: {names}", hint=f"choose one: oci:{label}:NAME")


def _fits(architecture: str, system: str) -> bool:
    return (architecture, system) == (oci.ARCHITECTURE, oci.SYSTEM)


def _blob_name(descriptor: Descriptor, label: str) -> str:
    return f"blobs/sha256/{oci.hex_of(descriptor.digest, label)}"


def _read(source: Source, descriptor: Descriptor) -> bytes:
    """A small blob, verified: what it says decides what else is read."""
    name = _blob_name(descriptor, source.label)
    where = f"{source.label}: {name}"
    with source.open(name) as file:
        data = read_small(file, where)
    found = hashlib.sha256(data).hexdigest()
    if f"sha256:{found}" != descriptor.digest:
        raise ImageError(f"{where}: truncated or corrupt: found {len(data)} bytes with sha256:{found}")
    return data


def _copy(layout: Layout, source: Source, descriptor: Descriptor) -> None:
    name = _blob_name(descriptor, source.label)
    with source.open(name) as file:
        layout.put(file, descriptor, f"{source.label}: {name}")


# --- docker save -----------------------------------------------------------------------------------------------


def _import_docker(layout: Layout, source: Source, name: str | None, stem: str) -> Descriptor:
    where = f"{source.label}: manifest.json"
    with source.open("manifest.json") as file:
        data = read_small(file, where)
    listed = _docker_manifests(data, where)
    if len(listed) != 1:
        hint = "save one image an archive"
        raise ImageError(f"{source.label}: holds {len(listed)} images, expected one", hint=hint)
    docker = listed[0]
    with source.open(docker.config) as file:
        config = read_small(file, f"{source.label}: {docker.config}")
    layers = tuple(_docker_layer(layout, source, layer) for layer in docker.layers)
    manifest = Manifest(config=layout.put_bytes(config, oci.CONFIG), layers=layers)
    entry = layout.put_bytes(msgspec.json.encode(manifest), oci.MANIFEST)
    return adopt(layout, entry, manifest, name or (docker.repo_tags or (f"{stem}:latest",))[0], source.label)


def _docker_manifests(data: bytes, where: str) -> tuple[DockerManifest, ...]:
    try:
        return msgspec.json.decode(data, type=tuple[DockerManifest, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImageError(f"{where}: not a valid list of images: {error}") from error


def _docker_layer(layout: Layout, source: Source, name: str) -> Descriptor:
    """Store a layer under the digest it turns out to have; `adopt` verifies it by the configuration's diff id."""
    with source.open(name) as file:
        kind = oci.LAYER_GZIP if file.read(2) == _GZIP_MAGIC else oci.LAYER
    with source.open(name) as file:
        return store_blob(layout, file, kind)


def store_blob(layout: Layout, file: BinaryIO, media_type: str) -> Descriptor:
    """Store a blob whose digest is not known before. Needs the lock."""
    with layout.scratch() as folder:
        copy = folder / "blob"
        digest, size = copy_hashed(file, copy)
        publish(copy, layout.blob(digest))
    return Descriptor(media_type, digest, size)


# --- both ------------------------------------------------------------------------------------------------------


def adopt(layout: Layout, entry: Descriptor, manifest: Manifest, name: str, label: str) -> Descriptor:
    """List an image whose blobs are stored, after a last check of all it claims. Needs the lock."""
    where = f"{label}: configuration {manifest.config.digest}"
    config = decode(layout.read_json(manifest.config.digest), Config, where)
    if not _fits(config.architecture, config.os):
        ours = f"{oci.SYSTEM}/{oci.ARCHITECTURE}"
        raise ImageError(f"{label}: image for {config.os}/{config.architecture}; only {ours} runs here")
    claimed = config.rootfs.diff_ids
    if len(claimed) != len(manifest.layers) or not claimed:
        raise ImageError(f"{label}: {len(manifest.layers)} layers, but {len(claimed)} diff ids in its configuration")
    pairs = zip(manifest.layers, claimed, strict=True)
    sizes = tuple(_verify(layout, layer, diff_id, label) for layer, diff_id in pairs)
    return layout.add(entry, name, sizes)


def _verify(layout: Layout, layer: Descriptor, diff_id: str, label: str) -> int:
    """Check that the tar in a layer is the one its configuration names; its size in bytes."""
    oci.hex_of(diff_id, label)
    where = f"{label}: layer {layer.digest}"
    with open_layer(layout.blob(layer.digest), compressed=oci.is_gzip(layer, label), label=where) as reader:
        reader.drain()
    if reader.digest != diff_id:
        raise ImageError(f"{where}: truncated or corrupt: expected {diff_id} when unpacked, found {reader.digest}")
    return reader.size
