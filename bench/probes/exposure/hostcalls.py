"""Host system calls that an instance's host processes make under a standard load, the idle background taken off."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec import Struct

from bench.drivers.base import Instance
from bench.errors import CommandError
from bench.linux import http_load
from bench.linux.callcount import CallCounter, Counts
from bench.linux.calls import call_name
from bench.model import HttpCheck
from bench.records import Exposed, Exposure

USED, BACKGROUND = "used", "background"
_IDLE_WINDOWS, _IDLE = 3, 1.0  # seconds each
_RATE, _REQUESTS = 50.0, 150  # a second, and in all
_TIMEOUT = 5.0  # seconds for one answer; a guest under tcg is slow
_ENOUGH = 0.95  # share of requests that has to be answered
_SIGMAS = 3.0  # above the background, of a count that varies as its square root


class Window(Struct, frozen=True):
    """Calls by number that an instance's processes made in some seconds."""

    seconds: float
    counts: dict[int, int]


@dataclass(frozen=True)
class Watched:
    """What windows are read from: the host's counter, an instance, and what makes the load (http_load.ask)."""

    counter: CallCounter
    instance: Instance
    ask: Callable[[HttpCheck, Sequence[str], Sequence[int], float, float], list[http_load.Answer]] = http_load.ask
    sleep: Callable[[float], None] = time.sleep

    def window(self, doing: Callable[[], None]) -> Window:
        """While `doing` runs. Processes of the instance are those before and after; calls of threads are theirs."""
        pids = set(self.instance.footprint().pids)
        before, began = self.counter.read(), time.monotonic()
        doing()
        after, seconds = self.counter.read(), time.monotonic() - began
        return Window(seconds, during(before, after, pids | set(self.instance.footprint().pids)))


def during(before: Counts, after: Counts, pids: set[int]) -> dict[int, int]:
    """Calls by number of these processes between two readings."""
    found: dict[int, int] = {}
    for (pid, number), count in after.items():
        more = count - before.get((pid, number), 0)
        if pid in pids and more:
            found[number] = found.get(number, 0) + more
    return found


def measured(watched: Watched, check: HttpCheck | None) -> Exposure:
    """Idle first, then under load. Raises CommandError if the load was not executed; HostError."""
    address = watched.instance.address
    if check is None or address is None:
        raise CommandError("nothing can be asked of this instance: it has no network, or its payload gives no answers")
    watched.ask(check, [address], [0], _RATE, _TIMEOUT)  # what only the first request takes is no steady load
    idle = [watched.window(lambda: watched.sleep(_IDLE)) for _ in range(_IDLE_WINDOWS)]
    answers: list[http_load.Answer] = []
    load = watched.window(lambda: answers.extend(watched.ask(check, [address], [0] * _REQUESTS, _RATE, _TIMEOUT)))
    answered = sum(one.seconds is not None for one in answers)
    return exposure(idle, load, answered, _REQUESTS)


def exposure(idle: Sequence[Window], load: Window, answered: int, asked: int) -> Exposure:
    """A call counts as used where it was made more often than the busiest idle window explains.

    Raises CommandError where the load was not executed: few answers, or none of the processes did anything.
    """
    if answered < _ENOUGH * asked:
        raise CommandError(f"rejected: {answered} of {asked} requests were answered, so the load was not executed")
    if not load.counts:
        raise CommandError("rejected: none of the instance's processes made a call while its requests were answered")
    items = []
    for number, count in sorted(load.counts.items(), key=lambda one: -one[1]):
        background = max((one.counts.get(number, 0) / one.seconds for one in idle), default=0.0)
        expected = background * load.seconds
        used = count > expected + _SIGMAS * math.sqrt(expected)
        rate = round((count - expected) / load.seconds if used else background, 2)
        items.append(Exposed(call_name(number), USED if used else BACKGROUND, per_second=rate))
    rates = [one.per_second or 0.0 for one in items if one.found == USED]
    counts = {"distinct": len(rates), "per second": round(sum(rates)), "background only": len(items) - len(rates),
              "requests answered": answered}  # fmt: skip
    return Exposure("host-calls", tuple(items), counts)
