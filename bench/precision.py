"""When a run that goes on until it is precise may end. Pure: how wide intervals are, others say.

To stop where intervals are narrow picks runs whose scatter came out small: their intervals hold the truth too seldom.
What keeps that small: many rounds before the first look, a look at whole rounds only, and two of them in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

from bench.records import Precision

LEAST_ROUNDS = 10
IN_A_ROW = 2
Why = Literal["precise", "rounds", "time"]


class Precise(Struct, frozen=True, forbid_unknown_fields=True):
    """[precise]: go on after `rounds` of the scenario until no start-up interval is wider than `width` of its median.

    0 is off. `rounds`: the most of them.
    """

    width: float = 0.0
    rounds: int = 60

    def least(self, rounds: int) -> int:
        """Rounds before the run may end, of a scenario with `rounds`."""
        return max(rounds, LEAST_ROUNDS)


class Judge:
    """Asked at the end of each round. Mutable.

    `measure`: series -> width of its start-up interval as a share of the median, None where it has none.
    `over`: whether the time allowed for the run is.
    """

    def __init__(
        self, wanted: Precise, least: int, measure: Callable[[], Mapping[str, float | None]], over: Callable[[], bool]
    ) -> None:
        self._wanted, self._least, self._measure, self._over = wanted, least, measure, over
        self._round = self._held = 0
        self._widths: dict[str, float | None] = {}
        self._late = False

    def enough(self, number: int) -> bool:
        """Whether the run ends with round `number`."""
        self._look(number)
        self._late = self._over()
        return self._late or (number >= self._least and self._held >= IN_A_ROW)

    def verdict(self, last: int) -> Precision:
        """After `last`, the last round that was run."""
        if self._round != last:
            self._look(last)
        reached = last >= self._least and self._held >= IN_A_ROW
        why: Why = "precise" if reached else "time" if self._late or self._over() else "rounds"
        return Precision(self._wanted.width, reached, why, last, self._widths)

    def _look(self, number: int) -> None:
        self._round = number
        if number <= self._least - IN_A_ROW:
            return
        self._widths = dict(self._measure())
        narrow = [width is not None and width <= self._wanted.width for width in self._widths.values()]
        self._held = self._held + 1 if narrow and all(narrow) else 0


def precision_said(found: Precision) -> str:
    """In words, with what is widest."""
    wide = [(1.0 if width is None else width, width, name) for name, width in found.widths.items()]
    _, width, name = max(wide, key=lambda one: one[0], default=(0.0, None, "no launch"))
    widest = f"{name} {'has no interval' if width is None else f'has {100 * width:.1f} %'}"
    text = f"{100 * found.wanted:g} % of each start-up median"
    if found.reached:
        return f"precision of {text} reached after {found.rounds} rounds; widest: {widest}"
    ended = {"rounds": "the most rounds allowed", "time": "the time allowed was over"}[found.why]
    return f"precision of {text} not reached after {found.rounds} rounds ({ended}); widest: {widest}"
