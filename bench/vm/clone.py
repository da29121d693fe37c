"""Guests that start from a saved one: its memory in a file that all of them map, the state of its devices beside it.

The template boots once and stops where its identity would begin (vm/guest/clone.c). It writes its memory into the file
as it runs, so that saving is a matter of its devices' state alone (x-ignore-shared); clones map the file privately.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench.errors import LaunchError
from bench.vm.connection import monitor

WAITING_MARK = "bench: waiting"
_MIGRATION = 60.0  # seconds, for some tens of KiB
_STEP = 0.001
_UNANNOUNCED: dict[str, Any] = {"announce-rounds": 0}
"""A guest that has moved tells its network so: ten broadcasts, and each wakes every other guest. Ours is new there."""


class Saved(Struct, frozen=True):
    """A saved template: files of its memory and of its devices' state, and what it cost to make."""

    memory: str
    state: str
    size: int  # bytes of guest memory
    seconds: float

    def files(self) -> tuple[Path, Path]:
        return Path(self.memory), Path(self.state)


def save(domain: Any, state: Path) -> None:
    """Write the running guest's devices' state to `state`; it does not run on. Raises LaunchError."""
    # Not stopped first: a guest saved as it ran is one that runs when it is restored.
    fd = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        _ignore_shared(domain)
        _pass(domain, fd)
        monitor(domain, "migrate", uri="fd:bench-state")
        _await(domain, "query-migrate", ("completed",), ("failed", "cancelled"))
    finally:
        os.close(fd)


def restore(domain: Any, state: Path) -> None:
    """Load the state into a guest that was made with `-incoming defer`; it is paused then. Raises LaunchError."""
    fd = os.open(state, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _ignore_shared(domain)
        monitor(domain, "migrate-set-parameters", **_UNANNOUNCED)
        _pass(domain, fd)
        monitor(domain, "migrate-incoming", uri="fd:bench-state")
        _await(domain, "query-status", ("paused", "running"), ("internal-error", "shutdown"))
    finally:
        os.close(fd)


def _ignore_shared(domain: Any) -> None:
    monitor(domain, "migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])


def _pass(domain: Any, fd: int) -> None:
    """By descriptor: QEMU may start no program (its sandbox), nor open files of ours as another user."""
    monitor(domain, "getfd", files=[fd], fdname="bench-state")


def _await(domain: Any, query: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    deadline = time.monotonic() + _MIGRATION
    while (status := monitor(domain, query).get("status")) not in good:
        if status in bad or time.monotonic() > deadline:
            raise LaunchError(f"QEMU does not save or restore the guest: {json.dumps(monitor(domain, query))}")
        time.sleep(_STEP)
