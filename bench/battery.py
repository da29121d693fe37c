"""One probe battery: two instances of a driver, every probe from inside one of them, and the controls.

Knows drivers and probes by their Protocols only. Controls are made once a run, before its first battery: as a bare
process of this host where that harms nothing, else as a bare process of a disposable guest.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from bench.drivers.base import Driver, Instance
from bench.errors import BenchError
from bench.model import InstanceSpec, Limits, PhaseLog
from bench.plan import BATTERY_ROOM, Trial
from bench.probes.base import Answer, Probe, Scene, World
from bench.records import Containment, Finding, FindingRecord

log = logging.getLogger(__name__)

Place = Literal["process", "guest"]


@dataclass(frozen=True)
class Control:
    """Where the boundary is absent: instances of `driver` as `spec` (of a number) describes them."""

    driver: Driver
    spec: Callable[[int], InstanceSpec]


@dataclass(frozen=True)
class Kit:
    """All that batteries need beside the driver; built by the session."""

    probes: Sequence[Probe]
    program: str  # inside every instance
    world: Callable[[], AbstractContextManager[World]]  # this host, with a canary
    guest_world: Callable[[Instance], World]
    ask: Callable[..., Answer]  # one attack: scene, words
    mounts: str  # the mount namespace of this host, as /proc names it
    kernel: str  # its boot id
    controls: Mapping[Place, Control]  # those this host can make
    differences: Callable[[], AbstractContextManager[list[str]]]  # what changed on this host meanwhile, once left
    limits: Limits  # declared; a guest of controls may have more
    shield: Callable[[], AbstractContextManager[None]]
    timeout: float  # seconds from launch to ready
    patience: float  # seconds one attack may take


class Battery:
    """Batteries of one run."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._controls: dict[str, Finding] | None = None

    def run(
        self,
        trial: Trial,
        driver: Driver,
        spec: Callable[[int], InstanceSpec],
        record: Callable[[Probe, str, Finding, Finding | None, float], FindingRecord],
        keep: Callable[[FindingRecord], None],
        doing: Callable[[str], None],
    ) -> list[str]:
        """All probes against instances of `driver`, each finding kept as it is made.

        Returns what is different on this host afterwards. Raises LaunchError if instances can't be launched.
        """
        kit = self._kit
        with kit.differences() as changed:
            if self._controls is None:
                self._controls = self._control(trial.first, doing)
            controls = self._controls
            with kit.world() as world, self._site(driver, spec, trial.first, world) as site:
                for probe in kit.probes:
                    doing(f"probe {probe.id}")
                    began = time.monotonic()
                    scene = site.scene()
                    finding = self._run(probe, scene, controls.get(probe.id))
                    seconds = time.monotonic() - began
                    keep(record(probe, scene.instance.id, finding, controls.get(probe.id), seconds))
                changed += world.damage()
        return changed

    def _run(self, probe: Probe, scene: Scene, control: Finding | None) -> Finding:
        if scene.bare and probe.place == "guest":
            if control is None:
                return Finding(Containment.UNAVAILABLE, "not tried on this host, and no guest could be had")
            return Finding(control.outcome, f"not tried on this host; in a disposable guest: {control.evidence}")
        return _guarded(probe.run, scene)

    # --- controls --------------------------------------------------------------------------------------------------

    def _control(self, first: int, doing: Callable[[str], None]) -> dict[str, Finding]:
        """The findings of all controls that can be made, by probe."""
        found: dict[str, Finding] = {}
        for place, control in self._kit.controls.items():
            try:
                self._control_at(place, control, first, found, doing)
            except BenchError as error:
                log.warning("controls as a bare %s could not be made: %s", place, error.message)
        return found

    def _control_at(
        self, place: Place, control: Control, first: int, found: dict[str, Finding], doing: Callable[[str], None]
    ) -> None:
        with self._kit.world() as host:
            world = host if place == "process" else None
            with self._site(control.driver, control.spec, first, world) as site:
                for probe in self._kit.probes:
                    if probe.place == place:
                        doing(f"control of {probe.id}")
                        found[probe.id] = _guarded(probe.control, site.scene())

    @contextmanager
    def _site(
        self, driver: Driver, spec: Callable[[int], InstanceSpec], first: int, world: World | None
    ) -> Iterator[_Site]:
        site = _Site(self._kit, driver, spec, first, world)
        try:
            site.open()
            yield site
        finally:
            with self._kit.shield():
                site.close()


class _Site:
    """An attacker and its neighbour, launched again when an attack ended them. Without a world the attacker is one."""

    def __init__(
        self, kit: Kit, driver: Driver, spec: Callable[[int], InstanceSpec], first: int, world: World | None
    ) -> None:
        self._kit, self._driver, self._spec, self._world = kit, driver, spec, world
        self._numbers = iter(range(first, first + BATTERY_ROOM))
        self._live: list[tuple[Instance, contextlib.ExitStack]] = []
        self._shared: dict[str, tuple[bool, bool]] = {}  # by the attacker's id

    def open(self) -> None:
        """Raises LaunchError, HostError."""
        self._driver.prepare(self._spec(0))
        for _ in range(2 if self._world is not None else 1):
            self._live.append(self._launch())

    def _launch(self) -> tuple[Instance, contextlib.ExitStack]:
        number = next(self._numbers, None)
        if number is None:
            raise BenchError(f"{BATTERY_ROOM} instances were ended by attacks; no more are launched")
        return held(self._driver, self._spec(number), self._kit.timeout, self._kit.shield)

    def scene(self) -> Scene:
        """As it is now, with whoever had ended launched again."""
        for place, (instance, stack) in enumerate(self._live):
            if not instance.alive():
                stack.close()
                self._live[place] = self._launch()
        attacker = self._live[0][0]
        neighbour = self._live[1][0] if len(self._live) > 1 else None
        world = self._world or self._kit.guest_world(attacker)
        scene = Scene(attacker, neighbour, world, self._kit.program, self._kit.limits, True, True, self._kit.patience)
        if self._world is None:
            return scene
        if attacker.id not in self._shared:
            self._shared[attacker.id] = self._look(scene)
        same, bare = self._shared[attacker.id]
        return replace(scene, same_kernel=same, bare=bare)

    def _look(self, scene: Scene) -> tuple[bool, bool]:
        """Whether the kernel is the world's, and whether its mounts are. No host is to panic by mistake: for another
        kernel it takes an answer, another boot id, and a process that the world does not see."""
        mark = f"canary-{secrets.token_hex(8)}"
        answer = self._kit.ask(scene, "where")
        kernel, _, mounts = answer.said.partition(" ")
        lingers = self._kit.ask(scene, "linger", "2", mark)
        same = not answer.done or not lingers.done or kernel == self._kit.kernel or scene.world.lists(mark)
        return same, same and (not answer.done or mounts == self._kit.mounts)

    def close(self) -> None:
        for _, stack in reversed(self._live):
            try:
                stack.close()
            except (BenchError, OSError) as error:
                log.warning("an instance of a battery could not be ended in good order: %s", error)
        self._live.clear()


def _guarded(attack: Callable[[Scene], Finding], scene: Scene) -> Finding:
    """A probe that fails is a finding too: of nothing."""
    try:
        return attack(scene)
    except BenchError as error:
        return Finding(Containment.ERROR, error.message)
    except (OSError, LookupError, ValueError) as error:
        return Finding(Containment.ERROR, f"{type(error).__name__}: {error}")


def held(
    driver: Driver, spec: InstanceSpec, timeout: float, shield: Callable[[], AbstractContextManager[None]]
) -> tuple[Instance, contextlib.ExitStack]:
    """An instance that is ready, and what ends it. One that does not come up is ended here, whatever kept it: an
    interrupt too, and behind the shield, so that a second one leaves nothing."""
    stack = contextlib.ExitStack()
    try:
        instance = stack.enter_context(driver.launch(spec, PhaseLog()))
        instance.wait_ready(timeout)
    except BaseException:
        with shield():
            stack.close()
        raise
    return instance, stack
