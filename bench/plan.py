"""Scenario + seed -> Plan: which trials, in which order. Pure; also what a plan will roughly cost."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from bench.config.scenario import Scenario, settings_for, unconnected
from bench.errors import ConfigError
from bench.model import MIB, Condition, VmSettings, condition_text, target_name
from bench.sweep import COLD, CONCURRENCY, conditions
from bench.variants import Variants

BATTERY_ROOM = 16
"""Instance numbers a probe battery may use: two to begin with, and others in place of those that an attack ended."""
EXPOSURE_ROOM = 1
"""Those of a battery's trial beyond them: the instance that is looked at for what is open to it."""
NEIGHBOUR_ROOM = 64
"""Instance numbers a trial of neighbours may use: three to begin with, and others for those that a load ended."""
MAX_LAUNCHES = 999_999
"""Of one run: an interface name has room for six digits (see InstanceSpec.netdev)."""


class Trial(Struct, frozen=True):
    """One ramp of one driver in one round: `warmups` launches that are removed again, then up to `count` alive."""

    id: str  # "r1-container:default", "r1-container:default [limits.pids=64]"
    round: int  # from 1
    driver: str
    profile: str
    kind: Literal["ramp", "battery", "neighbours"]
    count: int
    steps: tuple[int, ...]  # numbers alive at which a sample is taken: 0, 1, 2, 4, ..., count
    warmups: int
    first: int  # number of its first instance: unique within the run, and the same when a run is resumed
    seconds: float | None = None  # it may last, without its teardown; given only to the limit
    condition: Condition = {}

    @property
    def to_limit(self) -> bool:
        """Whether it goes on until something stops it; `count` and `seconds` are bounds then."""
        return self.seconds is not None

    @property
    def name(self) -> str:
        """What ran, and under which condition: `container:default [limits.pids=64]`."""
        return target_name(self.driver, self.profile, condition_text(self.condition))

    @property
    def launches(self) -> int:
        return self.warmups + self.count

    @property
    def most(self) -> int:
        """Alive at once."""
        return {"battery": 2, "neighbours": 3}.get(self.kind, self.count)


class Plan(Struct, frozen=True):
    """The trials of a run in the order they run."""

    seed: int
    trials: tuple[Trial, ...]

    @property
    def launches(self) -> int:
        """Of the whole run: also the highest instance number it can need, numbers starting at 1."""
        return sum(trial.launches for trial in self.trials)

    @property
    def order(self) -> tuple[str, ...]:
        """The trials' ids in the order they run, as `run.json` stores them."""
        return tuple(trial.id for trial in self.trials)

    def up_to(self, rounds: int) -> Plan:
        """Its first `rounds` rounds."""
        return msgspec.structs.replace(self, trials=tuple(trial for trial in self.trials if trial.round <= rounds))

    def without(self, done: Collection[str]) -> Plan:
        """What is left once the trials with these ids are done."""
        return msgspec.structs.replace(self, trials=tuple(trial for trial in self.trials if trial.id not in done))


def make_plan(scenario: Scenario, seed: int, targets: Sequence[tuple[str, str]] = ()) -> Plan:
    """Every round is one pass over all drivers, each in all its conditions, shuffled by `seed`. Raises ConfigError for
    more launches than names.

    `targets`: (driver, profile) instead of the scenario's, for drivers that no scenario can name.
    """
    shuffler = random.Random(seed)
    trials: list[Trial] = []
    variants = Variants(scenario)
    cases = [(*target, one) for target in targets or scenario.targets() for one in conditions(scenario, target[0])]
    first = 1
    for number in range(1, most_rounds(scenario) + 1):
        order = list(cases)
        shuffler.shuffle(order)
        for driver, profile, condition in order:
            trials.append(_ramp(variants.of(condition), number, driver, profile, condition, first))
            first += trials[-1].launches
    plan = Plan(seed, tuple(trials))
    _check_cold(scenario, plan)
    if plan.launches > MAX_LAUNCHES:
        raise ConfigError(
            f"scenario {scenario.name}: {plan.launches:,} launches are more than the {MAX_LAUNCHES:,} a run can name",
            hint="lower count, rounds or warmups",
        )
    return plan


def most_rounds(scenario: Scenario) -> int:
    """Of a run that goes on until it is precise all that it may need are planned."""
    return scenario.precise.rounds if scenario.precise.width else scenario.rounds


def least_rounds(scenario: Scenario) -> int:
    """Those that are run in any case."""
    return scenario.precise.least(scenario.rounds) if scenario.precise.width else scenario.rounds


def _check_cold(scenario: Scenario, plan: Plan) -> None:
    """Cold launches have to be cold, and warm ones between them warm. Raises ConfigError."""
    cold = [one for one in plan.trials if one.condition.get("cache") == COLD]
    if ramp := next((one for one in cold if one.count > 1 or one.to_limit), None):
        raise ConfigError(
            f"scenario {scenario.name}: cold launches are of one instance at a time: what runs keeps its image in the "
            f"page cache, and {ramp.id} goes to {ramp.count}",
            hint="--count 1, or bench run startup --cold",
        )
    if crowd := next((one for one in cold if int(one.condition.get(CONCURRENCY, "1")) > 1), None):
        raise ConfigError(
            f"scenario {scenario.name}: cold launches are one after the other, and {crowd.id} has several in flight",
            hint="--set launch.concurrency=1",
        )
    warm = (one for one in plan.trials if one.condition.get("cache") != COLD)
    if cold and (bare := next((one for one in warm if not one.warmups), None)):
        raise ConfigError(
            f"scenario {scenario.name}: without a warm-up {bare.id} would find what cold launches left",
            hint="--set warmups=1",
        )
    variants = Variants(scenario)
    for one in cold:
        settings = settings_for(variants.of(one.condition), one.driver, one.profile)
        if isinstance(settings, VmSettings) and settings.start == "clone":
            raise ConfigError(
                f"scenario {scenario.name}: {one.id} has no cold launch: clones start from memory",
                hint="leave it out with --drivers, or --cold",
            )


def ramp_steps(count: int, given: Sequence[int] = ()) -> tuple[int, ...]:
    """0, 1, 2, 4, ... and `count`; or 0, those given below `count`, and `count`."""
    steps = given or [1 << power for power in range((count - 1).bit_length())]
    return (0, *(step for step in steps if step < count), count)


def steps_to_limit(count: int) -> tuple[int, ...]:
    """1, 2, 4, ..., 64, then a quarter more each time: what is useful is known to a quarter at any size."""
    steps = [1]
    while steps[-1] < count:
        steps.append(steps[-1] * 2 if steps[-1] < _DOUBLED else steps[-1] * 5 // 4)
    return ramp_steps(count, steps)


def _ramp(scenario: Scenario, number: int, driver: str, profile: str, condition: Condition, first: int) -> Trial:
    count = scenario.count_for(driver)
    name = f"r{number}-{target_name(driver, profile, condition_text(condition))}"
    if scenario.kind == "battery":
        return Trial(name, number, driver, profile, "battery", BATTERY_ROOM + EXPOSURE_ROOM, (), 0, first)
    if scenario.kind == "neighbours":
        return Trial(name, number, driver, profile, "neighbours", NEIGHBOUR_ROOM, (), 0, first)
    bounds = scenario.to_limit
    steps = steps_to_limit(count) if bounds.on and not scenario.steps else ramp_steps(count, scenario.steps)
    if not scenario.steps:  # a sample within the first wave would end it
        steps = tuple(step for step in steps if not 0 < step < min(scenario.launch.concurrency, count))
    seconds = bounds.time if bounds.on else None
    return Trial(name, number, driver, profile, "ramp", count, steps, scenario.warmups, first, seconds, condition)


_DOUBLED = 64


# --- what it will roughly cost --------------------------------------------------------------------------------------


class Estimate(Struct, frozen=True):
    """A guess from rules of thumb, for --dry-run only. Seconds of the whole run; bytes at the largest ramp's end."""

    seconds: float
    memory: int
    disk: int


class _Rule(Struct, frozen=True):
    """Seconds to launch, and to stop and remove one instance; bytes one more takes."""

    launch: float
    teardown: float
    memory: int
    disk: int


# Orders of magnitude seen once on the reference machine (2 cores, Debian 12, httpd payload):
# they are here to say "a minute" or "an hour", "MiB" or "GiB" before a run, and enter no result.
_RULES = {
    "process": _Rule(launch=0.005, teardown=0.005, memory=MIB, disk=8 << 10),
    "container": _Rule(launch=0.010, teardown=0.020, memory=3 * MIB // 2, disk=32 << 10),
    "vm": _Rule(launch=3.5, teardown=0.5, memory=240 * MIB, disk=3 * MIB),
}
_KVM_LAUNCH = 1.0
_BACKED_DISK = 1 * MIB  # a qcow2 file over a shared disk, after boot
_SHARED_DISK = 32 * MIB  # unpacked layers, guest kernel and initramfs
_MADE_OF_IT = 4  # times the image: its layers as they came and unpacked, and a template or two
_BATTERY = 25.0  # seconds all probes take, whatever the driver
_AROUND = 0.6  # seconds of an experiment beside its window and its lead
_SAMPLE = 0.6  # seconds to read all samplers once; most of it watches the host's free memory


def estimate(plan: Plan, scenario: Scenario, *, accelerator: str | None = None, image: int = 0) -> Estimate:
    """What `plan` will roughly take. `accelerator`: "kvm" if guests are known to boot under it, else tcg is assumed;
    `image`: bytes of the image beyond the default one."""
    variants = Variants(scenario)
    rules = [_rule(variants.of(one.condition), one.driver, one.profile, accelerator) for one in plan.trials]
    ramps = list(zip(plan.trials, rules, strict=True))
    return Estimate(
        seconds=sum(_seconds(trial, rule, variants.of(trial.condition)) for trial, rule in ramps),
        memory=max((trial.most * rule.memory for trial, rule in ramps), default=0),
        disk=_SHARED_DISK
        + _MADE_OF_IT * image
        + max((trial.most * (rule.disk + image * _copies(variants, trial)) for trial, rule in ramps), default=0),
    )


def _copies(variants: Variants, trial: Trial) -> bool:
    """Whether each instance gets a copy of the image."""
    settings = settings_for(variants.of(trial.condition), trial.driver, trial.profile)
    return getattr(settings, "storage", None) == "copy"


def trial_seconds(trial: Trial, scenario: Scenario, *, accelerator: str | None = None) -> float:
    """The same guess for one trial: the weights of a progress bar. `scenario` is that of its condition."""
    return _seconds(trial, _rule(scenario, trial.driver, trial.profile, accelerator), scenario)


def _seconds(trial: Trial, rule: _Rule, scenario: Scenario) -> float:
    if trial.kind == "battery":
        return 2 * (rule.launch + rule.teardown) + _BATTERY
    if trial.kind == "neighbours":
        keys = scenario.neighbours
        made = keys.unconnected if unconnected(scenario, trial.driver, trial.profile) else keys.experiments
        return 3 * (rule.launch + rule.teardown) + made * (keys.lead + keys.window + _AROUND)
    ramp = trial.launches * rule.launch + len(trial.steps) * (scenario.settle + _SAMPLE)
    return min(ramp, trial.seconds or ramp) + trial.launches * rule.teardown


def _rule(scenario: Scenario, driver: str, profile: str, accelerator: str | None) -> _Rule:
    rule = _RULES[driver]
    settings = settings_for(scenario, driver, profile)
    if not isinstance(settings, VmSettings):
        return rule
    kvm = accelerator == "kvm" and settings.accel != "tcg"
    return _Rule(
        launch=_KVM_LAUNCH if kvm else rule.launch * _slowdown(scenario.limits.cpus),
        teardown=rule.teardown,
        memory=min(rule.memory, scenario.limits.memory + 64 * MIB),
        disk=min(_BACKED_DISK if settings.storage == "qcow2-backing" else rule.disk, settings.disk),
    )


def _slowdown(cpus: float) -> float:
    """A guest with a fraction of a CPU boots that much later."""
    return 1.0 / cpus if cpus < 1 else 1.0
