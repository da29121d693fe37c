"""A driver that runs nothing, for tests and the self-test: its costs are known, so that what the analysis makes of its
records can be held against the truth. It is not in the registry, and no list shows it; its name is in every record.

Time is virtual: launches take none, their stamps say what they would have taken. Costs are disturbed in the four ways
that real ones are: every launch by itself, whole ramps together, readings by what else the host does, and everything by
a drift of the host.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from msgspec import Struct

from bench.model import (
    MIB,
    Completed,
    Footprint,
    HostFacts,
    InstanceSpec,
    Leftover,
    Phase,
    PhaseLog,
    Reading,
    RunId,
    Support,
)

NAME = "synthetic"
KIB = 1024
_FREE = 16_384 * MIB  # of the host, before anything runs


class Costs(Struct, frozen=True):
    """What one instance really costs: seconds (medians over launches) and bytes (of one more; `fixed` of the first)."""

    created: float = 0.002
    started: float = 0.004
    ready: float = 0.006
    stopped: float = 0.003
    removed: float = 0.005
    cpu: float = 0.004
    marginal: float = 1024.0 * KIB
    fixed: float = 4096.0 * KIB
    pss: float = 200.0 * KIB
    kernel: float = 700.0 * KIB
    disk: float = 24.0 * KIB
    shared: float = 2048.0 * KIB


class Noise(Struct, frozen=True):
    """How costs are disturbed. Standard deviations of logarithms (shares, for small ones), bytes, virtual seconds."""

    launch: float = 0.10  # of each launch's times
    ramp: float = 0.03  # that all launches of a ramp have in common
    slope: float = 0.02  # of what one more instance of a ramp takes in memory
    reading: float = 0.2 * MIB  # of each reading of the host's free memory
    level: float = 50.0 * MIB  # of free memory from ramp to ramp
    drift: float = 0.03  # of the host's speed, which wanders
    memory: float = 1.0  # virtual seconds after which the host's speed has forgotten what it was


NONE = Noise(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


class World:
    """The virtual host: its clock, its dice, what runs on it. Mutable state of one run."""

    def __init__(self, costs: Mapping[str, Costs], noise: Noise, seed: int) -> None:
        self.costs = costs  # by profile
        self._noise = noise
        self._dice = random.Random(seed)
        self._wandered, self._looked = noise.drift * self._dice.gauss(0, 1), 0.0
        self._harness = 40.0 * MIB
        self.now = 0.0  # virtual seconds
        self.live: dict[str, str] = {}  # instance -> profile
        self.cpu: dict[str, float] = {}
        self.begin_ramp()

    def begin_ramp(self) -> None:
        """Draw what all of the next ramp has in common."""
        dice, noise = self._dice, self._noise
        self._speed = math.exp(noise.ramp * dice.gauss(0, 1))
        self._slope = 1 + noise.slope * dice.gauss(0, 1)
        self._level = noise.level * dice.gauss(0, 1)

    def pace(self) -> float:
        """By how much a launch that begins now takes longer than it should."""
        kept = math.exp((self._looked - self.now) / self._noise.memory)
        self._looked = self.now
        fresh = self._noise.drift * math.sqrt(1 - kept * kept)
        self._wandered = kept * self._wandered + fresh * self._dice.gauss(0, 1)
        return self._speed * math.exp(self._wandered + self._noise.launch * self._dice.gauss(0, 1))

    def read(self) -> Iterator[tuple[str, float]]:
        """Bytes of every metric a real sampler would read."""
        profiles = list(self.live.values())
        costs = [self.costs[profile] for profile in profiles]
        taken = sum(one.marginal for one in costs) * self._slope + max((one.fixed for one in costs), default=0.0)
        self._harness += 10 * KIB
        stray = self._noise.reading * self._dice.gauss(0, 1)
        pss, kernel, disk = (sum(getattr(one, name) for one in costs) for name in ("pss", "kernel", "disk"))
        shared = max((one.shared for one in costs), default=0.0)
        yield "host.memory.available", _FREE + self._level + stray - taken - self._harness
        yield "host.memory.pcp", 0.0
        yield "harness.memory.pss", self._harness
        yield "instances.memory.pss", pss
        yield "instances.memory.uss", 0.9 * pss
        yield "instances.memory.kernel", kernel
        yield "instances.memory.cgroup", pss + kernel
        yield "instances.disk.own", disk
        yield "instances.disk.shared", shared
        yield "instances.disk.claimed", disk + shared * len(costs)


class SyntheticInstance:
    """Alive until stopped."""

    address: str | None = None

    def __init__(self, world: World, spec: InstanceSpec, phases: PhaseLog) -> None:
        self._world, self._spec, self._phases = world, spec, phases
        self._costs, self._pace = world.costs[spec.profile], world.pace()
        self._running = True

    @property
    def id(self) -> str:
        return self._spec.id

    def _after_launch(self, seconds: float) -> int:
        """That many virtual seconds after the request, at this instance's pace."""
        return self._phases.zero + round(seconds * self._pace * 1e9)

    def created(self) -> None:
        self._phases.stamp(Phase.CREATED, self._after_launch(self._costs.created))
        self._phases.stamp(Phase.STARTED, self._after_launch(self._costs.started))

    def wait_ready(self, timeout: float) -> None:
        self._phases.stamp(Phase.READY, self._after_launch(self._costs.ready))
        self._world.now += self._costs.ready * self._pace
        self._world.live[self.id] = self._spec.profile
        self._world.cpu[self.id] = self._costs.cpu * self._pace

    def alive(self) -> bool:
        return self._running

    def cause_of_death(self) -> str | None:
        return None

    def exec(self, argv: Sequence[str], *, timeout: float) -> Completed:
        return Completed(0, "", "")

    def stop(self, timeout: float) -> None:
        self._pace = self._world.pace()
        self._end(Phase.STOPPED, self._costs.stopped)

    def removed(self) -> None:
        self._end(Phase.REMOVED, self._costs.removed)
        self._world.now += self._costs.removed * self._pace

    def _end(self, phase: Phase, seconds: float) -> None:
        """Stamp `phase` that long after the request to stop, if there was one."""
        self._running = False
        self._world.live.pop(self.id, None)
        if (asked := self._phases.get(Phase.STOP)) is not None:
            self._phases.stamp(phase, asked + self._after_launch(seconds))

    def kill(self) -> None:
        self._running = False

    def footprint(self) -> Footprint:
        return Footprint(instance=self.id)


class SyntheticDriver:
    """See the module."""

    name = NAME

    def __init__(self, world: World) -> None:
        self._world = world

    def support(self, host: HostFacts) -> Support:
        return Support(True)

    def describe(self) -> Mapping[str, str]:
        return {"synthetic": "no instance runs; costs are known and noise is made"}

    def prepare(self, spec: InstanceSpec) -> None:
        """Nothing to make."""

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> Iterator[SyntheticInstance]:
        instance = SyntheticInstance(self._world, spec, phases)
        instance.created()
        try:
            yield instance
        finally:
            instance.removed()

    def reap(self, run: RunId) -> Sequence[Leftover]:
        return ()

    def close(self) -> None:
        """Nothing to let go of."""

    def cpu_seconds(self, footprint: Footprint) -> float | None:
        return self._world.cpu.get(footprint.instance)


class SyntheticSampler:
    """Reads the virtual host. A sample of nothing begins a ramp: every ramp takes one before its first launch."""

    name = NAME

    def __init__(self, world: World) -> None:
        self._world = world

    def read(self, footprints: Sequence[Footprint]) -> list[Reading]:
        if not footprints:
            self._world.begin_ramp()
        self._world.now += 0.5
        return [Reading(metric, value, "bytes") for metric, value in self._world.read()]
