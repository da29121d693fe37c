"""Records of the OCI image format, as far as we read and write it, and the reports made from them.

Docker's own manifests and configurations have the same fields under other media types, and are read as well.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from msgspec import Struct

from bench.errors import ImageError
from bench.model import Image

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

MANIFESTS = frozenset({MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"})
INDEXES = frozenset({INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"})
PLAIN_LAYERS = frozenset({LAYER, "application/vnd.docker.image.rootfs.diff.tar"})
GZIP_LAYERS = frozenset({LAYER_GZIP, "application/vnd.docker.image.rootfs.diff.tar.gzip"})

NAME = "org.opencontainers.image.ref.name"
SIZES = "tenancy-bench.layer-sizes"
"""Our annotation of an image in the store: bytes of each layer as uncompressed tar, comma-separated."""

ARCHITECTURE, SYSTEM = "amd64", "linux"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_Record = TypeVar("_Record", bound=Struct)


class Platform(Struct, frozen=True):
    architecture: str
    os: str
    variant: str | None = None


class Descriptor(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A reference to a blob: what it is, its digest, its size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] | None = None

    @property
    def name(self) -> str | None:
        return (self.annotations or {}).get(NAME)


class Index(Struct, frozen=True, rename="camel", kw_only=True):
    schema_version: int = 2
    media_type: str = INDEX
    manifests: tuple[Descriptor, ...] = ()


class Manifest(Struct, frozen=True, rename="camel", kw_only=True):
    schema_version: int = 2
    media_type: str = MANIFEST
    config: Descriptor
    layers: tuple[Descriptor, ...]


class Execution(Struct, frozen=True, rename="pascal", omit_defaults=True):
    """What the image says of how to run it; engines write null for an empty list."""

    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str | None = None
    user: str | None = None


class RootFs(Struct, frozen=True):
    diff_ids: tuple[str, ...]
    type: str = "layers"


class Config(Struct, frozen=True):
    architecture: str
    os: str
    rootfs: RootFs
    config: Execution | None = None
    created: str | None = None


class DockerManifest(Struct, frozen=True, rename="pascal"):
    """One image of a `docker save` archive."""

    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


class LayerDetails(Struct, frozen=True):
    """One layer: its blob as stored and, by `diff_id`, the tar inside; sizes in bytes."""

    digest: str
    diff_id: str
    media_type: str
    size: int
    unpacked: int


class ImageDetails(Struct, frozen=True):
    """What `bench image inspect` shows."""

    image: Image
    layers: tuple[LayerDetails, ...]
    architecture: str
    os: str
    created: str | None


def decode(data: bytes, kind: type[_Record], where: str) -> _Record:
    """`data` as a record; raises ImageError that names `where` it was read and what is wrong with it."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImageError(f"{where}: not a valid image {kind.__name__.lower()}: {error}") from error


def hex_of(digest: str, where: str) -> str:
    """The hexadecimal part of a sha256 digest. Anything else is refused: it becomes part of a path."""
    if not _DIGEST.fullmatch(digest):
        raise ImageError(f"{where}: {digest!r} is not a sha256 digest")
    return digest.removeprefix("sha256:")


def is_gzip(layer: Descriptor, where: str) -> bool:
    """Whether a layer is compressed; raises ImageError for a media type we don't read."""
    if layer.media_type in GZIP_LAYERS:
        return True
    if layer.media_type in PLAIN_LAYERS:
        return False
    hint = "only tar and tar+gzip layers are read; `skopeo copy --dest-compress-format gzip` converts"
    raise ImageError(f"{where}: layer {layer.digest} is of type {layer.media_type}", hint=hint)


def make_image(descriptor: Descriptor, config: Config) -> Image:
    """The record drivers get, of an image in the store."""
    said = config.config or Execution()
    return Image(
        name=descriptor.name or descriptor.digest,
        digest=descriptor.digest,
        layers=config.rootfs.diff_ids,
        env=said.env or (),
        command=(*(said.entrypoint or ()), *(said.cmd or ())),
        workdir=said.working_dir or "/",
        size=sum(sizes_of(descriptor)),
    )


def sizes_of(descriptor: Descriptor) -> tuple[int, ...]:
    """Bytes of each layer as uncompressed tar, as noted on import."""
    noted = (descriptor.annotations or {}).get(SIZES, "")
    return tuple(int(size) for size in noted.split(",") if size.isdecimal())
