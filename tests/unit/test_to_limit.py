"""Ramps to the limit: every way they end has its word, and alive and useful are told apart."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.config.options import with_options
from bench.errors import AddressesError, LaunchError
from bench.levels import Service
from bench.limiters import LIMITERS, Stop
from bench.linux.http_load import Answer
from bench.model import HttpCheck, InstanceSpec, Limits, PhaseLog
from bench.plan import make_plan, ramp_steps, steps_to_limit
from bench.records import LaunchRecord, Outcome, StepRecord, TrialRecord
from bench.runner import Runner
from bench.service import Ask, judged, order_of, quantile
from tests import fakes

LEVEL = Service(p99=0.1, errors=0.01)


class Short:
    """A host that is short of something once so many instances were asked for."""

    def __init__(self, after: int = 1 << 30, limiter: str = "memory") -> None:
        self.after, self.limiter, self.asked = after, limiter, 0

    def stop(self, limits: Limits) -> Stop | None:
        self.asked += 1
        return Stop(self.limiter, "there is no more") if self.asked > self.after else None

    def said(self) -> str:
        return "MemAvailable 7 bytes"


class Driver(fakes.FakeDriver):
    """Its instances have addresses; one launch in it may fail with `fault`."""

    fault: Exception | None = None

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> Iterator[fakes.FakeInstance]:
        if self.fault is not None and spec.number == 6:
            raise self.fault
        with super().launch(spec, phases) as instance:
            instance.address = f"127.0.0.{spec.number}"
            yield instance


def slow_from(count: int, late: float | None = 0.9) -> Ask:
    """With so many instances, and more, answers take too long (None: fail)."""

    def ask(
        check: HttpCheck, addresses: Sequence[str], order: Sequence[int], rate: float, timeout: float
    ) -> list[Answer]:
        return [Answer(place, 0.001 if len(addresses) < count else late) for place in order]

    return ask


PROMPT = slow_from(99)
Ramp = Callable[..., tuple[TrialRecord, fakes.Recorder]]


@pytest.fixture
def ramp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ramp:
    """One ramp to the limit, at most to 8."""
    monkeypatch.setattr("bench.linux.endpoints.answers", lambda check, address: True)

    def go(
        driver: Driver,
        headroom: Short | None = None,
        ask: Ask = PROMPT,
        *,
        to_limit: bool = True,
        **changes: object,
    ) -> tuple[TrialRecord, fakes.Recorder]:
        recorder, done = fakes.Recorder(driver), list[TrialRecord]()
        chosen = with_options(fakes.scenario(tmp_path, **{"payload": "httpd", **changes}), to_limit=to_limit, count=8)
        job = replace(fakes.job(driver, recorder, chosen), headroom=headroom or Short(), ask=ask)
        Runner(job).run(recorder, done)
        return done[0], recorder

    return go


def steps(recorder: fakes.Recorder) -> list[int]:
    return [step.n for step in recorder.of(StepRecord)]


# --- how a ramp ends


def test_nothing_stops_it_but_its_bound(ramp: Ramp) -> None:
    trial, recorder = ramp(Driver())
    assert (trial.outcome, trial.alive, trial.useful, trial.limiter) == (Outcome.SUCCEEDED, 8, 8, "count")
    assert trial.to_limit
    assert "to_limit.count is 8" in trial.evidence
    assert "read then: MemAvailable 7 bytes" in trial.evidence
    assert steps(recorder) == [0, 1, 2, 4, 8]


@pytest.mark.parametrize("limiter", ["memory", "pressure", "disk", "pids", "descriptors", "ports"])
def test_the_reserve_ends_it_and_what_is_there_is_still_asked(ramp: Ramp, limiter: str) -> None:
    trial, recorder = ramp(Driver(), Short(after=6, limiter=limiter))
    assert (trial.outcome, trial.alive, trial.useful, trial.limiter) == (Outcome.SUCCEEDED, 6, 6, limiter)
    assert steps(recorder) == [0, 1, 2, 4, 6], "the last one is a step too"


def test_the_reserve_is_read_before_each_launch(ramp: Ramp) -> None:
    headroom = Short()
    ramp(Driver(), headroom)
    assert headroom.asked == 8


def test_time_ends_it(ramp: Ramp, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr("time.monotonic", lambda: 50.0 * len(driver.alive))
    trial, recorder = ramp(driver, to_limit__time="'149 s'")
    assert (trial.outcome, trial.alive, trial.limiter) == (Outcome.SUCCEEDED, 3, "max-time")
    assert "the 149 s of to_limit.time are over" in trial.evidence
    assert steps(recorder) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("fault", "limiter"),
    [
        (LaunchError("clone: no", errno=errno.EAGAIN), "pids"),
        (OSError(errno.EMFILE, "Too many open files"), "descriptors"),
        (AddressesError("every subnet is in use"), "ports"),
        (LaunchError("the program said no"), "launch"),
    ],
)
def test_a_failed_launch_ends_it_and_is_named(ramp: Ramp, fault: Exception, limiter: str) -> None:
    driver = Driver()
    driver.fault = fault
    trial, recorder = ramp(driver)
    assert (trial.outcome, trial.alive, trial.useful, trial.limiter) == (Outcome.SUCCEEDED, 4, 4, limiter)
    assert str(fault) in trial.evidence
    assert [one.outcome for one in recorder.of(LaunchRecord)].count(Outcome.FAILED) == 1
    assert not driver.alive


def test_the_first_launch_failing_is_a_fault_and_no_limit(ramp: Ramp) -> None:
    driver = Driver()
    driver.refused = {2}
    trial, _ = ramp(driver)
    assert (trial.outcome, trial.alive, trial.limiter) == (Outcome.FAILED, 0, "launch")


def test_without_to_limit_a_failed_launch_stays_a_fault_whatever_it_lacked(ramp: Ramp) -> None:
    driver = Driver()
    driver.fault = OSError(errno.EMFILE, "Too many open files")
    trial, _ = ramp(driver, to_limit=False)
    assert (trial.outcome, trial.alive, trial.limiter) == (Outcome.FAILED, 4, "descriptors")
    assert not driver.alive


def test_an_instance_that_was_never_ready_is_not_alive(ramp: Ramp) -> None:
    driver = Driver()
    driver.never_ready = {7}
    trial, recorder = ramp(driver)
    assert (trial.outcome, trial.alive, trial.limiter) == (Outcome.SUCCEEDED, 5, "timeout")
    assert steps(recorder) == [0, 1, 2, 4, 5]
    assert driver.events.count("remove 7") == 1


def test_one_that_dies_ends_it_and_counts_no_more(ramp: Ramp) -> None:
    driver = Driver()
    driver.dead = {5}
    trial, recorder = ramp(driver)
    assert (trial.outcome, trial.limiter) == (Outcome.SUCCEEDED, "died")
    assert (trial.alive, trial.useful) == (3, 2)
    assert "abc123-c5" in trial.evidence
    assert steps(recorder) == [0, 1, 2]


def test_the_next_ramp_waits_until_the_host_has_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    class Recovering(Short):
        def stop(self, limits: Limits) -> Stop | None:
            return Stop("memory", "not yet back") if 0 < len(slept) < 3 or (done and not slept) else None

    monkeypatch.setattr("time.sleep", slept.append)
    driver, done = Driver(), list[TrialRecord]()
    recorder = fakes.Recorder(driver)
    job = fakes.job(driver, recorder, fakes.scenario(tmp_path, rounds=2, count__default=1))
    Runner(replace(job, headroom=Recovering())).run(recorder, done)
    assert [trial.limiter for trial in done] == ["count", "count"]
    assert len(slept) == 3


# --- alive and useful


def test_useful_is_the_last_step_that_held_the_level(ramp: Ramp) -> None:
    trial, recorder = ramp(Driver(), ask=slow_from(4), service__p99="100 ms")
    assert (trial.outcome, trial.alive, trial.useful, trial.limiter) == (Outcome.SUCCEEDED, 4, 2, "service")
    assert "at N=4: p99 must be at most 0.1 s, and it is 0.9 s; missed 2 times in a row" in trial.evidence
    last = recorder.of(StepRecord)[-1]
    values = {one.metric: one.value for one in last.readings if not one.labels}
    assert (values["service.p99"], values["service.requests"]) == (0.9, 100)
    assert {one.metric for one in last.readings if one.labels == {"attempt": "1"}} >= {"service.p99", "service.errors"}


def test_one_miss_may_be_a_hiccup(ramp: Ramp) -> None:
    seen: list[int] = []

    def ask(
        check: HttpCheck, addresses: Sequence[str], order: Sequence[int], rate: float, timeout: float
    ) -> list[Answer]:
        seen.append(len(addresses))
        return [Answer(place, None if seen == [1, 2] else 0.001) for place in order]

    trial, _ = ramp(Driver(), ask=ask)
    assert (trial.useful, trial.limiter) == (8, "count")
    assert seen == [1, 2, 2, 4, 8]


def test_without_a_watch_nothing_is_said_of_usefulness(ramp: Ramp) -> None:
    for changes in ({"service__watch": "never"}, {"to_limit": False}):
        trial, recorder = ramp(Driver(), ask=slow_from(1), **changes)
        assert trial.useful is None
        assert not any(one.metric.startswith("service.") for step in recorder.of(StepRecord) for one in step.readings)
    trial, _ = ramp(Driver(), ask=slow_from(1), service__watch="always", to_limit=False, count__default=4)
    assert (trial.useful, trial.limiter, trial.outcome) == (0, "service", Outcome.SUCCEEDED)


def test_a_payload_nobody_can_ask_is_useful_while_it_is_alive(ramp: Ramp) -> None:
    trial, recorder = ramp(Driver(), ask=slow_from(1), payload="idle")
    assert (trial.useful, trial.limiter) == (8, "count")
    assert not any(one.metric.startswith("service.") for step in recorder.of(StepRecord) for one in step.readings)


def test_the_load_is_the_same_from_twenty_on_and_nobody_is_left_out() -> None:
    assert LEVEL.load(1) == (5.0, 25)
    assert LEVEL.load(8) == (40.0, 200)
    assert LEVEL.load(20) == LEVEL.load(499) == (100.0, 500)
    assert LEVEL.load(4096) == (100.0, 4096)


def test_everyone_is_asked_and_the_seed_decides_in_which_order() -> None:
    assert sorted(order_of(300, 200, "a")) == list(range(300))
    order = order_of(50, 200, "a")
    assert sorted(order[:50]) == list(range(50))
    assert len(order) == 200
    assert order == order_of(50, 200, "a") != order_of(50, 200, "b")


def test_what_fails_is_slower_than_any_answer() -> None:
    good = [Answer(0, seconds / 1000) for seconds in range(1, 100)]
    assert quantile([*good, Answer(0, None)], 0.99) == 0.099
    assert quantile([*good[1:], Answer(0, None), Answer(0, None)], 0.99) is None
    assert quantile([], 0.5) is None


@pytest.mark.parametrize(
    ("found", "missed"),
    [
        ([Answer(place % 2, 0.01) for place in range(200)], ""),
        ([Answer(place % 2, 0.11 if place < 2 else 0.01) for place in range(200)], ""),
        ([Answer(place % 2, 0.11 if place < 3 else 0.01) for place in range(200)], "it is 0.11 s"),
        ([Answer(place % 2, None if place < 2 else 0.01) for place in range(200)], ""),
        ([Answer(place % 2, None if place < 3 else 0.01) for place in range(200)], "3 of 200 requests failed"),
        ([Answer(0, 0.01)] * 199 + [Answer(1, None)], "1 of 2 instances answered nothing, b first"),
    ],
)
def test_each_part_of_the_level_can_be_missed(found: list[Answer], missed: str) -> None:
    readings, lost = judged(found, ["a", "b"], LEVEL)
    assert missed in lost
    assert bool(missed) == bool(lost)
    assert {one.metric: one.value for one in readings}["service.requests"] == 200


# --- where samples are taken


def test_steps_double_then_grow_by_a_quarter() -> None:
    assert steps_to_limit(1) == (0, 1)
    assert steps_to_limit(100) == (0, 1, 2, 4, 8, 16, 32, 64, 80, 100)
    assert ramp_steps(100, (5, 50, 500)) == (0, 5, 50, 100)


def test_given_steps_are_kept_to_the_limit_too(tmp_path: Path) -> None:
    chosen = with_options(fakes.scenario(tmp_path, steps="[3, 30]"), to_limit=True, count=40)
    (trial,) = make_plan(chosen, 1).trials
    assert (trial.steps, trial.count, trial.to_limit) == ((0, 3, 30, 40), 40, True)


def test_every_limiter_is_a_word_of_the_list(ramp: Ramp) -> None:
    trial, _ = ramp(Driver(), Short(after=0))
    assert (trial.alive, trial.useful, trial.limiter) == (0, 0, "memory")
    assert trial.limiter in LIMITERS
