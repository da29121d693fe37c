"""The order of phases is the spec: what is launched, sampled, recorded and removed, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import Interrupted
from bench.model import LaunchRecord, Outcome, StepRecord, TeardownRecord, TrialRecord
from bench.runner import Runner
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
