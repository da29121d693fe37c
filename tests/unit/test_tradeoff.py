"""Density against isolation: axes apart, a front, and no point where there is no number."""

from __future__ import annotations

import msgspec
import pytest

from bench.analysis.tradeoff import Tradeoff, tradeoffs
from bench.errors import UsageError
from bench.records import Containment, Exposure, ExposureRecord, Finding, FindingRecord, NeighbourRecord, Record
from bench.report.build import render
from bench.store import RunData
from tests.unit.fabricated import host, info, run_data
from tests.unit.test_neighbours import experiments

DENSITY = run_data()
ESCAPES = {"process:default": 3, "container:default": 1, "vm:stock": 0}


def isolation(**escapes: int) -> RunData:
    """Probes of three targets, each escaping so many; calls that work, of a guest those of its own kernel."""
    records: list[Record] = []
    through = Finding(Containment.ESCAPED, "")
    for name, count in (ESCAPES | escapes).items():
        driver, profile = name.split(":")
        labels = dict(trial=f"r1-{name}", driver=driver, profile=profile, payload="idle", round=1, date=0.0)
        for number in range(4):
            finding = through if number < count else Finding(Containment.CONTAINED, "")
            records.append(
                FindingRecord(
                    **labels, instance="i", probe=f"a.{number}", claim="It.", severity="low", finding=finding,  # type: ignore[arg-type]
                    place="process", control=through,
                )
            )  # fmt: skip
        kernel = "own" if driver == "vm" else "host"
        exposure = Exposure("calls", counts={"works": 300 - 100 * (driver != "process")})
        records.append(ExposureRecord(**labels, instance="i", kernel=kernel, exposure=exposure))  # type: ignore[arg-type]
    return RunData(info(), host(), tuple(records))


def by_axis(found: list[Tradeoff]) -> dict[tuple[str, str], Tradeoff]:
    return {(one.gain, one.axis): one for one in found}


def test_every_axis_stands_for_itself_and_the_front_is_who_nobody_beats() -> None:
    found = by_axis(tradeoffs([DENSITY, isolation()]))
    escapes = found["per_gib", "probes escaped"]
    assert {point.target.name: point.cost for point in escapes.points} == ESCAPES
    assert all(point.front for point in escapes.points), "each more isolated driver here is a less dense one"
    beaten = by_axis(tradeoffs([DENSITY, isolation(**{"container:default": 4})]))["per_gib", "probes escaped"]
    assert [point.target.name for point in beaten.points if not point.front] == ["container:default"]


def test_a_guest_s_own_kernel_has_no_place_among_the_hosts_calls() -> None:
    calls = by_axis(tradeoffs([DENSITY, isolation()]))["startup", "calls of the host's kernel that work inside"]
    assert [point.target.name for point in calls.points] == ["process:default", "container:default"]
    assert calls.absent == {"vm:stock": "its own kernel answers"}


def test_losses_of_guests_under_tcg_are_no_points() -> None:
    records = (*experiments("process"), *experiments("container"))
    losses = by_axis(tradeoffs([DENSITY, RunData(info(), host(), records)]))
    axis = losses["per_gib", "loss beside the dearest neighbour, limits raised, %"]
    assert {point.target.name for point in axis.points} == {"process:default", "container:default"}
    assert 90 < axis.points[0].cost < 110
    assert axis.absent == {"vm:stock": "not measured"}
    assert axis.note == "the dearest neighbour, limits raised, was chosen out of 2"


def test_all_choose_their_dearest_neighbour_out_of_the_same() -> None:
    """A driver that lacks the dearest one (it has no network, or no disk) is not the better for it."""
    fewer = [one for one in experiments("process") if not (isinstance(one, NeighbourRecord) and pressed_cpu(one))]
    losses = by_axis(tradeoffs([DENSITY, RunData(info(), host(), (*fewer, *experiments("container")))]))
    axis = losses["per_gib", "loss beside the dearest neighbour, limits raised, %"]
    assert {point.target.name: round(point.cost) for point in axis.points} == {
        "process:default": 0,
        "container:default": 0,
    }
    assert "chosen out of 1, without 1 that not all had" in axis.note
    assert axis.note.endswith("not clear of 0 (95 %, corrected for the choice): process:default, container:default")
    assert "without 1 that not all had" in render(
        DENSITY, [RunData(info(), host(), (*fewer, *experiments("container")))]
    )


def pressed_cpu(one: NeighbourRecord) -> bool:
    return (one.aggressor, one.limits) == ("cpu", "raised")


def test_runs_of_different_hosts_are_refused() -> None:
    other = msgspec.structs.replace(isolation(), host=host(kernel="6.2.0"))
    with pytest.raises(UsageError, match=r"kernel 6\.1\.0-fake and 6\.2\.0"):
        tradeoffs([DENSITY, other])


def test_the_report_draws_them_and_marks_tcg() -> None:
    page = render(DENSITY, [isolation()])
    assert "Instances per GiB against isolation" in page
    assert "vm:stock" in page
    assert "has no place on calls of the host" in page
    assert "figure-tradeoff-per-gib" in page
    assert "mathdefault" not in page, "ticks are words, not formulas"
    assert "figure-tradeoff-per-gib" not in render(DENSITY)
