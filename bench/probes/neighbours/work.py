"""The words of the load program, and what it answers. docs/isolation.md says what a unit of each kind is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from bench.errors import CommandError
from bench.linux.http_load import Answer
from bench.model import Completed
from bench.records import Aggressor, Press, Times, Victim

T = TypeVar("T")

SHARES = (0.0, 0.5, 0.9, 0.99, 1.0)
FEW = 1000
"""Below so many values all are kept."""


class Worked(Struct, frozen=True):
    """Nanoseconds of each unit; or why none could be done."""

    took: tuple[int, ...] = ()
    missing: str | None = None


class Pressed(Struct, frozen=True):
    """The load there was; or why there was none."""

    amount: float = 0.0
    unit: str = ""
    refused: int = 0
    missing: str | None = None


def work_words(program: str, victim: Victim, seconds: float) -> list[str]:
    return [program, "work", victim, _milliseconds(seconds)]


def press_words(
    program: str, aggressor: Aggressor, seconds: float, amount: int, there: tuple[str, int] | None
) -> list[str]:
    """`there`: address and port of the host's end, for network loads."""
    words = [program, "press", aggressor, _milliseconds(seconds), str(amount)]
    return words if there is None else [*words, there[0], str(there[1])]


def _milliseconds(seconds: float) -> str:
    return str(round(1000 * seconds))


def worked(argv: Sequence[str], done: Completed) -> Worked:
    """Raises CommandError for an answer that is none."""
    return _answer(argv, done, Worked)


def pressed(argv: Sequence[str], done: Completed) -> Pressed:
    """Raises CommandError for an answer that is none."""
    return _answer(argv, done, Pressed)


def _answer(argv: Sequence[str], done: Completed, kind: type[T]) -> T:
    try:
        if done.status == 0:
            return msgspec.json.decode(done.stdout, type=kind)
    except msgspec.DecodeError:
        pass
    said = (done.stderr.strip() or done.stdout.strip())[-200:] or "nothing was said"
    raise CommandError(f"no answer, exit status {done.status}, from: {' '.join(argv)}: {said}")


def times_of(values: Sequence[float], failed: int = 0) -> Times:
    """`values` in seconds, of those that did not fail."""
    ordered, n = sorted(values), len(values) + failed
    found = {f"{share:g}": at for share in SHARES if (at := _quantile(ordered, n, share)) is not None}
    return Times(n, failed, found, tuple(values) if len(values) < FEW else ())


def of_answers(answers: Sequence[Answer], target: int) -> Times:
    """Those of one address."""
    own = [one.seconds for one in answers if one.target == target]
    good = [seconds for seconds in own if seconds is not None]
    return times_of(good, len(own) - len(good))


def _quantile(ordered: Sequence[float], n: int, share: float) -> float | None:
    """The smallest value that this share of all `n` did not exceed; None where it falls among those that failed."""
    place = max(math.ceil(share * n), 1)
    return ordered[place - 1] if place <= len(ordered) else None


def press_of(said: Pressed, beside: float) -> Press:
    return Press(said.amount, said.unit, said.refused, beside)
