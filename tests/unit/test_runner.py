"""The order of phases is the spec: what is launched, sampled, recorded and removed, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import HostError, Interrupted, ResultsError
from bench.model import Footprint, InstanceSpec, Reading
from bench.records import LaunchRecord, Outcome, Record, StepRecord, TeardownRecord, TrialRecord
from bench.runner import Runner
from bench.samplers.base import Sampler
from tests import fakes


@pytest.fixture
def driver() -> fakes.FakeDriver:
    return fakes.FakeDriver()


@pytest.fixture
def recorder(driver: fakes.FakeDriver) -> fakes.Recorder:
    return fakes.Recorder(driver)


Run = Callable[..., list[TrialRecord]]


@pytest.fixture
def run(driver: fakes.FakeDriver, recorder: fakes.Recorder, tmp_path: Path) -> Run:
    def go(available: int = 1 << 40, deadline: float | None = None, **changes: object) -> list[TrialRecord]:
        done: list[TrialRecord] = []
        runner = Runner(
            fakes.job(driver, recorder, fakes.scenario(tmp_path, **changes), available=available, deadline=deadline)
        )
        runner.prepare()
        runner.run(recorder, done)
        return done

    return go


def test_order_of_a_ramp(run: Run, driver: fakes.FakeDriver) -> None:
    run(count__default=2)
    assert driver.events == [
        "prepare",
        "launch 1", "ready 1", "stop 1", "remove 1",  # the warm-up
        "sample 0", "sync",
        "launch 2", "ready 2", "sample 1", "sync",
        "launch 3", "ready 3", "sample 2", "sync",
        "stop 3", "remove 3", "stop 2", "remove 2", "sync",
    ]  # fmt: skip


def test_records_of_a_ramp(run: Run, recorder: fakes.Recorder) -> None:
    (trial,) = run()
    assert (trial.outcome, trial.alive, trial.asked, trial.limiter) == (Outcome.SUCCEEDED, 4, 4, "count")
    assert trial.launching_ns == 4 * 5_000_000, "warm-ups do not count"
    launches = recorder.of(LaunchRecord)
    assert [(one.warmup, one.alive) for one in launches] == [(True, 0), (False, 0), (False, 1), (False, 2), (False, 3)]
    assert {one.phases["ready"] for one in launches} == {5_000_000}
    assert [reading.value for reading in launches[0].readings] == [0.25]
    assert [step.n for step in recorder.of(StepRecord)] == [0, 1, 2, 4]
    for end in recorder.of(TeardownRecord):
        assert end.phases["stop"] <= end.phases["stopped"] <= end.phases["removed"]
        assert "ready" not in end.phases
    assert recorder.records[-1] is trial


def test_the_reserve_is_checked_before_each_launch(run: Run, driver: fakes.FakeDriver) -> None:
    (trial,) = run(available=(1 << 30) + (256 << 20) - 1)
    assert (trial.outcome, trial.alive, trial.limiter) == (Outcome.SUCCEEDED, 0, "memory")
    assert "the reserve is 1073741824" in trial.evidence
    (trial,) = run(available=(1 << 30) + (256 << 20))
    assert trial.limiter == "count", "exactly enough is enough"


def test_no_launch_after_the_deadline(run: Run) -> None:
    (trial,) = run(deadline=0.0)
    assert (trial.alive, trial.limiter) == (0, "max-time")


def test_a_refused_launch_ends_the_ramp_and_keeps_what_was_measured(
    run: Run, driver: fakes.FakeDriver, recorder: fakes.Recorder
) -> None:
    driver.refused = {4}
    (trial,) = run()
    assert (trial.outcome, trial.alive, trial.limiter) == (Outcome.FAILED, 2, "launch")
    assert "abc123-c4 refused" in trial.evidence
    failed = recorder.of(LaunchRecord)[-1]
    assert (failed.outcome, failed.readings) == (Outcome.FAILED, ())
    assert [step.n for step in recorder.of(StepRecord)] == [0, 1, 2]
    assert not driver.alive, "nothing is left"


def test_an_instance_that_is_never_ready_is_removed_too(run: Run, driver: fakes.FakeDriver) -> None:
    driver.never_ready = {3}
    (trial,) = run()
    assert (trial.outcome, trial.alive) == (Outcome.FAILED, 1)
    assert not driver.alive
    assert driver.events.count("remove 3") == 1


def test_dead_instances_fail_the_step(run: Run, driver: fakes.FakeDriver, recorder: fakes.Recorder) -> None:
    driver.dead = {2}
    (trial,) = run()
    assert (trial.outcome, trial.limiter) == (Outcome.FAILED, "died")
    assert "abc123-c2" in trial.evidence
    assert [step.n for step in recorder.of(StepRecord)] == [0]


def test_what_killed_an_instance_is_said_where_it_is_known(run: Run, driver: fakes.FakeDriver) -> None:
    driver.dead = {3}
    driver.cause = "killed by the OOM killer"
    (trial,) = run()
    assert trial.evidence.startswith("no longer alive at N=2: abc123-c3 (killed by the OOM killer)")


def test_records_that_can_not_be_written_leave_no_instance(
    run: Run, driver: fakes.FakeDriver, recorder: fakes.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fakes.Recorder.append

    def full(self: fakes.Recorder, record: Record) -> None:
        if len(self.records) > 6:
            raise ResultsError("no room")
        plain(self, record)

    monkeypatch.setattr(fakes.Recorder, "append", full)
    with pytest.raises(ResultsError, match="no room"):
        run()
    assert len([event for event in driver.events if event.startswith("launch")]) > 2
    assert not driver.alive, "each is ended, though nobody can be told"


def test_an_interruption_keeps_records_and_leaves_nothing(
    run: Run, driver: fakes.FakeDriver, recorder: fakes.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fakes.FakeInstance.wait_ready

    def interrupted(self: fakes.FakeInstance, timeout: float) -> None:
        if self.spec.number == 4:
            raise Interrupted(2)
        plain(self, timeout)

    monkeypatch.setattr(fakes.FakeInstance, "wait_ready", interrupted)
    with pytest.raises(Interrupted):
        run()
    trial = recorder.records[-1]
    assert isinstance(trial, TrialRecord)
    assert (trial.outcome, trial.alive) == (Outcome.INTERRUPTED, 2)
    assert not driver.alive


def test_rounds_interleave_and_numbers_never_repeat(run: Run, recorder: fakes.Recorder) -> None:
    trials = run(rounds=3)
    assert [trial.trial for trial in trials] == [f"r{number}-container:default" for number in (1, 2, 3)]
    names = [one.instance for one in recorder.of(LaunchRecord)]
    assert len(names) == len(set(names)) == 15


class PooledDriver(fakes.FakeDriver):
    """Its instances take from a pool, which has room for `room`."""

    room = 1000

    def pools(self, spec: InstanceSpec) -> bool:
        return spec.profile == "pooled"

    def fill(self, spec: InstanceSpec, count: int) -> None:
        self.events.append(f"fill {count}")
        if count > self.room:
            raise HostError("no room")

    def drain(self) -> None:
        self.events.append("drain")


class FreeMemory:
    """A sampler of a host that loses `loss` bytes with each look at it."""

    name, loss = "free", 3000

    def __init__(self) -> None:
        self.left = 1 << 20

    def read(self, footprints: Sequence[Footprint]) -> Sequence[Reading]:
        self.left -= self.loss
        free = Reading("host.memory.available", self.left, "bytes")
        return [free, Reading("host.memory.pcp", 7, "bytes"), Reading("harness.memory.pss", 0, "bytes")]


def pooled(tmp_path: Path, driver: PooledDriver, samplers: Sequence[Sampler], drivers: str) -> list[TrialRecord]:
    recorder, done = fakes.Recorder(driver), list[TrialRecord]()
    job = fakes.job(driver, recorder, fakes.scenario(tmp_path, drivers=drivers, count__default=2))
    runner = Runner(replace(job, samplers=samplers))
    runner.prepare()
    driver.events.clear()
    runner.run(recorder, done)
    return done


def test_a_pool_is_there_for_its_own_ramp_and_its_cost_is_recorded_apart(tmp_path: Path) -> None:
    driver = PooledDriver()
    trials = pooled(tmp_path, driver, [FreeMemory()], "['container:pooled', 'container']")
    by_profile = {trial.profile: {one.metric: one.value for one in trial.readings} for trial in trials}
    assert by_profile["default"] == {}, "a cold launch knows of no pool"
    assert set(by_profile["pooled"]) == {"pool.size", "pool.fill", "pool.memory"}
    assert (by_profile["pooled"]["pool.size"], by_profile["pooled"]["pool.memory"]) == (3, 1000)
    fill = driver.events.index("fill 3")
    assert driver.events.count("fill 3") == 1, "two and a warm-up; and none for cold launches"
    rest = driver.events[fill:]
    assert rest[1].startswith("launch")
    ended = [event for event in rest[: rest.index("drain")] if event.startswith("remove")]
    assert len(ended) == 3, "not before its instances are gone"


def test_a_pool_whose_memory_nobody_measured_has_no_figure_for_it(tmp_path: Path) -> None:
    (trial,) = pooled(tmp_path, PooledDriver(), [], "['container:pooled']")
    assert {one.metric for one in trial.readings} == {"pool.size", "pool.fill"}


def test_a_pool_that_cannot_be_filled_fails_the_ramp(tmp_path: Path) -> None:
    driver = PooledDriver()
    driver.room = 2
    (trial,) = pooled(tmp_path, driver, [], "['container:pooled']")
    assert (trial.outcome, trial.limiter, trial.evidence, trial.alive) == (Outcome.FAILED, "pool", "no room", 0)
    assert driver.events == ["fill 3", "drain", "sync"]
