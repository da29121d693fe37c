"""What a container can find ready: a configured network namespace, and groups with their limits set.

Untimed and shown apart, so it is never part of what a launch is said to cost. A slot is for one container, and never
used again.
"""

from __future__ import annotations

import contextlib

from msgspec import Struct

from bench.container.groups import Groups
from bench.container.netpool import LETTER, Addresses, NamespacePool, Pooled
from bench.linux import cgroups
from bench.model import RunId, token_of


class Slot(Struct, frozen=True):
    """`group`: the name of its groups, which whoever takes it removes; its namespace stays until the pool ends."""

    group: str
    namespace: Pooled


class Pool:
    """Slots of one kind of containers, those with `groups`, of one run."""

    def __init__(self, run: RunId, network: Addresses, groups: Groups) -> None:
        self._prefix = f"{token_of(run)}-{LETTER}"
        self._groups = groups.recipe()
        self._namespaces = NamespacePool(run, network)
        self._free: list[str] = []
        self._made = 0

    def __len__(self) -> int:
        """Free slots."""
        return len(self._free)

    def fill(self, count: int) -> None:
        """Make more until `count` are free. Raises HostError, OSError; what was made is there until `close`."""
        self._namespaces.fill(count)
        while len(self._free) < count:
            name = f"{self._prefix}{self._made}"
            self._made += 1
            self._free.append(name)  # before it is there: a half-made one is removed too
            for parent, settings in self._groups:
                cgroups.make(f"{parent}/{name}", settings)

    def take(self) -> Slot:
        """Raises HostError if none is free."""
        namespace = self._namespaces.take()
        return Slot(self._free.pop(), namespace)

    def close(self) -> None:
        """Remove what nobody took, and every namespace. Idempotent."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._namespaces.close)
            while self._free:
                name = self._free.pop()
                for parent, _ in self._groups:
                    cgroups.remove(f"{parent}/{name}")
