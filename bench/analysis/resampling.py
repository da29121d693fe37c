"""Intervals. Launches of one ramp are not independent (the host drifts, N grows), so what counts is ramps.

Up to seven ramps, and from a hundred on, the interval is Student's t on what the ramps gave each for itself; between
them it comes from resampling whole ramps, with the percentiles moved outwards to where a t distribution would have
them (the expanded percentile interval of Hesterberg, The American Statistician 69, 2015). Why two: no resample of R
ramps lies outside the lowest to the highest of them, so a bootstrap from 3 ramps holds the truth in at most 75 % of
runs whatever it says of itself, and one from 6 did in 94 %. The t interval holds it in 95 % for any R, if ramps scatter
about normally (values that are all positive: their logarithms); `estimate` says which it is, and the self-test counts
how often each holds.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal
from zlib import crc32

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Method = Literal["t", "bootstrap", "launches"]
"""How an interval was made: from ramps by Student's t, from resampled ramps, from the launches of a single ramp."""

RESAMPLES = 10_000
LEAST = 3  # values of a single ramp that an interval needs
MANY = 8  # ramps from which on they are resampled
PLENTY = 100  # ramps from which on both ways give the same, and Student's t costs less
_ONE_SIDE = 0.975


class Estimate(Struct, frozen=True):
    """A value, its 95 % interval (None if n is too small), and how many values or ramps it is made of."""

    value: float
    low: float | None
    high: float | None
    n: int
    method: Method | None = None  # None without an interval

    @property
    def width(self) -> float | None:
        """Of the interval, over the value; None without an interval or at a value of 0."""
        if self.low is None or self.high is None or self.value == 0:
            return None
        return (self.high - self.low) / abs(self.value)


class Sample(Struct, frozen=True):
    """An estimate, what each ramp gave for itself, and what other runs may have given (empty if n is too small).

    `tail` is the share of `draws` that the interval leaves out on each side.
    """

    value: float
    n: int
    ramps: Floats
    draws: Floats
    tail: float
    method: Method | None

    def estimate(self) -> Estimate:
        """The ends of the interval are values that were really drawn: rounded outwards, not interpolated."""
        if not self.draws.size:
            return Estimate(self.value, None, None, self.n)
        low = np.quantile(self.draws, self.tail, method="lower")
        high = np.quantile(self.draws, 1 - self.tail, method="higher")
        return Estimate(self.value, float(low), float(high), self.n, self.method)


def tail(units: int) -> float:
    """What the expanded 95 % interval leaves out on each side; 0.0071 for eight ramps, 0.025 for very many."""
    expanded = np.sqrt(units / (units - 1)) * special.stdtrit(units - 1, _ONE_SIDE)
    return float(special.ndtr(-expanded))


def ramp_sample(value: float, n: int, ramps: Floats, rng: np.random.Generator, *, positive: bool) -> Sample:
    """`value` with Student's t around it, scaled by how far `ramps` scatter; on logarithms if all are `positive`."""
    count = len(ramps)
    if count < 2:
        return Sample(value, n, ramps, np.empty(0), 0.0, None)
    logs = positive and value > 0 and bool((ramps > 0).all())
    scale = float(np.std(np.log(ramps) if logs else ramps, ddof=1)) / np.sqrt(count)
    moved = scale * rng.permutation(_student(count - 1, RESAMPLES))  # in no order: samples are drawn in pairs
    with np.errstate(over="ignore"):  # of two ramps that differ wildly: then the end is infinite
        draws = value * np.exp(moved) if logs else value + moved
    return Sample(value, n, ramps, draws, 1 - _ONE_SIDE, "t")


@functools.cache
def _student(freedom: int, count: int) -> Floats:
    """`count` evenly spaced quantiles of Student's t: a sample of it without chance in it."""
    return np.asarray(special.stdtrit(freedom, (np.arange(count) + 0.5) / count), dtype=np.float64)


def generator(seed: int, *labels: str) -> np.random.Generator:
    """Random numbers that depend on the run's seed and on what they are for, not on the order of the asking."""
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, crc32("\0".join(labels).encode())])


def quantile_sample(groups: Sequence[Floats], share: float, rng: np.random.Generator) -> Sample:
    """The `share` quantile (0.5: the median) of all values; whole ramps are what its interval rests on.

    From many ramps it is a two-stage bootstrap: ramps with replacement, then launches within each. The second stage
    counts the scatter within a ramp once more than a perfect procedure would: wide rather than narrow. With one ramp
    only that stage is left, and the interval speaks of that ramp alone.
    """
    values = np.concatenate(groups)
    value, ramps = float(np.quantile(values, share)), np.array([quantile(group, share) for group in groups])
    if len(groups) > 1 and not MANY <= len(groups) < PLENTY:
        return ramp_sample(value, len(values), ramps, rng, positive=True)
    single = len(groups) == 1
    if single and len(values) < LEAST:
        return Sample(value, len(values), ramps, np.empty(0), 0.0, None)
    draws = resampled_quantiles(groups, share, rng, RESAMPLES)
    units = len(values) if single else len(groups)
    return Sample(value, len(values), ramps, draws, tail(units), "launches" if single else "bootstrap")


def quantile(values: Floats, share: float) -> float:
    """As numpy's, which takes twenty times as long for a few values."""
    ordered = np.sort(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


def resampled_quantiles(groups: Sequence[Floats], share: float, rng: np.random.Generator, count: int) -> Floats:
    """`count` quantiles of two-stage resamples, without making the resamples: O(ramps x log n) instead of O(n) each.

    A resample's quantile is found by halving the sorted values: how many of a ramp's draws fall into the lower half
    is binomial, and the half that holds the quantile is halved again. Where it lies between two draws one of them is
    taken by chance, so that every result is a value that was measured.
    """
    values = np.unique(np.concatenate(groups))
    below = np.stack([np.searchsorted(np.sort(group), np.append(values, np.inf)) for group in groups])
    chosen = rng.integers(len(groups), size=(count, len(groups)))
    left = below[:, -1][chosen]  # draws of each chosen ramp that lie in values[low:high]
    place = share * (left.sum(axis=1) - 1)  # of the quantile among them, from 0
    rank = np.floor(place).astype(np.int64) + (rng.random(count) < place % 1)
    low, high = np.zeros(count, dtype=np.int64), np.full(count, len(values))
    flat, row = below.ravel().astype(np.float64), chosen * below.shape[1]
    first, last = np.zeros(left.shape), left.astype(np.float64)  # how many lie below values[low], below values[high]
    while (high - low > 1).any():
        middle = (low + high + 1) // 2
        half = flat.take(row + middle[:, None], mode="clip")  # in bounds; to check that takes longer than to read
        lower = rng.binomial(left, _share(first, half, last))
        there = lower.sum(axis=1)
        down = rank < there
        side = down[:, None]
        left = np.where(side, lower, left - lower)
        first, last = np.where(side, first, half), np.where(side, half, last)
        rank = np.where(down, rank, rank - there)
        low, high = np.where(down, low, middle), np.where(down, middle, high)
    quantiles: Floats = values[low]
    return quantiles


def _share(low: Floats, middle: Floats, high: Floats) -> Floats:
    """Of a ramp's values from low to high, the part below the middle; 0 where there are none."""
    return (middle - low) / np.maximum(high - low, 1.0)


def resampled_ramps(ramps: int, rng: np.random.Generator) -> Counts:
    """Combinations of ramps with replacement, one a row."""
    return rng.integers(ramps, size=(RESAMPLES, ramps))


def ratio(upper: Sample, lower: Sample, rng: np.random.Generator) -> Estimate:
    """`upper` over `lower`, each drawn independently of the other; n is the smaller of the two."""
    n = min(upper.n, lower.n)
    value = upper.value / lower.value
    if not (upper.draws.size and lower.draws.size) or np.quantile(lower.draws, lower.tail) <= 0:
        return Estimate(value, None, None, n)  # a divisor that may be 0 has a ratio without bounds
    narrow = min(upper, lower, key=lambda sample: sample.tail)
    with np.errstate(divide="ignore", over="ignore"):
        drawn = rng.choice(upper.draws, RESAMPLES) / rng.choice(lower.draws, RESAMPLES)
    return Sample(value, n, drawn, drawn, narrow.tail, narrow.method).estimate()
