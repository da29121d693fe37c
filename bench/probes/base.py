"""The contract of a probe, and what it may touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from msgspec import Struct

from bench.drivers.base import Instance
from bench.model import Limits
from bench.records import Finding, Severity


class Answer(Struct, frozen=True):
    """What the attack program says of one attack. It is the attacker's word: only `said` can prove more."""

    done: bool
    errno: int
    step: str
    said: str


class Held(Struct, frozen=True):
    """What the canary process holds, each a way to `secret`; numbers are the host's."""

    secret: str
    folder: str
    pid: int
    address: str
    descriptor: int
    loopback: int
    everywhere: int
    segment: int
    key: int
    socket: str
    handle_type: int
    handle: str

    @property
    def file(self) -> str:
        return f"{self.folder}/file"

    @property
    def signalled(self) -> str:
        """A file that the process makes and writes to when it gets SIGUSR2."""
        return f"{self.folder}/signalled"


class World(Protocol):
    """Outside the boundary: this host, or, for controls that could harm it, the guest that stands in for it."""

    @property
    def held(self) -> Held:
        """Raises LookupError in a guest: attacks on a canary are controlled on the host."""
        ...

    def read(self, path: str) -> str | None:
        """A file of the world's; None if it has none or does not let it be read."""
        ...

    def write(self, path: str, text: str) -> None: ...

    def damage(self) -> Sequence[str]:
        """What of the canary is not as it was made: nothing, after probes that put back what they changed."""
        ...

    def lists(self, mark: str) -> bool:
        """Whether a process of its kernel has `mark` on its command line."""
        ...

    def greeting(self, port: int) -> str:
        """What a server on 127.0.0.1 says to who connects; empty without one."""
        ...

    def leaking(self, words: Sequence[str]) -> Answer:
        """The attack as a process that was given a descriptor of the canary's file by mistake."""
        ...

    def bare(self, words: Sequence[str], timeout: float) -> Answer:
        """The attack as a process outside any instance, without limits. Raises CommandError after `timeout` seconds."""
        ...

    @property
    def addresses(self) -> Sequence[str]:
        """Its own IPv4 addresses: nobody else is ever connected to."""
        ...


@dataclass(frozen=True)
class Scene:
    """One instance to attack from, and who is around."""

    instance: Instance
    neighbour: Instance | None
    world: World
    program: str
    limits: Limits
    same_kernel: bool  # as the world's
    bare: bool  # it sees the world's mounts: nothing that could harm the world is tried
    timeout: float  # seconds one attack may take


class Probe(Protocol):
    """One attack."""

    @property
    def id(self) -> str:
        """`family.name`."""
        ...

    @property
    def claim(self) -> str:
        """What a good boundary guarantees, in a sentence."""
        ...

    @property
    def severity(self) -> Severity:
        """Of an escape."""
        ...

    @property
    def place(self) -> Literal["process", "guest"]:
        """Where its control runs: a guest where the attack could harm a host."""
        ...

    def run(self, scene: Scene) -> Finding:
        """Attack. Raises BenchError if the instance ends, or does not answer in time."""
        ...

    def control(self, scene: Scene) -> Finding:
        """The same without the boundary: it must get through."""
        ...
