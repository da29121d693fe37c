"""Launches in flight at once: as many as asked for and never more, within the reserve, and nothing left of any."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.config.loader import parse_scenario
from bench.errors import ConfigError, Interrupted, LaunchError
from bench.flight import Flown, fly, spent_ns
from bench.job import Job
from bench.limiters import Stop
from bench.model import InstanceSpec, Limits, PhaseLog
from bench.plan import make_plan
from bench.records import LaunchRecord, Outcome, StepRecord, TrialRecord
from bench.runner import Runner
from tests import fakes

LONG = 20.0  # s: nothing waits for it unless something is broken


class Gate:
    """Opens when `parties` are at it at once; counts how many ever were."""

    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties)
        self._lock = threading.Lock()
        self._inside = self.most = 0

    def __call__(self) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        self._barrier.wait(LONG)
        with self._lock:
            self._inside -= 1


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[fakes.FakeInstance], None]], None]:
    """Have `wait_ready` do something first."""
    plain = fakes.FakeInstance.wait_ready

    def install(first: Callable[[fakes.FakeInstance], None]) -> None:
        def wait_ready(self: fakes.FakeInstance, timeout: float) -> None:
            first(self)
            plain(self, timeout)

        monkeypatch.setattr(fakes.FakeInstance, "wait_ready", wait_ready)

    return install


Install = Callable[[Callable[[fakes.FakeInstance], None]], None]


class Trip:
    """One trial of the fake driver."""

    def __init__(self, tmp_path: Path, at_once: int, count: int, **changes: object) -> None:
        self.driver = fakes.FakeDriver()
        self.recorder = fakes.Recorder(self.driver)
        scenario = fakes.scenario(
            tmp_path, launch__concurrency=at_once, count__default=count, warmups=0, **changes
        )  # fmt: skip
        self.job: Job = fakes.job(self.driver, self.recorder, scenario)

    def run(self) -> TrialRecord:
        done: list[TrialRecord] = []
        Runner(self.job).run(self.recorder, done)
        return done[0]


# --- as many as asked for --------------------------------------------------------------------------------------------


def test_so_many_are_in_flight_and_no_more(tmp_path: Path, ready: Install) -> None:
    """Each waits until four wait: with fewer in flight none would ever be ready."""
    trip, gate = Trip(tmp_path, at_once=4, count=16), Gate(4)
    ready(lambda instance: gate())
    trial = trip.run()
    assert (trial.outcome, trial.alive, trial.limiter) == (Outcome.SUCCEEDED, 16, "count")
    assert gate.most == 4
    launches = trip.recorder.of(LaunchRecord)
    assert [one.instance for one in launches] == [f"abc123-c{number}" for number in range(1, 17)]
    assert [one.n for one in trip.recorder.of(StepRecord)] == [0, 4, 8, 16]
    assert all(one.alive <= place for place, one in enumerate(launches))
    assert {reading.value for one in launches for reading in one.readings} == {0.25}, "launch.cpu of each"
    assert not trip.driver.alive


def test_one_at_a_time_never_comes_this_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.waves.fly", None)
    assert Trip(tmp_path, at_once=1, count=4).run().alive == 4


def test_nothing_is_recorded_or_sampled_while_one_is_in_flight(tmp_path: Path, ready: Install) -> None:
    trip, gate = Trip(tmp_path, at_once=4, count=8), Gate(4)
    seen: list[int] = []

    def first(instance: fakes.FakeInstance) -> None:
        gate()
        seen.append(len(trip.recorder.records))

    ready(first)
    trip.run()
    assert seen == [1] * 4 + [6] * 4, "a step; then four launches and a step more"


# --- what stops them -------------------------------------------------------------------------------------------------


def test_the_reserve_counts_those_in_flight(tmp_path: Path, ready: Install) -> None:
    """There is room for two; both wait until a third was refused."""
    trip, refused = Trip(tmp_path, at_once=4, count=8), threading.Event()

    class Room:
        def stop(self, limits: Limits) -> Stop | None:
            if limits.memory < 3 * (256 << 20):
                return None
            refused.set()
            return Stop("memory", "no room for three")

        def said(self) -> str:
            return ""

    trip.job = replace(trip.job, headroom=Room())
    ready(lambda instance: None if refused.wait(LONG) else pytest.fail("a third was launched"))
    trial = trip.run()
    assert (trial.alive, trial.limiter, trial.outcome) == (2, "memory", Outcome.SUCCEEDED)


def test_one_that_fails_ends_the_ramp_and_the_others_count(tmp_path: Path, ready: Install) -> None:
    trip = Trip(tmp_path, at_once=4, count=8)
    trip.driver.refused = {4}

    def first(instance: fakes.FakeInstance) -> None:
        while "launch 4" not in trip.driver.events:  # all are in flight
            time.sleep(0.001)

    ready(first)
    trial = trip.run()
    assert (trial.outcome, trial.alive, trial.limiter) == (Outcome.FAILED, 3, "launch")
    assert "abc123-c4 refused" in trial.evidence
    records = {one.instance: one for one in trip.recorder.of(LaunchRecord)}
    assert len(records) == 4, "none was asked for after it"
    assert (records["abc123-c4"].outcome, records["abc123-c4"].readings) == (Outcome.FAILED, ())
    assert not trip.driver.alive


def test_one_that_is_never_ready_is_removed_once(tmp_path: Path) -> None:
    trip = Trip(tmp_path, at_once=4, count=4)
    trip.driver.never_ready = {3}
    trial = trip.run()
    assert (trial.outcome, trial.limiter) == (Outcome.FAILED, "timeout")
    assert trial.alive <= 3
    assert trip.driver.events.count("remove 3") == 1
    assert not trip.driver.alive


def test_an_interruption_waits_for_nobody_and_leaves_nothing(
    tmp_path: Path, ready: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instances that would never be ready: they are killed, which ends their launches."""
    trip, killed = Trip(tmp_path, at_once=4, count=8), threading.Event()
    up = threading.Semaphore(0)

    def first(instance: fakes.FakeInstance) -> None:
        up.release()
        assert killed.wait(LONG)
        raise LaunchError(f"{instance.id} was killed")

    def kill(self: fakes.FakeInstance) -> None:
        self.running = False
        killed.set()

    def doing(text: str) -> None:
        if text.endswith("3 in flight"):
            for _ in range(2):
                assert up.acquire(timeout=LONG)
            raise Interrupted(2)

    ready(first)
    monkeypatch.setattr(fakes.FakeInstance, "kill", kill)
    monkeypatch.setattr(trip.recorder, "doing", doing)
    with pytest.raises(Interrupted):
        trip.run()
    trial = trip.recorder.records[-1]
    assert isinstance(trial, TrialRecord)
    assert (trial.outcome, trial.limiter) == (Outcome.INTERRUPTED, "interrupted")
    assert not trip.driver.alive
    assert not [one for one in threading.enumerate() if one.name.startswith("launch")]


# --- the threads themselves ------------------------------------------------------------------------------------------


def test_a_fault_of_ours_comes_through_when_all_have_ended() -> None:
    ended, begun = list[int](), threading.Event()

    def fault() -> None:
        begun.wait(LONG)
        raise KeyError("a fault")

    def other() -> None:
        begun.set()
        ended.append(1)

    work = iter([fault, other])
    with pytest.raises(KeyError):
        fly(lambda in_flight: next(work, None), 2, lambda: None)
    assert ended == [1]


def _flown(zero: int, ready_ns: int, error: LaunchError | None = None) -> Flown:
    log = PhaseLog(lambda: zero)
    log._stamps["ready"] = ready_ns
    spec: InstanceSpec = None  # type: ignore[assignment]
    return Flown(spec, 0, log, error)


def test_time_spent_is_from_the_first_request_to_the_last_that_came_up() -> None:
    flown = [_flown(100, 50), _flown(110, 80), _flown(120, 10), _flown(90, 900, LaunchError("no"))]
    assert spent_ns(flown) == 90
    assert spent_ns(flown[3:]) == 0


# --- scenario and plan -----------------------------------------------------------------------------------------------

LEAST = 'schema = 1\nname = "s"\ndrivers = ["container"]\nrounds = 1\ncount.default = 64\n'


def test_it_is_a_condition_where_it_is_more_than_one() -> None:
    (trial,) = make_plan(parse_scenario(LEAST, "s", overrides=["launch.concurrency=8"]), 1).trials
    assert trial.id == "r1-container:default [launch.concurrency=8]"
    assert trial.steps == (0, 8, 16, 32, 64)
    plan = make_plan(parse_scenario(LEAST, "s", overrides=["launch.concurrency=1,8"]), 1)
    assert sorted(plan.order) == [f"r1-container:default [launch.concurrency={number}]" for number in (1, 8)]
    (plain,) = make_plan(parse_scenario(LEAST, "s"), 1).trials
    assert (plain.id, plain.steps) == ("r1-container:default", (0, 1, 2, 4, 8, 16, 32, 64))


def test_steps_that_were_given_stand(tmp_path: Path) -> None:
    given = parse_scenario(LEAST, "s", overrides=["launch.concurrency=8", "steps=[2,40]"])
    assert make_plan(given, 1).trials[0].steps == (0, 2, 40, 64)
    few = parse_scenario(LEAST, "s", overrides=["launch.concurrency=32", "count.default=4"])
    assert make_plan(few, 1).trials[0].steps == (0, 4)


@pytest.mark.parametrize("value", ["0", "1025", "1.5"])
def test_how_many_may_be(value: str) -> None:
    with pytest.raises(ConfigError, match=r"launch\.concurrency"):
        parse_scenario(LEAST, "s", overrides=[f"launch.concurrency={value}"])


def test_cold_launches_are_one_after_the_other() -> None:
    wanted = parse_scenario(LEAST, "s", overrides=["launch.concurrency=8", "cache=cold", "count.default=1"])
    with pytest.raises(ConfigError, match="one after the other"):
        make_plan(wanted, 1)
