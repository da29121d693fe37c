"""What a reader asks first: per driver, start-up, one more instance, how many fit, and how drivers compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pandas as pd
from msgspec import Struct

from bench.analysis.frames import Frames, Series, frames
from bench.analysis.resampling import Estimate, generator, ratio
from bench.analysis.summary import sample_of
from bench.model import GIB
from bench.store import RunData
from bench.summary import Summary

COUNT = "count"  # the limiter of a ramp that reached the N asked for


class HeadlineRow(Struct, frozen=True):
    """One driver in one profile. `startup_metric` says what `startup` is: the first reply, else ready.

    `per_gib` is absent where memory.marginal may be zero. `alive` is the median over `ramps` ramps, `density` the same
    with its interval, `limiters` what stopped them ("count" when all asked for were reached). `to_limit`: `asked` was a
    bound. `useful` is absent where the service level was not watched. `accelerator` is set for VMs: "tcg" must be
    shown.
    """

    series: Series
    startup_metric: str
    startup: Estimate | None
    memory: Estimate | None
    disk: Estimate | None
    per_gib: Estimate | None
    alive: int | None
    asked: int | None
    limiters: tuple[str, ...]
    ramps: int
    accelerator: str | None
    density: Estimate | None = None
    useful: Estimate | None = None
    to_limit: bool = False
    stops: tuple[tuple[str, int], ...] = ()  # limiter, number of ramps; the commonest first

    @property
    def stopped(self) -> str:
        """`memory`, or `memory (2), service (1)` where ramps differ."""
        if len(self.stops) == 1:
            return self.stops[0][0]
        return ", ".join(f"{limiter} ({count})" for limiter, count in self.stops)


class Ratio(Struct, frozen=True):
    """How many times the value of `lower` that of `upper` is."""

    metric: str
    upper: Series
    lower: Series
    times: Estimate


def headline(summary: Summary, data: RunData, tables: Frames | None = None) -> list[HeadlineRow]:
    """One row a driver and profile, in the order of the run. `tables`: the frames of `data`, if made before."""
    tables = tables or frames(data)
    found = by_series(summary)
    return [_row(series, found.get(series, {}), tables, summary.accelerator) for series in tables.series]


def ratios(data: RunData, metrics: tuple[str, ...], tables: Frames | None = None) -> list[Ratio]:
    """Every other driver against the reference under the same condition: the first container, else the first driver."""
    tables = tables or frames(data)
    pairs = [(one, reference) for one in tables.series if (reference := _reference(tables.series, one)) != one]
    return [found for pair in pairs for metric in metrics for found in _ratio(tables, metric, *pair, data)]


def accelerator_mark(series: Series, accelerator: str | None) -> str | None:
    """What has to stand beside a number of `series`: only virtual machines are accelerated."""
    return accelerator if series.driver == "vm" else None


def per_gib(memory: Estimate | None) -> Estimate | None:
    """Instances per GiB of host memory; None where one more instance may cost nothing."""
    if memory is None or (memory.value if memory.low is None else memory.low) <= 0:
        return None
    low = GIB / memory.high if memory.high is not None else None
    high = GIB / memory.low if memory.low is not None else None
    return Estimate(GIB / memory.value, low, high, memory.n, memory.method)


def by_series(summary: Summary) -> dict[Series, dict[str, Estimate]]:
    """The summary's rows as estimates, by series and metric."""
    found: dict[Series, dict[str, Estimate]] = {}
    for row in summary.summary:
        series = Series(row.driver, row.profile, row.payload, row.condition)
        found.setdefault(series, {})[row.metric] = Estimate(row.median, row.low, row.high, row.n, row.method)
    return found


def startup_metric(metrics: dict[str, Estimate]) -> str:
    return "startup.reply" if "startup.reply" in metrics else "startup.ready"


def _row(series: Series, metrics: dict[str, Estimate], tables: Frames, accelerator: str | None) -> HeadlineRow:
    trials = tables.trials[tables.trials["series"] == series.key]
    alive, metric = metrics.get("density.alive"), startup_metric(metrics)
    return HeadlineRow(
        series,
        metric,
        metrics.get(metric),
        metrics.get("memory.marginal"),
        metrics.get("disk.marginal"),
        per_gib(metrics.get("memory.marginal")),
        int(alive.value) if alive else None,
        int(trials["asked"].max()) if len(trials) else None,
        _limiters(trials),
        len(trials),
        accelerator_mark(series, accelerator),
        alive,
        metrics.get("density.useful"),
        bool(trials["to_limit"].any()),
        tuple(Counter(map(str, trials["limiter"])).most_common()),
    )


def _limiters(trials: pd.DataFrame) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(limiter) for limiter in trials["limiter"]))


def _reference(series: tuple[Series, ...], other: Series) -> Series:
    """What `other` is compared with; itself if there is nothing else. A key that only one of them varies is no bar."""
    wanted = _condition(other)
    alike = [one for one in series if all(wanted.get(key, value) == value for key, value in _condition(one).items())]
    containers = [one for one in alike if one.driver == "container"]
    return next(iter((*containers, *alike)))


def _condition(series: Series) -> dict[str, str]:
    pairs = [part.partition("=") for part in series.condition.split(",") if part]
    return {key: value for key, _, value in pairs}


def _ratio(tables: Frames, metric: str, one: Series, other: Series, data: RunData) -> Iterator[Ratio]:
    """Seen from the larger of the two; nothing where a value is missing or not positive."""
    seed = data.info.seed
    samples = [(series, sample_of(tables, series, metric, seed)) for series in (one, other)]
    present = sorted(((s.value, series, s) for series, s in samples if s and s.value > 0), key=lambda item: item[0])
    if len(present) == 2:
        (_, lower, below), (_, upper, above) = present
        yield Ratio(metric, upper, lower, ratio(above, below, generator(seed, metric, upper.key, lower.key)))
