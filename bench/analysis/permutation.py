"""Whether two sets of ramps differ: an exact permutation test, its effect size, and what so few ramps can show at all.

What is permuted are ramps, not launches: launches of one ramp share a host and an N, and a test that takes each for an
independent value finds differences where there are none (`bench selftest` shows how often).
"""

from __future__ import annotations

import functools
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from bench.analysis.resampling import Floats

EXACT = 20_000  # ways to divide the ramps up to which all are tried; beyond, so many are drawn
_SAME = 1e-9  # of the scatter: sums of the same values in another order differ by that


def permutation_p(one: Floats, other: Floats, rng: np.random.Generator) -> float:
    """Two-sided p of the difference of means, of logarithms if all values are positive. Sizes may differ.

    The share of all divisions of the ramps into two sets of these sizes whose means lie at least as far apart. Neither
    set may be empty.
    """
    pooled = np.concatenate([one, other])
    if (pooled > 0).all():
        pooled = np.log(pooled)
    pooled = pooled - pooled.mean()
    first, count = len(one), len(pooled)
    seen = abs(pooled[:first].sum())
    least = seen - _SAME * np.abs(pooled).max()
    if comb(count, first) <= EXACT:
        return float((np.abs(_divisions(count, first) @ pooled) >= least).mean())
    drawn = np.argsort(rng.random((EXACT, count)), axis=1)[:, :first]
    return float(((np.abs(pooled[drawn].sum(axis=1)) >= least).sum() + 1) / (EXACT + 1))


@functools.lru_cache(maxsize=32)
def _divisions(count: int, first: int) -> NDArray[np.float64]:
    """Every choice of `first` of `count`, one a row: 1 for those chosen. The mean of all being 0, sums are enough."""
    chosen = np.zeros((comb(count, first), count))
    for row, places in enumerate(combinations(range(count), first)):
        chosen[row, list(places)] = 1.0
    return chosen


def least_p(one: int, other: int) -> float:
    """The smallest p that so many ramps can give, however far apart they are."""
    return min(1.0, (2.0 if one == other else 1.0) / comb(one + other, one))


def ramps_needed(alpha: float, family: int) -> int:
    """How many ramps on each side it takes to show a difference in one metric of a family of so many."""
    return next(ramps for ramps in range(2, 50) if least_p(ramps, ramps) * family <= alpha)


def dominance(one: Floats, other: Floats) -> float:
    """Effect size (Cliff's delta): how much oftener a ramp of `other` is above one of `one` than below; -1 to 1."""
    return float(np.sign(other[None, :] - one[:, None]).mean())
