"""Real overlays and what is in them, for tests of layers."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import process
from bench.container.storage import OVERLAY_OPTIONS, lowerdir
from bench.images.changes import Changes
from bench.images.layers import LayerMarks, unpack, wanted_xattr
from bench.images.stream import LayerReader
from bench.images.writer import LayerWriter
from bench.linux import syscalls


@contextmanager
def overlay(layers: Sequence[Path], own: Path) -> Iterator[Path]:
    """A mount as a container has it; what is written is in own/upper."""
    for name in ("upper", "work", "root"):
        (own / name).mkdir(parents=True)
    options = f"lowerdir={lowerdir(layers)},upperdir={own}/upper,workdir={own}/work{OVERLAY_OPTIONS}"
    syscalls.mount("overlay", str(own / "root"), "overlay", 0, options)
    try:
        yield own / "root"
    finally:
        syscalls.umount2(str(own / "root"))


@contextmanager
def fuse(layers: Sequence[Path], own: Path) -> Iterator[Path]:
    """The same by fuse-overlayfs, which ends with its mount."""
    for name in ("upper", "work", "root"):
        (own / name).mkdir(parents=True)
    options = f"lowerdir={lowerdir(layers)},upperdir={own}/upper,workdir={own}/work"
    process.run(["fuse-overlayfs", "-o", options, own / "root"], timeout=20)
    try:
        yield own / "root"
    finally:
        syscalls.umount2(str(own / "root"))


def layer_of(changes: Changes) -> bytes:
    buffer = io.BytesIO()
    layer = LayerWriter(buffer)
    changes.write(layer)
    layer.finish()
    return buffer.getvalue()


def unpacked(data: bytes, tree: Path) -> LayerMarks:
    tree.mkdir(parents=True)
    return unpack(LayerReader(io.BytesIO(data), "layer"), tree, privileged=True)


def look(tree: Path) -> dict[str, Any]:
    """All of a tree that a layer keeps: by path, the file's state; which names are one file."""
    found: dict[str, Any] = {}
    inodes: dict[tuple[int, int], list[str]] = {}
    _look(tree, "", found, inodes)
    found["links"] = sorted(sorted(names) for names in inodes.values() if len(names) > 1)
    return found


def _look(tree: Path, path: str, found: dict[str, Any], inodes: dict[tuple[int, int], list[str]]) -> None:
    here = tree / path
    status = here.lstat()
    content: object = None
    if stat.S_ISREG(status.st_mode):
        content = here.read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(here)
    xattrs = {
        name: os.getxattr(here, name, follow_symlinks=False)
        for name in os.listxattr(here, follow_symlinks=False)
        if wanted_xattr(name)
    }
    found[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev, content, xattrs)
    if stat.S_ISDIR(status.st_mode):
        for name in os.listdir(here):
            _look(tree, f"{path}/{name}" if path else name, found, inodes)
    else:
        inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
