"""The program that tries calls and reads facts inside (images/programs/exposure.c), and an image with it on top."""

from __future__ import annotations

from pathlib import Path

from bench.images.build import Entry, make_tar
from bench.images.compiled import compiled_path, parts
from bench.images.store import ImageStore
from bench.model import Image

PROGRAM = "/bench-exposure"
SUFFIX = "+exposure"


def exposure_program(cache: Path) -> Path:
    """The program; compiled once for each version of its source. Raises HostError without a compiler."""
    return compiled_path(cache, "exposure", parts("kernel", "exposure"))


def with_exposure(store: ImageStore, image: Image, program: Path) -> Image:
    """`image` with the program as its top layer, in the store under the same name with SUFFIX."""
    layer = make_tar([Entry(PROGRAM[1:], 0o755, data=program.read_bytes())])
    return store.extend(image, layer, image.name + SUFFIX)
