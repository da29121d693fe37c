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
from collections.abc import Iterator, Sequence
from typing import TypedDict

import msgspec

from bench import cold
from bench.config.scenario import Scenario, payload_for, settings_for
from bench.drivers.base import Instance, Pooling, Sourced
from bench.endings import conclude
from bench.errors import BenchError, Interrupted, LaunchError, ReadyTimeoutError
from bench.flight import Flown
from bench.job import Job, Sink
from bench.limiters import Stop, as_launch_error, limiter_of
from bench.linux import endpoints
from bench.model import (
    Condition,
    InstanceSpec,
    Payload,
    Phase,
    PhaseLog,
    Reading,
    condition_text,
    target_name,
)
from bench.plan import Trial
from bench.ramp import Live, Ramp
from bench.records import LaunchRecord, Outcome, StepRecord, TeardownRecord, TrialRecord
from bench.service import Verdict, Watch
from bench.sweep import COLD
from bench.variants import Variants
from bench.waves import Crew, wave

log = logging.getLogger(__name__)


class _LabelFields(TypedDict):
    """The fields of records.Labels."""

    trial: str
    driver: str
    profile: str
    payload: str
    round: int
    date: float
    condition: Condition


class Runner:
    """Runs the trials of a job one after the other."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._variants = Variants(job.scenario)

    def prepare(self) -> None:
        """All that is not timed, once for every driver and profile in each of its conditions."""
        for trial in _first_of_each(self._job.plan.trials):
            condition = condition_text(trial.condition)
            self._job.progress.doing(f"prepare {target_name(trial.driver, trial.profile, condition)}")
            self._job.drivers[trial.driver].prepare(self._spec(trial, number=0))

    def run(self, sink: Sink, done: list[TrialRecord]) -> None:
        """All trials, in the plan's order, until the job has enough at the end of a round; each appended to `done`.
        Records are kept whatever happens; Interrupted goes through."""
        self._sink = sink
        for place, trial in enumerate(self._job.plan.trials):
            if place and trial.round > (before := self._job.plan.trials[place - 1].round) and self._job.enough(before):
                return
            if place:
                self._await_room()
            done.append(self._trial(trial))

    def _await_room(self) -> None:
        """What the last ramp took comes back some seconds after its end; without it the next one would stop at once."""
        deadline = time.monotonic() + _BACK
        while self._job.headroom.stop(self._job.scenario.limits) and time.monotonic() < deadline:
            self._job.progress.doing("wait for the host to recover")
            time.sleep(0.5)

    def _trial(self, trial: Trial) -> TrialRecord:
        ramp = Ramp(trial, time.monotonic())
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

    def _climb(self, ramp: Ramp) -> None:
        if self._job.ksm:
            self._job.ksm.switch(self._scenario(ramp.trial).ksm)
        try:
            stop = self._fill(ramp) or self._rise(ramp)
        except LaunchError as error:
            stop = Stop(limiter_of(error), error.message, fault=True)
        ramp.end(stop, self._job.headroom.said())
        if ramp.trial.to_limit and len(ramp.live) > ramp.sampled and (also := self._sample(ramp)):
            ramp.evidence += f"\nthen, at N={len(ramp.live)}: {also.limiter}: {also.evidence}"

    def _rise(self, ramp: Ramp) -> Stop:
        """From the warm-ups to what stops the ramp. Raises LaunchError."""
        trial = ramp.trial
        if self._watch(trial).on(trial.to_limit):
            ramp.useful = 0
        for _ in range(trial.warmups):
            self._launch(ramp, warmup=True)
            self._end(ramp, ramp.live.pop())
        if (at_once := self._scenario(trial).launch.concurrency) > 1:
            return self._rise_in_waves(ramp, at_once)
        for number in range(trial.count + 1):
            if number and (stop := self._stop(ramp)):
                return stop
            if number:
                self._launch(ramp, warmup=False)
            if number in trial.steps and (stop := self._sample(ramp)):
                return stop
        return ramp.complete()

    def _rise_in_waves(self, ramp: Ramp, at_once: int) -> Stop:
        """The same with several launches in flight: from one sample to the next is a wave. Raises LaunchError."""
        for number in ramp.trial.steps:
            with _no_collection():
                stop = wave(self._crew(), ramp, number, at_once)
            if stop := stop or self._sample(ramp):
                return stop
        return ramp.complete()

    def _crew(self) -> Crew:
        def bring_up(ramp: Ramp, spec: InstanceSpec, phases: PhaseLog) -> tuple[Reading, ...]:
            return self._cpu(self._bring_up(ramp, spec, phases, warmup=False))

        def record(ramp: Ramp, one: Flown) -> None:
            self._record(ramp, one.spec, one.alive, False, one.phases, one.error, one.readings)

        return Crew(self._stop, self._next_spec, bring_up, record, self._end, self._job.progress.doing)

    def _stop(self, ramp: Ramp, at_once: int = 1) -> Stop | None:
        """Before each launch: the host must survive, and a ramp must end. `at_once`: in flight, this one included."""
        job, now, seconds = self._job, time.monotonic(), ramp.trial.seconds
        if job.deadline is not None and now > job.deadline:
            return Stop("max-time", "the time allowed by max_time is over")
        if seconds is not None and now > ramp.began + seconds:
            return Stop("max-time", f"the {seconds:g} s of to_limit.time are over")
        limits = self._scenario(ramp.trial).limits
        if at_once > 1:  # those in flight have not yet taken what they may
            limits = msgspec.structs.replace(limits, memory=limits.memory * at_once, pids=limits.pids * at_once)
        return job.headroom.stop(limits)

    # --- what is made beforehand -------------------------------------------------------------------------------

    def _fill(self, ramp: Ramp) -> Stop | None:
        """Where instances take from a pool: fill it, untimed, and note what that cost; why it could not be filled."""
        spec, driver = self._spec(ramp.trial, number=0), self._job.drivers[ramp.trial.driver]
        if not isinstance(driver, Pooling) or not driver.pools(spec):
            return None
        count = ramp.trial.warmups + ramp.trial.count
        self._job.progress.doing(f"fill the pool of {ramp.trial.driver}:{ramp.trial.profile}")
        before, seconds = self._free(), 0.0
        for size in (*range(_FILLED_AT_ONCE, count, _FILLED_AT_ONCE), count):
            if stop := self._stop(ramp):
                return stop
            began = time.monotonic()
            try:
                driver.fill(spec, size)
            except BenchError as error:
                return Stop("pool", error.message, fault=True)
            seconds += time.monotonic() - began
        after = self._free()
        ramp.readings = (Reading("pool.size", count, "instances"), Reading("pool.fill", seconds / count, "s"))
        if before is not None and after is not None:
            ramp.readings += (Reading("pool.memory", (before - after) / count, "bytes"),)
        return None

    def _free(self) -> float | None:
        """Free memory of the host and what the harness has of it: a pool is the rest's loss. Bytes."""
        found = {one.metric: one.value for sampler in self._job.samplers for one in sampler.read(())}
        return sum(found[metric] for metric in _FREE) if set(_FREE) <= set(found) else None

    def _drain(self, ramp: Ramp) -> None:
        driver = self._job.drivers[ramp.trial.driver]
        if isinstance(driver, Pooling):
            driver.drain()

    # --- one instance ------------------------------------------------------------------------------------------

    def _spec(self, trial: Trial, number: int) -> InstanceSpec:
        job, scenario = self._job, self._scenario(trial)
        return InstanceSpec(
            run=job.run,
            driver=trial.driver,
            profile=trial.profile,
            number=number,
            image=job.image,
            payload=self._payload(trial),
            limits=scenario.limits,
            settings=settings_for(scenario, trial.driver, trial.profile),
            logs=job.logs,
            ramp=min(trial.count, _FORESEEN) if trial.to_limit else trial.count,
            condition=trial.condition,
        )

    def _next_spec(self, ramp: Ramp) -> InstanceSpec:
        ramp.launched += 1
        return self._spec(ramp.trial, ramp.trial.first + ramp.launched - 1)

    def _launch(self, ramp: Ramp, *, warmup: bool) -> None:
        spec, alive = self._next_spec(ramp), len(ramp.live)
        self._job.progress.doing(f"{'warm up' if warmup else 'launch'} {spec.driver} {spec.id}")
        phases = PhaseLog()
        error: LaunchError | None = None
        chilled: tuple[Reading, ...] = ()
        try:
            chilled = self._chill(spec, ramp.trial)
            with _no_collection():
                self._bring_up(ramp, spec, phases, warmup)
        except (BenchError, OSError) as failed:
            error = as_launch_error(spec.id, failed)
        if not warmup and error is None:
            ramp.launching_ns += max(phases.freeze().values())
            ramp.alive = max(ramp.alive, len(ramp.live))
        readings = chilled if error else (*self._cpu(ramp.live[-1]), *chilled)
        self._record(ramp, spec, alive, warmup, phases, error, readings)
        if error:
            if ramp.live and ramp.live[-1].spec is spec:  # what came up and was not ready is not alive
                self._end(ramp, ramp.live.pop())
            raise error

    def _record(
        self,
        ramp: Ramp,
        spec: InstanceSpec,
        alive: int,
        warmup: bool,
        phases: PhaseLog,
        error: LaunchError | None,
        readings: tuple[Reading, ...],
    ) -> None:
        record = LaunchRecord(
            **self._labels(ramp.trial),
            instance=spec.id,
            alive=alive,
            warmup=warmup,
            phases=phases.freeze(),
            outcome=Outcome.FAILED if error else Outcome.SUCCEEDED,
            error=error.message if error else None,
            readings=readings,
        )
        self._sink.append(record)
        self._job.progress.launched(ramp.trial, record)

    def _chill(self, spec: InstanceSpec, trial: Trial) -> tuple[Reading, ...]:
        """Untimed: where launches are to be cold, what this one reads is taken out of the page cache."""
        driver = self._job.drivers[spec.driver]
        if trial.condition.get("cache") != COLD:
            return ()
        if not isinstance(driver, Sourced):
            raise LaunchError(f"the {driver.name} driver does not say what its launches read: they can't be cold")
        return cold.chill(driver.sources(spec))

    def _bring_up(self, ramp: Ramp, spec: InstanceSpec, phases: PhaseLog, warmup: bool) -> Live:
        """The timed window: from the request to the last phase asked for."""
        timeout = self._scenario(ramp.trial).timeout
        context = self._job.drivers[spec.driver].launch(spec, phases)
        phases.begin()
        instance = context.__enter__()
        ramp.live.append(live := Live(spec, instance, context, phases, warmup))
        instance.wait_ready(timeout)
        if (check := spec.payload.reply) is not None and (address := instance.address) is not None:
            deadline = time.monotonic() + timeout
            at = endpoints.wait_until(lambda: endpoints.answers(check, address), deadline, instance.alive)
            if at is None:
                url = f"http://{address}:{check.port}{check.path}"
                said = f"{spec.id} was ready but {url} never answered {check.status}"
                raise ReadyTimeoutError(said) if instance.alive() else LaunchError(f"{said}: it has ended")
            phases.stamp(Phase.REPLY, at)
        return live

    def _cpu(self, live: Live) -> tuple[Reading, ...]:
        seconds = self._job.cpu_seconds(live.instance.footprint())
        return () if seconds is None else (Reading("launch.cpu", seconds, "s"),)

    def _tear_down(self, ramp: Ramp) -> None:
        """All of them, also where a record of one can't be written."""
        with contextlib.ExitStack() as stack:
            for _ in ramp.live:
                stack.callback(self._end_last, ramp)

    def _end_last(self, ramp: Ramp) -> None:
        self._job.progress.doing(f"end {ramp.trial.driver} {ramp.live[-1].spec.id}, {len(ramp.live)} left")
        self._end(ramp, ramp.live.pop())

    def _end(self, ramp: Ramp, live: Live) -> None:
        """Stop and remove, stamped. What can't be removed is said here and found again by `reap`."""
        error: str | None = None
        live.phases.stamp(Phase.STOP)
        try:
            with contextlib.ExitStack() as stack:
                stack.push(live.context)
                live.instance.stop(self._scenario(ramp.trial).stop_timeout)
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

    def _sample(self, ramp: Ramp) -> Stop | None:
        """One step's record; why the ramp ends there, if an instance died or the service level was lost."""
        self._job.progress.doing(f"sample {ramp.trial.driver} at N={len(ramp.live)}")
        if settle := self._scenario(ramp.trial).settle:  # even a sleep of nothing gives the CPU away
            time.sleep(settle)
        if stop := self._dead(ramp):
            return stop
        merged = self._job.ksm.settle() if self._job.ksm else ()
        footprints = [live.instance.footprint() for live in ramp.live]
        readings = [*merged, *(reading for sampler in self._job.samplers for reading in sampler.read(footprints))]
        verdict = self._look(ramp)
        readings += verdict.readings
        self._sink.append(StepRecord(**self._labels(ramp.trial), n=len(ramp.live), readings=tuple(readings)))
        self._sink.sync()
        if stop := self._dead(ramp):
            return stop
        ramp.sampled = len(ramp.live)
        if verdict.lost:
            return Stop("service", f"at N={len(ramp.live)}: {verdict.lost}")
        if ramp.useful is not None:
            ramp.useful = len(ramp.live)
        return None

    def _dead(self, ramp: Ramp) -> Stop | None:
        dead = [f"{live.spec.id}{_cause(live.instance)}" for live in ramp.live if not live.instance.alive()]
        if not dead:
            return None
        ramp.alive = max(ramp.sampled, len(ramp.live) - len(dead))  # nobody saw when they went
        return Stop("died", f"no longer alive at N={len(ramp.live)}: {', '.join(dead)}", fault=True)

    def _look(self, ramp: Ramp) -> Verdict:
        """Whether the instances are useful, after the samples: being asked changes what they take."""
        if ramp.useful is None or not ramp.live:
            return Verdict(())
        self._job.progress.doing(f"ask {ramp.trial.driver} at N={len(ramp.live)}")
        instances = [live.instance for live in ramp.live]
        seed = f"{self._job.plan.seed}-{ramp.trial.id}-{len(instances)}"
        with _no_collection():
            return self._watch(ramp.trial).look(instances, self._payload(ramp.trial).reply, seed)

    def _conclude(self, ramp: Ramp) -> TrialRecord:
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
            to_limit=ramp.trial.to_limit,
            useful=ramp.useful,
        )
        return conclude(self._job, self._sink, record)

    def _labels(self, trial: Trial) -> _LabelFields:
        return {
            "trial": trial.id,
            "driver": trial.driver,
            "profile": trial.profile,
            "payload": self._payload(trial).name,
            "round": trial.round,
            "date": time.time(),
            "condition": trial.condition,
        }

    def _scenario(self, trial: Trial) -> Scenario:
        return self._variants.of(trial.condition)

    def _watch(self, trial: Trial) -> Watch:
        return Watch(self._scenario(trial).service, self._job.ask)

    def _payload(self, trial: Trial) -> Payload:
        return payload_for(self._scenario(trial)) if trial.condition else self._job.payload


_FREE = ("host.memory.available", "host.memory.pcp", "harness.memory.pss")
_FORESEEN = 5000  # instances that a ramp to the limit has bridges made for; more are made on the way
_BACK = 60.0  # s
_FILLED_AT_ONCE = 100  # instances' worth, before the host's memory is looked at again
_TEARDOWN = frozenset({Phase.STOP.value, Phase.STOPPED.value, Phase.REMOVED.value})


def _cause(instance: Instance) -> str:
    cause = instance.cause_of_death()
    return f" ({cause})" if cause else ""


def _first_of_each(trials: Sequence[Trial]) -> list[Trial]:
    """One trial of every driver and profile in each of its conditions, in order of first appearance."""
    keys = [(trial.driver, trial.profile, condition_text(trial.condition)) for trial in trials]
    return list({key: trial for key, trial in zip(reversed(keys), reversed(trials), strict=True)}.values())[::-1]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """The collector's pauses would be measured as start-up time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
