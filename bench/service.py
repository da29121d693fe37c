"""Alive and useful are two numbers: whether instances do what they are there for, asked at each step of a ramp.

An instance whose payload has a `reply` and a network is asked for it (see linux.http_load); of any other it can only be
said that it is alive. The level and the load are those of the scenario's [service].
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from msgspec import Struct

from bench.drivers.base import Instance
from bench.levels import Service
from bench.linux.http_load import Answer
from bench.model import HttpCheck, Reading

ATTEMPTS = 2
"""Loads in a row that must miss the level before it counts as lost: one may fall into a hiccup of the host."""


Ask = Callable[[HttpCheck, Sequence[str], Sequence[int], float, float], list[Answer]]
"""linux.http_load.ask."""


class Verdict(Struct, frozen=True):
    """Of one step: what was read, and why the level was missed; empty if it was held."""

    readings: tuple[Reading, ...]
    lost: str = ""


class Watch:
    """Asks the instances of a ramp."""

    def __init__(self, level: Service, ask: Ask) -> None:
        self._level = level
        self._ask = ask

    def on(self, to_limit: bool) -> bool:
        """Whether steps of a ramp of this kind are watched."""
        return self._level.watch == "always" or (self._level.watch == "to-limit" and to_limit)

    def look(self, instances: Sequence[Instance], check: HttpCheck | None, seed: str) -> Verdict:
        """Up to ATTEMPTS loads, until one holds the level. Readings of those before the last are labelled `attempt`.

        Instances that are not alive are the runner's business: this asks only those that have an address.
        """
        asked = [(one.id, address) for one in instances if (address := one.address) is not None]
        if check is None or not asked:
            return Verdict(())
        kept: tuple[Reading, ...] = ()
        rate, requests = self._level.load(len(asked))
        for attempt in range(1, ATTEMPTS + 1):
            order = order_of(len(asked), requests, f"{seed}-{attempt}")
            addresses = [address for _, address in asked]
            answers = self._ask(check, addresses, order, rate, self._level.timeout)
            readings, lost = judged(answers, [name for name, _ in asked], self._level)
            if not lost or attempt == ATTEMPTS:
                return Verdict((*kept, *readings), lost and f"{lost}; missed {ATTEMPTS} times in a row")
            kept += tuple(Reading(one.metric, one.value, one.unit, {"attempt": str(attempt)}) for one in readings)
        raise AssertionError("the last attempt returns")


def order_of(count: int, requests: int, seed: str) -> list[int]:
    """Whom to ask, in turn: all of `count` once, shuffled, then any, until `requests` are made."""
    dice = random.Random(seed)
    everyone = list(range(count))
    dice.shuffle(everyone)
    return everyone + [dice.randrange(count) for _ in range(requests - count)]


def judged(answers: Sequence[Answer], names: Sequence[str], level: Service) -> tuple[tuple[Reading, ...], str]:
    """Readings of one load, and which part of the level it missed (empty if none)."""
    failed = sum(one.seconds is None for one in answers)
    answering = {one.target for one in answers if one.seconds is not None}
    silent = [name for place, name in enumerate(names) if place not in answering]
    p50, p99 = (quantile(answers, share) for share in (0.5, 0.99))
    readings = [
        Reading("service.requests", len(answers), "count"),
        Reading("service.errors", failed, "count"),
        Reading("service.silent", len(silent), "instances"),
    ]
    readings += [Reading(name, at, "s") for name, at in (("service.p50", p50), ("service.p99", p99)) if at is not None]
    missed = []
    if p99 is None or p99 > level.p99:
        slowest = "more requests failed than that leaves out" if p99 is None else f"it is {p99:.4g} s"
        missed.append(f"p99 must be at most {level.p99:g} s, and {slowest}")
    if failed > level.errors * len(answers):
        missed.append(f"{failed} of {len(answers)} requests failed, and a share of {level.errors:g} is allowed")
    if silent:
        missed.append(f"{len(silent)} of {len(names)} instances answered nothing, {silent[0]} first")
    return tuple(readings), "; ".join(missed)


def quantile(answers: Sequence[Answer], share: float) -> float | None:
    """The smallest time that this share of all requests did not exceed; None where it falls among those that failed."""
    times = sorted(one.seconds for one in answers if one.seconds is not None)
    place = math.ceil(share * len(answers))
    return times[place - 1] if 0 < place <= len(times) else None
