"""The dearest neighbour: the one that cost a victim's median most, and what may be said of it after it was chosen.

Whoever looks at 24 neighbours, each with an interval that holds in 95 % of runs, and names the largest finds one in
noise as well: of 24 intervals that each miss by chance, one often does. So all those that could have been chosen get
wider intervals, of which all at once hold in at least 95 % of runs (Bonferroni: each misses in 5 % over their number),
however much they depend on each other through the control they share. A loss is claimed only where the lower end of
such an interval is above 0, however the choice was made. From two or three rounds it says next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from msgspec import Struct
from scipy import special

from bench.analysis.comparison import ALPHA
from bench.analysis.isolation import Target
from bench.analysis.neighbours import Neighbourly, Row
from bench.analysis.resampling import Estimate
from bench.records import Beside, LimitsOf, Victim

Pair = tuple[Victim, Beside]
"""Who stood beside whom."""


class Dearest(Struct, frozen=True):
    """`row`, chosen out of `of`. `loss`: its median's, with an interval that holds for all of those at once."""

    row: Row
    of: int
    loss: Estimate

    @property
    def shown(self) -> bool:
        """Whether it is a loss, or could have come of chance."""
        return self.loss.low is not None and self.loss.low > 0


def dearest(
    found: Neighbourly, target: Target, limits: LimitsOf, among: Collection[Pair] | None = None
) -> Dearest | None:
    """The neighbour whose loss is largest at the lower end of its interval, or, if none is clear of 0, is largest.

    None if none of `among` was measured.
    """
    rows = [row for row in measured(found, target, limits) if among is None or pair(row) in among]
    if not rows:
        return None
    losses = [simultaneous(row.ratios, len(rows)) for row in rows]
    place = max(range(len(rows)), key=lambda at: _surely(losses[at]))
    return Dearest(rows[place], len(rows), losses[place])


def every_dearest(found: Neighbourly) -> list[Dearest]:
    """Of each target with each of both limits; of guests under tcg none, for no claim is made from them."""
    limits: tuple[LimitsOf, ...] = ("declared", "raised")
    chosen = [dearest(found, target, one) for target in found.targets if target.accelerator != "tcg" for one in limits]
    return [one for one in chosen if one is not None]


def measured(found: Neighbourly, target: Target, limits: LimitsOf) -> list[Row]:
    """Those that can be chosen: aggressors beside which a victim worked, and beside nobody in the same round."""
    return [
        row for row in found.rows
        if row.target == target and row.limits == limits and row.aggressor != "polite" and row.ratios
    ]  # fmt: skip


def pair(row: Row) -> Pair:
    return row.victim, row.aggressor


def simultaneous(ratios: Sequence[float], family: int) -> Estimate:
    """The geometric mean of `ratios`, less 1, with Student's t on the logarithms.

    The interval is one of `family`, of which all hold in at least 95 % of runs; without two rounds there is none.
    """
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    middle, count = float(logs.mean()), len(logs)
    if count < 2:
        return Estimate(math.exp(middle) - 1, None, None, count)
    scale = float(np.std(logs, ddof=1)) / math.sqrt(count)
    reach = float(special.stdtrit(count - 1, 1 - ALPHA / (2 * family))) * scale
    with np.errstate(over="ignore"):  # of two rounds that differ wildly: then the end is infinite
        low, high = (float(np.exp(middle + end) - 1) for end in (-reach, reach))
    return Estimate(math.exp(middle) - 1, low, high, count, "t")


def _surely(loss: Estimate) -> tuple[bool, float]:
    """One that is clear of 0 counts by its lower end, and before those that are not; of these the largest counts,
    for with few rounds a lower end says how little rounds happened to differ."""
    if loss.low is not None and loss.low > 0:
        return True, loss.low
    return False, loss.value
