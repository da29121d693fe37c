"""A running guest: created paused, its sockets taken over, resumed; stopped through its agent or destroyed."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import LaunchError, ReadyTimeoutError, StopError
from bench.linux import cgroups, oom
from bench.linux.lines import LineHub, LineStream
from bench.linux.subreaper import Reaper, Watched
from bench.model import Completed, GuestRam, Phase, PhaseLog
from bench.vm import groups
from bench.vm.agent import Agent
from bench.vm.clone import WAITING_MARK, Saved, restore, save
from bench.vm.connection import Connection, destroy, domain_gone, errors
from bench.vm.diagnose import LastLook, last_words, likely_cause
from bench.vm.elements import Domain
from bench.vm.identity import Identity
from bench.vm.ram import guest_ram
from bench.vm.sockets import Listener, detach

log = logging.getLogger(__name__)

INIT_MARK = "bench: init"
HALTED_MARK = "reboot: System halted"
"""What a kernel says that was told to power off and does not know how: a guest's without ACPI. We do it for it."""
_CONNECT = 10.0  # seconds for QEMU to open its sockets: it has by the time createXML returns
_PATIENCE = 1.0  # seconds; creating takes longer if libvirt asks QEMU anew, and then it waits for those to be reaped
_GRACE = 3.0  # seconds the payload gets to end by itself when the guest is stopped
_CORPSE = 1.0  # seconds from the end of its sockets to its own
_FORGET = 5.0  # seconds libvirt gets to tidy up after QEMU has ended


@dataclass(frozen=True)
class Host:
    """What guests of one driver share."""

    connection: Connection
    hub: LineHub
    reaper: Reaper


@dataclass(frozen=True)
class Order:
    """One guest to be. `marks` are looked for in its output; `logs` is where its evidence goes (None: nowhere).

    A clone has `saved`, where it starts from, and the `identity` it is given. `own`: files on disk that only it has.
    """

    id: str
    domain: Domain
    marks: tuple[str, ...]
    logs: Path | None = None
    huge_pages: bool = True
    saved: Saved | None = None
    identity: Identity | None = None
    own: tuple[str, ...] = ()
    address: str | None = None

    def log(self, suffix: str) -> Path | None:
        return self.logs / f"{self.id}.{suffix}" if self.logs else None


class Guest:
    """One guest. Made by `boot`, which also removes it."""

    def __init__(
        self, order: Order, handle: Any, watched: Watched, console: LineStream, output: LineStream, agent: Agent,
        phases: PhaseLog, held: dict[str, str], last: LastLook,
    ) -> None:  # fmt: skip
        self.order, self.handle, self.watched = order, handle, watched
        self.console, self.output, self.agent, self.phases = console, output, agent, phases
        self.cgroups, self._last = held, last
        self.argv = command_line(watched.pid)

    @property
    def pid(self) -> int:
        """Host pid of its QEMU."""
        return self.watched.pid

    @functools.cached_property
    def ram(self) -> GuestRam | None:
        """Where its RAM is on the host, asked when first wanted: that is not part of its launch."""
        return guest_ram(self.handle, self.pid)

    def alive(self) -> bool:
        return not self.watched.gone.is_set()

    def cause_of_death(self) -> str | None:
        """What the kernel counted when its QEMU ended; None if it counted nothing, or nobody saw."""
        return None if self.alive() else self._last.cause

    def wait_line(self, mark: str, timeout: float) -> None:
        """Wait for `mark` in the payload's output and stamp `ready`. Raises ReadyTimeoutError or LaunchError."""
        try:
            self.ready_at(self.output.wait(mark, timeout))
        except TimeoutError:
            raise self.not_ready(timeout) from None
        except EOFError:
            raise self.ended() from None

    def wait_to_be_saved(self, timeout: float) -> None:
        """Wait for a template to come to where its clones begin. Raises ReadyTimeoutError or LaunchError."""
        try:
            self.console.wait(WAITING_MARK, timeout)
        except TimeoutError:
            raise self.not_ready(timeout) from None
        except EOFError:
            raise self.ended() from None

    def ready_at(self, stamp: int) -> None:
        self.stamp_boot()
        self.phases.stamp(Phase.READY, stamp)

    def stamp_boot(self) -> None:
        """Stamp what the console has shown so far; on failure too, it says how far the guest came."""
        if self.order.saved:  # its console begins in the middle of the template's life
            return
        stamps = {Phase.KERNEL: self.console.first_byte, Phase.INIT: self.console.stamp(INIT_MARK)}
        for phase, at in stamps.items():
            if at is not None:
                self.phases.stamp(phase, at)

    def not_ready(self, timeout: float) -> LaunchError:
        self.stamp_boot()
        hint = "raise timeout, or look at what payload.ready waits for"
        return ReadyTimeoutError(self._story(f"was not ready within {timeout:g} s"), hint=hint)

    def ended(self) -> LaunchError:
        self.stamp_boot()
        self.watched.gone.wait(_CORPSE)  # its sockets are closed a little earlier
        return LaunchError(self._story("ended before it was ready"))

    def _story(self, what: str) -> str:
        console = self.console.tail()
        cause = self.cause_of_death() or likely_cause(console)
        because = f" ({cause})" if cause else ""
        return f"{self.order.id} {what}{because}; it said last\n{last_words(console, self.output.tail())}"

    def exec(self, argv: Sequence[str], timeout: float) -> Completed:
        if not self.alive():
            raise LaunchError(f"{self.order.id} does not run any more")
        return self.agent.exec(argv, timeout)

    def stop(self, timeout: float) -> None:
        """Ask the payload to end and the guest to power off; destroy it after `timeout` seconds."""
        if self.alive():
            self.agent.ask_to_stop(min(_GRACE, timeout / 2))
            if not self.watched.gone.wait(timeout):
                log.info("%s did not power off within %g s: destroyed", self.order.id, timeout)
        self.kill()

    def kill(self) -> None:
        """Destroy it the way libvirt does. Raises StopError if its QEMU survives even SIGKILL."""
        if self.alive():
            destroy(self.handle)
            if not self.watched.gone.wait(1):
                _kill(self.pid)
        if not self.watched.gone.wait(_FORGET):
            raise StopError(
                f"QEMU of {self.order.id} (pid {self.pid}) does not end", hint=f"look at /proc/{self.pid}/stack"
            )

    def remove(self) -> None:
        """Kill it, and wait until libvirt has forgotten it and its cgroups are gone."""
        try:
            self.kill()
        finally:
            for end in (self.agent, self.console, self.output):
                end.close()
        deadline = time.monotonic() + _FORGET
        while not domain_gone(self.handle) and time.monotonic() < deadline:
            time.sleep(0.002)
        destroy(self.handle)
        for path in sorted(set(self.cgroups.values())):
            cgroups.remove(path)  # libvirt does, but not where QEMU ended while it looked away


@contextmanager
def boot(host: Host, order: Order, phases: PhaseLog) -> Iterator[Guest]:
    """Create the domain paused, take over its sockets, let it run; on the way out nothing of it is left.

    Stamps `created` and `started`. Raises LaunchError.
    """
    with ExitStack() as stack:
        with ExitStack() as opening:
            listeners = [opening.enter_context(Listener(Path(path))) for path in _paths(order.domain)]
            with host.reaper.sweeping("qemu", _PATIENCE):
                handle = host.connection.create(order.domain.text(), order.huge_pages)
            phases.stamp(Phase.CREATED)
            undo = stack.enter_context(ExitStack())
            undo.callback(destroy, handle)
            guest = _adopt(host, order, handle, listeners, phases)
        stack.callback(guest.remove)
        undo.pop_all()
        oom.adjust(guest.pid, oom.INSTANCE)  # before its RAM is touched
        if order.saved:
            restore(handle, Path(order.saved.state))
        with errors(LaunchError, f"{order.id} does not start"):
            handle.resume()
        phases.stamp(Phase.STARTED)
        if order.identity:
            guest.agent.awaken(order.identity.packed())
        _keep_evidence(guest)
        yield guest


def save_template(host: Host, order: Order, memory: Path, size: int, state: Path, timeout: float) -> Saved:
    """Boot the template, save it where it waits for an identity, and end it. Raises LaunchError."""
    began = time.monotonic()
    with boot(host, order, PhaseLog()) as guest:
        guest.wait_to_be_saved(timeout)
        save(guest.handle, state)
    return Saved(str(memory), str(state), size, time.monotonic() - began)


def _paths(domain: Domain) -> list[str]:
    return [domain.console.path, *(channel.path for channel in domain.channels)]


def _adopt(host: Host, order: Order, handle: Any, listeners: list[Listener], phases: PhaseLog) -> Guest:
    """Take over what QEMU has connected to, and watch its process."""
    pid = host.connection.pid_of(order.domain.name)
    console, output, agent = (listener.accept(_CONNECT) for listener in listeners)
    held = groups.groups_of(pid, order.domain.name)
    last = LastLook(held)
    watched = host.reaper.watch(pid, last.take)
    seen = {INIT_MARK: None, WAITING_MARK: None} | ({} if order.domain.acpi else {HALTED_MARK: lambda: _kill(pid)})
    streams = (
        host.hub.watch(detach(console), marks=seen, log=order.log("console.log")),
        host.hub.watch(detach(output), marks=order.marks, log=order.log("payload.log")),
    )
    return Guest(order, handle, watched, *streams, Agent(agent, order.id), phases, held, last)


def _keep_evidence(guest: Guest) -> None:
    """The domain as libvirt completed it, and what QEMU was really started with."""
    if (path := guest.order.log("xml")) is not None:
        with errors(LaunchError, f"{guest.order.id} ended at once"):
            path.write_text(guest.handle.XMLDesc())
        path.with_suffix(".argv").write_text("\n".join(guest.argv) + "\n")


def command_line(pid: int) -> list[str]:
    """Words of a process's command line; empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
