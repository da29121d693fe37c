"""Records as data frames. Seconds and bytes; what was not measured is absent (no row) or NaN (no stamp), never 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from msgspec import Struct

from bench.model import LaunchRecord, Outcome, Phase, StepRecord, TeardownRecord, TrialRecord
from bench.store import RunData


class Series(NamedTuple):
    """What a summary row is about: one driver in one profile with one payload."""

    driver: str
    profile: str
    payload: str

    @property
    def name(self) -> str:
        return f"{self.driver}:{self.profile}"

    @property
    def key(self) -> str:
        """What the column `series` of a frame holds."""
        return f"{self.name} {self.payload}"


class Frames(Struct, frozen=True):
    """The run as four tables, each with the columns `series`, `trial` and `round`.

    launches: instance, alive, outcome, error, cpu and a column per phase; teardowns: stopped, removed; both without
    warm-ups. steps: n and a column per metric, readings with labels of their own left out. trials: outcome, alive,
    asked, limiter, evidence, accelerator, seconds, and those of POOL.
    """

    series: tuple[Series, ...]
    launches: pd.DataFrame
    teardowns: pd.DataFrame
    steps: pd.DataFrame
    trials: pd.DataFrame


STARTUP = (Phase.CREATED, Phase.STARTED, Phase.KERNEL, Phase.INIT, Phase.READY, Phase.REPLY)
POOL = ("pool.size", "pool.fill", "pool.memory")
"""Readings of a ramp whose instances took what was made beforehand."""
_LABELS = ("series", "trial", "round")


def frames(data: RunData) -> Frames:
    """All of `data` as tables; a table without rows still has its columns."""
    records = data.records
    launches = (_launch(r) for r in records if isinstance(r, LaunchRecord) and not r.warmup)
    teardowns = (_teardown(r) for r in records if isinstance(r, TeardownRecord) and not r.warmup and r.error is None)
    steps = (_step(r) for r in records if isinstance(r, StepRecord))
    measured = dict.fromkeys(
        one.metric for r in records if isinstance(r, StepRecord) for one in r.readings if not one.labels
    )
    trials = (_trial(r) for r in records if isinstance(r, TrialRecord))
    return Frames(
        _series(data),
        _table(launches, ("instance", "alive", "outcome", "error", "cpu", *STARTUP)),
        _table(teardowns, ("stopped", "removed")),
        _table(steps, ("n", *measured)),
        _table(trials, ("outcome", "alive", "asked", "limiter", "evidence", "accelerator", "seconds", *POOL)),
    )


def series_of(record: LaunchRecord | StepRecord | TeardownRecord | TrialRecord) -> Series:
    return Series(record.driver, record.profile, record.payload)


def _series(data: RunData) -> tuple[Series, ...]:
    """Series in the order of the run's drivers, then of their first record."""
    found = dict.fromkeys(
        series_of(r) for r in data.records if isinstance(r, LaunchRecord | StepRecord | TeardownRecord | TrialRecord)
    )
    order = {name: place for place, name in enumerate(data.info.drivers)}
    return tuple(sorted(found, key=lambda series: order.get(series.name, len(order))))


def _table(rows: Iterable[Mapping[str, object]], columns: tuple[str, ...]) -> pd.DataFrame:
    names = [*_LABELS, *(str(column) for column in columns)]
    values: dict[str, list[object]] = {name: [] for name in names}
    for row in rows:  # one at a time: a million of them at once take a gigabyte
        for name, column in values.items():
            column.append(row.get(name, np.nan))
    return pd.DataFrame(values, columns=names)


def _labels(record: LaunchRecord | StepRecord | TeardownRecord | TrialRecord) -> dict[str, object]:
    return {"series": series_of(record).key, "trial": record.trial, "round": record.round}


def _launch(record: LaunchRecord) -> dict[str, object]:
    cpu = next((r.value for r in record.readings if r.metric == "launch.cpu"), None)
    succeeded = record.outcome is Outcome.SUCCEEDED
    phases = {phase: ns / 1e9 for phase, ns in record.phases.items()} if succeeded else {}
    return {
        **_labels(record),
        **phases,
        "instance": record.instance,
        "alive": record.alive,
        "outcome": record.outcome.value,
        "error": record.error,
        "cpu": cpu if succeeded else None,
    }


def _teardown(record: TeardownRecord) -> dict[str, object]:
    stop = record.phases.get(Phase.STOP)
    if stop is None:
        return _labels(record)
    present = [name for name in ("stopped", "removed") if name in record.phases]
    return {**_labels(record), **{name: (record.phases[name] - stop) / 1e9 for name in present}}


def _step(record: StepRecord) -> dict[str, object]:
    return {**_labels(record), "n": record.n, **{r.metric: r.value for r in record.readings if not r.labels}}


def _trial(record: TrialRecord) -> dict[str, object]:
    return {
        **_labels(record),
        "outcome": record.outcome.value,
        "alive": record.alive,
        "asked": record.asked,
        "limiter": record.limiter,
        "evidence": record.evidence,
        "accelerator": record.accelerator,
        "seconds": record.launching_ns / 1e9,
        **{one.metric: one.value for one in record.readings if one.metric in POOL},
    }
