"""Several launches in flight at once, each asked for in a thread of its own. One at a time never comes this way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from msgspec import Struct

from bench.errors import LaunchError
from bench.model import InstanceSpec, PhaseLog, Reading

_PATIENCE = 0.2  # s between two attempts to get launches ended that nobody wants any more


class Launch(Struct, frozen=True, forbid_unknown_fields=True):
    """[launch]: how many launches are in flight at once; a ramp's samples are taken when none is."""

    concurrency: int = 1


@dataclass
class Flown:
    """One launch of several. `alive`: instances of the ramp that were up when it was asked for."""

    spec: InstanceSpec
    alive: int
    phases: PhaseLog = field(default_factory=PhaseLog)
    error: LaunchError | None = None
    readings: tuple[Reading, ...] = ()


def fly(ask: Callable[[int], Callable[[], None] | None], most: int, abandon: Callable[[], None]) -> None:
    """Do what `ask` gives, at most `most` of it at once, until it gives nothing; return when all of it has ended.

    `ask` is called in the caller's thread with the number in flight. If the caller is interrupted, or something raises,
    `abandon` is called until what is in flight has ended by that.
    """
    pool = ThreadPoolExecutor(most, thread_name_prefix="launch")
    pending: set[Future[None]] = set()
    try:
        while (request := ask(len(pending))) is not None:
            pending.add(pool.submit(request))
            patience = None if len(pending) >= most else 0
            done, pending = wait(pending, timeout=patience, return_when=FIRST_COMPLETED)
            _raise_first(done)
        done, pending = wait(pending)
        _raise_first(done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while pending:
            abandon()
            _, pending = wait(pending, timeout=_PATIENCE)
        pool.shutdown(wait=True)


def _raise_first(done: set[Future[None]]) -> None:
    for one in done:
        one.result()


def spent_ns(flown: Sequence[Flown]) -> int:
    """From the first request to the last phase of those that came up: what launching them took together."""
    up = [(one.phases.zero, one.phases.zero + max(one.phases.freeze().values())) for one in flown if one.error is None]
    return max(end for _, end in up) - min(zero for zero, _ in up) if up else 0
