"""Stand-ins for tests: a driver whose launches take a stated time on a clock of its own, and what surrounds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from bench.config.loader import load_scenario
from bench.config.scenario import Scenario, payload_for
from bench.errors import LaunchError, ReadyTimeoutError
from bench.headroom import Kept, Levels, shortage
from bench.job import Job
from bench.limiters import Stop
from bench.model import (
    Completed,
    Footprint,
    HostFacts,
    Image,
    InstanceSpec,
    Leftover,
    Limits,
    Phase,
    PhaseLog,
    Reading,
    RunId,
    Support,
)
from bench.plan import Trial, make_plan
from bench.records import LaunchRecord, Record, TrialRecord

RUN = RunId("20261124-000000-test-abc123")
IMAGE = Image("fake", "sha256:0", ("sha256:1",))


class FakeInstance:
    """Alive until stopped; `dies_at`: the footprint call after which it is found dead."""

    def __init__(self, driver: FakeDriver, spec: InstanceSpec, phases: PhaseLog) -> None:
        self.driver, self.spec, self.phases = driver, spec, phases
        self.running = True
        self.address: str | None = None

    @property
    def id(self) -> str:
        return self.spec.id

    def wait_ready(self, timeout: float) -> None:
        self.driver.events.append(f"ready {self.spec.number}")
        if self.spec.number in self.driver.never_ready:
            raise ReadyTimeoutError(f"{self.id} was not ready within {timeout:g} s")
        self.phases.stamp(Phase.READY, self.phases.zero + self.driver.ready_ns)

    def alive(self) -> bool:
        return self.running and self.spec.number not in self.driver.dead

    def cause_of_death(self) -> str | None:
        return self.driver.cause

    def exec(self, argv: Sequence[str], *, timeout: float) -> Completed:
        return Completed(0, "", "")

    def stop(self, timeout: float) -> None:
        self.driver.events.append(f"stop {self.spec.number}")
        self.running = False

    def kill(self) -> None:
        self.running = False

    def footprint(self) -> Footprint:
        return Footprint(instance=self.id)


class FakeDriver:
    name = "container"

    def __init__(self) -> None:
        self.events: list[str] = []
        self.ready_ns = 5_000_000
        self.never_ready: set[int] = set()
        self.refused: set[int] = set()
        self.dead: set[int] = set()
        self.cause: str | None = None  # of their death
        self.alive: set[int] = set()

    def support(self, host: HostFacts) -> Support:
        return Support(True)

    def describe(self) -> Mapping[str, str]:
        return {}

    def prepare(self, spec: InstanceSpec) -> None:
        self.events.append("prepare")

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> Iterator[FakeInstance]:
        self.events.append(f"launch {spec.number}")
        if spec.number in self.refused:
            raise LaunchError(f"{spec.id} refused")
        self.alive.add(spec.number)
        try:
            yield FakeInstance(self, spec, phases)
        finally:
            self.events.append(f"remove {spec.number}")
            self.alive.discard(spec.number)

    def reap(self, run: RunId) -> Sequence[Leftover]:
        return []

    def close(self) -> None:
        pass


class Recorder:
    """A sink that remembers, a progress that says nothing, a sampler that counts."""

    name = "recorder"

    def __init__(self, driver: FakeDriver) -> None:
        self.records: list[Record] = []
        self.driver = driver

    def append(self, record: Record) -> None:
        self.records.append(record)

    def sync(self) -> None:
        self.driver.events.append("sync")

    def trial(self, trial: Trial) -> None:
        pass

    def doing(self, text: str) -> None:
        pass

    def launched(self, trial: Trial, record: LaunchRecord) -> None:
        pass

    def ended(self, record: TrialRecord) -> None:
        pass

    def read(self, footprints: Sequence[Footprint]) -> Sequence[Reading]:
        self.driver.events.append(f"sample {len(footprints)}")
        return [Reading("instances.processes", len(footprints), "count")]

    def of(self, kind: type) -> list:  # type: ignore[type-arg]
        return [record for record in self.records if isinstance(record, kind)]


def scenario(tmp_path: Path, **changes: object) -> Scenario:
    """The density scenario, quick and for `container` alone."""
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    quick = ["drivers=['container']", "settle=0", "payload='idle'", "rounds=1", "count.default=4", *overrides]
    return load_scenario(Path("scenarios/density.toml"), overrides=quick)


class FakeHeadroom:
    """A host with so many bytes available, of which 1 GiB is its own."""

    def __init__(self, available: int) -> None:
        self.available = available

    def stop(self, limits: Limits) -> Stop | None:
        return shortage(Levels(memory=self.available), Kept(memory=1 << 30), limits)

    def said(self) -> str:
        return f"MemAvailable {self.available} bytes"


def job(
    driver: FakeDriver, recorder: Recorder, chosen: Scenario, *, available: int = 1 << 40, deadline: float | None = None
) -> Job:
    return Job(
        run=RUN, scenario=chosen, plan=make_plan(chosen, seed=1), image=IMAGE, payload=payload_for(chosen),
        drivers={"container": driver}, samplers=[recorder], progress=recorder, logs="",
        headroom=FakeHeadroom(available), cpu_seconds=lambda footprint: 0.25, accelerators=lambda name: None,
        shield=nullcontext, deadline=deadline,
    )  # fmt: skip
