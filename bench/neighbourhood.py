"""One driver's neighbours: three instances, and every experiment of a trial with two of them.

One experiment, on one line of time; the aggressor ends by itself, some time after the victim's window:

    aggressor   |-- lead --|------------ window ------------|-- tail --|
    victim                 |========== units, requests =====|

Knows drivers by their Protocols only. All three instances (the victim, a neighbour with the declared limits, one with
raised ones) are alive in every experiment, also where nobody presses: what differs between two is the load alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from msgspec import Struct

from bench.battery import held
from bench.drivers.base import Driver, Instance
from bench.errors import BenchError, LaunchError
from bench.levels import NEED_NETWORK, Neighbours
from bench.limiters import Stop
from bench.model import Footprint, HttpCheck, InstanceSpec, Limits
from bench.plan import NEIGHBOUR_ROOM, Trial
from bench.probes.neighbours.cells import Cell, amount, cells
from bench.probes.neighbours.uses import Watch, charge_of, uses
from bench.probes.neighbours.work import (
    Pressed,
    of_answers,
    press_of,
    press_words,
    pressed,
    times_of,
    work_words,
    worked,
)
from bench.records import Aggressor, LimitsOf, Press, Times, Use
from bench.service import Ask

log = logging.getLogger(__name__)

TAIL = 0.5  # seconds an aggressor goes on beyond the window: a slow last unit is still beside it
_REPLY = 1.0  # seconds a request may take
_VICTIM = "victim"
_LOOK = 0.5  # seconds between two looks at the host's pressure


class Measured(Struct, frozen=True):
    """Of one experiment; see records.NeighbourRecord."""

    times: Times | None = None
    press: Press | None = None
    uses: tuple[Use, ...] = ()
    missing: str | None = None


@dataclass(frozen=True)
class Kit:
    """All that experiments need beside the driver; built by the session."""

    program: str  # inside every instance
    keys: Neighbours
    declared: Limits
    raised: Limits
    check: HttpCheck | None  # how a victim is asked
    ask: Ask
    serve: Callable[[Instance, float], AbstractContextManager[tuple[str, int]]]  # the host's end of a network load
    stop: Callable[[Limits], Stop | None]  # why something of this size must not be taken from the host now
    cpu_seconds: Callable[[Footprint], float | None]
    shield: Callable[[], AbstractContextManager[None]]
    timeout: float  # seconds from launch to ready
    patience: float  # seconds that a program inside may take beyond its own time
    calm: float = 0.0  # seconds of a trial that may be spent on waiting for pressure on the host's memory to pass

    def limits(self, name: LimitsOf) -> Limits:
        return self.declared if name == "declared" else self.raised


class Neighbourhood:
    """The experiments of one run."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    def run(
        self,
        trial: Trial,
        driver: Driver,
        spec: Callable[[int, Limits], InstanceSpec],
        seed: str,
        keep: Callable[[Cell, Measured], None],
        doing: Callable[[str], None],
    ) -> None:
        """All experiments of `trial`, each kept as it is made. Raises LaunchError if instances can't be launched."""
        room = _Room(self._kit)
        site = _Site(self._kit, driver, spec, trial.first, room)
        try:
            site.open()
            for cell in cells(self._kit.keys, seed):
                doing(cell.name)
                victim, beside = site.pair(cell.limits)
                keep(cell, self._measured(cell, victim, beside, room))
        finally:
            with self._kit.shield():
                site.close()

    def _measured(self, cell: Cell, victim: Instance, beside: Instance, room: _Room) -> Measured:
        if why := self._hindrance(cell, victim, beside, room):
            return Measured(missing=why)
        try:
            return self._experiment(cell, victim, beside)
        except (BenchError, OSError) as error:
            return Measured(missing=error.message if isinstance(error, BenchError) else str(error))

    def _hindrance(self, cell: Cell, victim: Instance, beside: Instance, room: _Room) -> str | None:
        """Why this experiment can't be made, or must not be."""
        if cell.victim in NEED_NETWORK and victim.address is None:
            return "no network: nobody outside can ask the victim"
        if cell.victim == "httpd" and self._kit.check is None:
            return "nobody outside can ask the victim: its payload has no reply"
        if cell.aggressor in NEED_NETWORK and beside.address is None:
            return "no network: the neighbour can neither send nor receive"
        if cell.aggressor == "none":
            return None
        stop = room.stop(self._kit.limits(cell.limits))
        return f"the host's reserve comes first: {stop.evidence}" if stop else None

    def _experiment(self, cell: Cell, victim: Instance, beside: Instance) -> Measured:
        kit = self._kit
        charge = charge_of(beside.footprint(), kit.cpu_seconds)
        with ExitStack() as stack:
            load = self._load(cell, beside, stack)
            watch = stack.enter_context(Watch(charge))
            pressing = stack.enter_context(self._pressing(load, beside))
            time.sleep(kit.keys.lead)
            began = time.monotonic()
            times = self._victim(cell, victim, beside)
            ended = time.monotonic()
            pressing.join(kit.keys.lead + kit.keys.window + TAIL + kit.patience)
        return _concluded(times, pressing, uses(watch.found, kit.limits(cell.limits), began, ended), began, ended)

    # --- the victim ------------------------------------------------------------------------------------------------

    def _victim(self, cell: Cell, victim: Instance, beside: Instance) -> Times:
        keys = self._kit.keys
        if cell.victim == "httpd":
            return self._asked(victim, beside if cell.aggressor == "polite" else None)
        argv = work_words(self._kit.program, cell.victim, keys.window)
        said = worked(argv, victim.exec(argv, timeout=keys.window + self._kit.patience))
        if said.missing:
            raise LaunchError(f"the victim could not work: {said.missing}")
        return times_of([took / 1e9 for took in said.took])

    def _asked(self, victim: Instance, polite: Instance | None) -> Times:
        """A polite neighbour is asked as often as the victim, in turn with it."""
        kit, addresses = self._kit, [victim.address or ""]
        if polite is not None and polite.address is not None:
            addresses.append(polite.address)
        requests = max(round(kit.keys.rate * kit.keys.window), 1)
        order = list(range(len(addresses))) * requests
        assert kit.check is not None
        answers = kit.ask(kit.check, addresses, order, kit.keys.rate * len(addresses), _REPLY)
        return of_answers(answers, 0)

    # --- the neighbour ---------------------------------------------------------------------------------------------

    def _load(self, cell: Cell, beside: Instance, stack: ExitStack) -> Callable[[], Pressed] | None:
        """What the neighbour does meanwhile, to be run in a thread; None where that is nothing of its own."""
        kit, aggressor = self._kit, cell.aggressor
        seconds = kit.keys.lead + kit.keys.window + TAIL
        timeout = seconds + kit.patience
        if aggressor == "none" or (aggressor == "polite" and cell.victim == "httpd"):
            return None
        if aggressor == "polite":
            argv = work_words(kit.program, cell.victim, seconds)

            def works() -> Pressed:
                said = worked(argv, beside.exec(argv, timeout=timeout))
                return Pressed(float(len(said.took)), "units", missing=said.missing)

            return works
        return self._aggression(aggressor, beside, seconds, timeout, stack)

    def _aggression(
        self, aggressor: Aggressor, beside: Instance, seconds: float, timeout: float, stack: ExitStack
    ) -> Callable[[], Pressed]:
        kit = self._kit
        there = stack.enter_context(kit.serve(beside, seconds)) if aggressor in ("send", "receive") else None
        argv = press_words(kit.program, aggressor, seconds, amount(aggressor, kit.declared, kit.raised), there)
        return lambda: pressed(argv, beside.exec(argv, timeout=timeout))

    @contextmanager
    def _pressing(self, load: Callable[[], Pressed] | None, beside: Instance) -> Iterator[_Pressing]:
        """The load in a thread. Nobody is left waiting for it: whoever leaves early ends the neighbour."""
        seconds = self._kit.keys.lead + self._kit.keys.window + TAIL
        pressing = _Pressing(load, seconds)
        pressing.start()
        try:
            yield pressing
        finally:
            with self._kit.shield():
                if pressing.running:
                    beside.kill()
                pressing.join(self._kit.patience)


@dataclass
class _Pressing:
    """A load that runs beside; `said` or `error` once it has ended."""

    load: Callable[[], Pressed] | None
    seconds: float
    said: Pressed | None = None
    error: str | None = None
    ended: float | None = None  # CLOCK_MONOTONIC
    thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        if self.load is not None:
            self.thread = threading.Thread(target=self._work, name="bench-aggressor", daemon=True)
            self.thread.start()

    def _work(self) -> None:
        assert self.load is not None
        try:
            self.said = self.load()
        except BenchError as error:
            self.error = error.message
        except OSError as error:
            self.error = str(error)
        self.ended = time.monotonic()

    @property
    def running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def join(self, timeout: float) -> None:
        if self.thread is not None:
            self.thread.join(timeout)

    def beside(self, began: float, ended: float) -> float:
        """The share of a victim's time in which it was at work: it ended by itself after `seconds`."""
        if self.ended is None or ended <= began:
            return 0.0
        return max(0.0, min(ended, self.ended) - max(began, self.ended - self.seconds)) / (ended - began)


def _concluded(times: Times, pressing: _Pressing, used: tuple[Use, ...], began: float, ended: float) -> Measured:
    if pressing.load is None:
        return Measured(times, None, used)
    if pressing.said is None or pressing.said.missing or not pressing.said.amount:
        said = pressing.said.missing if pressing.said else pressing.error
        return Measured(times, None, used, missing=f"the neighbour did nothing: {said or 'it did not end in time'}")
    return Measured(times, press_of(pressing.said, pressing.beside(began, ended)), used)


class _Room:
    """Whether the host has room for a load. Pressure is given time to pass: an average of ten seconds holds the loads
    of the experiments before, and whoever came after a memory load would be left out for it."""

    def __init__(self, kit: Kit) -> None:
        self._kit, self._left = kit, kit.calm

    def stop(self, limits: Limits) -> Stop | None:
        while (stop := self._kit.stop(limits)) is not None and stop.limiter == "pressure" and self._left > 0:
            self._left -= _LOOK
            time.sleep(_LOOK)
        return stop


class _Site:
    """A victim and two neighbours, launched again when a load ended them."""

    def __init__(
        self, kit: Kit, driver: Driver, spec: Callable[[int, Limits], InstanceSpec], first: int, room: _Room
    ) -> None:
        self._kit, self._driver, self._spec, self._room = kit, driver, spec, room
        self._numbers = iter(range(first, first + NEIGHBOUR_ROOM))
        self._live: dict[str, tuple[Instance, ExitStack]] = {}

    @property
    def _roles(self) -> Mapping[str, Limits]:
        return {_VICTIM: self._kit.declared, "declared": self._kit.declared} | {
            str(name): self._kit.limits(name) for name in self._kit.keys.limits
        }

    def open(self) -> None:
        """Raises LaunchError, HostError."""
        for role, limits in self._roles.items():
            self._live[role] = self._launch(limits)

    def pair(self, limits: LimitsOf) -> tuple[Instance, Instance]:
        """The victim and the neighbour with these limits, alive."""
        for role, size in self._roles.items():
            if role not in self._live or not self._live[role][0].alive():
                if role in self._live:
                    self._live.pop(role)[1].close()
                self._live[role] = self._launch(size)
        return self._live[_VICTIM][0], self._live[limits][0]

    def _launch(self, limits: Limits) -> tuple[Instance, ExitStack]:
        if stop := self._room.stop(limits):
            raise LaunchError(f"the host's reserve comes first: {stop.evidence}")
        number = next(self._numbers, None)
        if number is None:
            raise LaunchError(f"{NEIGHBOUR_ROOM} instances were ended by loads; no more are launched")
        return held(self._driver, self._spec(number, limits), self._kit.timeout, self._kit.shield)

    def close(self) -> None:
        for _, stack in reversed(self._live.values()):
            _closed(stack)
        self._live.clear()


def _closed(stack: ExitStack) -> None:
    try:
        stack.close()
    except (BenchError, OSError) as error:
        log.warning("a neighbour could not be ended in good order: %s", error)
