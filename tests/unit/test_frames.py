"""Tables made column by column say what the records say, row by row."""

from __future__ import annotations

import math
from dataclasses import replace as changed

import msgspec
import numpy as np
import pytest

from bench.analysis.frames import POOL, STARTUP, frames
from bench.analysis.slopes import bends
from bench.analysis.summary import summarise, used_memory
from bench.model import Phase, Reading
from bench.records import LaunchRecord, NoteRecord, Outcome, StepRecord, TeardownRecord, TrialRecord
from bench.store import RunData
from tests.unit.fabricated import TRUTHS, run_data


@pytest.fixture(scope="module")
def data() -> RunData:
    """Two drivers, and one of each thing that is left out of a table or missing in it."""
    made = run_data(rounds=3, truths=(changed(TRUTHS[0], count=6), changed(TRUTHS[1], count=5)))
    records = list(made.records)
    for place, record in enumerate(records):
        if isinstance(record, LaunchRecord) and record.alive == 3:
            records[place] = msgspec.structs.replace(record, outcome=Outcome.FAILED, error="refused")
        elif isinstance(record, LaunchRecord) and record.alive == 4:
            records[place] = msgspec.structs.replace(record, readings=(), phases={"ready": 5})
        elif isinstance(record, TeardownRecord) and record.instance.endswith("1"):
            records[place] = msgspec.structs.replace(record, error="stayed")
        elif isinstance(record, TeardownRecord) and record.instance.endswith("2"):
            records[place] = msgspec.structs.replace(record, phases={"stop": 1, "removed": 9})
        elif isinstance(record, StepRecord) and record.n == 2:
            of_one = Reading("instances.memory.pss", 1.0, "bytes", {"cgroup": "a"})
            records[place] = msgspec.structs.replace(record, readings=(*record.readings[2:], of_one))
        elif isinstance(record, TrialRecord) and record.round == 2:
            records[place] = msgspec.structs.replace(record, readings=(Reading("pool.fill", 0.5, "s"),))
    records.insert(7, NoteRecord(date=1.0, level="info", text="between"))
    return msgspec.structs.replace(made, records=tuple(records))


def same(found: object, wanted: float | None) -> bool:
    value = float(found)  # type: ignore[arg-type]
    return math.isnan(value) if wanted is None else value == wanted


def test_series_are_in_the_order_of_the_runs_drivers(data: RunData) -> None:
    found = frames(data)
    assert [one.name for one in found.series] == ["process:default", "container:default"]
    for table in (found.launches, found.teardowns, found.steps, found.trials):
        assert list(table.columns[:3]) == ["series", "trial", "round"]
        assert set(table["series"]) == {one.key for one in found.series}


def test_launches(data: RunData) -> None:
    wanted = [one for one in data.records if isinstance(one, LaunchRecord) and not one.warmup]
    table = frames(data).launches
    assert len(table) == len(wanted)
    for record, row in zip(wanted, table.to_dict("records"), strict=True):
        good = record.outcome is Outcome.SUCCEEDED
        assert (row["trial"], row["round"], row["alive"]) == (record.trial, record.round, record.alive)
        assert (row["instance"], row["outcome"], row["error"]) == (record.instance, record.outcome, record.error)
        assert same(row["cpu"], record.readings[0].value if good and record.readings else None)
        for phase in STARTUP:
            stamp = record.phases.get(phase) if good else None
            assert same(row[phase], None if stamp is None else stamp / 1e9)


def test_teardowns(data: RunData) -> None:
    wanted = [one for one in data.records if isinstance(one, TeardownRecord) and not one.warmup and one.error is None]
    table = frames(data).teardowns
    assert len(table) == len(wanted)
    for record, row in zip(wanted, table.to_dict("records"), strict=True):
        assert row["trial"] == record.trial
        for phase in (Phase.STOPPED, Phase.REMOVED):
            end = record.phases.get(phase)
            assert same(row[phase], None if end is None else (end - record.phases["stop"]) / 1e9)


def test_steps_and_trials(data: RunData) -> None:
    steps, trials = frames(data).steps, frames(data).trials
    for step, row in zip([one for one in data.records if isinstance(one, StepRecord)], steps.to_dict("records"),
                         strict=True):  # fmt: skip
        values = {one.metric: one.value for one in step.readings if not one.labels}
        assert (row["trial"], row["n"]) == (step.trial, step.n)
        assert all(same(row[metric], values.get(metric)) for metric in steps.columns[4:])
    assert list(steps.columns[4:]) == list(
        dict.fromkeys(one.metric for r in data.records if isinstance(r, StepRecord) for one in r.readings)
    )
    for trial, row in zip([one for one in data.records if isinstance(one, TrialRecord)], trials.to_dict("records"),
                          strict=True):  # fmt: skip
        assert (row["trial"], row["limiter"], row["seconds"]) == (trial.trial, trial.limiter, trial.launching_ns / 1e9)
        assert (row["outcome"], row["accelerator"]) == (trial.outcome, trial.accelerator)
        pool = {one.metric: one.value for one in trial.readings}
        assert all(same(row[metric], pool.get(metric)) for metric in POOL)


def test_a_run_without_records_has_the_same_columns(data: RunData) -> None:
    empty = frames(msgspec.structs.replace(data, records=()))
    assert empty.series == ()
    for name in ("launches", "teardowns", "trials"):
        assert list(getattr(empty, name).columns) == list(getattr(frames(data), name).columns)
    assert list(empty.steps.columns) == ["series", "trial", "round", "n"]
    assert summarise(msgspec.structs.replace(data, records=())).summary == []


def test_rows_of_one_series_are_those_and_no_others(data: RunData) -> None:
    found = frames(data)
    parts = [found.of("steps", series) for series in found.series]
    assert sum(map(len, parts)) == len(found.steps)
    assert all(set(part["series"]) == {series.key} for part, series in zip(parts, found.series, strict=True))
    assert found.of("steps", found.series[0]) is parts[0], "asked for by every metric, cut once"


def test_bends_are_those_of_a_parabola_through_each_ramp() -> None:
    data = run_data(rounds=4, truths=(TRUTHS[1],))
    found = frames(data)
    used = used_memory(found, found.series[0])
    wanted = []
    for _, ramp in used[used.index.get_level_values("n") >= 1].groupby(level="trial", sort=False, observed=True):
        n = ramp.index.get_level_values("n").to_numpy(dtype=float)
        square, slope, _ = np.polyfit(2 * (n - n.min()) / (n.max() - n.min()) - 1, ramp.to_numpy(), 2)
        wanted.append(-square / abs(2 * slope))
    assert bends(used) == pytest.approx(wanted, rel=1e-6)
    few = used[used.index.get_level_values("n") <= 4]
    assert len(bends(few)) == 0, "steps at 1, 2, 4 can't tell"
