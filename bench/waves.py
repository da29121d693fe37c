"""A ramp with several launches in flight: from one sample to the next is a wave, and none is in flight at its ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from bench.errors import BenchError, LaunchError
from bench.flight import Flown, fly, spent_ns
from bench.limiters import Stop, as_launch_error
from bench.model import InstanceSpec, PhaseLog, Reading
from bench.ramp import Live, Ramp


@dataclass(frozen=True)
class Crew:
    """What a wave needs of the runner. `bring_up` is called in threads, the others are not.

    `stop`: why none more may be launched, with so many in flight; `bring_up`: launch and wait, and what was read of it.
    """

    stop: Callable[[Ramp, int], Stop | None]
    spec: Callable[[Ramp], InstanceSpec]
    bring_up: Callable[[Ramp, InstanceSpec, PhaseLog], tuple[Reading, ...]]
    record: Callable[[Ramp, Flown], None]
    end: Callable[[Ramp, Live], None]
    doing: Callable[[str], None]


def wave(crew: Crew, ramp: Ramp, upto: int, at_once: int) -> Stop | None:
    """Launch until `upto` are alive, `at_once` in flight; why it ended before. Raises LaunchError if one failed.

    What is recorded waits until none is in flight.
    """
    before, flown = len(ramp.live), list[Flown]()
    up, failed, stops = list[str](), list[str](), list[Stop]()

    def ask(in_flight: int) -> Callable[[], None] | None:
        if failed or len(flown) == upto - before:
            return None
        if stop := crew.stop(ramp, in_flight + 1):
            stops.append(stop)
            return None
        flown.append(one := Flown(crew.spec(ramp), before + len(up)))
        crew.doing(f"launch {one.spec.driver} {one.spec.id}, {in_flight + 1} in flight")
        return lambda: (up if _come_up(crew, ramp, one) else failed).append(one.spec.id)

    fly(ask, at_once, lambda: _kill_all(ramp))
    ramp.launching_ns += spent_ns(flown)
    errors = [_landed(crew, ramp, one) for one in flown]
    ramp.alive = max(ramp.alive, len(ramp.live))
    if error := next(filter(None, errors), None):
        raise error
    return stops[0] if stops else None


def _come_up(crew: Crew, ramp: Ramp, one: Flown) -> bool:
    """In a thread of its own: whether it did."""
    try:
        one.readings = crew.bring_up(ramp, one.spec, one.phases)
    except (BenchError, OSError) as failed:
        one.error = as_launch_error(one.spec.id, failed)
    return one.error is None


def _landed(crew: Crew, ramp: Ramp, one: Flown) -> LaunchError | None:
    """Its record; what came up and was not ready is ended."""
    crew.record(ramp, one)
    half = next((live for live in ramp.live if live.spec is one.spec), None) if one.error else None
    if half is not None:
        ramp.live[:] = [live for live in ramp.live if live is not half]
        crew.end(ramp, half)
    return one.error


def _kill_all(ramp: Ramp) -> None:
    """So that nobody waits for them any longer; they are removed as all others are."""
    for live in list(ramp.live):
        with contextlib.suppress(BenchError, OSError):
            live.instance.kill()
