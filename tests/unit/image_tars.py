"""Small images in every form that can be imported, made in memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.images import oci


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def make_tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for info, data in entries:
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_of(files: Mapping[str, bytes | str | None]) -> bytes:
    """Files by path: bytes are content, text is a symlink's target, None is a folder."""
    entries = []
    for name, what in files.items():
        if isinstance(what, str):
            entries.append((member(name, tarfile.SYMTYPE, linkname=what), b""))
        elif what is None:
            entries.append((member(name, tarfile.DIRTYPE), b""))
        else:
            entries.append((member(name), what))
    return make_tar(entries)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


def config_of(layers: Iterable[bytes], *, architecture: str = "amd64", **config: object) -> bytes:
    root = {"type": "layers", "diff_ids": [digest(layer) for layer in layers]}
    return dump({"architecture": architecture, "os": "linux", "rootfs": root, "config": config or None})


def descriptor(data: bytes, media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


class OciFiles:
    """An OCI layout as files by name, to be changed by a test before it is written."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def blob(self, data: bytes, media_type: str, **more: object) -> dict[str, object]:
        self.files[blob_name(data)] = data
        return descriptor(data, media_type, **more)

    def image(
        self,
        layers: list[bytes],
        *,
        compressed: bool = False,
        layer_type: str = "",
        config: bytes = b"",
        **more: object,
    ) -> dict[str, object]:
        kind = layer_type or (oci.LAYER_GZIP if compressed else oci.LAYER)
        blobs = [gzip.compress(layer, mtime=0) if compressed else layer for layer in layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "config": self.blob(config or config_of(layers), oci.CONFIG),
            "layers": [self.blob(blob, kind) for blob in blobs],
        }
        return self.blob(dump(manifest), oci.MANIFEST, **more)

    def index(self, *entries: dict[str, object]) -> OciFiles:
        self.files["index.json"] = dump({"schemaVersion": 2, "manifests": list(entries)})
        return self

    def write_folder(self, folder: Path) -> Path:
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder

    def write_tar(self, path: Path) -> Path:
        path.write_bytes(tar_of(self.files))
        return path


def blob_name(data: bytes) -> str:
    return f"blobs/{digest(data).replace(':', '/')}"


def docker_archive(layers: list[bytes], *, tags: list[str] | None = None, config: bytes = b"") -> bytes:
    """As `docker save` wrote them before it wrote OCI layouts."""
    config = config or config_of(layers, Env=["A=1"], Entrypoint=["/bin/sh"], Cmd=["-c", "true"], WorkingDir="/srv")
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    listed = [{"Config": "config.json", "RepoTags": tags, "Layers": names}]
    files = {"config.json": config, **dict(zip(names, layers, strict=True)), "manifest.json": dump(listed)}
    return tar_of(files)
