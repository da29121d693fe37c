"""What one more instance costs: the slope of a sum over N, each ramp with its own intercept.

Least squares, not Theil-Sen: slopes of sums add up, so that memory.marginal = memory.pss + memory.kernel +
memory.residual holds exactly; a stray reading moves one ramp, and the interval comes from resampling whole ramps.
Readings within a ramp follow one another, so treating them as independent would make the interval far too narrow.
Steps at n = 0 stay out of the fit: the first instance pays for what the later ones find ready (`memory.fixed`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from msgspec import Struct
from numpy.typing import NDArray

from bench.analysis.resampling import MANY, PLENTY, Counts, Floats, Sample, ramp_sample, resampled_ramps, tail

LEAST_STEPS = 4  # that a bend can be told from


class RampFit(Struct, frozen=True):
    """Sums of squares and centres of each ramp over its steps with n >= 1; `start` is the value at n = 0 (or NaN)."""

    trials: tuple[str, ...]
    sxx: Floats
    sxy: Floats
    n: Floats
    y: Floats
    start: Floats

    @property
    def slope(self) -> float:
        return float(self.sxy.sum() / self.sxx.sum())

    @property
    def ramp_slopes(self) -> Floats:
        """Of each ramp for itself."""
        return np.asarray(self.sxy / self.sxx)

    @property
    def ramp_fixed(self) -> Floats:
        """Of each ramp for itself; NaN without a step at n = 0."""
        return np.asarray(self.y - self.ramp_slopes * self.n - self.start)

    def slopes(self, combinations: Counts) -> Floats:
        """The slope of each combination of ramps (one a row)."""
        return np.asarray(self.sxy[combinations].sum(axis=1) / self.sxx[combinations].sum(axis=1))

    def fixed(self, combinations: Counts) -> Floats:
        """Mean intercept of each combination of ramps, over what was there at n = 0 of the same ramp."""
        slopes = self.slopes(combinations)[:, None]
        intercepts = self.y[combinations] - slopes * self.n[combinations] - self.start[combinations]
        return np.asarray(intercepts.mean(axis=1))


def fit(values: pd.Series[float]) -> RampFit | None:
    """Fit `values` (indexed by trial and n); ramps with fewer than two steps are left out, None if none is left."""
    some = values.dropna()
    n, y = some.index.get_level_values("n").to_numpy(dtype=float), some.to_numpy(dtype=float)
    codes, names = pd.factorize(some.index.get_level_values("trial"))
    start = np.full(len(names), np.nan)
    start[codes[n == 0]] = y[n == 0]
    above = n >= 1
    codes, n, y = codes[above], n[above], y[above]

    def each(weights: NDArray[np.floating[Any]]) -> Floats:
        return np.asarray(np.bincount(codes, weights, minlength=len(names)), dtype=np.float64)

    count = each(np.ones(len(codes)))
    enough = count >= 2
    if not enough.any():
        return None
    size = np.maximum(count, 1)
    mean_n, mean_y = each(n) / size, each(y) / size
    from_n = n - mean_n[codes]
    sxx, sxy = each(from_n**2), each(from_n * (y - mean_y[codes]))
    chosen = tuple(str(name) for name, kept in zip(names, enough, strict=True) if kept)
    return RampFit(chosen, sxx[enough], sxy[enough], mean_n[enough], mean_y[enough], start[enough])


def bends(values: pd.Series[float]) -> Floats:
    """How far each ramp is from a line: the middle of a parabola through it, above (+) or below the chord of its ends,
    as a share of what the value rises by on that chord. Ramps with fewer than four steps at n >= 1, or that rise by
    nothing, have none.
    """
    some = values[values.index.get_level_values("n") >= 1].dropna()
    codes, _ = pd.factorize(some.index.get_level_values("trial"))
    n, y = some.index.get_level_values("n").to_numpy(dtype=float), some.to_numpy(dtype=float)
    pairs = np.unique(np.stack([codes, n]), axis=1)[0].astype(np.intp)
    enough = np.flatnonzero(np.bincount(pairs) >= LEAST_STEPS)
    kept = np.isin(codes, enough)
    codes, n, y = np.searchsorted(enough, codes[kept]), n[kept], y[kept]
    if not len(codes):
        return np.empty(0)
    square, slope = _parabolas(codes, np.asarray(n, dtype=np.float64), np.asarray(y, dtype=np.float64))
    return np.asarray(-square[slope != 0] / np.abs(2 * slope[slope != 0]))


def _parabolas(codes: NDArray[np.intp], n: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The square and the linear term of the parabola through each ramp, over n from -1 to 1: all ramps at once, as
    there may be thousands."""
    count = codes.max() + 1
    least, most = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(least, codes, n)
    np.maximum.at(most, codes, n)
    x = 2 * (n - least[codes]) / (most - least)[codes] - 1

    def each(weights: Floats) -> Floats:
        return np.asarray(np.bincount(codes, weights, minlength=count), dtype=np.float64)

    y = y - (each(y) / each(np.ones(len(y))))[codes]
    sums = [each(x**power) for power in range(5)]
    moments = np.stack([np.stack([sums[row + column] for column in range(3)], axis=-1) for row in range(3)], axis=-2)
    right = np.stack([each(y * x**power) for power in range(3)], axis=-1)
    found = np.linalg.solve(moments, right[..., None])[..., 0]
    return np.asarray(found[:, 2], dtype=np.float64), np.asarray(found[:, 1], dtype=np.float64)


def slope_sample(found: RampFit, rng: np.random.Generator) -> Sample:
    """The slope over all ramps; n is the number of ramps."""
    return _sample(found.slope, found.ramp_slopes, found.slopes, rng)


def fixed_sample(found: RampFit, rng: np.random.Generator) -> Sample | None:
    """The intercept above n = 0; None if a ramp has no such step."""
    if np.isnan(found.start).any():
        return None
    everything = np.arange(len(found.trials))[None, :]
    return _sample(float(found.fixed(everything)[0]), found.ramp_fixed, found.fixed, rng)


def _sample(value: float, ramps: Floats, resampled: Callable[[Counts], Floats], rng: np.random.Generator) -> Sample:
    count = len(ramps)
    if not MANY <= count < PLENTY:
        return ramp_sample(value, count, ramps, rng, positive=False)
    return Sample(value, count, ramps, resampled(resampled_ramps(count, rng)), tail(count), "bootstrap")
