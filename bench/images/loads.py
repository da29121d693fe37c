"""The program that neighbours work and load with (images/programs/load.c), and an image with it as one more layer."""

from __future__ import annotations

from pathlib import Path

from bench.images.build import Entry, make_tar
from bench.images.compiled import LIBC, compiled_path, parts
from bench.images.store import ImageStore
from bench.model import Image

PROGRAM = "/bench-load"
SUFFIX = "+load"


def load_program(cache: Path) -> Path:
    """The program; compiled once for each version of its source. Raises HostError without a compiler."""
    return compiled_path(cache, "load", parts("load"), LIBC)


def with_loads(store: ImageStore, image: Image, program: Path) -> Image:
    """`image` with the program as its top layer, in the store under the same name with SUFFIX."""
    layer = make_tar([Entry(PROGRAM[1:], 0o755, data=program.read_bytes())])
    return store.extend(image, layer, image.name + SUFFIX)
