"""Neighbours that are there: limits make the difference, nobody makes none, and nothing outlives a load."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from msgspec.structs import replace

from bench.analysis.neighbours import neighbours
from bench.drivers.base import Driver
from bench.drivers.context import RunContext
from bench.images.loads import PROGRAM, load_program
from bench.levels import Neighbours
from bench.linux import procfs
from bench.linux.http_load import ask
from bench.model import MIB, InstanceSpec, Limits
from bench.neighbourhood import Kit, Measured, Neighbourhood
from bench.paths import cache_dir
from bench.plan import NEIGHBOUR_ROOM, Trial
from bench.probes.neighbours.cells import Cell
from bench.process import run
from bench.records import NeighbourRecord, TrialRecord
from bench.samplers import cpu_seconds
from bench.store import RunData, read_run
from bench.verbs.experiments import equipped, served
from tests.unit.fabricated import host, info

pytestmark = pytest.mark.root

ROUNDS = 3


@pytest.fixture
def one_cpu(context: RunContext) -> None:
    """All that the launcher starts runs on one CPU: instances have to share it, whatever else this host does."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        context.launcher.start()
    finally:
        os.sched_setaffinity(0, allowed)


def trial(number: int) -> Trial:
    return Trial(f"r{number}", number, "process", "default", "neighbours", NEIGHBOUR_ROOM, (), 0, 64 * number)


def test_an_aggressor_without_limits_takes_what_limits_leave(
    one_cpu: None, context: RunContext, driver_of: Callable[[str], Driver], make_spec: Callable[..., InstanceSpec]
) -> None:
    """The victim may have all of one CPU; a neighbour a tenth of it, or as much as it can get."""
    image, kept = equipped(context, context.images.resolve("default")), []
    program = str(load_program(cache_dir()))
    declared, raised = Limits(64 * MIB, 0.1, 64), Limits(128 * MIB, 2.0, 128)
    kit = Kit(
        program=PROGRAM, keys=Neighbours(("cpu",), ("cpu",), window=0.6), declared=declared, raised=raised, check=None,
        ask=ask, serve=lambda beside, seconds: served(program, context.run, beside, seconds), stop=lambda limits: None,
        cpu_seconds=cpu_seconds, shield=nullcontext, timeout=20.0, patience=20.0,
    )  # fmt: skip

    for number in range(1, ROUNDS + 1):
        one = trial(number)

        def spec(place: int, limits: Limits, first: int = one.first) -> InstanceSpec:
            whose = replace(declared, cpus=1.0) if place == first else limits
            return make_spec("process", number=place, image=image, limits=whose, ramp=4)

        def keep(cell: Cell, found: Measured, number: int = number) -> None:
            kept.append(
                NeighbourRecord(
                    trial=f"r{number}", driver="process", profile="default", payload="idle", round=number, date=0.0,
                    victim=cell.victim, aggressor=cell.aggressor, limits=cell.limits, window=0.6, times=found.times,
                    press=found.press, uses=found.uses, missing=found.missing,
                )
            )  # fmt: skip

        driver_of("process").prepare(spec(0, declared))
        Neighbourhood(kit).run(one, driver_of("process"), spec, str(number), keep, lambda text: None)

    assert [one.missing for one in kept if one.missing] == []
    units = {
        key: sum(one.times.n for one in kept if (one.aggressor, one.limits) == key and one.times)
        for key in (("none", "declared"), ("cpu", "declared"), ("cpu", "raised"))
    }
    free, held, fought = units.values()
    assert fought < 0.75 * free, f"an aggressor without limits has to be felt: {units}"
    assert fought < 0.85 * held, f"with limits it has to be felt less: {units}"

    planted = [replace(one, aggressor="fork", round=one.round % ROUNDS + 1) for one in kept if one.aggressor == "none"]
    found = neighbours(RunData(info(), host(), tuple([*kept, *planted])))
    assert found is not None
    nothing = next(row for row in found.rows if row.aggressor == "fork").idle.median
    assert nothing is not None
    assert nothing.low is not None
    assert nothing.high is not None
    assert nothing.low <= 0 <= nothing.high, "an idle neighbour passes for one that costs something"
    limits = {(one.limits, one.limit): one for one in found.held}
    assert limits["declared", "cpus"].mean < 0.2
    assert limits["raised", "cpus"].mean > 0.3


def test_a_run_of_every_load_by_the_command(tmp_path: Path, own_state: Path) -> None:
    """Both limits of a memory and a fork aggressor are held, all loads are there, and nothing of them is left."""
    argv = [
        sys.executable, "-m", "bench", "run", "neighbours", "--drivers", "container", "--rounds", "1", "--set",
        "neighbours.victims=['httpd']", "--set", "neighbours.window=300 ms", "--results", str(tmp_path),
    ]  # fmt: skip
    done = run(argv, check=False, timeout=120)
    assert done.status == 0, done.stderr
    [folder] = tmp_path.iterdir()
    data = read_run(folder)
    found = [one for one in data.records if isinstance(one, NeighbourRecord)]
    assert len(found) == 14
    assert [one.missing for one in found if one.missing] == []
    assert all(one.press is None or one.press.amount > 0 for one in found)
    refused = {(one.aggressor, one.limits): one.press.refused for one in found if one.press}
    for name in ("memory", "fork"):
        assert refused[name, "declared"] > 0
        assert refused[name, "raised"] == 0
    made = neighbours(data)
    assert made is not None
    assert [one for one in made.held if one.limits == "declared" and not one.honoured and one.limit != "cpus"] == []
    [ended] = (one for one in data.records if isinstance(one, TrialRecord))
    assert (ended.alive, ended.limiter) == (3, "count")
    program = str(load_program(cache_dir()))
    lines = [procfs.read(path) or "" for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [line for line in lines if line.startswith(program)]


def test_an_instance_without_a_network_is_measured_beside_what_needs_none(tmp_path: Path, own_state: Path) -> None:
    """What needs one is in the run too, with the reason; so is what needs a disk, for a root that is read-only."""
    argv = [
        sys.executable, "-m", "bench", "run", "neighbours", "--drivers", "container:strict", "--rounds", "1", "--set",
        "neighbours.victims=['httpd','cpu','disk']", "--set", "neighbours.aggressors=['fork','send']", "--set",
        "neighbours.limits=['declared']", "--set", "neighbours.window=300 ms", "--results", str(tmp_path),
    ]  # fmt: skip
    done = run(argv, check=False, timeout=120)
    assert done.status == 0, done.stderr
    [folder] = tmp_path.iterdir()
    found = [one for one in read_run(folder).records if isinstance(one, NeighbourRecord)]
    assert len(found) == 3 * 4
    made = {one.aggressor: one for one in found if one.victim == "cpu" and one.aggressor != "send"}
    assert [one.missing for one in made.values()] == [None] * 3
    assert all(one.times is not None and one.times.n > 0 for one in made.values())
    assert made["fork"].press is not None
    assert made["fork"].press.refused > 0
    for one in found:
        if one.victim == "httpd" or one.aggressor == "send":
            assert (one.missing or "").startswith("no network")
        elif one.victim == "disk":
            assert "no file on a disk can be written" in (one.missing or "")
        assert (one.times is None) == (one not in made.values())
