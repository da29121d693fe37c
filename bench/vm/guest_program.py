"""Pid 1 of every guest, from the sources in vm/guest.

It boots the guest, gives clones their identity, starts the payload and runs the host's commands.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from bench.images.compiled import compiled, parts

_PARTS = ("boot", "payload", "agent", "clone", "init")  # in this order: what one says the next ones use


def guest_program(cache: Path) -> bytes:
    """The program, static. Raises HostError without a compiler."""
    folder = resources.files("bench.vm") / "guest"
    return compiled(cache, "init", [*parts("kernel"), *(folder / f"{part}.c" for part in _PARTS)])
