"""Whole runs of the synthetic driver through the real plan, runner and records: for tests, self-test, benchmarks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
from msgspec import Struct

from bench import __version__
from bench.analysis.frames import frames
from bench.analysis.summary import sample_of
from bench.config.scenario import Count, Scenario, payload_for
from bench.config.written import effective_toml
from bench.drivers.synthetic import NAME, Costs, Noise, SyntheticDriver, SyntheticSampler, World
from bench.job import Job, Sink
from bench.levels import PayloadKeys
from bench.model import GIB, HostFacts, Image, Limits, RunId
from bench.plan import Plan, Trial, make_plan
from bench.precision import Judge, Precise
from bench.records import LaunchRecord, Precision, Record, RunInfo, TrialRecord
from bench.runner import Runner
from bench.store import RunData, RunWriter

RUN = RunId("20200101-000000-selftest-synth0")
_IMAGE = Image("synthetic", "sha256:" + "0" * 64, ())


class Design(Struct, frozen=True):
    """A synthetic run: what each profile costs, how it is disturbed, and how much is measured."""

    costs: Mapping[str, Costs] = msgspec.field(default_factory=lambda: {"a": Costs()})
    noise: Noise = Noise()
    rounds: int = 6
    count: int = 8
    warmups: int = 0
    seed: int = 1
    run: RunId = RUN

    @property
    def scenario(self) -> Scenario:
        return Scenario(
            schema=1, name="selftest", title="Synthetic: no instance runs", payload=PayloadKeys("idle"),
            rounds=self.rounds, warmups=self.warmups, settle=0.0, count=Count(default=self.count),
        )  # fmt: skip

    @property
    def plan(self) -> Plan:
        return make_plan(self.scenario, self.seed, [(NAME, profile) for profile in self.costs])


class Memory:
    """A sink that keeps records instead of writing them."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def append(self, record: Record) -> None:
        self.records.append(record)

    def sync(self) -> None:
        """Nothing is to be made durable."""


def measured(design: Design) -> RunData:
    """The run, kept in memory."""
    sink, plan = Memory(), design.plan
    _run(design, plan, sink)
    return RunData(_info(design, plan, "done"), synthetic_host(), tuple(sink.records))


def measured_until(design: Design, wanted: Precise, least: int) -> tuple[RunData, Precision]:
    """The run, kept in memory and continued until it is precise, and how it ended. `least`: rounds in any case."""
    sink, scenario = Memory(), msgspec.structs.replace(design.scenario, precise=wanted)
    plan = make_plan(scenario, design.seed, [(NAME, profile) for profile in design.costs])
    info = _info(design, plan, "done")

    def widths() -> dict[str, float | None]:
        tables = frames(RunData(info, synthetic_host(), tuple(sink.records)))
        found = {one.name: sample_of(tables, one, "startup.ready", design.seed) for one in tables.series}
        return {name: sample.estimate().width if sample else None for name, sample in found.items()}

    judge = Judge(wanted, least, widths, lambda: False)
    _run(design, plan, sink, judge.enough)
    data = RunData(info, synthetic_host(), tuple(sink.records))
    return data, judge.verdict(max(one.round for one in data.records if isinstance(one, TrialRecord)))


def written(design: Design, results: Path) -> Path:
    """The run, written to a new folder in `results`."""
    plan = design.plan
    with RunWriter(results, _info(design, plan, "running"), synthetic_host()) as writer:
        _run(design, plan, writer)
        writer.finish("done", time.time())
    return writer.path


def synthetic_host() -> HostFacts:
    """A quiet machine that is not there."""
    return HostFacts(
        hostname="synthetic", kernel="none", machine="none", distribution="none", cpu_model="none", cpus=1,
        memory_total=24 * GIB, memory_available=16 * GIB, swap_total=0, cgroup="none", cgroup_controllers=(),
        root=False, overlayfs=False, namespaces=(), pid_max=32768, nofile_hard=1024, virtualization=None,
        kvm_device=False, thp=None, ksm=None, governor=None, clocksource=None, load1=0.0, qemu_version=None,
        libvirt_version=None, python="none", bench=__version__,
    )  # fmt: skip


class _Quiet:
    """Nobody watches."""

    def trial(self, trial: Trial) -> None: ...
    def doing(self, text: str) -> None: ...
    def launched(self, trial: Trial, record: LaunchRecord) -> None: ...
    def ended(self, record: TrialRecord) -> None: ...


class _Boundless:
    """A host that is never short of anything."""

    def stop(self, limits: Limits) -> None: ...

    def said(self) -> str:
        return ""


def _run(design: Design, plan: Plan, sink: Sink, enough: Callable[[int], bool] = lambda number: False) -> None:
    world = World(design.costs, design.noise, design.seed)
    driver = SyntheticDriver(world)
    runner = Runner(replace(_job(design, plan, driver, SyntheticSampler(world)), enough=enough))
    runner.prepare()
    done: list[TrialRecord] = []
    runner.run(sink, done)


def _job(design: Design, plan: Plan, driver: SyntheticDriver, sampler: SyntheticSampler) -> Job:
    scenario = design.scenario
    return Job(
        run=design.run, scenario=scenario, plan=plan, image=_IMAGE, payload=payload_for(scenario),
        drivers={NAME: driver}, samplers=[sampler], progress=_Quiet(), logs="", headroom=_Boundless(),
        cpu_seconds=driver.cpu_seconds, accelerators=lambda name: None,
        shield=contextlib.nullcontext,
    )  # fmt: skip


def _info(design: Design, plan: Plan, status: str) -> RunInfo:
    scenario = design.scenario
    return RunInfo(
        run=design.run, scenario=scenario.name, title=scenario.title, started=time.time(), ended=None,
        status="done" if status == "done" else "running", seed=design.seed, command=("bench", "selftest"),
        scenario_toml=effective_toml(scenario), plan=plan.order, image=_IMAGE, payload=payload_for(scenario),
        limits=scenario.limits, drivers={f"{NAME}:{profile}": {"synthetic": "yes"} for profile in design.costs},
        accelerator=None, versions={"bench": __version__},
    )  # fmt: skip
