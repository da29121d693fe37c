"""Which victim stands beside which neighbour, in which order, and how much an aggressor asks for. Pure."""

from __future__ import annotations

import math
import random

from msgspec import Struct

from bench.levels import Neighbours
from bench.model import MIB, Limits
from bench.records import Aggressor, Beside, LimitsOf, Victim

DISK = 32  # MiB of the one file an aggressor writes over and over
MOST_PROCESSORS = 64
MOST_MEMORY = 4096  # MiB
MOST_PROCESSES = 1024


class Cell(Struct, frozen=True):
    """One experiment."""

    victim: Victim
    aggressor: Beside
    limits: LimitsOf = "declared"

    @property
    def name(self) -> str:
        return f"{self.victim} beside {self.aggressor}, limits {self.limits}"


def cells(keys: Neighbours, seed: str) -> list[Cell]:
    """All experiments of one trial, shuffled by `seed`, so that drift hits the controls as it hits the others."""
    found = []
    for victim in keys.victims:
        found += [Cell(victim, "none"), Cell(victim, "polite")]
        found += [Cell(victim, aggressor, limits) for aggressor in keys.aggressors for limits in keys.limits]
    random.Random(seed).shuffle(found)
    return found


def amount(aggressor: Aggressor, declared: Limits, raised: Limits) -> int:
    """What it asks for: more than is declared and less than is raised, so that the limits make the difference.

    Busy loops, MiB, processes at once, MiB of a file; a network load has no amount.
    """
    if aggressor == "cpu":
        return min(2 * math.ceil(raised.cpus), MOST_PROCESSORS)
    if aggressor == "memory":
        return min((declared.memory + raised.memory) // (2 * MIB), MOST_MEMORY)
    if aggressor == "fork":
        return min((declared.pids + raised.pids) // 2, MOST_PROCESSES)
    return DISK
