"""What as many instances as were asked for take on disk, all of them together: measured, or extrapolated and said so.

A ramp that met a limit has not shown what the rest would have taken. The line of what only the instances own goes on;
what they share stays.
"""

from __future__ import annotations

import pandas as pd
from msgspec import Struct

from bench.analysis.frames import Frames, Series
from bench.analysis.slopes import fit
from bench.analysis.summary import step_values

_OWN = ((1, "instances.disk.own"),)
_WHOLE = ((1, "instances.disk.own"), (1, "instances.disk.shared"))


class DiskTaken(Struct, frozen=True):
    """Bytes with `n` alive, the most that was read, and with all that were `asked` for; medians over `ramps` ramps.

    `there` is None where nothing was extrapolated from: a single step. `limiters`: what stopped the ramps.
    """

    series: Series
    n: int
    here: float
    asked: int
    there: float | None
    ramps: int
    limiters: tuple[str, ...]

    @property
    def extrapolated(self) -> bool:
        """Whether `there` was not measured."""
        return self.n < self.asked


def disk_taken(tables: Frames) -> list[DiskTaken]:
    """In the order of the run; series whose disk was not read are left out."""
    return [found for series in tables.series if (found := _taken(tables, series)) is not None]


def _taken(tables: Frames, series: Series) -> DiskTaken | None:
    trials = tables.trials[tables.trials["series"] == series.key]
    whole = _alive(step_values(tables, series, _WHOLE))
    if not len(whole) or not len(trials):
        return None
    most = int(whole.index.get_level_values("n").max())
    here = whole[whole.index.get_level_values("n") == most]
    open_end = bool(trials["to_limit"].any())  # then what was asked for is the limit, not a number
    asked = most if open_end else max(most, int(trials["asked"].max()))
    limiters = tuple(dict.fromkeys(str(limiter) for limiter in trials["limiter"]))
    return DiskTaken(
        series, most, float(here.median()), asked, _beyond(tables, series, here, asked - most), len(here), limiters
    )


def _beyond(tables: Frames, series: Series, here: pd.Series[float], more: int) -> float | None:
    if not more:
        return float(here.median())
    line = fit(_alive(step_values(tables, series, _OWN)))
    return None if line is None else float(here.median()) + line.slope * more


def _alive(values: pd.Series[float]) -> pd.Series[float]:
    return values[values.index.get_level_values("n") >= 1]
