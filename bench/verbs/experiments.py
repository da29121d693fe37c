"""The trials of a run of kind "neighbours": experiments, with what only the session knows wired in."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from bench import process
from bench.config.scenario import settings_for
from bench.drivers.base import Instance
from bench.drivers.context import RunContext
from bench.endings import run_battery
from bench.errors import HostError
from bench.images.loads import PROGRAM, load_program, with_loads
from bench.job import Job, Sink
from bench.model import Image, InstanceSpec, Limits, RunId
from bench.neighbourhood import Kit, Measured, Neighbourhood
from bench.paths import cache_dir
from bench.plan import Trial
from bench.probes.neighbours.cells import Cell
from bench.records import NeighbourRecord, TrialRecord

_PATIENCE = 20.0  # seconds a program inside may take beyond its own time; a guest under tcg is slow to start one
_CALM = 60.0  # seconds of a trial at most for pressure on memory to pass; what comes later is left out
_BEYOND = 5.0  # seconds the host's end of a network load waits longer than the load lasts


def equipped(context: RunContext, image: Image) -> Image:
    """The image with the program that works and loads in it, the same for all drivers. Raises HostError."""
    return with_loads(context.images, image, load_program(cache_dir()))


@dataclass
class Experiments:
    """What `runner.Runner` is for ramps."""

    job: Job

    def prepare(self) -> None:
        """All that takes long and is the same for every trial of a driver."""
        for trial in {(one.driver, one.profile): one for one in self.job.plan.trials}.values():
            self.job.progress.doing(f"prepare {trial.driver}:{trial.profile}")
            for limits in (self.job.scenario.limits, self.job.scenario.raised):
                self.job.drivers[trial.driver].prepare(self._spec(trial, 0, limits))

    def run(self, sink: Sink, done: list[TrialRecord]) -> None:
        """All trials in the plan's order, each appended to `done`. Interrupted goes through."""
        neighbourhood = Neighbourhood(self._kit())
        for trial in self.job.plan.trials:
            if self.job.deadline is not None and time.monotonic() >= self.job.deadline:
                return
            done.append(self._trial(neighbourhood, trial, sink))

    def _trial(self, neighbourhood: Neighbourhood, trial: Trial, sink: Sink) -> TrialRecord:
        def keep(cell: Cell, found: Measured) -> None:
            sink.append(self._record(trial, cell, found))

        def spec(number: int, limits: Limits) -> InstanceSpec:
            return self._spec(trial, number, limits)

        def work() -> tuple[str, ...]:
            seed = f"{self.job.plan.seed} {trial.id}"
            driver = self.job.drivers[trial.driver]
            neighbourhood.run(trial, driver, spec, seed, keep, self.job.progress.doing)
            return ()

        return run_battery(self.job, sink, trial, work)

    def _record(self, trial: Trial, cell: Cell, found: Measured) -> NeighbourRecord:
        return NeighbourRecord(
            trial=trial.id, driver=trial.driver, profile=trial.profile, payload=self.job.payload.name,
            round=trial.round, date=time.time(), victim=cell.victim, aggressor=cell.aggressor, limits=cell.limits,
            window=self.job.scenario.neighbours.window, times=found.times, press=found.press, uses=found.uses,
            missing=found.missing,
        )  # fmt: skip

    def _spec(self, trial: Trial, number: int, limits: Limits) -> InstanceSpec:
        job = self.job
        return InstanceSpec(
            run=job.run, driver=trial.driver, profile=trial.profile, number=number, image=job.image,
            payload=job.payload, limits=limits, settings=settings_for(job.scenario, trial.driver, trial.profile),
            logs=job.logs, ramp=4,
        )  # fmt: skip

    def _kit(self) -> Kit:
        job, run, program = self.job, self.job.run, str(load_program(cache_dir()))

        @contextmanager
        def serve(beside: Instance, seconds: float) -> Iterator[tuple[str, int]]:
            with served(program, run, beside, seconds) as there:
                yield there

        return Kit(
            program=PROGRAM,
            keys=job.scenario.neighbours,
            declared=job.scenario.limits,
            raised=job.scenario.raised,
            check=job.payload.reply,
            ask=job.ask,
            serve=serve,
            stop=job.headroom.stop,
            cpu_seconds=job.cpu_seconds,
            shield=job.shield,
            timeout=job.scenario.timeout,
            patience=_PATIENCE,
            calm=_CALM,
        )


class _Served(Struct, frozen=True):
    port: int


@contextmanager
def served(program: str, run: RunId, beside: Instance, seconds: float) -> Iterator[tuple[str, int]]:
    """The host's end of a network load: a process that drains or fills whoever connects, and dies with us.

    Gives its address, which is that of the host as `beside` sees it, and its port. Raises HostError.
    """
    address = _host_as_seen_from(beside.address or "127.0.0.1")
    reading, writing = os.pipe()
    argv = [program, "serve", str(round(1000 * (seconds + _BEYOND))), address, run]
    with open(reading, "rb") as said:
        try:
            started = process.spawn(argv, stdout=writing)
            with started:
                os.close(writing)
                writing = -1
                yield address, _port(said.readline(), argv)
        finally:
            if writing >= 0:
                os.close(writing)


def _port(line: bytes, argv: list[str]) -> int:
    try:
        return msgspec.json.decode(line, type=_Served).port
    except msgspec.DecodeError as error:
        text = line.decode(errors="replace").strip() or "nothing"
        raise HostError(f"the host's end of a network load said {text}, from: {' '.join(argv)}") from error


def _host_as_seen_from(address: str) -> str:
    """Our own address towards `address`; no packet is sent for that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        asking.connect((address, 9))
        return str(asking.getsockname()[0])
