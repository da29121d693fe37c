"""What `process` and `container` share: an instance whose first process our launcher started."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bench.container.bundle import Account, account_of
from bench.container.client import LaunchedProcess, Launcher, Placed
from bench.container.groups import Groups, leftovers, members, remove_all
from bench.container.profile import PATH
from bench.drivers.context import RunContext
from bench.drivers.ready import marks, wait_ready
from bench.errors import LaunchError
from bench.linux import oom
from bench.linux.lines import LineStream
from bench.linux.netlink import delete_link
from bench.model import Completed, Footprint, InstanceSpec, Leftover, Phase, PhaseLog, RunId


def account(context: RunContext, spec: InstanceSpec) -> Account:
    """Who the payload is: the image's word. Root's home is the same for every driver, whatever its passwd file says."""
    found = account_of(context.images, spec.image)
    return found if found.user.uid else replace(found, home="/root")


def environment(spec: InstanceSpec, home: str) -> dict[str, str]:
    """The image's environment, then the payload's. The instance's own address is added at its launch."""
    image = dict(entry.split("=", 1) for entry in spec.image.env if "=" in entry)
    return {"PATH": PATH, "HOME": home, **image, **spec.payload.env}


class Kind(Struct, frozen=True):
    """Instances that share a recipe: its number at the launcher, and their groups."""

    recipe: int
    groups: Groups


class Holdings(Struct, frozen=True):
    """Host paths that only this instance writes, paths it shares, and host pids outside its groups that serve it.

    `netdev`: the host's side of an interface that was there before it.
    """

    own: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    helpers: tuple[int, ...] = ()
    netdev: str | None = None


def kind_of(spec: InstanceSpec) -> bytes:
    """The same for specs that differ only in their number."""
    return msgspec.msgpack.encode((spec.image.digest, spec.payload, spec.limits, spec.settings, spec.profile))


class LaunchedInstance:
    """A running process of ours and all that it started, which its cgroups hold together."""

    def __init__(
        self, spec: InstanceSpec, launcher: Launcher, process: LaunchedProcess, output: LineStream, kind: Kind,
        place: Placed, phases: PhaseLog, holdings: Holdings,
    ) -> None:  # fmt: skip
        self._spec, self._launcher, self._process, self._output = spec, launcher, process, output
        self._kind, self._place, self._phases, self._holdings = kind, place, phases, holdings
        self._groups = kind.groups.of(place.name)
        self.address = place.address or place.env.get("BENCH_ADDRESS") or None
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

    def cause_of_death(self) -> str | None:
        return oom.cause(self._groups)  # they stay until we remove them

    def wait_ready(self, timeout: float) -> None:
        ready = self._spec.payload.ready
        wait_ready(self.id, ready, self._output, self.address, timeout, self.alive, self._phases)

    def exec(self, argv: Sequence[str], *, timeout: float) -> Completed:
        if not self.alive():
            raise LaunchError(f"{self.id} does not run any more")
        return self._launcher.exec(self._kind.recipe, replace(self._place, argv=tuple(argv)), self.pid, timeout)

    def stop(self, timeout: float) -> None:
        if not self._stopped:
            self._signal(signal.SIGTERM)
            self._process.ended(timeout)
            self.kill()

    def kill(self) -> None:
        if not self._stopped:
            self._launcher.destroy(self._kind.recipe, self._place.name, self.pid)
            self._stopped = True

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process.pidfd, number)

    def footprint(self) -> Footprint:
        return Footprint(
            instance=self.id, pids=(*members(list(self._groups.values())), *self._holdings.helpers),
            cgroups=self._groups, disk_own=self._holdings.own, disk_shared=self._holdings.shared,
            netdev=self._place.device or self._holdings.netdev,
        )  # fmt: skip

    def release(self) -> None:
        """Close the descriptors; after `kill`."""
        self._output.close()
        self._process.close()


@contextmanager
def launched(
    context: RunContext, spec: InstanceSpec, phases: PhaseLog, kind: Kind, place: Placed, holdings: Holdings,
) -> Iterator[LaunchedInstance]:  # fmt: skip
    """Launch one of `kind` at `place`; on the way out, or if it fails half-way, kill it and remove its groups."""
    launcher = context.launcher
    with contextlib.ExitStack() as stack:
        # Registered first: the groups may exist although the launch failed.
        undo = stack.enter_context(_undone(lambda: launcher.destroy(kind.recipe, place.name)))
        process = launcher.launch(kind.recipe, place)
        log = Path(spec.logs) / f"{spec.id}.payload.log" if spec.logs else None
        output = context.hub.watch(process.output, marks=marks(spec.payload.ready), log=log)
        phases.stamp(Phase.CREATED, process.created)
        phases.stamp(Phase.STARTED, process.started)
        held = replace(holdings, own=(*holdings.own, str(log))) if log else holdings
        instance = LaunchedInstance(spec, launcher, process, output, kind, place, phases, held)
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


def reap_processes(run: RunId) -> list[Leftover]:
    """Kill what a dead run of these drivers left running, and remove its groups."""
    found = [Leftover("process", f"pid {pid}") for pid in members(leftovers(run))]
    found += [Leftover("cgroup", path) for path in leftovers(run)]
    remove_all(run)
    return found


def reap_folder(path: Path) -> list[Leftover]:
    """Remove what instances wrote there; after `reap_processes`."""
    if not path.exists():
        return []
    found = [Leftover("file", str(one)) for one in sorted(path.iterdir())]
    shutil.rmtree(path)
    return found


_GONE_TIMEOUT = 10.0  # seconds; a thousand network namespaces take one


def await_gone(names: Callable[[], list[str]]) -> None:
    """Until the kernel has taken down the network interfaces of dead namespaces, which it does later and in bulk.

    Those that are left then are deleted one by one: that takes 20 ms each, so it is not how instances end.
    """
    deadline = time.monotonic() + _GONE_TIMEOUT
    while names() and time.monotonic() < deadline:
        time.sleep(0.01)
    for name in names():
        delete_link(name)
