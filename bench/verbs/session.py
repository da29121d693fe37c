"""Wires one run: scenario, host, drivers, samplers, store. The only place that knows all rooms; used by the CLI."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import string
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import msgspec

from bench import __version__, cold
from bench.config.scenario import Scenario, payload_for, settings_for
from bench.config.written import effective_toml
from bench.container.bundle import account_of
from bench.container.runtime import clear as clear_containers
from bench.container.scratch import release, scratch_filesystem
from bench.container.spec_records import User
from bench.drivers.base import Driver
from bench.drivers.context import RunContext
from bench.drivers.network import RunNetwork
from bench.drivers.registry import driver_names, make_driver
from bench.errors import HostError, Interrupted, ResultsError, StopError, UsageError
from bench.headroom import HostHeadroom, Kept
from bench.host import host_facts, measure_floor_costs, reserve_bytes
from bench.images.store import ImageStore
from bench.job import Job, Progress
from bench.ksm import NOTE as KSM_NOTE
from bench.ksm import Ksm, put_back, require_free
from bench.levels import Reserve
from bench.linux import oom
from bench.linux.lines import LineHub
from bench.model import TOKEN_LENGTH, HostFacts, Image, Leftover, Payload, RunId, Settings, Support
from bench.paths import cache_dir, run_state, state_dir
from bench.plan import Plan
from bench.precision import Judge
from bench.records import NoteRecord, Outcome, Precision, RunInfo, TrialRecord
from bench.runner import Runner
from bench.samplers import cpu_seconds, default_samplers
from bench.samplers.scratch import ScratchSampler
from bench.store.files import drop_draft
from bench.store.resume import Past, ResumedWriter
from bench.store.writer import RunWriter, Status
from bench.sweep import AS_IS, COLD, all_conditions
from bench.variants import Variants
from bench.verbs import experiments, isolation, precise
from bench.verbs.interrupts import Interrupts
from bench.verbs.neighbours import Neighbours
from bench.verbs.registry import Entry, claimed, entries, registered
from bench.verbs.same import require_same, require_same_accelerators, require_same_host

SCRATCH = "scratch"
"""Folder of a run's state with the file system made for it."""
IMPRECISE = 5
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
    precision: Precision | None = None

    @property
    def failed(self) -> bool:
        return any(trial.outcome is Outcome.FAILED for trial in self.trials)

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return 128 + self.interrupted
        imprecise = self.precision is not None and not self.precision.reached
        return int(self.failed) or (IMPRECISE if imprecise else 0)


def run(request: Request, progress: Progress, interrupts: Interrupts) -> Outcomes:
    """Do the run. Raises BenchError before anything is measured if it can't be done here; after that what was
    measured is kept, also when interrupted."""
    started = time.time()
    past = request.past
    run_id = past.info.run if past else new_run_id(request.scenario.name, started, random.SystemRandom())
    check_results(request.results)
    if past:
        bury(run_id)  # first: it puts back what the dead process had changed of the host, which must be as it was
    progress.doing("look at the host")
    host = host_facts()
    if past:
        require_same_host(past.host, host)
    for name, (support, _) in supports(host, [name for name, _ in request.scenario.targets()], request.connect).items():
        require(name, support)
    require_memory(request.scenario, host)
    require_ksm(request.scenario)
    if any(one.condition.get("cache") == COLD for one in request.plan.trials):
        cold.require()
    outcomes = Outcomes(run_id, request.results / run_id)
    if past:
        outcomes = Outcomes(run_id, past.path, list(past.done))
    entry = Entry(run_id, os.getpid(), str(request.results.absolute()), request.connect)
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(registered(entry))
        stack.enter_context(oom.spared(oom.HARNESS))
        stack.callback(put_back, state / KSM_NOTE)
        scratch = stack.enter_context(_scratch(request.scenario, state))
        context = stack.enter_context(_context(run_id, state, request.connect, scratch))
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
        with tempfile.TemporaryFile(dir=probe):  # without a name, where the file system can: a crash leaves nothing
            pass
    except OSError as error:
        raise ResultsError(
            f"{results}: cannot be written: {error.strerror}", hint="choose a folder with --results DIR"
        ) from error


@contextmanager
def _scratch(scenario: Scenario, state: Path) -> Iterator[Path | None]:
    """The file system that the scenario wants made for the run, mounted; None if it wants none. Raises HostError."""
    wanted = scenario.scratch
    if wanted.filesystem == "none":
        yield None
        return
    with scratch_filesystem(state / SCRATCH, wanted.filesystem, wanted.size) as mounted:
        yield mounted


@contextmanager
def _context(run_id: RunId, state: Path, connect: str | None, scratch: Path | None = None) -> Iterator[RunContext]:
    """What the drivers share. The launcher first: it is cloned from, so it starts before threads and big imports."""
    images = ImageStore(cache_dir() / "images")
    network = RunNetwork(run_id)
    with LineHub() as hub:
        context = RunContext(
            run=run_id, state=state, images=images, hub=hub, network=network, connect=connect, scratch=scratch
        )
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
        with interrupts.shield(), contextlib.ExitStack() as stack:
            for driver in drivers.values():  # all of them, also where one finds what it can't end
                stack.callback(driver.close)
                stack.callback(driver.reap, context.run)


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
        host = measure_floor_costs(host, context.run)
    progress.doing(f"image {scenario.image}")
    image, payload = context.images.resolve(scenario.image), payload_for(scenario)
    if scenario.kind == "battery":
        image = isolation.armed(context, image)
    if scenario.kind == "neighbours":
        image = experiments.equipped(context, image)
    if request.past:
        require_same("image", request.past.info.image.digest, image.digest)
    if "vm" in drivers:
        require_root(account_of(context.images, image).user, image.name)
    deadline = None if scenario.max_time is None else time.monotonic() + scenario.max_time
    judge = precise.judge(scenario, outcomes.path, deadline) if scenario.precise.width else None
    job = _job(
        request, context, drivers, progress, interrupts, image, payload, outcomes.path, host, deadline, judge
    )  # fmt: skip
    runner = _runner(job, context, host)
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
        neighbours = Neighbours(writer, context.state)
        try:
            runner.run(neighbours, outcomes.trials)
            if judge:
                outcomes.precision = judge.verdict(max(one.round for one in outcomes.trials))
            status = "failed" if outcomes.failed else "done"
        finally:
            with interrupts.shield():
                neighbours.look()
                _finish(writer, drivers, context.run, status, neighbours.said, outcomes.precision)


def _runner(job: Job, context: RunContext, host: HostFacts) -> Runner | isolation.Batteries | experiments.Experiments:
    """Who does the trials of this kind of scenario."""
    if job.scenario.kind == "battery":
        return isolation.Batteries(job, context, host)
    return experiments.Experiments(job) if job.scenario.kind == "neighbours" else Runner(job)


def _finish(
    writer: RunWriter,
    drivers: Mapping[str, Driver],
    run_id: RunId,
    status: Status,
    said: Sequence[str],
    precision: Precision | None,
) -> None:
    """`said`: warnings that are in notes already."""
    for driver in drivers.values():
        driver.close()
    warnings = []
    for driver in drivers.values():
        try:
            warnings += [f"left behind and removed: {one.kind} {one.name}" for one in driver.reap(run_id)]
        except StopError as error:  # raised again, once the results are whole
            warnings.append(f"left behind: {error.message}")
    for text in warnings:
        writer.append(NoteRecord(date=time.time(), level="warning", text=text))
    writer.finish(status, time.time(), warnings=[*said, *warnings], precision=precision)


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


def require_ksm(scenario: Scenario) -> None:
    """Raises HostError if a condition switches KSM and this host can't or must not."""
    variants, names = Variants(scenario), [name for name, _ in scenario.targets()]
    if any(variants.of(one).ksm != AS_IS for one in all_conditions(scenario, names) or ({},)):
        require_free()


def require_memory(scenario: Scenario, host: HostFacts) -> None:
    """Raises HostError if not even one instance, of the largest in any condition, fits above the reserve."""
    variants, names = Variants(scenario), [name for name, _ in scenario.targets()]
    largest = max(variants.of(one).limits.memory for one in all_conditions(scenario, names) or ({},))
    reserve = reserve_bytes(host.memory_total, scenario.reserve.memory, scenario.reserve.fraction)
    if host.memory_available < reserve + largest:
        raise HostError(
            f"{host.memory_available >> 20} MiB of memory are available; one instance is declared "
            f"{largest >> 20} MiB and {reserve >> 20} MiB are reserved for the host",
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
    deadline: float | None,
    judge: Judge | None,
) -> Job:
    scenario = request.scenario
    return Job(
        run=context.run,
        scenario=scenario,
        plan=request.plan,
        image=image,
        payload=payload,
        drivers=drivers,
        samplers=(*default_samplers(lambda: [context.launcher.pid]), ScratchSampler(context.state)),
        progress=progress,
        logs=str((path / "logs").absolute()),
        headroom=HostHeadroom(
            kept_of(scenario.reserve, host), (context.place, path), lambda: [context.launcher.pid], context.network.room
        ),
        cpu_seconds=cpu_seconds,
        accelerators=lambda name: drivers[name].describe().get("accelerator"),
        shield=interrupts.shield,
        ksm=Ksm(context.state / KSM_NOTE),
        deadline=deadline,
        enough=judge.enough if judge else _never,
    )


def kept_of(reserve: Reserve, host: HostFacts) -> Kept:
    """The reserve in this host's terms."""
    memory = reserve_bytes(host.memory_total, reserve.memory, reserve.fraction)
    return Kept(memory, reserve.pressure, reserve.disk, reserve.pids, reserve.descriptors)


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
        conditions=all_conditions(scenario, [name for name, _ in scenario.targets()]),
        image=image,
        payload=payload,
        limits=scenario.limits,
        drivers=effective,
        settings={
            f"{name}:{profile}": _not_varied(name, settings_for(scenario, name, profile), scenario)
            for name, profile in scenario.targets()
        },
        accelerator=accelerators[0] if accelerators else None,
        versions=versions(),
        oom_score_adj=oom.adjustment(),
    )


def _never(number: int) -> bool:
    """Without a wish for precision a run has the rounds it has."""
    return False


def _not_varied(driver: str, settings: Settings, scenario: Scenario) -> dict[str, str | int | float | bool | None]:
    """The keys that are the same in all trials; the others are in the trials' conditions."""
    keys = msgspec.to_builtins(settings)
    return {key: value for key, value in keys.items() if f"{driver}.{key}" not in scenario.sweep}


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
    found = clear_containers(state_dir(), entry.run)  # first: it unmounts what the drivers' folders may hold
    with idle_context(entry.run, entry.connect) as context:
        for name in driver_names():
            try:
                driver = make_driver(name, context)
            except ImportError:  # no libvirt here, so no guests of that run either
                continue
            found += driver.reap(entry.run)
            driver.close()
        found += context.network.close()
    state = run_state(entry.run)
    draft = drop_draft(Path(entry.results, entry.run)) if entry.results else None
    drafts = [Leftover("file", str(draft))] if draft else []
    return [*found, *release(state / SCRATCH), *put_back(state / KSM_NOTE), *drafts]
