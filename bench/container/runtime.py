"""The runtime as a library: containers from bundles and images, from create to delete.

    with Runtime(images=ImageStore(cache_dir() / "images")) as runtime:
        box = runtime.create(of_image(runtime.images, "default", Options(argv=("/bin/sh", "-c", "echo hello"))))
        box.start()
        box.wait()          # 0
        box.logs()          # b"hello\n"

What it makes carries the token of its `run`, and its records say where; all of it goes when the context ends. A process
that was killed leaves it to `reap`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from bench.container import control, delegation, rootless
from bench.container.bundle import Bundle
from bench.container.client import LaunchedProcess, Launcher, Placed
from bench.container.control import Stats
from bench.container.firewall import OURS
from bench.container.groups import Groups, device_group, layout, reap_groups, remove_all, run_group
from bench.container.hooks import run_hook, state
from bench.container.network import Endpoint, NetworkRequest, Publication
from bench.container.recipe import OWN_ROOT, Filter, Kitchen, hook_fields, recipe
from bench.container.seccomp import compile_file, filter_flags
from bench.container.spec_records import Hook, Spec
from bench.container.state import NotRunning, Record, Records, check_name, new_run, registered
from bench.container.storage import Root, Storage, open_storage
from bench.container.storage import reap as reap_storage
from bench.errors import ConfigError, HostError, UsageError
from bench.images.changes import Changes, Difference, Upper
from bench.images.oci import hex_of
from bench.images.store import ImageStore
from bench.linux.births import born
from bench.linux.lines import LineHub, LineStream
from bench.linux.netlink import delete_link
from bench.model import Completed, Image, Leftover, RunId, token_of
from bench.paths import state_dir

log = logging.getLogger(__name__)


class Networks(Protocol):
    """What gives containers addresses: `bench.drivers.network.RunNetwork`, which this room may not know."""

    def ensure(self, count: int = 1, name: str = "bridge") -> None: ...
    def allocate(self, name: str = "bridge") -> Endpoint: ...
    def release(self, endpoint: Endpoint) -> None: ...
    def publish(self, wanted: Publication, endpoint: Endpoint) -> None: ...
    def translate(self, name: str = "bridge", uplink: str | None = None) -> None: ...
    def close(self) -> list[Leftover]: ...


class Wanted(Struct, frozen=True):
    """How to make one container. `limit`: the option that asked for a limit, if any, to be named where none can be."""

    name: str = ""
    storage: str = "overlay"
    network: NetworkRequest = NetworkRequest("none")
    translate: bool = False  # let it out through the host's uplink
    user_network: bool = False  # by pasta: the way an ordinary user's container gets out
    init: bool = False
    limit: str | None = None


_PLAIN = Wanted()
_REAP_EVERY = 0.2  # s
_SAID = 1.0  # s after its end until its last words are in its log; who else holds its output may keep it


class Runtime:
    """Containers of one process; a context manager, which deletes those that are left.

    `top`: the state folder of all. `networks` makes what `--network bridge` needs. `beside`: pids that an ordinary
    user's Runtime may move aside with itself; see `delegation`.
    """

    def __init__(
        self, top: Path | None = None, *, images: ImageStore, networks: Callable[[RunId], Networks] | None = None,
        beside: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.images = images
        self.records = Records(top or state_dir())
        self.run = new_run(time.time())
        self._networks = networks
        self._network: Networks | None = None
        self._launcher = Launcher()
        self._stack = ExitStack()
        self._storages: dict[str, Storage] = {}
        self._made: list[Container] = []
        self._numbers = 0
        self.root = os.geteuid() == 0
        self.delegation = delegation.Delegation()
        self._beside = beside

    def __enter__(self) -> Runtime:
        with ExitStack() as stack:
            self.home = stack.enter_context(registered(self.records.top, self.run))
            if not self.root:
                taken = delegation.taken(self.run, self.home, self._beside)
                self.delegation = stack.enter_context(taken)
            stack.callback(self._remove_groups)
            stack.callback(self._launcher.close)
            self._hub = stack.enter_context(LineHub())
            stack.callback(self._close_network)
            self._launcher.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for container in list(self._made):
                container.release()
                if not container.kept:
                    container.delete()
        finally:
            self._stack.close()

    @property
    def launcher(self) -> Launcher:
        return self._launcher

    # --- create ----------------------------------------------------------------------------------------------------

    def create(
        self, bundle: Bundle, wanted: Wanted = _PLAIN, *, streams: Sequence[int] = (),
        tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> Container:  # fmt: skip
        """All set up, and held before its first instruction. `tell` gets the recipe before anything is done.

        `streams`: descriptors for its standard streams; else its output goes to its log. Raises UsageError,
        ConfigError, HostError, and LaunchError naming the step that failed; then nothing is left of it.
        """
        self._numbers += 1
        name = check_name(wanted.name or f"{token_of(self.run)}-c{self._numbers}")
        spec = bundle.spec if self.root else rootless.without_root(bundle.spec, wanted.limit, self.delegation)
        _check_init(spec, wanted.init)
        with ExitStack() as failed:
            with self.records.naming(name):
                record = Record(
                    run=self.run, number=self._numbers, name=name, created=time.time(), monitor=os.getpid(), spec=spec,
                    groups=self._groups(spec), bundle=str(bundle.folder), setgroups=self.root or _many(spec),
                    init=wanted.init,
                )  # fmt: skip
                self.records.folder(record).mkdir(mode=0o700)  # set-id programs made inside are the host's in here
                failed.callback(drop, self.records, record)
                self.records.write(record)
            with ExitStack() as stack:
                made = self._build(bundle, wanted, record, stack, streams, tell)
                made.undo = stack.pop_all()
            failed.pop_all()
        self._made.append(made)
        return made

    def _groups(self, spec: Spec) -> Groups:
        host = layout() if self.root else self.delegation.host
        if host is None:
            return rootless.NO_GROUPS
        parent = run_group(self.run)
        if path := spec.linux.cgroups_path:
            if path.startswith("/"):
                raise ConfigError(
                    f"linux.cgroupsPath {path}: not below our own groups, where they would be found again",
                    hint="a relative path",
                )
            parent = f"{parent}/{path}"
        groups = host.groups(parent, spec.linux.resources, pausable=True, ruled=self.root)
        host.prepare(parent)
        return groups

    def _build(
        self, bundle: Bundle, wanted: Wanted, record: Record, stack: ExitStack, streams: Sequence[int],
        tell: Callable[[dict[str, Any]], None] | None,
    ) -> Container:  # fmt: skip
        own = self.records.folder(record)
        root = self._root(bundle.image, wanted.storage, own, stack)
        record = self._outfitted(record, bundle.image, wanted.storage, root, own)
        endpoint = self._endpoint(record, wanted, stack)
        if endpoint is not None:
            published = tuple(str(one) for one in wanted.network.publish)
            record = replace(record, address=endpoint.address, published=published)
        kitchen = Kitchen(
            _mounted(root), bundle.folder, record.groups, record.shared, record.filter, hold=True,
            setgroups=record.setgroups, reaper=wanted.init,
        )  # fmt: skip
        fields = recipe(record.spec, kitchen)
        if tell is not None:
            tell(fields)
        number = self._launcher.learn(fields)
        place = _place(record, own, root, endpoint, self._device(record))
        stack.callback(self._launcher.destroy, number, place.name)
        process = self._launcher.launch(number, place, streams=streams)
        stack.callback(process.close)
        plain = not streams and not record.spec.process.terminal
        output = self._logged(process, record, stack) if plain else None
        if wanted.user_network:
            stack.enter_context(rootless.user_network(process.pid))
        record = self.records.write(replace(record, pid=process.pid, born=born(process.pid) or 0))
        return Container(self, record, number, process, output)

    def _logged(self, process: LaunchedProcess, record: Record, stack: ExitStack) -> LineStream:
        """Its output comes to its log through us: the file itself, in its hands, it could open anew and empty."""
        output = self._hub.watch(process.output, log=self.records.log(record))
        stack.callback(output.close)
        process.output = -1
        return output

    def _outfitted(self, record: Record, image: Image | None, storage: str, root: Root | None, own: Path) -> Record:
        """With the filter, the device rules, and where its changes are."""
        seccomp, rules = record.spec.linux.seccomp, None
        program = None
        if seccomp is not None:
            program = Filter(str(compile_file(seccomp, self.home / "filters")), filter_flags(seccomp))
        if self.root:
            rules = device_group(layout(), run_group(self.run), record.spec.linux.resources, record.groups)
        record = replace(record, filter=program, shared=(rules,) if rules else ())
        if image is None or root is None:
            return record
        record = replace(record, image=image.name, digest=image.digest, storage=storage)
        if storage in ("overlay", "fuse-overlayfs"):
            return replace(record, changed=str(own / "upper"))
        base = root.shared[0] if root.shared else str(self._folder(storage) / "images" / hex_of(image.digest, storage))
        return replace(record, changed=root.step[1], base=base)

    # --- what it needs ---------------------------------------------------------------------------------------------

    def _folder(self, storage: str) -> Path:
        return self.home / f"storage-{storage}"

    def _root(self, image: Image | None, name: str, own: Path, stack: ExitStack) -> Root | None:
        if image is None:
            return None
        if name not in self._storages:
            opened = (open_storage if self.root else rootless.open_storage)(name, self._folder(name))
            self._storages[name] = self._stack.enter_context(opened)
        self._storages[name].prepare(self.images, image)
        return stack.enter_context(self._storages[name].root(image, own))

    def _endpoint(self, record: Record, wanted: Wanted, stack: ExitStack) -> Endpoint | None:
        request = wanted.network
        if not request.attached:
            return None
        if request.mode == "named":
            raise UsageError(
                f"no network {request.name!r}: containers by hand have none, bridge, host, or container:NAME"
            )
        if not self.root or self._networks is None or not record.spec.linux.new("network"):
            raise HostError("--network bridge needs root and a network namespace", hint="--network none, or host")
        if self._network is None:
            self._network = self._networks(self.run)
        network = self._network
        network.ensure()
        endpoint = network.allocate()
        stack.callback(network.release, endpoint)
        stack.callback(_drop_link, self._device(record))
        if wanted.translate:
            network.translate()
        for one in request.publish:
            network.publish(one, endpoint)
        return endpoint

    def _device(self, record: Record) -> str:
        return f"{OURS}{token_of(self.run)}c{record.number}"

    def _close_network(self) -> None:
        if self._network is not None:
            self._network.close()

    def _remove_groups(self) -> None:
        if self.root or self.delegation.host is not None:
            remove_all(self.run, self.delegation.host)

    def forget(self, container: Container) -> None:
        with suppress(ValueError):
            self._made.remove(container)


class Container:
    """One container of a Runtime. `kept`: its record and what it wrote outlive the Runtime."""

    def __init__(
        self, runtime: Runtime, record: Record, number: int, process: LaunchedProcess, output: LineStream | None
    ) -> None:
        self._runtime, self._number, self.process, self._output = runtime, number, process, output
        self.record = record
        self.undo = ExitStack()
        self.kept = False
        self._released = False

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def pid(self) -> int:
        """Host pid of its first process."""
        return self.process.pid

    def _write(self, **changes: Any) -> None:
        self.record = self._runtime.records.write(replace(self.record, **changes))

    def start(self) -> None:
        """Let it go; then its poststart hooks. Raises LaunchError naming the step that failed."""
        self._runtime.launcher.release(self.process)
        self._write(status="running")
        self._hooks(self.record.spec.hooks.poststart, "running")

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit status, 128 + signal if it was killed; None if it still runs after `timeout` seconds."""
        if self.record.exit_status is None:
            deadline = None if timeout is None else time.monotonic() + timeout
            while not self.process.ended(_slice(deadline)):
                if deadline is not None and time.monotonic() >= deadline:
                    return None
                self._runtime.launcher.wait(0)  # an orphan that nobody reaps keeps a pid namespace from ending
            status = self._runtime.launcher.wait(self.process.pid)
            if self._output is not None:
                self._output.wait_end(_SAID)
            self._write(status="exited", exit_status=status, ended=time.time())
        return self.record.exit_status

    def exec(self, argv: Sequence[str], *, timeout: float, **changes: Any) -> Completed:
        """Run one more process in it to its end; `changes` are fields of `spec_records.Process`."""
        self._check_running()
        process = control.exec_process(self.record, argv, **changes)
        number = self._runtime.launcher.learn(control.exec_recipe(self.record, process))
        place = Placed(self.record.id, argv=tuple(argv))
        return self._runtime.launcher.exec(number, place, control.joined(self.record)[0], timeout)

    def kill(self, number: int) -> None:
        """Send its first process a signal. Raises NotRunning."""
        self._check_running()
        control.kill(self.record, number)

    def pause(self) -> None:
        self._check_running()
        control.pause(self.record)

    def resume(self) -> None:
        control.resume(self.record)

    def stats(self) -> Stats:
        self._check_running()
        return control.stats(self.record)

    def logs(self) -> bytes:
        """What it said on stdout and stderr, as far as its log was not given to someone else."""
        path = self._runtime.records.log(self.record)
        return path.read_bytes() if path.exists() else b""

    def _check_running(self) -> None:
        if self._released or self.process.ended():
            raise NotRunning(f"container {self.name} does not run")

    def release(self) -> None:
        """Kill it if it runs, and give back all it has but its record, its log and its changes. Idempotent."""
        if self._released:
            return
        if control.paused(self.record):
            control.resume(self.record)
        if not self.process.ended():
            with suppress(NotRunning):
                control.kill(self.record, 9)
        self.wait()
        self._released = True
        self._runtime.launcher.destroy(self._number, self.record.id, self.pid)
        self.undo.close()
        self._hooks(self.record.spec.hooks.poststop, "stopped")

    def delete(self) -> None:
        """Release it, and remove what it wrote. Idempotent."""
        self.release()
        drop(self._runtime.records, self.record)
        self._runtime.forget(self)

    def _hooks(self, hooks: Sequence[Hook], status: str) -> None:
        """Those that may fail: what they were told of has happened."""
        told = state(self.record.id, status, self.pid if status == "running" else 0, self.record.bundle)
        for fields in hook_fields(hooks):
            try:
                run_hook(fields, told)
            except OSError as error:
                log.warning("container %s: %s: %s", self.name, error.filename, error.strerror)


def _slice(deadline: float | None) -> float:
    return _REAP_EVERY if deadline is None else max(min(deadline - time.monotonic(), _REAP_EVERY), 0)


# --- what a container is placed with -----------------------------------------------------------------------------


def _check_init(spec: Spec, init: bool) -> None:
    """Our pid 1 is the host's Python: who may trace it may get at that file, and at us."""
    if init and "CAP_SYS_PTRACE" in spec.process.capabilities.bounding and not spec.linux.new("user"):
        raise UsageError("--init and the capability SYS_PTRACE don't go together", hint="leave one of them out")
    if init and not spec.linux.new("pid"):
        raise UsageError("--init needs a pid namespace", hint="leave it out: nobody in there is pid 1")


def _many(spec: Spec) -> bool:
    """Whether groups may be set: with a map of one that is forbidden."""
    return len(spec.linux.gid_mappings) > 1


def _mounted(root: Root | None) -> tuple[str, ...] | None:
    """How the root is mounted, without what is one container's own."""
    if root is None:
        return None
    return OWN_ROOT if root.step[0] == "bind_root" else root.step


def _place(record: Record, own: Path, root: Root | None, endpoint: Endpoint | None, device: str) -> Placed:
    place = Placed(record.id, str(own), record.spec.hostname or record.id, bundle=record.bundle)
    if root is not None and root.step[0] == "bind_root":
        place = replace(place, root=root.step[1])
    if endpoint is None:
        return place
    return replace(
        place, device=device, bridge=endpoint.index, address=endpoint.address, prefix=endpoint.prefix,
        gateway=endpoint.gateway,
    )  # fmt: skip


def _drop_link(name: str) -> None:
    """The kernel removes a veth pair with its namespace, but later than the last process's end: don't wait for it."""
    if os.path.exists(f"/sys/class/net/{name}"):
        delete_link(name)


# --- by record: from any process ---------------------------------------------------------------------------------


def commit(records: Records, images: ImageStore, record: Record, name: str) -> Image:
    """A new image: the container's own with what it changed on top; paused meanwhile if it runs.

    Raises UsageError for one that has no image or whose changes are gone, ImageError for changes no layer can hold.
    """
    if not record.image:
        raise UsageError(f"container {record.name} is made from a bundle, not an image: there is nothing to add to")
    if not Path(record.changed).is_dir():
        raise UsageError(
            f"what container {record.name} changed is gone", hint=f"commit it while it runs: storage {record.storage}"
        )
    base = next((one for one in images.images() if one.digest == record.digest), None)
    if base is None:
        raise UsageError(f"image {record.image} ({record.digest}) is not in the store any more")
    with control.quiet(record):
        return images.commit(base, _changes(record), name)


def _changes(record: Record) -> Changes:
    if record.base:
        return Difference(Path(record.base), Path(record.changed))
    if not record.setgroups or record.spec.linux.new("user"):
        raise HostError(
            "overlayfs keeps what an ordinary user's container deleted in another form", hint="--storage copy"
        )
    return Upper(Path(record.changed), fuse=record.storage == "fuse-overlayfs")


def drop(records: Records, record: Record) -> None:
    """Remove a record with all that its container wrote."""
    if os.geteuid():
        rootless.remove_tree(record.spec, records.folder(record))
    records.drop(record)


def clear(top: Path, run: RunId) -> list[Leftover]:
    """`reap`, and remove what an ordinary user's containers wrote, not all of which he may remove without them."""
    found, records = reap(top, run), Records(top)
    for record in records.all() if os.geteuid() else ():
        if record.run == run:
            rootless.remove_tree(record.spec, records.folder(record))
    return found


def reap(top: Path, run: RunId, network: Networks | None = None) -> list[Leftover]:
    """Remove what a runtime that was killed left: processes, groups, interfaces, mounts, files. Idempotent."""
    home = top / token_of(run)
    found = delegation.reap(home) if os.geteuid() else reap_groups(run)
    if network is not None:
        found += network.close()
    for storage in home.glob("storage-*"):
        found += reap_storage(storage)
    return found
