"""Scenario + seed -> Plan: which trials, in which order. Pure; also what a plan will roughly cost."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from bench.config import Scenario, settings_for
from bench.errors import ConfigError
from bench.model import MIB, VmSettings

MAX_LAUNCHES = 999_999
"""Of one run: an interface name has room for six digits (see InstanceSpec.netdev)."""


class Trial(Struct, frozen=True):
    """One ramp of one driver in one round: `warmups` launches that are removed again, then up to `count` alive."""

    id: str  # "r1-container:default"
    round: int  # from 1
    driver: str
    profile: str
    kind: Literal["ramp"]
    count: int
    steps: tuple[int, ...]  # numbers alive at which a sample is taken: 0, 1, 2, 4, ..., count
    warmups: int
    first: int  # number of its first instance: unique within the run, and the same when a run is resumed

    @property
    def launches(self) -> int:
        return self.warmups + self.count


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

    def without(self, done: Collection[str]) -> Plan:
        """What is left once the trials with these ids are done."""
        return msgspec.structs.replace(self, trials=tuple(trial for trial in self.trials if trial.id not in done))


def make_plan(scenario: Scenario, seed: int, targets: Sequence[tuple[str, str]] = ()) -> Plan:
    """Every round is one pass over all drivers, shuffled by `seed`. Raises ConfigError for more launches than names.

    `targets`: (driver, profile) instead of the scenario's, for drivers that no scenario can name.
    """
    shuffler = random.Random(seed)
    trials: list[Trial] = []
    first = 1
    for number in range(1, scenario.rounds + 1):
        order = list(targets or scenario.targets())
        shuffler.shuffle(order)
        for driver, profile in order:
            trials.append(_ramp(scenario, number, driver, profile, first))
            first += trials[-1].launches
    plan = Plan(seed, tuple(trials))
    if plan.launches > MAX_LAUNCHES:
        raise ConfigError(
            f"scenario {scenario.name}: {plan.launches:,} launches are more than the {MAX_LAUNCHES:,} a run can name",
            hint="lower count, rounds or warmups",
        )
    return plan


def ramp_steps(count: int) -> tuple[int, ...]:
    """0, 1, 2, 4, ... and `count`."""
    return (0, *(1 << power for power in range((count - 1).bit_length())), count)


def _ramp(scenario: Scenario, number: int, driver: str, profile: str, first: int) -> Trial:
    count = scenario.count_for(driver)
    name = f"r{number}-{driver}:{profile}"
    return Trial(name, number, driver, profile, "ramp", count, ramp_steps(count), scenario.warmups, first)


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
_SAMPLE = 0.6  # seconds to read all samplers once; most of it watches the host's free memory


def estimate(plan: Plan, scenario: Scenario, *, accelerator: str | None = None) -> Estimate:
    """What `plan` will roughly take. `accelerator`: "kvm" if guests are known to boot under it, else tcg is assumed."""
    rules = {target: _rule(scenario, *target, accelerator) for target in scenario.targets()}
    return Estimate(
        seconds=sum(_seconds(trial, rules[trial.driver, trial.profile], scenario.settle) for trial in plan.trials),
        memory=max((trial.count * rules[trial.driver, trial.profile].memory for trial in plan.trials), default=0),
        disk=_SHARED_DISK
        + max((trial.count * rules[trial.driver, trial.profile].disk for trial in plan.trials), default=0),
    )


def trial_seconds(trial: Trial, scenario: Scenario, *, accelerator: str | None = None) -> float:
    """The same guess for one trial: the weights of a progress bar."""
    return _seconds(trial, _rule(scenario, trial.driver, trial.profile, accelerator), scenario.settle)


def _seconds(trial: Trial, rule: _Rule, settle: float) -> float:
    return trial.launches * (rule.launch + rule.teardown) + len(trial.steps) * (settle + _SAMPLE)


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
