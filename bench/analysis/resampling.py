"""Intervals. Launches of one ramp are not independent (the host drifts, N grows), so what is resampled is ramps.

Percentiles of so few resampled ramps are too narrow: 95 % ones of six hold the truth in some 80 % of runs. So the
percentiles are moved outwards, to where a t distribution would have them (the expanded percentile interval of
Hesterberg, The American Statistician 69, 2015). That helps from five ramps on: with R ramps no such interval is wider
than the lowest to the highest of them, which holds the true median with a probability of at most 1 - 2^(1-R): 75 %
for 3, 94 % for 5, 97 % for 6 (`coverage_bound`). The quality check says so when there are fewer than six. Below
three there is no interval at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from zlib import crc32

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

RESAMPLES = 10_000
LEAST = 3  # values, or ramps, that an interval needs
_ONE_SIDE = 0.975
_ENUMERABLE = 5  # ramps: 5^5 = 3,125 combinations, 6^6 would be 46,656


class Estimate(Struct, frozen=True):
    """A value, its 95 % interval (None if n is too small), and how many values or ramps it is made of."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def width(self) -> float | None:
        """Of the interval, over the value; None without an interval or at a value of 0."""
        if self.low is None or self.high is None or self.value == 0:
            return None
        return (self.high - self.low) / abs(self.value)


class Sample(Struct, frozen=True):
    """An estimate together with what it would have been in resampled runs (empty if n is too small).

    `units` counts what was resampled: ramps, or the launches of a single ramp.
    """

    value: float
    n: int
    draws: Floats
    units: int

    def estimate(self) -> Estimate:
        """The ends of the interval are values that some resample really gave: rounded outwards, not interpolated."""
        if not self.draws.size:
            return Estimate(self.value, None, None, self.n)
        share = tail(self.units)
        low = np.quantile(self.draws, share, method="lower")
        high = np.quantile(self.draws, 1 - share, method="higher")
        return Estimate(self.value, float(low), float(high), self.n)


def tail(units: int) -> float:
    """What the expanded 95 % interval leaves out on each side; 0.0024 for six ramps, 0.025 for very many."""
    expanded = np.sqrt(units / (units - 1)) * special.stdtrit(units - 1, _ONE_SIDE)
    return float(special.ndtr(-expanded))


def generator(seed: int, *labels: str) -> np.random.Generator:
    """Random numbers that depend on the run's seed and on what they are for, not on the order of the asking."""
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, crc32("\0".join(labels).encode())])


def coverage_bound(ramps: int) -> float:
    """The most a 95 % interval from so many ramps can be worth."""
    return 1 - 2.0 ** (1 - ramps)


def median_sample(groups: Sequence[Floats], rng: np.random.Generator) -> Sample:
    """The median of all values and its two-stage bootstrap: ramps with replacement, then launches within each.

    The second stage counts the scatter within a ramp once more than a perfect procedure would: wide rather than
    narrow. With one ramp only that stage is left, and the interval speaks of that ramp alone.
    """
    values = np.concatenate(groups)
    draws = resampled_medians(groups, rng, RESAMPLES) if len(values) >= LEAST else np.empty(0)
    return Sample(float(np.median(values)), len(values), draws, len(groups) if len(groups) > 1 else len(values))


def resampled_medians(groups: Sequence[Floats], rng: np.random.Generator, count: int) -> Floats:
    """`count` medians of two-stage resamples, without making the resamples: O(ramps x log n) instead of O(n) each.

    A resample's median is found by halving the sorted values: how many of a ramp's draws fall into the lower half
    is binomial, and the half that holds the median is halved again. Of an even number of draws one of the two
    middle ones is taken by chance, so that every result is a value that was measured.
    """
    values = np.unique(np.concatenate(groups))
    below = np.stack([np.searchsorted(np.sort(group), np.append(values, np.inf)) for group in groups])
    chosen = rng.integers(len(groups), size=(count, len(groups)))
    left = below[:, -1][chosen]  # draws of each chosen ramp that lie in values[low:high]
    rank = (left.sum(axis=1) - 1 + rng.integers(2, size=count)) // 2  # of the median among them, from 0
    low, high = np.zeros(count, dtype=np.int64), np.full(count, len(values))
    while (high - low > 1).any():
        middle = (low + high + 1) // 2
        share = _share(below[chosen, low[:, None]], below[chosen, middle[:, None]], below[chosen, high[:, None]])
        lower = rng.binomial(left, share)
        there = lower.sum(axis=1)
        down = rank < there
        left = np.where(down[:, None], lower, left - lower)
        rank = np.where(down, rank, rank - there)
        low, high = np.where(down, low, middle), np.where(down, middle, high)
    medians: Floats = values[low]
    return medians


def _share(low: Counts, middle: Counts, high: Counts) -> Floats:
    """Of a ramp's values from low to high, the part below the middle; 0 where there are none."""
    inside = high - low
    share: Floats = np.zeros(inside.shape)
    np.divide(middle - low, inside, out=share, where=inside > 0)
    return share


def resampled_ramps(ramps: int, rng: np.random.Generator) -> Counts:
    """Combinations of ramps with replacement, one a row: all of them when they are few, else drawn at random."""
    if ramps < LEAST:
        return np.empty((0, ramps), dtype=np.int64)
    if ramps <= _ENUMERABLE:
        return np.array(list(product(range(ramps), repeat=ramps)), dtype=np.int64)
    return rng.integers(ramps, size=(RESAMPLES, ramps))


def ratio(upper: Sample, lower: Sample, rng: np.random.Generator) -> Estimate:
    """`upper` over `lower`, the two resampled independently; n is the smaller of the two."""
    n = min(upper.n, lower.n)
    value = upper.value / lower.value
    if not (upper.draws.size and lower.draws.size) or lower.draws.min() <= 0:
        return Estimate(value, None, None, n)  # a divisor that may be 0 has a ratio without bounds
    drawn = rng.choice(upper.draws, RESAMPLES) / rng.choice(lower.draws, RESAMPLES)
    return Sample(value, n, drawn, min(upper.units, lower.units)).estimate()
