"""What the analysis, `bench show` and the report make of ramps to the limit: two results, a limiter, intervals, n."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from bench.analysis import frames, headline, quality, resampling, summarise
from bench.analysis.comparison import HEADLINE
from bench.analysis.tables import load
from bench.model import Reading
from bench.records import StepRecord, TrialRecord
from bench.report.answer import answer
from bench.report.build import render
from bench.report.figures import Scene, service
from bench.store import RunData, RunWriter
from bench.verbs.show import print_summary
from tests.unit.fabricated import TRUTHS, run_data

ALIVE, USEFUL = (500, 520, 540), (400, 380, 420)


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "RESAMPLES", 500)
        yield


def to_limit(limiters: tuple[str, str, str], useful: tuple[int | None, ...] = USEFUL) -> RunData:
    """Three rounds: the container to the limit, with a service that gets slower with N; the process to its N."""
    data = run_data(truths=TRUTHS[:2])
    records = []
    for record in data.records:
        place = record.round - 1 if isinstance(record, TrialRecord | StepRecord) else 0
        if isinstance(record, TrialRecord) and record.driver == "container":
            record = replace(
                record, to_limit=True, asked=4096, alive=ALIVE[place], useful=useful[place], limiter=limiters[place],
                evidence="there was no more",
            )  # fmt: skip
        if isinstance(record, StepRecord) and record.driver == "container" and record.n and useful[0] is not None:
            asked = (("service.p50", 0.001, "s"), ("service.p99", 0.002 * record.n, "s"))
            record = replace(record, readings=(*record.readings, *(Reading(*one) for one in asked)))
        records.append(record)
    return replace(data, records=tuple(records))


def test_both_numbers_have_an_interval_over_ramps() -> None:
    data = to_limit(("memory", "memory", "memory"))
    rows = {row.series.driver: row for row in headline(summarise(data), data)}
    container, process = rows["container"], rows["process"]
    assert container.density is not None
    assert container.useful is not None
    assert (container.density.value, container.useful.value) == (520, 400)
    assert container.density.low is not None
    assert container.density.low < 520
    assert (container.density.n, container.useful.n, container.stopped) == (3, 3, "memory")
    assert (process.useful, process.to_limit) == (None, False)
    assert {"density.alive", "density.useful"} <= HEADLINE


def test_the_commonest_limiter_comes_first_with_its_count() -> None:
    data = to_limit(("service", "memory", "memory"))
    (row,) = [row for row in headline(summarise(data), data) if row.to_limit]
    assert row.stopped == "memory (2), service (1)"


def test_a_limit_that_was_found_is_no_doubt_and_a_bound_is_one() -> None:
    found = to_limit(("memory", "service", "memory"))
    said = [doubt.message for doubt in quality(found, summarise(found))]
    assert not any("limit" in one for one in said)
    unmet = to_limit(("count", "memory", "max-time"))
    said = [doubt.message for doubt in quality(unmet, summarise(unmet))]
    assert any("2 of 3 ramps to the limit ended at a bound of the scenario, at 500 instances" in one for one in said)


def test_the_report_says_alive_useful_and_the_limiter() -> None:
    page = render(to_limit(("memory", "memory", "memory")))
    assert "container:default got to 520 (" in page
    assert "useful, limited by memory in 3 ramps." in page
    assert "limit: memory" in page
    assert "<strong>400 useful</strong>" in page
    assert "there was no more" in page
    assert "Answers over the number of instances" in page


def test_a_bound_is_not_called_a_limit() -> None:
    data = to_limit(("count", "count", "count"), (None, None, None))
    said = " ".join(answer(data, headline(summarise(data), data), []))
    assert "a bound of the scenario ended its 3 ramps (count): its limit was not found." in said
    assert "useful" not in said


def test_the_figure_is_drawn_of_those_that_were_asked() -> None:
    data = to_limit(("memory", "memory", "memory"))
    tables, summary = frames(data), summarise(data)
    rows = headline(summary, data, tables)
    container = next(row.series for row in rows if row.to_limit)
    useful = next(row.useful for row in rows if row.to_limit)
    assert useful is not None
    drawing = service(Scene(tables, tuple(rows), {(container, "density.useful"): useful}, 1 << 34, 1))
    assert drawing is not None
    assert "container:default: n = 3 ramps" in drawing.caption


def test_terminal_and_tables_have_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = to_limit(("memory", "memory", "memory"))
    with RunWriter(tmp_path, data.info, data.host) as writer:
        for record in data.records:
            writer.append(record)
        writer.finish("done", 1.0)
    print_summary(writer.path, full=False)
    lines = capsys.readouterr().out.splitlines()
    head = next(place for place, line in enumerate(lines) if "useful [95 %]" in line)
    assert lines[head + 1].split()[:2] == ["container:default", "520"]
    assert "memory" in lines[head + 1]
    trials = load(writer.path).trials
    assert sorted(trials.useful.dropna()) == sorted(USEFUL)
    assert trials.to_limit.sum() == 3
