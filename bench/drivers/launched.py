"""What `process` and `container` share: an instance whose first process our launcher started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.container.client import LaunchedProcess, Launcher
from bench.container.groups import Groups, leftovers, members, remove_all
from bench.drivers.context import RunContext
from bench.drivers.ready import marks, wait_ready
from bench.errors import LaunchError
from bench.linux.lines import LineStream
from bench.linux.netlink import delete_link
from bench.model import Completed, Footprint, InstanceSpec, Leftover, Phase, PhaseLog, RunId

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(spec: InstanceSpec, address: str | None) -> dict[str, str]:
    """The image's environment, then the payload's, then the instance's address."""
    image = dict(entry.split("=", 1) for entry in spec.image.env if "=" in entry)
    return {"PATH": PATH, "HOME": "/root", **image, **spec.payload.env, "BENCH_ADDRESS": address or ""}


def order(spec: InstanceSpec, groups: Groups, address: str | None) -> dict[str, Any]:
    """The launch order that every field of bench.container.init.Order is in; drivers change what differs."""
    return {
        "namespaces": 0, "cgroups": groups.order(), "unified": groups.unified, "steps": [], "network": None,
        "hostname": None, "chroot": None, "cwd": spec.image.workdir, "argv": list(spec.payload.command),
        "env": environment(spec, address), "capabilities": None, "last_capability": 0,
    }  # fmt: skip


class LaunchedInstance:
    """A running process of ours and all that it started, which its cgroups hold together."""

    def __init__(
        self, spec: InstanceSpec, launcher: Launcher, process: LaunchedProcess, output: LineStream, groups: Groups,
        order: Mapping[str, Any], phases: PhaseLog, address: str | None, own: Sequence[str], shared: Sequence[str],
    ) -> None:  # fmt: skip
        self._spec, self._launcher, self._process, self._output = spec, launcher, process, output
        self._groups, self._order, self._phases, self._own, self._shared = groups, order, phases, own, shared
        self.address = address
        self._stopped = False

    @property
    def id(self) -> str:
        return self._spec.id

    @property
    def pid(self) -> int:
        """Host pid of its first process."""
        return self._process.pid

    def alive(self) -> bool:
        return not self._stopped and not self._process.ended()

    def wait_ready(self, timeout: float) -> None:
        ready = self._spec.payload.ready
        wait_ready(self.id, ready, self._output, self.address, timeout, self.alive, self._phases)

    def exec(self, argv: Sequence[str], *, timeout: float) -> Completed:
        if not self.alive():
            raise LaunchError(f"{self.id} does not run any more")
        order = {**self._order, "argv": list(argv), "steps": [], "network": None, "hostname": None}
        return self._launcher.exec(order, self.pid, timeout)

    def stop(self, timeout: float) -> None:
        if not self._stopped:
            self._signal(signal.SIGTERM)
            self._process.ended(timeout)
            self.kill()

    def kill(self) -> None:
        if not self._stopped:
            self._launcher.destroy(self.pid, list(self._groups.paths.values()))
            self._stopped = True

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process.pidfd, number)

    def footprint(self) -> Footprint:
        paths = self._groups.paths
        return Footprint(
            instance=self.id, pids=members(list(paths.values())), cgroups=paths, disk_own=tuple(self._own),
            disk_shared=tuple(self._shared), netdev=self._order["network"] and self._spec.netdev,
        )  # fmt: skip

    def release(self) -> None:
        """Close the descriptors; after `kill`."""
        self._output.close()
        self._process.close()


@contextmanager
def launched(
    context: RunContext, spec: InstanceSpec, phases: PhaseLog, groups: Groups, order: Mapping[str, Any],
    address: str | None, own: Sequence[str], shared: Sequence[str],
) -> Iterator[LaunchedInstance]:  # fmt: skip
    """Launch `order`; on the way out, or if it fails half-way, kill it and remove its groups."""
    launcher = context.launcher
    with contextlib.ExitStack() as stack:
        # Registered first: the groups may exist although the launch failed.
        undo = stack.enter_context(_undone(lambda: launcher.destroy(0, list(groups.paths.values()))))
        process = launcher.launch(dict(order))
        log = Path(spec.logs) / f"{spec.id}.payload.log" if spec.logs else None
        output = context.hub.watch(process.output, marks=marks(spec.payload.ready), log=log)
        phases.stamp(Phase.CREATED, process.created)
        phases.stamp(Phase.STARTED, process.started)
        own = [*own, str(log)] if log else own
        instance = LaunchedInstance(spec, launcher, process, output, groups, order, phases, address, own, shared)
        stack.callback(instance.release)
        stack.callback(instance.kill)
        undo.done = True
        yield instance


class _Undo:
    done = False


@contextmanager
def _undone(action: Callable[[], None]) -> Iterator[_Undo]:
    """Run `action` at the end unless someone else has taken over."""
    undo = _Undo()
    try:
        yield undo
    finally:
        if not undo.done:
            action()


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A folder that goes away with all in it."""
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def reap(run: RunId, folders: Path) -> list[Leftover]:
    """Kill and remove what a dead run of these drivers left: processes, groups, interfaces, folders."""
    found = [Leftover("process", f"pid {pid}") for pid in members(leftovers(run))]
    found += [Leftover("cgroup", path) for path in leftovers(run)]
    remove_all(run)
    if folders.exists():
        found += [Leftover("file", str(path)) for path in sorted(folders.iterdir())]
        shutil.rmtree(folders)
    return found


def drop_link(name: str) -> None:
    """The kernel removes a veth pair with its namespace, but later than the last process's end: don't wait for it."""
    if os.path.exists(f"/sys/class/net/{name}"):
        delete_link(name)
