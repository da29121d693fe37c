"""The end of a trial that is no ramp: written down, made durable and told, whatever ended it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.endings import run_battery
from bench.errors import CommandError, Interrupted
from bench.plan import Trial
from bench.records import Outcome, Record, TrialRecord
from tests import fakes

TRIAL = Trial("r1-container:default", 1, "container", "default", "neighbours", 64, (), 0, 1)


class Told(fakes.Recorder):
    """Sink, progress and shield in one: what was called, in order."""

    def __init__(self, tmp_path: Path) -> None:
        driver = fakes.FakeDriver()
        super().__init__(driver)
        self.calls: list[str] = []
        self.job = replace(fakes.job(driver, self, fakes.scenario(tmp_path)), shield=self.shield)

    def trial(self, trial: Trial) -> None:
        self.calls.append("trial")

    def append(self, record: Record) -> None:
        super().append(record)
        self.calls.append("append")

    def sync(self) -> None:
        self.calls.append("sync")

    def ended(self, record: TrialRecord) -> None:
        self.calls.append("ended")

    @contextmanager
    def shield(self) -> Iterator[None]:
        self.calls.append("shield")
        yield
        self.calls.append("open")


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


@pytest.mark.parametrize(
    ("changed", "outcome", "limiter", "evidence"),
    [
        ((), Outcome.SUCCEEDED, "count", ""),
        (("a file", "a mount"), Outcome.FAILED, "host-changed", "a file\na mount"),
    ],
)
def test_work_that_was_done(
    told: Told, changed: tuple[str, ...], outcome: Outcome, limiter: str, evidence: str
) -> None:
    ended = run_battery(told.job, told, TRIAL, lambda: changed)
    assert told.records == [ended]
    assert (ended.outcome, ended.limiter, ended.evidence) == (outcome, limiter, evidence)
    assert (ended.alive, ended.asked, ended.battery) == (3, 3, True)
    assert told.calls == ["trial", "shield", "append", "sync", "ended", "open"]


def test_a_fault_of_ours_is_the_trials_and_the_run_goes_on(told: Told) -> None:
    def work() -> tuple[str, ...]:
        raise CommandError("no gcc")

    ended = run_battery(told.job, told, TRIAL, work)
    assert (ended.outcome, ended.limiter, ended.evidence, ended.alive) == (Outcome.FAILED, "launch", "no gcc", 0)


@pytest.mark.parametrize(
    ("error", "outcome", "limiter"),
    [
        (Interrupted(2), Outcome.INTERRUPTED, "interrupted"),
        (ZeroDivisionError("a fault in the program"), Outcome.FAILED, "error"),
    ],
)
def test_what_ends_the_run_is_written_down_first(
    told: Told, error: BaseException, outcome: Outcome, limiter: str
) -> None:
    def work() -> tuple[str, ...]:
        raise error

    with pytest.raises(type(error)):
        run_battery(told.job, told, TRIAL, work)
    [ended] = told.of(TrialRecord)
    assert (ended.outcome, ended.limiter, ended.alive) == (outcome, limiter, 0)
    assert told.calls == ["trial", "shield", "append", "sync", "ended", "open"]
