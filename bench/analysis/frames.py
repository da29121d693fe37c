"""Records as data frames. Seconds and bytes; what was not measured is absent (no row) or NaN (no stamp), never 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from msgspec import Struct, field
from numpy.typing import NDArray

from bench.model import Phase, condition_text, target_name
from bench.records import LaunchRecord, Outcome, StepRecord, TeardownRecord, TrialRecord
from bench.store import RunData

Floats = NDArray[np.float64]


class Series(NamedTuple):
    """What a summary row is about: one driver in one profile with one payload, under one condition (as text)."""

    driver: str
    profile: str
    payload: str
    condition: str = ""

    @property
    def target(self) -> str:
        return target_name(self.driver, self.profile)

    @property
    def name(self) -> str:
        return target_name(self.driver, self.profile, self.condition)

    @property
    def seeds(self) -> tuple[str, ...]:
        """What random numbers of this series depend on."""
        return self if self.condition else self[:3]

    @property
    def key(self) -> str:
        """What the column `series` of a frame holds."""
        return f"{self.name} {self.payload}"


class Frames(Struct, frozen=True):
    """The run as four tables, each with the columns `series`, `trial` (both categorical) and `round`.

    launches: instance, alive, outcome, error, cpu and a column per phase; teardowns: stopped, removed; both without
    warm-ups. steps: n and a column per metric, readings with labels of their own left out. trials: outcome, alive,
    asked, limiter, evidence, to_limit, useful, accelerator, seconds, and those of POOL.
    """

    series: tuple[Series, ...]
    launches: pd.DataFrame
    teardowns: pd.DataFrame
    steps: pd.DataFrame
    trials: pd.DataFrame
    cut: dict[tuple[str, Series], pd.DataFrame] = field(default_factory=dict)
    """What `of` has found before: every metric of a series asks for the same rows."""

    def of(self, name: Name, series: Series) -> pd.DataFrame:
        """The rows of `series` in the table `name`, indexed by trial; those of steps by trial and n."""
        if (name, series) not in self.cut:
            table: pd.DataFrame = getattr(self, name)
            rows = table[table["series"] == series.key]
            self.cut[name, series] = rows.set_index(["trial", "n"] if name == "steps" else "trial")
        return self.cut[name, series]


STARTUP = (Phase.CREATED, Phase.STARTED, Phase.KERNEL, Phase.INIT, Phase.READY, Phase.REPLY)
POOL = ("pool.size", "pool.fill", "pool.memory")
"""Readings of a ramp whose instances took what was made beforehand."""
Name = Literal["launches", "teardowns", "steps", "trials"]
_Measured = LaunchRecord | StepRecord | TeardownRecord | TrialRecord


def frames(data: RunData) -> Frames:
    """All of `data` as tables; a table without rows still has its columns.

    Column by column, as a million readings have it: a dict for each row takes three times as long.
    """
    labels = _Labels(data)
    launches = [one for one in data.records if isinstance(one, LaunchRecord) and not one.warmup]
    teardowns = [
        one for one in data.records if isinstance(one, TeardownRecord) and not one.warmup and one.error is None
    ]
    steps = [one for one in data.records if isinstance(one, StepRecord)]
    trials = [one for one in data.records if isinstance(one, TrialRecord) and not one.battery]
    return Frames(
        labels.series,
        labels.table(launches, _launches(launches)),
        labels.table(teardowns, _teardowns(teardowns)),
        labels.table(steps, _steps(steps)),
        labels.table(trials, _trials(trials)),
    )


def series_of(record: LaunchRecord | StepRecord | TeardownRecord | TrialRecord) -> Series:
    return Series(record.driver, record.profile, record.payload, condition_text(record.condition))


class _Labels:
    """Trials and series by number: of a trial all records are of one series."""

    def __init__(self, data: RunData) -> None:
        first: dict[str, _Measured] = {}
        for record in data.records:
            if not isinstance(record, _Measured) or record.trial in first:
                continue
            if not isinstance(record, TrialRecord) or not record.battery:  # those have no series: see `isolation`
                first[record.trial] = record
        self._trials = {trial: code for code, trial in enumerate(first)}
        of_trials = [series_of(record) for record in first.values()]
        self.series = tuple(sorted(dict.fromkeys(of_trials), key=_order(data)))
        places = {series: code for code, series in enumerate(self.series)}
        self._series = np.array([places[series] for series in of_trials], dtype=np.intp)

    def table(self, records: Sequence[_Measured], columns: Mapping[str, object]) -> pd.DataFrame:
        """`columns` of `records`, behind their labels."""
        trials = np.array([self._trials[record.trial] for record in records], dtype=np.intp)
        keys = [one.key for one in self.series]
        labels = {
            "series": pd.Categorical.from_codes(self._series[trials], pd.Index(keys, dtype="str")),
            "trial": pd.Categorical.from_codes(trials, pd.Index(list(self._trials), dtype="str")),
            "round": np.array([record.round for record in records], dtype=np.int64),
        }
        return pd.DataFrame({**labels, **columns})


def _order(data: RunData) -> Callable[[Series], tuple[int, int]]:
    """Series in the order of the run's drivers, then of its conditions; else of their first record."""
    drivers = {name: place for place, name in enumerate(data.info.drivers)}
    conditions = {condition_text(one): place for place, one in enumerate(data.info.conditions)}
    return lambda one: (drivers.get(one.target, len(drivers)), conditions.get(one.condition, len(conditions)))


def _launches(records: Sequence[LaunchRecord]) -> dict[str, object]:
    good = [record.outcome is Outcome.SUCCEEDED for record in records]
    phases = [record.phases if succeeded else {} for record, succeeded in zip(records, good, strict=True)]
    return {
        "instance": _objects(record.instance for record in records),
        "alive": np.array([record.alive for record in records], dtype=np.int64),
        "outcome": _objects(record.outcome.value for record in records),
        "error": _objects(record.error for record in records),
        "cpu": _floats(_cpu(record) if succeeded else None for record, succeeded in zip(records, good, strict=True)),
        **{str(phase): _floats(stamps.get(phase) for stamps in phases) / 1e9 for phase in STARTUP},
    }


def _cpu(record: LaunchRecord) -> float | None:
    return next((one.value for one in record.readings if one.metric == "launch.cpu"), None)


def _teardowns(records: Sequence[TeardownRecord]) -> dict[str, object]:
    stops = [record.phases.get(Phase.STOP) for record in records]
    return {
        name: _floats(_after(stop, record.phases.get(name)) for stop, record in zip(stops, records, strict=True)) / 1e9
        for name in ("stopped", "removed")
    }


def _after(start: int | None, end: int | None) -> int | None:
    return None if start is None or end is None else end - start


def _steps(records: Sequence[StepRecord]) -> dict[str, object]:
    values: dict[str, list[float]] = {}
    for place, record in enumerate(records):
        for one in record.readings:
            if not one.labels:
                column = values.get(one.metric)
                if column is None:
                    column = values[one.metric] = [np.nan] * len(records)
                column[place] = one.value
    counts = np.array([record.n for record in records], dtype=np.int64)
    return {"n": counts, **{metric: _floats(column) for metric, column in values.items()}}


def _trials(records: Sequence[TrialRecord]) -> dict[str, object]:
    pools = [{one.metric: one.value for one in record.readings if one.metric in POOL} for record in records]
    return {
        "outcome": _objects(record.outcome.value for record in records),
        "alive": np.array([record.alive for record in records], dtype=np.int64),
        "asked": np.array([record.asked for record in records], dtype=np.int64),
        "limiter": _objects(record.limiter for record in records),
        "evidence": _objects(record.evidence for record in records),
        "to_limit": np.array([record.to_limit for record in records], dtype=np.bool_),
        "useful": _floats(record.useful for record in records),
        "accelerator": _objects(record.accelerator for record in records),
        "seconds": np.array([record.launching_ns for record in records], dtype=np.float64) / 1e9,
        **{metric: _floats(pool.get(metric) for pool in pools) for metric in POOL},
    }


def _floats(values: Iterable[float | None]) -> Floats:
    """None becomes NaN."""
    return np.array(list(values), dtype=np.float64)


def _objects(values: Iterable[str | None]) -> pd.Series[str]:
    """As they are: to look through a million of them for a narrower type takes long, and nobody asks for one."""
    return pd.Series(list(values), dtype="object")
