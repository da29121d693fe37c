"""A run as flat tables, for notebooks (`bench.load`), SQL (`bench query`) and other programs (`bench export`).

Everything that was recorded, warm-ups and failures too; seconds and bytes; what was not measured is missing, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import pandas as pd
from msgspec import Struct

from bench.analysis.frames import STARTUP
from bench.model import Phase, condition_text
from bench.records import (
    ExposureRecord,
    FindingRecord,
    Labels,
    LaunchRecord,
    NeighbourRecord,
    NoteRecord,
    Record,
    StepRecord,
    TeardownRecord,
    TrialRecord,
)
from bench.store.reader import RunData, find_run, read_run

Kind = Literal["string", "float64", "Int64", "boolean"]


class Column(NamedTuple):
    """`kind` is a pandas type; all of them can be missing."""

    name: str
    kind: Kind
    meaning: str


class Tables(Struct, frozen=True):
    """One run. Columns: `COLUMNS`, and docs/result-format.md."""

    runs: pd.DataFrame
    keys: pd.DataFrame
    launches: pd.DataFrame
    teardowns: pd.DataFrame
    readings: pd.DataFrame
    trials: pd.DataFrame
    findings: pd.DataFrame
    exposure: pd.DataFrame
    neighbours: pd.DataFrame
    notes: pd.DataFrame
    summary: pd.DataFrame


_RUN = Column("run", "string", "the run's id")
_CONDITION = Column("condition", "string", "what was varied: key=value, sorted, comma-separated; empty if nothing")
_LABELS = (
    _RUN,
    Column("trial", "string", "unit of work"),
    Column("driver", "string", "what ran"),
    Column("profile", "string", "how"),
    Column("payload", "string", "what ran inside"),
    _CONDITION,
    Column("round", "Int64", "from 1"),
    Column("date", "float64", "seconds since the epoch"),
)
COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "runs": (
        _RUN,
        Column("scenario", "string", "its name"),
        Column("started", "float64", "seconds since the epoch"),
        Column("ended", "float64", "the same"),
        Column("status", "string", "running, done, failed, interrupted"),
        Column("seed", "Int64", "of order and resampling"),
        Column("image", "string", "digest"),
        Column("payload", "string", "what ran inside"),
        Column("memory", "Int64", "declared bytes of one instance"),
        Column("accelerator", "string", "kvm or tcg; missing if no VM ran"),
        Column("bench", "string", "version"),
        Column("hostname", "string", "of the host"),
        Column("cpu_model", "string", "of the host"),
        Column("cpus", "Int64", "of the host"),
        Column("memory_total", "Int64", "of the host, bytes"),
        Column("kernel", "string", "of the host"),
    ),
    "keys": (
        _RUN,
        Column("driver", "string", "what ran"),
        Column("profile", "string", "how"),
        Column("key", "string", "of the driver, as `--set DRIVER.KEY` writes it"),
        Column("value", "string", "that was in effect; missing where the driver chooses"),
    ),
    "launches": (
        *_LABELS,
        Column("instance", "string", "its id"),
        Column("alive", "Int64", "instances of the same ramp alive before it"),
        Column("warmup", "boolean", "in no statistic"),
        Column("outcome", "string", "succeeded, failed, skipped, interrupted"),
        Column("error", "string", "what it said last"),
        Column("cpu", "float64", "launch.cpu, seconds"),
        *(Column(str(phase), "float64", "seconds since the request") for phase in STARTUP),
    ),
    "teardowns": (
        *_LABELS,
        Column("instance", "string", "its id"),
        Column("warmup", "boolean", "as in its launch"),
        Column("stopped", "float64", "seconds since the request to stop"),
        Column("removed", "float64", "the same"),
        Column("error", "string", "why it did not go in good order"),
    ),
    "readings": (
        *_LABELS,
        Column("n", "Int64", "instances alive; missing for those of a whole ramp (pool)"),
        Column("metric", "string", "see `bench list metrics`"),
        Column("value", "float64", "in the metric's unit"),
        Column("unit", "string", "s, bytes, count"),
        Column("labels", "string", "key=value, sorted, comma-separated; empty without any"),
    ),
    "trials": (
        *_LABELS,
        Column("outcome", "string", "as of launches"),
        Column("alive", "Int64", "most instances alive and ready at once"),
        Column("asked", "Int64", "how many were asked for"),
        Column("limiter", "string", "what stopped the ramp; count if nothing did"),
        Column("evidence", "string", "what shows the limiter"),
        Column("to_limit", "boolean", "it went on until something stopped it; asked was a bound"),
        Column("useful", "Int64", "largest step at which the service level was held; missing if not watched"),
        Column("launching", "float64", "seconds spent launching"),
        Column("accelerator", "string", "kvm or tcg"),
    ),
    "findings": (
        *_LABELS,
        Column("instance", "string", "attacked from"),
        Column("probe", "string", "family.name"),
        Column("severity", "string", "of an escape: low, medium, high, critical"),
        Column("outcome", "string", "contained, degraded, escaped, unavailable, error"),
        Column("evidence", "string", "what shows it"),
        Column("place", "string", "of its control: process, guest"),
        Column("control", "string", "outcome without the boundary; missing if it could not be tried"),
        Column("counts", "boolean", "the control got through: without that a probe proves nothing"),
        Column("seconds", "float64", "the attack took"),
    ),
    "exposure": (
        *_LABELS,
        Column("instance", "string", "looked at"),
        Column("kernel", "string", "that answers inside: host, own"),
        Column("axis", "string", "calls, host-calls, functions, facts, setup: see docs/exposure.md"),
        Column("missing", "string", "why the axis was not measured; such a row has no item"),
        Column("item", "string", "a call, a fact, a part of the set-up"),
        Column("found", "string", "its class"),
        Column("inside", "string", "what was said inside"),
        Column("host", "string", "what was said on the host"),
        Column("per_second", "float64", "of host calls, under load"),
    ),
    "neighbours": (
        *_LABELS,
        Column("victim", "string", "httpd, cpu, disk, memory: see docs/isolation.md"),
        Column("aggressor", "string", "what is beside it: none, polite, cpu, memory, fork, disk, send, receive"),
        Column("limits", "string", "of the aggressor: declared, raised"),
        Column("units", "Int64", "of work, or requests; failed ones included"),
        Column("failed", "Int64", "of them"),
        Column("p50", "float64", "seconds a unit or an answer took, median"),
        Column("p99", "float64", "the same, 99th percentile"),
        Column("load", "float64", "of the aggressor, in its own unit"),
        Column("unit", "string", "of the load"),
        Column("refused", "Int64", "processes the aggressor was refused, or that were killed for their memory"),
        Column("beside", "float64", "share of the window in which the load was at work"),
        Column("cpus", "float64", "that the neighbour's groups were charged, mean"),
        Column("memory", "float64", "bytes, the most"),
        Column("pids", "float64", "the most"),
        Column("missing", "string", "why there is no result"),
    ),
    "notes": (
        _RUN,
        Column("date", "float64", "seconds since the epoch"),
        Column("level", "string", "info, warning, error"),
        Column("text", "string", "the message"),
    ),
    "summary": (
        _RUN,
        Column("driver", "string", "what ran"),
        Column("profile", "string", "how"),
        Column("payload", "string", "what ran inside"),
        _CONDITION,
        Column("metric", "string", "see `bench list metrics`"),
        Column("unit", "string", "of the next columns"),
        Column("n", "Int64", "launches or ramps"),
        Column("median", "float64", "or slope"),
        Column("low", "float64", "of the 95 % interval"),
        Column("high", "float64", "the same"),
        Column("method", "string", "t, bootstrap, launches"),
    ),
}


def load(run: str | Path, results: str | Path = "results") -> Tables:
    """A run folder, or what `bench show` takes (an id, its beginning, `latest`), as data frames.

    Raises ResultsError if there is no such run or it can't be read.
    """
    data = read_run(find_run(Path(results), str(run)))
    return Tables(**{name: table(data, name) for name in COLUMNS})


def table(data: RunData, name: str) -> pd.DataFrame:
    """One table of `COLUMNS`; its columns have their types also where it has no rows."""
    rows = list(_ROWS[name](data))
    columns = COLUMNS[name]
    values = zip(*rows, strict=True) if rows else iter([()] * len(columns))
    return pd.DataFrame(
        {column.name: pd.array(list(part), dtype=column.kind) for column, part in zip(columns, values, strict=True)}
    )


def empty(name: str) -> pd.DataFrame:
    """The table of no run."""
    return pd.DataFrame({column.name: pd.array([], dtype=column.kind) for column in COLUMNS[name]})


def markdown() -> str:
    """The tables as docs/result-format.md holds them."""
    lines = ["| table | column | type | meaning |", "| --- | --- | --- | --- |"]
    types = {"string": "text", "float64": "number", "Int64": "integer", "boolean": "true or false"}
    for name, columns in COLUMNS.items():
        lines += [f"| `{name}` | `{one.name}` | {types[one.kind]} | {one.meaning} |" for one in columns]
    return "\n".join(lines)


Row = tuple[object, ...]
T = TypeVar("T", bound=Record)


def _labels(run: str, record: Labels) -> Row:
    condition = condition_text(record.condition)
    return run, record.trial, record.driver, record.profile, record.payload, condition, record.round, record.date


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def _runs(data: RunData) -> Iterator[Row]:
    info, host = data.info, data.host
    yield (
        info.run, info.scenario, info.started, info.ended, info.status, info.seed, info.image.digest, info.payload.name,
        info.limits.memory, info.accelerator, host.bench, host.hostname, host.cpu_model, host.cpus, host.memory_total,
        host.kernel,
    )  # fmt: skip


def _keys(data: RunData) -> Iterator[Row]:
    for name, settings in data.info.settings.items():
        driver, _, profile = name.partition(":")
        for key, value in settings.items():
            yield data.info.run, driver, profile, key, _as_written(value)


def _as_written(value: str | float | bool | None) -> str | None:
    """As a scenario has it, without quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


def _of(data: RunData, kind: type[T]) -> Iterator[T]:
    return (record for record in data.records if isinstance(record, kind))


def _launches(data: RunData) -> Iterator[Row]:
    for one in _of(data, LaunchRecord):
        cpu = next((reading.value for reading in one.readings if reading.metric == "launch.cpu"), None)
        phases = (_seconds(one.phases.get(phase)) for phase in STARTUP)
        own = one.instance, one.alive, one.warmup, one.outcome.value, one.error, cpu
        yield *_labels(data.info.run, one), *own, *phases


def _teardowns(data: RunData) -> Iterator[Row]:
    for one in _of(data, TeardownRecord):
        zero = one.phases.get(Phase.STOP)
        ends = [one.phases.get(phase) for phase in (Phase.STOPPED, Phase.REMOVED)]
        took = (None if zero is None or end is None else (end - zero) / 1e9 for end in ends)
        yield *_labels(data.info.run, one), one.instance, one.warmup, *took, one.error


def _readings(data: RunData) -> Iterator[Row]:
    for record in data.records:
        if not isinstance(record, StepRecord | TrialRecord):
            continue
        labels = (*_labels(data.info.run, record), record.n if isinstance(record, StepRecord) else None)
        for one in record.readings:
            own = ",".join(f"{key}={value}" for key, value in sorted(one.labels.items()))
            yield *labels, one.metric, one.value, one.unit, own


def _trials(data: RunData) -> Iterator[Row]:
    for one in _of(data, TrialRecord):
        yield (
            *_labels(data.info.run, one), one.outcome.value, one.alive, one.asked, one.limiter, one.evidence,
            one.to_limit, one.useful,
            one.launching_ns / 1e9, one.accelerator,
        )  # fmt: skip


def _findings(data: RunData) -> Iterator[Row]:
    for one in _of(data, FindingRecord):
        control = one.control.outcome.value if one.control else None
        yield (
            *_labels(data.info.run, one), one.instance, one.probe, one.severity, one.finding.outcome.value,
            one.finding.evidence, one.place, control, one.counts, one.seconds,
        )  # fmt: skip


def _exposure(data: RunData) -> Iterator[Row]:
    for one in _of(data, ExposureRecord):
        labels = (*_labels(data.info.run, one), one.instance, one.kernel, one.exposure.axis, one.exposure.missing)
        if not one.exposure.items:
            yield *labels, None, None, None, None, None
        for item in one.exposure.items:
            yield *labels, item.name, item.found, item.inside, item.host, item.per_second


def _neighbours(data: RunData) -> Iterator[Row]:
    for one in _of(data, NeighbourRecord):
        times, press = one.times, one.press
        uses = {use.limit: use for use in one.uses}
        quantiles = times.quantiles if times else {}
        yield (
            *_labels(data.info.run, one), one.victim, one.aggressor, one.limits,
            times.n if times else None, times.failed if times else None, quantiles.get("0.5"), quantiles.get("0.99"),
            *((press.amount, press.unit, press.refused, press.beside) if press else (None, None, None, None)),
            uses["cpus"].mean if "cpus" in uses else None, uses["memory"].most if "memory" in uses else None,
            uses["pids"].most if "pids" in uses else None, one.missing,
        )  # fmt: skip


def _notes(data: RunData) -> Iterator[Row]:
    for one in _of(data, NoteRecord):
        yield data.info.run, one.date, one.level, one.text


def _summary(data: RunData) -> Iterator[Row]:
    from bench.analysis.summary import summarise

    for one in summarise(data).summary:
        yield (
            data.info.run, one.driver, one.profile, one.payload, one.condition, one.metric, one.unit, one.n, one.median,
            one.low, one.high, one.method,
        )  # fmt: skip


_ROWS: Mapping[str, Callable[[RunData], Iterator[Row]]] = {
    "runs": _runs,
    "keys": _keys,
    "launches": _launches,
    "teardowns": _teardowns,
    "readings": _readings,
    "trials": _trials,
    "findings": _findings,
    "exposure": _exposure,
    "neighbours": _neighbours,
    "notes": _notes,
    "summary": _summary,
}
