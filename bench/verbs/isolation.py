"""The trials of an isolation run: probe batteries, with what only the session knows wired in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from bench.battery import Battery, Control, Kit, Place
from bench.config.scenario import settings_for
from bench.drivers.base import Driver
from bench.drivers.context import RunContext
from bench.drivers.registry import make_driver
from bench.endings import run_battery
from bench.images.attacks import PROGRAM, attack_program, with_attacks
from bench.images.exposure import exposure_program, with_exposure
from bench.job import Job, Sink
from bench.linux import procfs
from bench.model import MIB, HostFacts, Image, InstanceSpec, Limits
from bench.paths import cache_dir, state_dir
from bench.plan import Trial
from bench.probes import PROBES
from bench.probes.base import Probe, World
from bench.probes.program import attack
from bench.probes.unchanged import differences, snapshot
from bench.probes.worlds import GuestWorld, host_world
from bench.records import Finding, FindingRecord, TrialRecord
from bench.verbs.exposure import Exposures

_PATIENCE = 30.0  # seconds one attack may take; guests under tcg are slow
_ROOMY = 128 * MIB  # what a guest for controls has beyond twice the declared memory: its own bomb must fit


def armed(context: RunContext, image: Image) -> Image:
    """The image with the programs that attack and look around in it, the same for all drivers.

    Raises HostError without a compiler.
    """
    return with_exposure(
        context.images, with_attacks(context.images, image, attack_program(cache_dir())), exposure_program(cache_dir())
    )


@dataclass
class Batteries:
    """What `runner.Runner` is for ramps."""

    job: Job
    context: RunContext
    host: HostFacts

    def prepare(self) -> None:
        """All that takes long and is the same for every battery of a driver."""
        for trial in {(one.driver, one.profile): one for one in self.job.plan.trials}.values():
            self.job.progress.doing(f"prepare {trial.driver}:{trial.profile}")
            self.job.drivers[trial.driver].prepare(self._spec(trial, 0))

    def run(self, sink: Sink, done: list[TrialRecord]) -> None:
        """All trials in the plan's order, each appended to `done`. Interrupted goes through."""
        with ExitStack() as stack:
            battery, self._exposures = Battery(self._kit(stack)), Exposures(self.job, _differences)
            for trial in self.job.plan.trials:
                done.append(self._trial(battery, trial, sink))

    def _trial(self, battery: Battery, trial: Trial, sink: Sink) -> TrialRecord:
        def record(
            probe: Probe, instance: str, finding: Finding, control: Finding | None, seconds: float
        ) -> FindingRecord:
            return FindingRecord(
                trial=trial.id, driver=trial.driver, profile=trial.profile, payload=self.job.payload.name,
                round=trial.round, date=time.time(), instance=instance, probe=probe.id, claim=probe.claim,
                severity=probe.severity, finding=finding, place=probe.place, control=control, seconds=seconds,
            )  # fmt: skip

        def work() -> list[str]:
            driver = self.job.drivers[trial.driver]
            changed = battery.run(
                trial, driver, lambda number: self._spec(trial, number), record, sink.append, self.job.progress.doing
            )
            return changed + self._exposures.run(trial, sink)

        return run_battery(self.job, sink, trial, work)

    def _spec(self, trial: Trial, number: int) -> InstanceSpec:
        return self._spec_of(trial.driver, trial.profile, number, self.job.scenario.limits)

    def _spec_of(self, driver: str, profile: str, number: int, limits: Limits) -> InstanceSpec:
        job = self.job
        return InstanceSpec(
            run=job.run, driver=driver, profile=profile, number=number, image=job.image, payload=job.payload,
            limits=limits, settings=settings_for(job.scenario, driver, profile), logs=job.logs, ramp=4,
        )  # fmt: skip

    # --- the kit ---------------------------------------------------------------------------------------------------

    def _kit(self, stack: ExitStack) -> Kit:
        program = str(attack_program(cache_dir()))
        canaries = self.context.state / "canary"
        return Kit(
            probes=PROBES,
            program=PROGRAM,
            world=lambda: _world(program, canaries),
            guest_world=lambda guest: GuestWorld(guest, PROGRAM, _PATIENCE),
            ask=attack,
            mounts=os.readlink("/proc/self/ns/mnt"),
            kernel=(procfs.read("/proc/sys/kernel/random/boot_id") or "").strip(),
            controls=self._controls(stack),
            differences=_differences,
            limits=self.job.scenario.limits,
            shield=self.job.shield,
            timeout=self.job.scenario.timeout,
            patience=_PATIENCE,
        )

    def _controls(self, stack: ExitStack) -> dict[Place, Control]:
        """A bare process of this host, and a guest where guests run here."""
        limits = self.job.scenario.limits
        roomy = replace(limits, memory=2 * limits.memory + _ROOMY)
        found: dict[Place, Control] = {}
        if driver := self._driver("process", stack):
            found["process"] = Control(driver, lambda number: self._spec_of("process", "default", number, limits))
        if driver := self._driver("vm", stack):
            found["guest"] = Control(driver, lambda number: self._spec_of("vm", "stock", number, roomy))
        return found

    def _driver(self, name: str, stack: ExitStack) -> Driver | None:
        """The run's own, else one for the controls alone, closed with `stack`; None where it can't run here."""
        if name in self.job.drivers:
            return self.job.drivers[name]
        try:
            driver = make_driver(name, self.context)
        except ImportError:  # no libvirt here
            return None
        if not driver.support(self.host).ok:
            driver.close()
            return None
        stack.callback(self._let_go, driver)
        return driver

    def _let_go(self, driver: Driver) -> None:
        with self.job.shield():
            driver.reap(self.context.run)
            driver.close()


@contextmanager
def _world(program: str, folder: Path) -> Iterator[World]:
    with host_world(program, folder) as world:
        yield world


@contextmanager
def _differences() -> Iterator[list[str]]:
    """What is different on this host once the context is left."""
    own = (state_dir(), cache_dir())
    found: list[str] = []
    before = snapshot(own)
    yield found
    found += differences(before, snapshot(own))
