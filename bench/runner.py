"""Plan -> records: prepare, warm up, ramp, sample, tear down. Knows drivers and samplers by their Protocols only.

One ramp, on one line of time (w: warm-up launches, ended at once; |: a sample after `settle` seconds):

    w w  |0  launch 1 |1  launch 2 |2  launch launch |4 ... |N   teardown in the reverse order

Launches follow one another; each is stamped from the moment the driver is asked (see model.Phase). Samples, records
and fsync fall outside those windows.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from bench.config import Scenario, settings_for
from bench.drivers.base import Driver, Instance, Pooling
from bench.errors import BenchError, Interrupted, LaunchError
from bench.linux import endpoints
from bench.model import (
    Footprint,
    Image,
    InstanceSpec,
    LaunchRecord,
    Outcome,
    Payload,
    Phase,
    PhaseLog,
    Reading,
    Record,
    RunId,
    StepRecord,
    TeardownRecord,
    TrialRecord,
)
from bench.plan import Plan, Trial
from bench.samplers.base import Sampler

log = logging.getLogger(__name__)


class _LabelFields(TypedDict):
    """The fields of model.Labels."""

    trial: str
    driver: str
    profile: str
    payload: str
    round: int
    date: float


class Sink(Protocol):
    """Where records go."""

    def append(self, record: Record) -> None: ...
    def sync(self) -> None: ...


class Progress(Protocol):
    """Who is told what happens."""

    def trial(self, trial: Trial) -> None: ...
    def doing(self, text: str) -> None: ...
    def launched(self, trial: Trial, record: LaunchRecord) -> None: ...
    def ended(self, record: TrialRecord) -> None: ...


@dataclass(frozen=True)
class Job:
    """All a run needs; built by the session."""

    run: RunId
    scenario: Scenario
    plan: Plan
    image: Image
    payload: Payload
    drivers: Mapping[str, Driver]
    samplers: Sequence[Sampler]
    progress: Progress
    logs: str
    reserve: int  # bytes of MemAvailable that must remain
    available: Callable[[], int]  # MemAvailable now
    cpu_seconds: Callable[[Footprint], float | None]
    accelerators: Callable[[str], str | None]  # driver name -> accelerator of its guests
    shield: Callable[[], AbstractContextManager[None]]
    deadline: float | None = None  # time.monotonic() after which no launch begins


@dataclass
class _Live:
    """An instance that must be ended."""

    spec: InstanceSpec
    instance: Instance
    context: AbstractContextManager[Instance]
    phases: PhaseLog
    warmup: bool


@dataclass
class _Ramp:
    """State of the trial under way."""

    trial: Trial
    launched: int = 0
    live: list[_Live] = field(default_factory=list)
    launching_ns: int = 0
    alive: int = 0
    limiter: str = ""
    evidence: str = ""
    outcome: Outcome = Outcome.SUCCEEDED
    readings: tuple[Reading, ...] = ()


class Runner:
    """Runs the trials of a job one after the other."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def prepare(self) -> None:
        """All that is not timed, once for every driver and profile."""
        for trial in _first_of_each(self._job.plan.trials):
            self._job.progress.doing(f"prepare {trial.driver}:{trial.profile}")
            self._job.drivers[trial.driver].prepare(self._spec(trial, number=0))

    def run(self, sink: Sink, done: list[TrialRecord]) -> None:
        """All trials, in the plan's order, each appended to `done`. Records are kept whatever happens; Interrupted
        goes through."""
        self._sink = sink
        for trial in self._job.plan.trials:
            done.append(self._trial(trial))

    def _trial(self, trial: Trial) -> TrialRecord:
        ramp = _Ramp(trial)
        self._job.progress.trial(trial)
        try:
            self._climb(ramp)
        except Interrupted:
            ramp.outcome, ramp.limiter = Outcome.INTERRUPTED, "interrupted"
            raise
        finally:
            with self._job.shield():
                self._tear_down(ramp)
                self._drain(ramp)
                record = self._conclude(ramp)
        return record

    def _climb(self, ramp: _Ramp) -> None:
        trial = ramp.trial
        try:
            if not self._fill(ramp):
                return
            for _ in range(trial.warmups):
                self._launch(ramp, warmup=True)
                self._end(ramp, ramp.live.pop())
            for number in range(trial.count + 1):
                if number and not self._may_launch(ramp):
                    return
                if number:
                    self._launch(ramp, warmup=False)
                if number in trial.steps and not self._sample(ramp):
                    return
            ramp.limiter = "count"
        except LaunchError as error:
            ramp.outcome, ramp.limiter, ramp.evidence = Outcome.FAILED, "launch", error.message

    def _may_launch(self, ramp: _Ramp) -> bool:
        """The host must survive: it could give the instance all it is declared and keep its reserve."""
        job = self._job
        if job.deadline is not None and time.monotonic() > job.deadline:
            ramp.limiter, ramp.evidence = "max-time", "the time allowed by max_time is over"
            return False
        available, needed = job.available(), job.scenario.limits.memory + job.reserve
        if available < needed:
            ramp.limiter = "memory"
            ramp.evidence = (
                f"MemAvailable is {available} bytes; one more may take {job.scenario.limits.memory}, "
                f"and the reserve is {job.reserve}"
            )
            return False
        return True

    # --- what is made beforehand -------------------------------------------------------------------------------

    def _fill(self, ramp: _Ramp) -> bool:
        """Where instances take from a pool: fill it, untimed, and note what that cost; False if the host has not the
        memory for it."""
        spec, driver = self._spec(ramp.trial, number=0), self._job.drivers[ramp.trial.driver]
        if not isinstance(driver, Pooling) or not driver.pools(spec):
            return True
        count = ramp.trial.warmups + ramp.trial.count
        self._job.progress.doing(f"fill the pool of {ramp.trial.driver}:{ramp.trial.profile}")
        before, seconds = self._free(), 0.0
        for size in (*range(_FILLED_AT_ONCE, count, _FILLED_AT_ONCE), count):
            if not self._may_launch(ramp):
                return False
            began = time.monotonic()
            try:
                driver.fill(spec, size)
            except BenchError as error:
                ramp.outcome, ramp.limiter, ramp.evidence = Outcome.FAILED, "pool", error.message
                return False
            seconds += time.monotonic() - began
        after = self._free()
        ramp.readings = (Reading("pool.size", count, "instances"), Reading("pool.fill", seconds / count, "s"))
        if before is not None and after is not None:
            ramp.readings += (Reading("pool.memory", (before - after) / count, "bytes"),)
        return True

    def _free(self) -> float | None:
        """Free memory of the host and what the harness has of it: a pool is the rest's loss. Bytes."""
        found = {one.metric: one.value for sampler in self._job.samplers for one in sampler.read(())}
        return sum(found[metric] for metric in _FREE) if set(_FREE) <= set(found) else None

    def _drain(self, ramp: _Ramp) -> None:
        driver = self._job.drivers[ramp.trial.driver]
        if isinstance(driver, Pooling):
            driver.drain()

    # --- one instance ------------------------------------------------------------------------------------------

    def _spec(self, trial: Trial, number: int) -> InstanceSpec:
        job = self._job
        return InstanceSpec(
            run=job.run,
            driver=trial.driver,
            profile=trial.profile,
            number=number,
            image=job.image,
            payload=job.payload,
            limits=job.scenario.limits,
            settings=settings_for(job.scenario, trial.driver, trial.profile),
            logs=job.logs,
            ramp=trial.count,
        )

    def _launch(self, ramp: _Ramp, *, warmup: bool) -> None:
        spec = self._spec(ramp.trial, ramp.trial.first + ramp.launched)
        ramp.launched += 1
        alive = len(ramp.live)
        self._job.progress.doing(f"{'warm up' if warmup else 'launch'} {spec.driver} {spec.id}")
        phases = PhaseLog()
        error: BenchError | None = None
        try:
            with _no_collection():
                self._bring_up(ramp, spec, phases, warmup)
        except LaunchError as failed:
            error = failed
        if not warmup and error is None:
            ramp.launching_ns += max(phases.freeze().values())
            ramp.alive = max(ramp.alive, len(ramp.live))
        record = LaunchRecord(
            **self._labels(ramp.trial),
            instance=spec.id,
            alive=alive,
            warmup=warmup,
            phases=phases.freeze(),
            outcome=Outcome.FAILED if error else Outcome.SUCCEEDED,
            error=error.message if error else None,
            readings=() if error else self._cpu(ramp.live[-1]),
        )
        self._sink.append(record)
        self._job.progress.launched(ramp.trial, record)
        if error:
            raise error

    def _bring_up(self, ramp: _Ramp, spec: InstanceSpec, phases: PhaseLog, warmup: bool) -> None:
        """The timed window: from the request to the last phase asked for."""
        timeout = self._job.scenario.timeout
        context = self._job.drivers[spec.driver].launch(spec, phases)
        phases.begin()
        instance = context.__enter__()
        ramp.live.append(_Live(spec, instance, context, phases, warmup))
        instance.wait_ready(timeout)
        if (check := spec.payload.reply) is not None and (address := instance.address) is not None:
            deadline = time.monotonic() + timeout
            at = endpoints.wait_until(lambda: endpoints.answers(check, address), deadline, instance.alive)
            if at is None:
                raise LaunchError(
                    f"{spec.id} was ready but http://{address}:{check.port}{check.path} never answered {check.status}"
                )
            phases.stamp(Phase.REPLY, at)

    def _cpu(self, live: _Live) -> tuple[Reading, ...]:
        seconds = self._job.cpu_seconds(live.instance.footprint())
        return () if seconds is None else (Reading("launch.cpu", seconds, "s"),)

    def _tear_down(self, ramp: _Ramp) -> None:
        while ramp.live:
            self._job.progress.doing(f"end {ramp.trial.driver} {ramp.live[-1].spec.id}, {len(ramp.live)} left")
            self._end(ramp, ramp.live.pop())

    def _end(self, ramp: _Ramp, live: _Live) -> None:
        """Stop and remove, stamped. What can't be removed is said here and found again by `reap`."""
        error: str | None = None
        live.phases.stamp(Phase.STOP)
        try:
            with contextlib.ExitStack() as stack:
                stack.push(live.context)
                live.instance.stop(self._job.scenario.stop_timeout)
                live.phases.stamp(Phase.STOPPED)
            live.phases.stamp(Phase.REMOVED)
        except (BenchError, OSError) as failed:
            error = str(failed)
            log.warning("%s could not be ended in good order: %s", live.spec.id, failed)
        stamps = {name: at for name, at in live.phases.freeze().items() if name in _TEARDOWN}
        self._sink.append(
            TeardownRecord(
                **self._labels(ramp.trial), instance=live.spec.id, warmup=live.warmup, phases=stamps, error=error
            )
        )

    # --- readings ----------------------------------------------------------------------------------------------

    def _sample(self, ramp: _Ramp) -> bool:
        """One step's record; False, with the limiter named, if an instance died meanwhile."""
        self._job.progress.doing(f"sample {ramp.trial.driver} at N={len(ramp.live)}")
        if self._job.scenario.settle:  # even a sleep of nothing gives the CPU away
            time.sleep(self._job.scenario.settle)
        dead = [live.spec.id for live in ramp.live if not live.instance.alive()]
        if dead:
            ramp.outcome, ramp.limiter = Outcome.FAILED, "died"
            ramp.evidence = f"no longer alive at N={len(ramp.live)}: {', '.join(dead)}"
            return False
        footprints = [live.instance.footprint() for live in ramp.live]
        readings = [reading for sampler in self._job.samplers for reading in sampler.read(footprints)]
        self._sink.append(StepRecord(**self._labels(ramp.trial), n=len(ramp.live), readings=tuple(readings)))
        self._sink.sync()
        return True

    def _conclude(self, ramp: _Ramp) -> TrialRecord:
        record = TrialRecord(
            **self._labels(ramp.trial),
            outcome=ramp.outcome if ramp.limiter else Outcome.FAILED,
            alive=ramp.alive,
            asked=ramp.trial.count,
            limiter=ramp.limiter or "error",
            evidence=ramp.evidence,
            launching_ns=ramp.launching_ns,
            accelerator=self._job.accelerators(ramp.trial.driver),
            readings=ramp.readings,
        )
        self._sink.append(record)
        self._sink.sync()
        self._job.progress.ended(record)
        return record

    def _labels(self, trial: Trial) -> _LabelFields:
        return {
            "trial": trial.id,
            "driver": trial.driver,
            "profile": trial.profile,
            "payload": self._job.payload.name,
            "round": trial.round,
            "date": time.time(),
        }


_FREE = ("host.memory.available", "host.memory.pcp", "harness.memory.pss")
_FILLED_AT_ONCE = 100  # instances' worth, before the host's memory is looked at again
_TEARDOWN = frozenset({Phase.STOP.value, Phase.STOPPED.value, Phase.REMOVED.value})


def _first_of_each(trials: Sequence[Trial]) -> list[Trial]:
    """One trial of every driver and profile, in order of first appearance."""
    return list({(trial.driver, trial.profile): trial for trial in reversed(trials)}.values())[::-1]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """The collector's pauses would be measured as start-up time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
