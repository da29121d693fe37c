"""Programs without a C library, compiled here: the payloads of the default image, and pid 1 of guests.

A static libc's own start costs more than what these do, and in a guest under emulation each page touched and each
instruction seen for the first time costs once more.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from bench import process
from bench.errors import HostError

_FLAGS = (
    "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-builtin", "-fno-stack-protector",
    "-fno-tree-loop-distribute-patterns",  # or memset becomes a call of memset
    "-fno-asynchronous-unwind-tables", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function",
    "-Wl,--build-id=none", "-s",
)  # fmt: skip
LIBC = ("-O2", "-static", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none", "-s")
"""For programs that no start is measured of: with a C library."""


def parts(*names: str) -> list[Traversable]:
    """Sources beside this module, images/programs/NAME.c."""
    return [resources.files("bench.images") / "programs" / f"{name}.c" for name in names]


def compiled(cache: Path, name: str, sources: Sequence[Traversable]) -> bytes:
    """The program that `sources` are, one translation unit in this order; compiled once for each version of them.

    Raises HostError without a compiler.
    """
    return compiled_path(cache, name, sources).read_bytes()


def compiled_path(cache: Path, name: str, sources: Sequence[Traversable], flags: Sequence[str] = _FLAGS) -> Path:
    """Where it is, to be run here. Raises HostError without a compiler."""
    text = "".join(f'#line 1 "{source.name}"\n{source.read_text()}' for source in sources).encode()
    path = cache / "programs" / f"{name}-{hashlib.sha256(text + ' '.join(flags).encode()).hexdigest()[:16]}"
    if not path.exists():
        if shutil.which("gcc", path=process.clean_env()["PATH"]) is None:
            raise HostError(
                f"gcc is not installed; it compiles {name} for instances", hint="apt-get install gcc libc6-dev"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        process.run(["gcc", *flags, "-x", "c", "-o", scratch, "-"], timeout=60, input=text)
        scratch.rename(path)
    return path
