"""The exposure part of an isolation trial: one more instance of the driver, looked at axis by axis."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from bench import process
from bench.config.scenario import BUILTIN_PAYLOADS, settings_for
from bench.drivers.base import Instance
from bench.images.build import NAME
from bench.images.exposure import PROGRAM, exposure_program
from bench.job import Job, Sink
from bench.model import Completed, InstanceSpec, Payload, PhaseLog
from bench.paths import cache_dir
from bench.plan import BATTERY_ROOM, Trial
from bench.probes.exposure.calls import Tried, tried
from bench.probes.exposure.look import Host, kernel_of, look
from bench.records import ExposureRecord

_PATIENCE = 120.0  # seconds for all calls; a guest under tcg is slow


@dataclass
class Exposures:
    """Of one run. `differences`: as probe batteries take it."""

    job: Job
    differences: Callable[[], AbstractContextManager[list[str]]]

    def run(self, trial: Trial, sink: Sink) -> list[str]:
        """Every axis, each kept as it is made; what is different on this host afterwards.

        Raises LaunchError if no instance can be launched, CommandError if the program can't be run inside.
        """
        with self.differences() as changed, self._launched(trial) as (instance, payload):
            inside = functools.partial(_inside, instance)
            self.job.progress.doing("exposure")
            kernel = kernel_of(inside, _on_host)
            host = Host(_on_host, self.host_calls)
            for one in look(instance, inside, host, payload.reply):
                self.job.progress.doing(f"exposure: {one.exposure.axis}")
                sink.append(
                    ExposureRecord(
                        trial=trial.id, driver=trial.driver, profile=trial.profile, payload=payload.name,
                        round=trial.round, date=time.time(), instance=instance.id, kernel=kernel,
                        exposure=one.exposure, seconds=one.seconds,
                    )
                )  # fmt: skip
        return changed

    @functools.cached_property
    def host_calls(self) -> dict[int, Tried]:
        """The trial of all calls by a bare process of this host: once a run."""
        return tried(_on_host)

    @contextmanager
    def _launched(self, trial: Trial) -> Iterator[tuple[Instance, Payload]]:
        """With a payload that can be put under load: the scenario's own, else the default image's httpd."""
        payload = self.job.payload
        if payload.reply is None and self.job.scenario.image == NAME:
            payload = BUILTIN_PAYLOADS["httpd"]
        driver, spec = self.job.drivers[trial.driver], self._spec(trial, payload)
        self.job.progress.doing("exposure: launch")
        driver.prepare(spec)
        stack = ExitStack()
        try:
            instance = stack.enter_context(driver.launch(spec, PhaseLog()))
            instance.wait_ready(self.job.scenario.timeout)
            yield instance, payload
        finally:
            with self.job.shield():
                stack.close()

    def _spec(self, trial: Trial, payload: Payload) -> InstanceSpec:
        job = self.job
        return InstanceSpec(
            run=job.run, driver=trial.driver, profile=trial.profile, number=trial.first + BATTERY_ROOM,
            image=job.image, payload=payload, limits=job.scenario.limits,
            settings=settings_for(job.scenario, trial.driver, trial.profile), logs=job.logs, ramp=4,
        )  # fmt: skip


def _inside(instance: Instance, words: Sequence[str]) -> Completed:
    return instance.exec([PROGRAM, *words], timeout=_PATIENCE)


def _on_host(words: Sequence[str]) -> Completed:
    return process.run([exposure_program(cache_dir()), *words], timeout=_PATIENCE, check=False)
