"""A new image: another one with what a container changed as its top layer."""

from __future__ import annotations

from typing import Any

import msgspec

from bench.images import oci
from bench.images.archive import adopt
from bench.images.changes import Changes
from bench.images.layout import Layout, copy_hashed, publish
from bench.images.oci import Config, Descriptor, Manifest, decode
from bench.images.writer import LayerWriter

_AUTHOR = "bench commit"


def commit(layout: Layout, base: Descriptor, changes: Changes, name: str) -> Descriptor:
    """List `base` with one more layer under `name`; needs the lock. The same changes give the same digest.

    Raises ImageError as `Changes.write` does.
    """
    return add_layer(layout, base, _write_layer(layout, changes), name)


def add_layer(layout: Layout, base: Descriptor, layer: Descriptor, name: str) -> Descriptor:
    """List `base` with `layer`, a tar that is a blob already, above its own under `name`; needs the lock."""
    manifest = decode(layout.read_json(base.digest), Manifest, f"image {base.name}")
    config = _with_layer(layout.read_json(manifest.config.digest), layer.digest, f"image {base.name}")
    made = Manifest(
        config=layout.put_bytes(config, oci.CONFIG),
        layers=(*(_as_oci(one, f"image {base.name}") for one in manifest.layers), layer),
    )
    entry = layout.put_bytes(msgspec.json.encode(made), oci.MANIFEST)
    return adopt(layout, entry, made, name, f"image {name}")


def _write_layer(layout: Layout, changes: Changes) -> Descriptor:
    """The layer as a blob, not compressed: its digest is the diff id."""
    with layout.scratch() as folder:
        tar = folder / "layer.tar"
        with tar.open("xb") as file:
            layer = LayerWriter(file)
            changes.write(layer)
            layer.finish()
        with tar.open("rb") as file:
            digest, size = copy_hashed(file, folder / "blob")
        publish(folder / "blob", layout.blob(digest))
    return Descriptor(oci.LAYER, digest, size)


def _with_layer(data: bytes, diff_id: str, where: str) -> bytes:
    """The configuration as it is, fields we know nothing of included, with one layer more and no date."""
    decode(data, Config, where)  # from here on it is known to have what we change
    config: dict[str, Any] = msgspec.json.decode(data)
    config["rootfs"]["diff_ids"].append(diff_id)
    if isinstance(config.get("history"), list):  # it has one entry a layer, or none at all
        config["history"].append({"created_by": _AUTHOR})
    config.pop("created", None)
    return msgspec.json.encode(config, order="sorted")


def _as_oci(layer: Descriptor, where: str) -> Descriptor:
    """Docker's media types are not allowed in OCI manifests; the blobs are the same."""
    kind = oci.LAYER_GZIP if oci.is_gzip(layer, where) else oci.LAYER
    return msgspec.structs.replace(layer, media_type=kind, platform=None, annotations=None)
