"""Tables of a scenario about how far a ramp goes, what counts as useful, and what the payload does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from bench.model import GIB, MIB, Limits
from bench.records import Aggressor, LimitsOf, Victim

MOST_TOUCHED = 1 << 20  # MiB
GUEST_NEEDS = 32
"""MiB of a guest's RAM that its kernel and its root file system take."""


class Reserve(Struct, frozen=True, forbid_unknown_fields=True):
    """[reserve]: what stays left to the host, looked at before each launch; of `memory` and `fraction` the larger.

    Bytes; share of the host's memory; share of time (PSI memory, some, avg10); bytes; counts.
    """

    memory: int = 2 * GIB
    fraction: float = 0.10
    pressure: float = 0.10
    disk: int = 2 * GIB
    pids: int = 1024
    descriptors: int = 512


class ToLimit(Struct, frozen=True, forbid_unknown_fields=True):
    """[to_limit]: ramp until something stops it; these bounds hold in any case. Instances; seconds of one ramp."""

    on: bool = False
    count: int = 4096
    time: float = 900.0


class Service(Struct, frozen=True, forbid_unknown_fields=True):
    """[service]: what instances must do at a step to be useful, and the load they are asked by. Seconds, shares."""

    watch: Literal["to-limit", "always", "never"] = "to-limit"
    p99: float = 0.25
    errors: float = 0.01
    rate: float = 100.0
    per_instance: float = 5.0
    duration: float = 5.0
    timeout: float = 2.0

    def load(self, count: int) -> tuple[float, int]:
        """Of so many instances: requests a second, and how many in all; each instance is asked at least once."""
        rate = min(self.rate, self.per_instance * count)
        return rate, max(count, round(rate * self.duration))


NEED_NETWORK = frozenset({"httpd", "send", "receive"})
"""Victims and aggressors that there are only between an instance and something outside it."""


class Neighbours(Struct, frozen=True, forbid_unknown_fields=True):
    """[neighbours]: who is next to whom in a scenario of kind "neighbours", for how long, and at which rate `httpd` is
    asked. Seconds; requests a second."""

    victims: tuple[Victim, ...] = ("httpd", "cpu", "disk", "memory")
    aggressors: tuple[Aggressor, ...] = ("cpu", "memory", "fork", "disk", "send", "receive")
    limits: tuple[LimitsOf, ...] = ("declared", "raised")
    window: float = 1.0
    lead: float = 0.3  # the aggressor begins so much earlier
    rate: float = 200.0

    @property
    def experiments(self) -> int:
        """Of one trial, controls included."""
        return self._count(self.victims, self.aggressors)

    @property
    def unconnected(self) -> int:
        """Those of them that need no network."""
        victims, aggressors = (
            [name for name in names if name not in NEED_NETWORK] for names in (self.victims, self.aggressors)
        )
        return self._count(victims, aggressors)

    def _count(self, victims: Sequence[str], aggressors: Sequence[str]) -> int:
        return len(victims) * (2 + len(aggressors) * len(self.limits))


RAISED = Limits(memory=768 * MIB, cpus=2.0, pids=512)
"""[raised]: an aggressor's limits where it is to have none that hold it."""


class PayloadKeys(Struct, frozen=True, forbid_unknown_fields=True):
    """`payload = "NAME"`, or [payload] with `name` and what its payload takes: MiB to dirty, and how often a second."""

    name: str = "httpd"
    touch_mib: int = 16
    touch_per_second: float = 0.1

    @property
    def env(self) -> dict[str, str]:
        """Of the built-in payload `touch`."""
        wait = 1 / self.touch_per_second
        return {"TOUCH_MIB": str(self.touch_mib), "TOUCH_SECONDS": f"{wait:.6f}".rstrip("0").rstrip(".")}
