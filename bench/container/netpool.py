"""Network namespaces made ahead of their containers: a pool, whose cost is shown apart from launches.

A mount for each (as `ip netns` has) would make every later launch copy that many mounts, a descriptor for each of ours
would take the harness's: so a process of its own holds them, and is found by its command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from msgspec import Struct

import bench
from bench import process
from bench.container.firewall import OURS
from bench.container.network import Endpoint
from bench.errors import HostError
from bench.linux import interfaces, netlink
from bench.model import Leftover, RunId, token_of

_HOME = Path(bench.__file__).resolve().parent.parent
_SPARE = 32  # descriptors of the holder that are not namespaces
_STUCK = 1.0  # s without one interface less; the kernel removes namespaces in the background
LETTER = "n"
"""After the token in the names of the pool's interfaces."""


class Addresses(Protocol):
    """What hands out endpoints: the run's network."""

    def ensure(self, count: int = 1) -> None: ...
    def allocate(self) -> Endpoint: ...
    def release(self, endpoint: Endpoint) -> None: ...


class Pooled(Struct, frozen=True):
    """A namespace to `setns` into by `path`, configured; `device` is the host's side of its interface."""

    path: str
    device: str
    endpoint: Endpoint


class NamespacePool:
    """Namespaces on `network`; a context manager. Each is handed out once: what a container changed in it must not
    reach the next one. All of them go together, in `close`: one by one the kernel takes 20 ms for each."""

    def __init__(self, run: RunId, network: Addresses) -> None:
        self._run, self._network = run, network
        self._stack = contextlib.ExitStack()
        self._free: list[Pooled] = []
        self._made: list[Pooled] = []
        self._lines: Any = None
        self._holder = 0

    def __enter__(self) -> NamespacePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._free)

    def fill(self, count: int) -> None:
        """Make more until `count` are free. Raises HostError; then those that were made are there until `close`."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _SPARE
        if (wanted := len(self._made) - len(self._free) + count) > limit:
            raise HostError(f"a pool of {wanted} namespaces needs as many descriptors", hint=f"at most {limit} here")
        if not self._holder:
            self._start()
        self._network.ensure(max(count - len(self._free), 0))
        while len(self._free) < count:
            self._add()

    def take(self) -> Pooled:
        """One that is free. Raises HostError if none is."""
        if not self._free:
            raise HostError(f"all {len(self._made)} pooled namespaces have been used", hint="fill the pool again")
        return self._free.pop()

    def close(self) -> None:
        """Remove all; returns when the interfaces are gone. Idempotent."""
        made, self._made, self._free, self._holder = self._made, [], [], 0
        self._stack.close()
        if made:
            _vanished(_prefix(self._run))
        for one in made:
            self._network.release(one.endpoint)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path.insert(0, {str(_HOME)!r}); "
            f"from bench.container.holder import main; main({theirs.fileno()})"
        )
        argv = [sys.executable, "-I", "-S", "-c", code, holder_name(self._run)]
        with theirs:
            child = self._stack.enter_context(process.spawn(argv, pass_fds=(theirs.fileno(),)))
        self._stack.callback(ours.close)
        self._lines = self._stack.enter_context(ours.makefile("rw"))
        self._holder = child.pid

    def _add(self) -> None:
        device = f"{_prefix(self._run)}{len(self._made)}"
        endpoint = self._network.allocate()
        try:
            wanted = {
                "device": device, "index": endpoint.index, "address": endpoint.address, "prefix": endpoint.prefix,
                "gateway": endpoint.gateway,
            }  # fmt: skip
            fd = int(self._ask(wanted)["fd"])
        except HostError:
            self._network.release(endpoint)
            raise
        pooled = Pooled(f"/proc/{self._holder}/fd/{fd}", device, endpoint)
        self._made.append(pooled)
        self._free.append(pooled)

    def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        try:
            self._lines.write(json.dumps(request) + "\n")
            self._lines.flush()
            line = self._lines.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise HostError("the process that holds the pool's namespaces is gone", hint="was it killed? see dmesg")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise HostError(f"pooled namespace: {answer['failed']}", hint="needs root, veth and network namespaces")
        return answer


def holder_name(run: RunId) -> str:
    """The last word of the holder's command line."""
    return f"bench-pool-{token_of(run)}"


def _prefix(run: RunId) -> str:
    return f"{OURS}{token_of(run)}{LETTER}"


def reap_pool(run: RunId) -> list[Leftover]:
    """Kill the holder that a dead run left, and wait until what it held is gone. Idempotent."""
    found = []
    for pid in _holders(run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            found.append(Leftover("process", f"pid {pid}"))
    devices = interfaces.names(_prefix(run))
    _vanished(_prefix(run))
    return [*found, *(Leftover("netdev", name) for name in devices)]


def _holders(run: RunId) -> Iterator[int]:
    word = holder_name(run).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if word in (entry / "cmdline").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _vanished(prefix: str) -> None:
    """Wait while the kernel removes the interfaces with their namespaces, many at once; then remove those that stay."""
    left = interfaces.names(prefix)
    stuck = time.monotonic() + _STUCK
    while left and time.monotonic() < stuck:
        time.sleep(0.005)
        before, left = len(left), interfaces.names(prefix)
        if len(left) < before:
            stuck = time.monotonic() + _STUCK
    for name in left:
        netlink.delete_link(name)
