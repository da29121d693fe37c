"""What all instances take on disk: measured where they were there, else extrapolated, and said so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from bench.analysis import frames, resampling
from bench.analysis.reconcile import harness_cost
from bench.analysis.takes import disk_taken
from bench.config.find import builtin_scenarios
from bench.config.loader import load_scenario
from bench.model import GIB, MIB, Reading
from bench.records import Outcome, StepRecord, TrialRecord
from bench.report.build import render
from bench.store import RunData
from tests.unit.fabricated import KIB, TRUTHS, host, info, run_data

TRUTH = replace(TRUTHS[1], count=8, disk=GIB, shared=3 * GIB)


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "RESAMPLES", 500)
        yield


def limited(asked: int = 100, *, to_limit: bool = False) -> RunData:
    """Ramps that came to 8 of those asked for, stopped by the disk."""
    data = run_data(rounds=2, noise=0, truths=(TRUTH,))
    records = tuple(
        msgspec.structs.replace(
            one, asked=asked, limiter="disk", outcome=Outcome.SUCCEEDED, evidence="9 bytes are free", to_limit=to_limit
        )
        if isinstance(one, TrialRecord) else one
        for one in data.records
    )  # fmt: skip
    return msgspec.structs.replace(data, records=records)


def test_what_was_reached_is_measured() -> None:
    (found,) = disk_taken(frames(run_data(rounds=2, noise=0, truths=(TRUTH,))))
    assert (found.n, found.asked, found.extrapolated, found.ramps) == (8, 8, False, 2)
    assert found.here == found.there == 3 * GIB + 8 * GIB
    assert found.limiters == ("count",)


def test_the_rest_is_extrapolated_with_what_is_shared_once() -> None:
    (found,) = disk_taken(frames(limited()))
    assert (found.n, found.here, found.extrapolated, found.limiters) == (8, 11 * GIB, True, ("disk",))
    assert found.there == pytest.approx(3 * GIB + 100 * GIB)


def test_a_ramp_to_the_limit_has_no_rest() -> None:
    (found,) = disk_taken(frames(limited(4096, to_limit=True)))
    assert (found.asked, found.extrapolated, found.there) == (8, False, 11 * GIB)


def test_nothing_is_extrapolated_from_one_step() -> None:
    data = limited()
    records = tuple(one for one in data.records if not isinstance(one, StepRecord) or one.n in (0, 8))
    (found,) = disk_taken(frames(msgspec.structs.replace(data, records=records)))
    assert (found.here, found.there) == (11 * GIB, None)


def test_a_run_without_disk_readings_takes_nothing_that_we_know() -> None:
    data = limited()
    records = tuple(
        msgspec.structs.replace(one, readings=tuple(r for r in one.readings if ".disk." not in r.metric))
        if isinstance(one, StepRecord)
        else one
        for one in data.records
    )
    assert disk_taken(frames(msgspec.structs.replace(data, records=records))) == []
    assert disk_taken(frames(RunData(info(), host(), ()))) == []


def test_the_report_marks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.build.figures", lambda _: [])  # they show none of it, and take their time
    data = limited()
    page = render(data)
    section = page[page.index('id="disk-taken"') : page.index('id="reconciled"')]
    assert "extrapolated" in section
    assert "103\N{NO-BREAK SPACE}GiB" in section
    assert "disk</td>" in section


def test_what_measuring_cost_is_known() -> None:
    data = run_data(rounds=2, noise=0, truths=(TRUTH,))
    assert harness_cost(frames(data)) == (None, 40 * MIB + 8 * 30 * KIB)
    records = tuple(
        msgspec.structs.replace(one, readings=(*one.readings, Reading("harness.cpu", one.date % 10 + one.n, "s")))
        if isinstance(one, StepRecord)
        else one
        for one in data.records
    )
    most = max(one.date % 10 + one.n for one in data.records if isinstance(one, StepRecord))
    assert harness_cost(frames(msgspec.structs.replace(data, records=records)))[0] == most
    assert harness_cost(frames(RunData(info(), host(), ()))) == (None, None)


def test_the_scenario_of_a_large_image_asks_for_all_storages() -> None:
    scenario = load_scenario(builtin_scenarios()["image-1gib"])
    assert scenario.image == "default+1GiB"
    wanted = {"container:default", "container:copy", "container:btrfs", "vm:stock", "vm:lean", "vm:micro"}
    assert wanted <= set(scenario.drivers)
    assert {scenario.count_for(driver) for driver in ("container", "vm")} == {100}
