"""Wires one run: scenario, host, drivers, samplers, store. The only place that knows all rooms; used by the CLI."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from bench import __version__
from bench.config import Scenario, effective_toml, payload_for
from bench.container.bundle import account_of
from bench.container.runtime import reap as reap_containers
from bench.container.spec_records import User
from bench.drivers.base import Driver
from bench.drivers.context import RunContext
from bench.drivers.network import RunNetwork
from bench.drivers.registry import driver_names, make_driver
from bench.errors import HostError, Interrupted, ResultsError, UsageError
from bench.host import host_facts, measure_floor_costs, memory_available, reserve_bytes
from bench.images.store import ImageStore
from bench.linux.lines import LineHub
from bench.model import (
    TOKEN_LENGTH,
    HostFacts,
    Image,
    Leftover,
    NoteRecord,
    Outcome,
    Payload,
    RunId,
    RunInfo,
    Support,
    TrialRecord,
)
from bench.paths import cache_dir, run_state, state_dir
from bench.plan import Plan
from bench.runner import Job, Progress, Runner
from bench.samplers import cpu_seconds, default_samplers
from bench.store.resume import Past, ResumedWriter
from bench.store.writer import RunWriter, Status
from bench.verbs.interrupts import Interrupts
from bench.verbs.registry import Entry, claimed, entries, registered
from bench.verbs.same import require_same, require_same_accelerators, require_same_host

_VERSIONED = ("pyperf", "pandas", "scipy", "matplotlib", "msgspec", "libvirt-python", "pyroute2")


def new_run_id(scenario: str, now: float, dice: random.Random) -> RunId:
    """See model.RunId."""
    token = "".join(dice.choices(string.ascii_lowercase + string.digits, k=TOKEN_LENGTH))
    return RunId(f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{scenario}-{token}")


@dataclass(frozen=True)
class Request:
    """What `bench run` was asked for."""

    scenario: Scenario
    plan: Plan
    results: Path
    connect: str | None
    command: tuple[str, ...]
    past: Past | None = None  # of a run that goes on: `plan` holds what is missing


@dataclass
class Outcomes:
    """How a run went."""

    run: RunId
    path: Path
    trials: list[TrialRecord] = field(default_factory=list)
    interrupted: int | None = None  # signal

    @property
    def failed(self) -> bool:
        return any(trial.outcome is Outcome.FAILED for trial in self.trials)

    @property
    def exit_code(self) -> int:
        return 128 + self.interrupted if self.interrupted else int(self.failed)


def run(request: Request, progress: Progress, interrupts: Interrupts) -> Outcomes:
    """Do the run. Raises BenchError before anything is measured if it can't be done here; after that what was
    measured is kept, also when interrupted."""
    started = time.time()
    past = request.past
    run_id = past.info.run if past else new_run_id(request.scenario.name, started, random.SystemRandom())
    check_results(request.results)
    progress.doing("look at the host")
    host = host_facts()
    if past:
        require_same_host(past.host, host)
    for name, (support, _) in supports(host, [name for name, _ in request.scenario.targets()], request.connect).items():
        require(name, support)
    require_memory(request.scenario, host)
    outcomes = Outcomes(run_id, request.results / run_id)
    if past:
        bury(run_id)
        outcomes = Outcomes(run_id, past.path, list(past.done))
    entry = Entry(run_id, os.getpid(), str(request.results), request.connect)
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(registered(entry))
        context = stack.enter_context(_context(run_id, state, request.connect))
        drivers = stack.enter_context(_drivers(request.scenario, context, interrupts))
        try:
            _measure(request, context, drivers, progress, interrupts, outcomes, started, host)
        except Interrupted as interrupted:
            if not outcomes.path.exists():
                raise
            outcomes.interrupted = interrupted.signum
    return outcomes


def check_results(results: Path) -> None:
    """Say before the work begins, not after it, that its results could not be written."""
    try:
        probe = next((folder for folder in (results, *results.absolute().parents) if folder.exists()), Path("/"))
        name = probe / f".bench-{time.monotonic_ns()}"
        name.touch()
        name.unlink()
    except OSError as error:
        raise ResultsError(
            f"{results}: cannot be written: {error.strerror}", hint="choose a folder with --results DIR"
        ) from error


@contextmanager
def _context(run_id: RunId, state: Path, connect: str | None) -> Iterator[RunContext]:
    """What the drivers share. The launcher first: it is cloned from, so it starts before threads and big imports."""
    images = ImageStore(cache_dir() / "images")
    network = RunNetwork(run_id)
    with LineHub() as hub:
        context = RunContext(run=run_id, state=state, images=images, hub=hub, network=network, connect=connect)
        try:
            yield context
        finally:
            network.close()
            context.launcher.close()


@contextmanager
def _drivers(scenario: Scenario, context: RunContext, interrupts: Interrupts) -> Iterator[dict[str, Driver]]:
    """The drivers of the scenario; on the way out they sweep up what is left of the run, and let go."""
    drivers = {name: make_driver(name, context) for name, _ in scenario.targets()}
    try:
        yield drivers
    finally:
        with interrupts.shield():
            for driver in drivers.values():
                driver.reap(context.run)
                driver.close()


def _measure(
    request: Request,
    context: RunContext,
    drivers: Mapping[str, Driver],
    progress: Progress,
    interrupts: Interrupts,
    outcomes: Outcomes,
    started: float,
    host: HostFacts,
) -> None:
    scenario = request.scenario
    context.launcher.start()
    if not request.past:
        host = measure_floor_costs(host)
    progress.doing(f"image {scenario.image}")
    image, payload = context.images.resolve(scenario.image), payload_for(scenario)
    if request.past:
        require_same("image", request.past.info.image.digest, image.digest)
    if "vm" in drivers:
        require_root(account_of(context.images, image).user, image.name)
    runner = Runner(_job(request, context, drivers, progress, interrupts, image, payload, outcomes.path, host))
    runner.prepare()
    effective = {f"{name}:{profile}": dict(drivers[name].describe()) for name, profile in scenario.targets()}
    if request.past:
        require_same_accelerators(request.past.info.drivers, effective)
        store: RunWriter = ResumedWriter(request.past)
    else:
        info = _info(request, context.run, started, image, payload, effective)
        store = RunWriter(request.results, info, host)
    with store as writer:
        status: Status = "interrupted"
        try:
            runner.run(writer, outcomes.trials)
            status = "failed" if outcomes.failed else "done"
        finally:
            with interrupts.shield():
                _finish(writer, drivers, context.run, status)


def _finish(writer: RunWriter, drivers: Mapping[str, Driver], run_id: RunId, status: Status) -> None:
    for driver in drivers.values():
        driver.close()
    warnings = [
        f"left behind and removed: {one.kind} {one.name}" for driver in drivers.values() for one in driver.reap(run_id)
    ]
    for text in warnings:
        writer.append(NoteRecord(date=time.time(), level="warning", text=text))
    writer.finish(status, time.time(), warnings=warnings)


def bury(run: RunId) -> None:
    """Remove what the dead process of `run` left, so that it can go on. Raises UsageError while one is alive."""
    for entry, found in clean(lambda one: one.run == run):
        if found is None:
            raise UsageError(f"{run} is alive (pid {entry.pid})", hint="it goes on by itself: wait for its end")


def require(name: str, support: Support) -> None:
    """Raises HostError if the driver can't run here."""
    if not support.ok:
        raise HostError(f"the {name} driver can't run here: {support.reason}", hint=support.hint or None)


def require_root(user: User, image: str) -> None:
    """For guests, whose payload is root. Raises UsageError where it would be someone else in other drivers."""
    if user.uid or user.gid:
        raise UsageError(
            f"image {image} runs as user {user.uid}:{user.gid}, and a guest's payload runs as root",
            hint="--drivers process,container, or an image without USER",
        )


def require_memory(scenario: Scenario, host: HostFacts) -> None:
    """Raises HostError if not even one instance fits above the reserve."""
    reserve = reserve_bytes(host.memory_total, scenario.reserve.memory, scenario.reserve.fraction)
    if host.memory_available < reserve + scenario.limits.memory:
        raise HostError(
            f"{host.memory_available >> 20} MiB of memory are available; one instance is declared "
            f"{scenario.limits.memory >> 20} MiB and {reserve >> 20} MiB are reserved for the host",
            hint="free memory, or lower limits.memory or reserve.memory with --set",
        )


def _job(
    request: Request,
    context: RunContext,
    drivers: Mapping[str, Driver],
    progress: Progress,
    interrupts: Interrupts,
    image: Image,
    payload: Payload,
    path: Path,
    host: HostFacts,
) -> Job:
    scenario = request.scenario
    reserve = scenario.reserve
    return Job(
        run=context.run,
        scenario=scenario,
        plan=request.plan,
        image=image,
        payload=payload,
        drivers=drivers,
        samplers=default_samplers(lambda: [context.launcher.pid]),
        progress=progress,
        logs=str((path / "logs").absolute()),
        reserve=reserve_bytes(host.memory_total, reserve.memory, reserve.fraction),
        available=memory_available,
        cpu_seconds=cpu_seconds,
        accelerators=lambda name: drivers[name].describe().get("accelerator"),
        shield=interrupts.shield,
        deadline=None if scenario.max_time is None else time.monotonic() + scenario.max_time,
    )


def _info(
    request: Request,
    run_id: RunId,
    started: float,
    image: Image,
    payload: Payload,
    effective: dict[str, dict[str, str]],
) -> RunInfo:
    scenario = request.scenario
    accelerators = [keys["accelerator"] for keys in effective.values() if "accelerator" in keys]
    return RunInfo(
        run=run_id,
        scenario=scenario.name,
        title=scenario.title,
        started=started,
        ended=None,
        status="running",
        seed=request.plan.seed,
        command=request.command,
        scenario_toml=effective_toml(scenario),
        plan=request.plan.order,
        image=image,
        payload=payload,
        limits=scenario.limits,
        drivers=effective,
        accelerator=accelerators[0] if accelerators else None,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Of ourselves, the interpreter and the libraries the numbers went through; those installed."""
    found = {"bench": __version__, "python": sys.version.split()[0]}
    for name in _VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


# --- without a run -----------------------------------------------------------------------------------------------


@contextmanager
def idle_context(run_id: RunId, connect: str | None = None) -> Iterator[RunContext]:
    """A context for questions (doctor) and for sweeping (clean): nothing is made or started."""
    with _context(run_id, run_state(run_id), connect) as context:
        yield context


def supports(
    host: HostFacts, names: Sequence[str], connect: str | None = None
) -> dict[str, tuple[Support, dict[str, str]]]:
    """Each driver's answer, and what it says of itself where it can run."""
    found = {}
    with idle_context(RunId("doctor-000000"), connect) as context:
        for name in names:
            driver = make_driver(name, context)
            support = driver.support(host)
            found[name] = (support, dict(driver.describe()) if support.ok else {})
            driver.close()
    return found


def clean(wanted: Callable[[Entry], bool]) -> Iterator[tuple[Entry, list[Leftover] | None]]:
    """Remove what dead runs left; None for one that lives. A run is gone once its state folder is."""
    for entry in entries():
        if not wanted(entry):
            continue
        with claimed(entry) as state:
            if state is None:
                yield entry, None
                continue
            found = _sweep(entry)
            shutil.rmtree(state)
        yield entry, found


def _sweep(entry: Entry) -> list[Leftover]:
    found = reap_containers(state_dir(), entry.run)  # first: it unmounts what the drivers' folders may hold
    with idle_context(entry.run, entry.connect) as context:
        for name in driver_names():
            try:
                driver = make_driver(name, context)
            except ImportError:  # no libvirt here, so no guests of that run either
                continue
            found += driver.reap(entry.run)
            driver.close()
        found += context.network.close()
    return found
