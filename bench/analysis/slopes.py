"""What one more instance costs: the slope of a sum over N, each ramp with its own intercept.

Least squares, not Theil-Sen: slopes of sums add up, so that memory.marginal = memory.pss + memory.kernel +
memory.residual holds exactly; a stray reading moves one ramp, and the interval comes from resampling whole ramps.
Readings within a ramp follow one another, so treating them as independent would make the interval far too narrow.
Steps at n = 0 stay out of the fit: the first instance pays for what the later ones find ready (`memory.fixed`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from msgspec import Struct

from bench.analysis.resampling import Counts, Floats, Sample, resampled_ramps


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
    some = values[values.index.get_level_values("n") >= 1].dropna()
    ramps = {str(trial): _steps(group) for trial, group in some.groupby(level="trial", sort=False) if len(group) >= 2}
    if not ramps:
        return None
    centred = [ramp - ramp.mean(axis=0) for ramp in ramps.values()]
    return RampFit(
        tuple(ramps),
        sxx=np.array([(part[:, 0] ** 2).sum() for part in centred]),
        sxy=np.array([(part[:, 0] * part[:, 1]).sum() for part in centred]),
        n=np.array([ramp[:, 0].mean() for ramp in ramps.values()]),
        y=np.array([ramp[:, 1].mean() for ramp in ramps.values()]),
        start=np.array([values.get((trial, 0), np.nan) for trial in ramps], dtype=float),
    )


def slope_sample(found: RampFit, rng: np.random.Generator) -> Sample:
    """The slope over all ramps; n is the number of ramps."""
    ramps = len(found.trials)
    return Sample(found.slope, ramps, found.slopes(resampled_ramps(ramps, rng)), ramps)


def fixed_sample(found: RampFit, rng: np.random.Generator) -> Sample | None:
    """The intercept above n = 0; None if a ramp has no such step."""
    if np.isnan(found.start).any():
        return None
    ramps = len(found.trials)
    everything = np.arange(ramps)[None, :]
    return Sample(float(found.fixed(everything)[0]), ramps, found.fixed(resampled_ramps(ramps, rng)), ramps)


def _steps(group: pd.Series[float]) -> Floats:
    """Rows of (n, value), by n."""
    ordered = group.sort_index(level="n")
    return np.column_stack([ordered.index.get_level_values("n").to_numpy(dtype=float), ordered.to_numpy(dtype=float)])
