"""The program whose every verb is one attack, compiled from images/attacks/*.c, and an image with it as one more layer.

The same layer goes above whatever image a scenario names, so every driver's instances hold the same program.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from importlib import resources
from pathlib import Path

from bench import process
from bench.errors import HostError
from bench.images.build import Entry, make_tar
from bench.images.store import ImageStore
from bench.model import Image

PROGRAM = "/bench-attack"
"""Where it is in every instance: in the root, because /bin is a link in some images."""
SUFFIX = "+attacks"
_PARTS = ("main", "processes", "files", "kernel", "network", "bombs", "canary")
_FLAGS = ("-O1", "-static", "-s")


def attack_program(cache: Path) -> Path:
    """The program; compiled once for each version of its sources. Raises HostError without a compiler."""
    folder = resources.files("bench.images") / "attacks"
    texts = {name: (folder / name).read_bytes() for name in ("attack.h", *(f"{part}.c" for part in _PARTS))}
    digest = hashlib.sha256(b"\0".join([*texts.values(), " ".join(_FLAGS).encode()])).hexdigest()[:16]
    path = cache / "attacks" / f"bench-attack-{digest}"
    if not path.exists():
        if shutil.which("gcc", path=process.clean_env()["PATH"]) is None:
            raise HostError(
                "gcc is not installed; it compiles the attacks that probes make",
                hint="apt-get install gcc libc6-dev",
            )
        _compile(texts, path)
    return path


def _compile(texts: dict[str, bytes], path: Path) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        for name, text in texts.items():
            (scratch / name).write_bytes(text)
        sources = [scratch / f"{part}.c" for part in _PARTS]
        process.run(["gcc", *_FLAGS, "-o", scratch / "made", *sources], timeout=120)
        (scratch / "made").chmod(0o755)
        (scratch / "made").rename(path)
    finally:
        shutil.rmtree(scratch)


def with_attacks(store: ImageStore, image: Image, program: Path) -> Image:
    """`image` with the program as its top layer, in the store under the same name with SUFFIX."""
    layer = make_tar([Entry(PROGRAM[1:], 0o755, data=program.read_bytes())])
    return store.extend(image, layer, image.name + SUFFIX)
