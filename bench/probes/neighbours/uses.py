"""What a neighbour's groups are charged while it presses, read again and again: were its limits honoured?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from bench.linux import procfs
from bench.model import Footprint, Limits
from bench.records import Use

EVERY = 0.1  # seconds: the period over which the kernel accounts a quota of CPU


class Charged(NamedTuple):
    """At one moment. Seconds of CLOCK_MONOTONIC; CPU seconds, bytes, count; None for what can't be read."""

    at: float
    cpu: float | None
    memory: int | None
    pids: int | None


Charge = Callable[[], Charged]


def charge_of(footprint: Footprint, cpu_seconds: Callable[[Footprint], float | None], root: Path = Path("/")) -> Charge:
    """Reads the groups of one instance."""
    groups = footprint.cgroups

    def number(controller: str, v1: str, v2: str) -> int | None:
        if controller in groups:
            return procfs.number(root / groups[controller].lstrip("/") / v1)
        return procfs.number(root / groups["unified"].lstrip("/") / v2) if "unified" in groups else None

    def read() -> Charged:
        memory = number("memory", "memory.usage_in_bytes", "memory.current")
        return Charged(time.monotonic(), cpu_seconds(footprint), memory, number("pids", "pids.current", "pids.current"))

    return read


class Watch:
    """A context manager: reads in a thread of its own every `EVERY` seconds until left."""

    def __init__(self, charge: Charge) -> None:
        self._charge = charge
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="bench-neighbour-uses", daemon=True)
        self.found: list[Charged] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(EVERY):
            self.found.append(self._charge())


def uses(found: Sequence[Charged], limits: Limits, began: float, ended: float) -> tuple[Use, ...]:
    """Between two moments; a limit whose group could not be read, or hardly, is absent."""
    within = [one for one in found if began <= one.at <= ended]
    cpus = [
        (later.cpu - one.cpu) / (later.at - one.at)
        for one, later in pairwise(within)
        if one.cpu is not None and later.cpu is not None and later.at > one.at
    ]
    memory = [float(one.memory) for one in within if one.memory is not None]
    pids = [float(one.pids) for one in within if one.pids is not None]
    made = (_use("cpus", limits.cpus, cpus), _use("memory", limits.memory, memory), _use("pids", limits.pids, pids))
    return tuple(one for one in made if one is not None)


def _use(limit: Literal["cpus", "memory", "pids"], declared: float, values: Sequence[float]) -> Use | None:
    if not values:
        return None
    rounded = tuple(round(value, 4) for value in values)
    return Use(limit, declared, sum(values) / len(values), max(values), rounded)
