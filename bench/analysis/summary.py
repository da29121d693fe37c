"""The summary: every metric of the glossary that a run supports, with its interval; what is missing is absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd

from bench.analysis.frames import POOL, STARTUP, Frames, Name, Series, frames
from bench.analysis.resampling import Floats, Sample, generator, quantile, quantile_sample
from bench.analysis.slopes import fit, fixed_sample, slope_sample
from bench.metrics import METRICS, summary_metrics
from bench.records import Outcome
from bench.store import RunData
from bench.summary import Summary, SummaryRow

Samples = Mapping[tuple[Series, str], Sample]

_SLOPES: dict[str, tuple[tuple[int, str], ...]] = {  # summary metric -> signed sum of step metrics
    "memory.marginal": ((-1, "host.memory.available"), (-1, "host.memory.pcp"), (-1, "harness.memory.pss")),
    "memory.pss": ((1, "instances.memory.pss"),),
    "memory.uss": ((1, "instances.memory.uss"),),
    "memory.cgroup": ((1, "instances.memory.cgroup"),),
    "memory.kernel": ((1, "instances.memory.kernel"),),
    "memory.guest": ((1, "instances.memory.guest"),),
    "memory.touched": ((1, "instances.memory.touched"),),
    "memory.overhead": ((1, "instances.memory.overhead"),),
    "memory.residual": (
        (-1, "host.memory.available"),
        (-1, "host.memory.pcp"),
        (-1, "harness.memory.pss"),
        (-1, "instances.memory.pss"),
        (-1, "instances.memory.kernel"),
    ),
    "memory.merged": ((1, "host.ksm.sharing"),),
    "disk.marginal": ((1, "instances.disk.own"),),
    "disk.claimed": ((1, "instances.disk.claimed"),),
    "disk.used": ((1, "scratch.disk.used"),),
    "disk.counted": ((1, "scratch.disk.counted"),),
}
FIXED = "memory.fixed"
_FITTED = {**_SLOPES, FIXED: _SLOPES["memory.marginal"]}
TAIL, _TAIL_SUFFIX = 0.95, ".p95"
TAIL_LEAST = (
    60  # launches: of fewer the largest may well lie below the true 95th percentile, and no interval reaches it
)
_ENDED = (Outcome.SUCCEEDED.value, Outcome.FAILED.value)  # reached their limit by themselves


def summarise(data: RunData, tables: Frames | None = None) -> Summary:
    """Rows in the order of the run's drivers, then of the glossary. `tables`: the frames of `data`, if made before."""
    tables = tables or frames(data)
    samples = estimates(tables, data.info.seed)
    rows = [_row(series, metric, sample) for (series, metric), sample in samples.items()]
    return Summary(data.info.run, data.info.scenario, data.host, accelerator_of(data, tables), rows)


def accelerator_of(data: RunData, tables: Frames) -> str | None:
    """What the run's guests ran under; a crashed run has it only in its trials."""
    seen = tables.trials["accelerator"].dropna()
    return data.info.accelerator or (str(seen.iloc[0]) if len(seen) else None)


def estimates(tables: Frames, seed: int) -> Samples:
    """Every summary metric the run supports, with what other runs may have given."""
    return {
        (series, metric.name): sample
        for series in tables.series
        for metric in summary_metrics()
        if (sample := sample_of(tables, series, metric.name, seed)) is not None
    }


def sample_of(tables: Frames, series: Series, metric: str, seed: int) -> Sample | None:
    """`metric` of `series`; None if the run does not hold it."""
    rng = generator(seed, *series.seeds, metric)
    if metric in _FITTED:
        found = fit(step_values(tables, series, _FITTED[metric]))
        if found is None:
            return None
        return fixed_sample(found, rng) if metric == FIXED else slope_sample(found, rng)
    groups = _groups(tables, series, metric)
    return quantile_sample(groups, _share(metric), rng) if groups else None


def ramp_values(tables: Frames, series: Series, metric: str) -> Floats:
    """What each ramp gave for itself: what a comparison permutes. Empty if the run does not hold the metric."""
    if metric in _FITTED:
        found = fit(step_values(tables, series, _FITTED[metric]))
        if found is None:
            return np.empty(0)
        values = found.ramp_fixed if metric == FIXED else found.ramp_slopes
        return values[~np.isnan(values)]
    return np.array([quantile(group, _share(metric)) for group in _groups(tables, series, metric)])


def _share(metric: str) -> float:
    return TAIL if metric.endswith(_TAIL_SUFFIX) else 0.5


def used_memory(tables: Frames, series: Series) -> pd.Series[float]:
    """Minus free memory, less the harness's own, by trial and n: what memory.marginal is the slope of."""
    return step_values(tables, series, _SLOPES["memory.marginal"])


def step_values(tables: Frames, series: Series, terms: tuple[tuple[int, str], ...]) -> pd.Series[float]:
    """A signed sum of step metrics, indexed by trial and n; steps that lack one of them are left out."""
    rows = tables.of("steps", series)
    if not {metric for _, metric in terms} <= set(rows.columns):
        return pd.Series(np.empty(0), index=rows.index[:0])
    parts = [sign * rows[metric].to_numpy(dtype=float) for sign, metric in terms]
    total: pd.Series[float] = pd.Series(np.sum(parts, axis=0), index=rows.index)
    return total.dropna()


def _row(series: Series, metric: str, sample: Sample) -> SummaryRow:
    found = sample.estimate()
    return SummaryRow(
        series.driver,
        series.profile,
        series.payload,
        metric,
        METRICS[metric].unit,
        found.n,
        found.value,
        found.low,
        found.high,
        found.method,
        series.condition,
    )


def _groups(tables: Frames, series: Series, metric: str) -> list[Floats]:
    """The values of `metric`, one array a trial; trials without any are left out, and tails of too few values."""
    values = values_of(tables, series, metric.removesuffix(_TAIL_SUFFIX)).dropna()
    if metric.endswith(_TAIL_SUFFIX) and len(values) < TAIL_LEAST:
        return []
    codes, _ = pd.factorize(values.index)
    ordered = values.to_numpy(dtype=np.float64)[np.argsort(codes, kind="stable")]
    return np.split(ordered, np.cumsum(np.bincount(codes))[:-1]) if len(ordered) else []


def values_of(tables: Frames, series: Series, metric: str) -> pd.Series[float]:
    """The raw values whose median `metric` is, indexed by trial."""
    if metric in _COLUMNS:
        table, column = _COLUMNS[metric]
        return tables.of(table, series)[column].astype(float)
    return _DERIVED[metric](tables, series)


def _rate(tables: Frames, series: Series) -> pd.Series[float]:
    """Only of ramps that succeeded: a launch that timed out would count its waiting as launching."""
    trials, launches = tables.of("trials", series), tables.of("launches", series)
    done = trials[(trials["outcome"] == Outcome.SUCCEEDED.value) & (trials["seconds"] > 0)]
    good = launches[launches["outcome"] == Outcome.SUCCEEDED.value].groupby(level="trial", observed=True).size()
    return good.reindex(done.index) / done["seconds"]


def _alive(tables: Frames, series: Series) -> pd.Series[float]:
    """Only of ramps that ended by themselves: one that was interrupted says nothing of what fits."""
    trials = tables.of("trials", series)
    return trials[trials["outcome"].isin(_ENDED)]["alive"].astype(float)


def _useful(tables: Frames, series: Series) -> pd.Series[float]:
    """The same, where the service level was watched."""
    trials = tables.of("trials", series)
    return trials[trials["outcome"].isin(_ENDED)]["useful"].dropna()


def _shared(tables: Frames, series: Series) -> pd.Series[float]:
    """With the most instances alive, once a ramp."""
    values = step_values(tables, series, ((1, "instances.disk.shared"),))
    return values[values.index.get_level_values("n") >= 1].groupby(level="trial", observed=True, sort=False).last()


def _waits(tables: Frames, series: Series, metric: str) -> pd.Series[float]:
    """Of all samples of a ramp together."""
    return step_values(tables, series, ((1, metric),)).groupby(level="trial", observed=True, sort=False).sum()


_COLUMNS: dict[str, tuple[Name, str]] = {
    **{f"startup.{phase}": ("launches", str(phase)) for phase in STARTUP},
    "launch.cpu": ("launches", "cpu"),
    "teardown.stopped": ("teardowns", "stopped"),
    "teardown.removed": ("teardowns", "removed"),
    **{metric: ("trials", metric) for metric in POOL},
}
_DERIVED: dict[str, Callable[[Frames, Series], pd.Series[float]]] = {
    "launch.rate": _rate,
    "density.alive": _alive,
    "density.useful": _useful,
    "disk.shared": _shared,
    "ksm.time": partial(_waits, metric="host.ksm.settled"),
    "ksm.cpu": partial(_waits, metric="host.ksm.cpu"),
}
