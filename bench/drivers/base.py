"""The contract of a driver. Every driver passes tests/integration/test_driver_contract.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from bench.model import Completed, Footprint, HostFacts, InstanceSpec, Leftover, PhaseLog, RunId, Support


class Instance(Protocol):
    """One running container, VM or process."""

    @property
    def id(self) -> str: ...

    @property
    def address(self) -> str | None:
        """IPv4 address at which the host reaches it; None without a network."""
        ...

    def wait_ready(self, timeout: float) -> None:
        """Return when the payload is ready, its `ready` phase stamped.

        Raises ReadyTimeoutError after `timeout` seconds and LaunchError as soon as it has died, both with the tail
        of its output or console.
        """
        ...

    def alive(self) -> bool:
        """Whether its first process (payload, guest) still runs; cheap."""
        ...

    def cause_of_death(self) -> str | None:
        """Of one that is not alive: what ended it, where the kernel's own counters prove it. None: not known."""
        ...

    def exec(self, argv: Sequence[str], *, timeout: float) -> Completed:
        """Run `argv` inside and return what it said. Raises CommandError after `timeout` seconds."""
        ...

    def stop(self, timeout: float) -> None:
        """Ask it to end and wait; after `timeout` seconds it is killed. Returns when nothing of it runs. Idempotent."""
        ...

    def kill(self) -> None:
        """End it at once, without asking. Idempotent."""
        ...

    def footprint(self) -> Footprint: ...


class Driver(Protocol):
    """One way to run an instance."""

    @property
    def name(self) -> str: ...

    def support(self, host: HostFacts) -> Support:
        """Whether it can run here; never raises."""
        ...

    def describe(self) -> Mapping[str, str]:
        """Versions and effective configuration, stored with the run."""
        ...

    def prepare(self, spec: InstanceSpec) -> None:
        """Untimed and idempotent: unpack layers, build disks, start what must run first."""
        ...

    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> AbstractContextManager[Instance]:
        """Entering launches (and stamps `created`, `started`); leaving removes all of it, running or not."""
        ...

    def reap(self, run: RunId) -> Sequence[Leftover]:
        """Find and remove what a dead run left; idempotent. Returns what was found."""
        ...

    def close(self) -> None:
        """Let go of connections and helpers. Idempotent."""
        ...


@runtime_checkable
class Sourced(Protocol):
    """A driver whose launches can be cold."""

    @property
    def name(self) -> str: ...

    def sources(self, spec: InstanceSpec) -> Sequence[str]:
        """Files and trees of this host that a launch of `spec` reads: the image in the driver's form, and what runs it.
        After `prepare`."""
        ...


@runtime_checkable
class Pooling(Protocol):
    """A driver with profiles whose instances take what was made for them beforehand.

    That is there for one ramp only: other ramps must not find it, and its cost is recorded apart from launches.
    """

    def pools(self, spec: InstanceSpec) -> bool:
        """Whether instances of this profile do."""
        ...

    def fill(self, spec: InstanceSpec, count: int) -> None:
        """Make ready what `count` launches take. After `prepare`; may be called again with more. Raises HostError."""
        ...

    def drain(self) -> None:
        """Remove what is ready and what was used, after the instances. Idempotent."""
        ...
