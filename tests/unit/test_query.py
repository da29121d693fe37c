"""Tables for notebooks, SQL and other programs: complete, typed, and the same numbers everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import msgspec
import pandas as pd
import pyperf
import pytest

import bench
from bench.analysis import resampling, summarise
from bench.analysis.tables import COLUMNS, empty, markdown, table
from bench.errors import ResultsError, UsageError
from bench.model import RunId
from bench.records import LaunchRecord, NoteRecord, Outcome, StepRecord
from bench.store import RunData
from bench.verbs.export import export
from bench.verbs.query import query
from tests.unit.fabricated import RUN, TRUTHS, host, info, run_data
from tests.unit.test_store import written

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "RESAMPLES", 400)
        yield


@pytest.fixture(scope="module")
def data() -> RunData:
    return run_data(rounds=2, truths=TRUTHS[2:])


@pytest.fixture
def results(data: RunData, tmp_path: Path) -> Path:
    """Two runs."""
    other = msgspec.structs.replace(data, info=info(run=RunId("20210101-000000-density-second")))
    for one in (data, other):
        written(tmp_path, one)
    return tmp_path


def asked(capsys: Capture, sql: str, results: Path) -> list[dict[str, object]]:
    assert query(sql, results, as_json=True) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
def test_tables_have_their_columns_and_types_with_and_without_rows(data: RunData, name: str) -> None:
    none = RunData(info(), host(), ())
    for found in (table(data, name), table(none, name), empty(name)):
        assert list(found.columns) == [column.name for column in COLUMNS[name]]
        assert {name: str(kind) for name, kind in found.dtypes.items()} == {
            column.name: str(pd.array([], dtype=column.kind).dtype) for column in COLUMNS[name]
        }


def test_everything_recorded_is_in_a_table(data: RunData) -> None:
    launches, readings = table(data, "launches"), table(data, "readings")
    kept = [record for record in data.records if isinstance(record, LaunchRecord)]
    assert len(launches) == len(kept)
    assert launches["warmup"].sum() == 2, "warm-ups are there, marked"
    assert launches["reply"][1] == pytest.approx(kept[1].phases["reply"] / 1e9)
    assert len(readings) == sum(len(record.readings) for record in data.records if isinstance(record, StepRecord))
    assert launches["error"].isna().all(), "what is not there is missing"


def test_load_gives_frames(results: Path, data: RunData) -> None:
    found = bench.load(results / RUN)
    assert list(found.runs["hostname"]) == ["fabricated"]
    assert len(found.trials) == 2
    rows = {(row.metric): row.median for row in summarise(data).summary}
    assert dict(zip(found.summary["metric"], found.summary["median"], strict=True)) == pytest.approx(rows)
    assert bench.load("latest", results).runs["run"][0] == "20210101-000000-density-second"
    with pytest.raises(ResultsError, match="nosuch"):
        bench.load("nosuch", results)


def test_docs_hold_the_tables() -> None:
    assert markdown() in (Path(__file__).parents[2] / "docs/result-format.md").read_text()


# --- SQL -----------------------------------------------------------------------------------------------------------


def test_runs_are_asked_together(capsys: Capture, results: Path) -> None:
    found = asked(
        capsys, "select run, count(*) as n, max(ready) as slowest from launches group by run order by run", results
    )
    assert [(row["run"], row["n"]) for row in found] == [(RUN, 18), ("20210101-000000-density-second", 18)]
    (joined,) = asked(
        capsys,
        "select count(distinct r.metric) as metrics, any_value(t.limiter) as limiter "
        "from readings r join trials t using (run, trial)",
        results,
    )
    assert joined == {"metrics": 10, "limiter": "count"}


def test_effective_keys_are_labels_of_every_reading(capsys: Capture, tmp_path: Path, data: RunData) -> None:
    """A key that one of two runs had otherwise tells their readings apart."""
    driver, profile = next((one.driver, one.profile) for one in data.records if isinstance(one, StepRecord))
    for number, thp in enumerate((True, False)):
        settings = {f"{driver}:{profile}": {"thp": thp, "tb_cache": 8 << 20, "memory": None}}
        run = RunId(f"2021010{number + 1}-000000-density-aaaaa{number}")
        written(tmp_path, msgspec.structs.replace(data, info=info(run=run, settings=settings)))
    found = asked(
        capsys,
        "select k.thp, k.tb_cache, k.memory, count(*) as n from readings r "
        "left join (pivot keys on key using any_value(value)) k using (run, driver, profile) group by all order by all",
        tmp_path,
    )
    count = sum(len(one.readings) for one in data.records if isinstance(one, StepRecord) and one.driver == driver)
    assert found == [{"thp": thp, "tb_cache": "8388608", "memory": None, "n": count} for thp in ("false", "true")]


def test_the_summary_is_a_table(capsys: Capture, results: Path, data: RunData) -> None:
    found = asked(capsys, f"select median from summary where metric = 'memory.marginal' and run = '{RUN}'", results)
    expected = next(row.median for row in summarise(data).summary if row.metric == "memory.marginal")
    assert found == [{"median": pytest.approx(expected)}]


def test_a_query_is_shown_as_a_table(capsys: Capture, results: Path) -> None:
    assert query("select run, alive, accelerator, null as nothing from trials limit 1", results, as_json=False) == 0
    said = capsys.readouterr().out
    assert "alive" in said
    assert "tcg" in said


def test_a_wrong_query_is_one_clear_message(results: Path) -> None:
    with pytest.raises(UsageError, match="nosuch") as caught:
        query("select nosuch from launches", results, as_json=True)
    assert "launches" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="nosuch"):
        query("select * from nosuch", results, as_json=True)


def test_no_run_is_no_row(capsys: Capture, tmp_path: Path) -> None:
    assert asked(capsys, "select * from launches", tmp_path) == []


def test_a_run_that_cannot_be_read_is_named_and_left_out(capsys: Capture, results: Path) -> None:
    (results / RUN / "host.json").write_text("{")
    assert query("select run from runs", results, as_json=True) == 0
    said = capsys.readouterr()
    assert [row["run"] for row in json.loads(said.out)] == ["20210101-000000-density-second"]
    assert "left out" in said.err
    assert "host.json" in said.err


# --- export --------------------------------------------------------------------------------------------------------


def test_csv_and_parquet_hold_the_same(results: Path, tmp_path: Path, data: RunData) -> None:
    csv = export(RUN, "csv", tmp_path / "csv", results)
    parquet = export(RUN, "parquet", tmp_path / "parquet", results)
    assert {path.stem for path in csv.iterdir()} == {path.stem for path in parquet.iterdir()} == set(COLUMNS)
    for name in ("launches", "readings", "summary"):
        ours = table(data, name)
        assert len(pd.read_csv(csv / f"{name}.csv")) == len(ours)
        theirs = duckdb.sql(f"select * from '{parquet}/{name}.parquet'").df()
        for column in COLUMNS[name]:
            if column.kind == "float64":
                assert theirs[column.name].tolist() == pytest.approx(ours[column.name].tolist(), nan_ok=True)


def test_pyperf_reads_its_export(results: Path, tmp_path: Path) -> None:
    target = export(RUN, "pyperf", tmp_path / "deep" / "times.json", results)
    suite = pyperf.BenchmarkSuite.load(str(target))
    assert "vm:stock httpd reply" in suite.get_benchmark_names()


def test_nothing_to_export_is_said(tmp_path: Path, data: RunData) -> None:
    failed = [
        msgspec.structs.replace(one, outcome=Outcome.FAILED) for one in data.records if isinstance(one, LaunchRecord)
    ]
    written(tmp_path, msgspec.structs.replace(data, records=(*failed, NoteRecord(date=1.0, level="info", text="x"))))
    with pytest.raises(UsageError, match="no launch succeeded"):
        export(RUN, "pyperf", tmp_path / "times.json", tmp_path)


def test_a_place_that_cannot_be_written_is_named(results: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultsError, match="file"):
        export(RUN, "csv", tmp_path / "file" / "out", results)
