"""Adapter to the built-in runtime: own mount, uts, ipc, pid, network and cgroup namespaces on shared layers."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec.structs import replace

from bench.container.client import Placed
from bench.container.groups import Groups, device_group, layout, run_group
from bench.container.hardening import DESCRIBED, Security, secured
from bench.container.netpool import reap_pool
from bench.container.network import Endpoint
from bench.container.pool import Pool, Slot
from bench.container.recipe import OWN_ROOT, Filter, Kitchen, recipe
from bench.container.seccomp import compile_file
from bench.container.spec import default_spec, resources_of
from bench.container.spec_records import Spec
from bench.container.storage import Root, Storage, open_storage
from bench.container.storage import reap as reap_storage
from bench.drivers.context import RunContext
from bench.drivers.launched import (
    Holdings,
    Kind,
    LaunchedInstance,
    account,
    await_gone,
    environment,
    folder,
    kind_of,
    launched,
    reap_folder,
    reap_processes,
)
from bench.drivers.network import netdevs
from bench.drivers.process import needs_root, remove_if_empty
from bench.errors import HostError, UsageError
from bench.linux.netlink import delete_link
from bench.model import (
    DRIVER_LETTERS,
    ContainerSettings,
    HostFacts,
    InstanceSpec,
    Leftover,
    PhaseLog,
    RunId,
    Support,
    token_of,
)

_WANTED = frozenset({"mnt", "uts", "ipc", "pid", "net", "cgroup"})
POOLED = "pooled"
"""The profile whose instances take network namespaces and groups that are there already. Its name decides, not a key of
the scenario: no cold launch can bear it, and no pooled one another."""


class ContainerDriver:
    name = "container"

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._layout = layout()
        self._home = context.state / "container"
        self._own = context.place / "container"  # instances' own folders
        self._stack = ExitStack()
        self._storages: dict[str, Storage] = {}
        self._kinds: dict[bytes, Kind] = {}
        self._learning = threading.Lock()
        self._pool: Pool | None = None
        self._pooled = b""  # the kind it is for
        self._security: set[Security] = set()  # of what was prepared

    def support(self, host: HostFacts) -> Support:
        if (reason := needs_root(host, "namespaces, mounts and cgroups")) is not None:
            return reason
        if not host.overlayfs:
            return Support(False, "this kernel has no overlayfs", "modprobe overlay")
        if missing := _WANTED - set(host.namespaces):
            return Support(
                False, f"namespaces not in this kernel: {', '.join(sorted(missing))}", "no command; a kernel with them"
            )
        return Support(True)

    def describe(self) -> Mapping[str, str]:
        return {
            "namespaces": "mnt uts ipc pid net cgroup",
            "storage": "overlay on shared layers",
            "cgroup": self._layout.kind,
            "init": "the payload is pid 1",
            **{f"security {name}": text for name, text in DESCRIBED.items() if name in (self._security or ["default"])},
        }

    def prepare(self, spec: InstanceSpec) -> None:
        self._context.launcher.start()
        self._security.add(_settings(spec).security)
        # For us alone: a set-id program that root made inside is one of the host's root here.
        for path in dict.fromkeys((self._home, self._own)):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._layout.prepare(run_group(spec.run))
        self._storage(spec).prepare(self._context.images, spec.image)
        if self.pools(spec) and _settings(spec).network != "bridge":
            raise UsageError(
                f"container:{POOLED} without a bridge: what is pooled is a connected network namespace",
                hint='leave container.network at "bridge", or take container:default',
            )
        if _settings(spec).network == "bridge":
            self._context.network.ensure(spec.ramp)

    def pools(self, spec: InstanceSpec) -> bool:
        return spec.profile == POOLED

    def fill(self, spec: InstanceSpec, count: int) -> None:
        if self._pooled != kind_of(spec):
            self.drain()
        if self._pool is None:
            self._pool, self._pooled = Pool(spec.run, self._context.network, self._groups(spec)), kind_of(spec)
        try:
            self._pool.fill(count)
        except OSError as error:
            raise HostError(f"a pool of {count}: {error}", hint="needs root, and room for as many groups") from error

    def drain(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool, self._pooled = None, b""

    def _storage(self, spec: InstanceSpec) -> Storage:
        """The storage of the spec's profile; opened once, and open until `close`."""
        name = _settings(spec).storage
        if name not in self._storages:
            self._storages[name] = self._stack.enter_context(open_storage(name, self._home / f"storage-{name}"))
        return self._storages[name]

    def _spec(self, spec: InstanceSpec) -> Spec:
        who = account(self._context, spec)
        env = [f"{name}={value}" for name, value in environment(spec, who.home).items()]
        wanted = default_spec(
            spec.payload.command, root="root", env=env, cwd=spec.image.workdir, hostname="payload", user=who.user,
            resources=resources_of(spec.limits),
        )  # fmt: skip
        return secured(wanted, _settings(spec).security)

    def _groups(self, spec: InstanceSpec) -> Groups:
        wanted = self._spec(spec).linux.resources
        groups = self._layout.groups(run_group(spec.run), wanted, ruled=True)
        device_group(self._layout, run_group(spec.run), wanted, groups)  # on v2 it hands down what a pool's groups need
        return groups

    def _kind(self, spec: InstanceSpec, root: Root) -> Kind:
        """What instances of one image, payload and profile have in common, made at the first of them."""
        key = kind_of(spec)
        with self._learning:  # one of several launches in flight makes it, the others wait
            if key not in self._kinds:
                wanted, groups = self._spec(spec), self._groups(spec)
                rules = device_group(self._layout, run_group(spec.run), wanted.linux.resources, groups)
                shared = (rules,) if rules else ()
                seccomp = wanted.linux.seccomp
                program = None if seccomp is None else Filter(str(compile_file(seccomp, self._home)))
                strict = _settings(spec).security == "strict"
                mounted = _read_only(_mounted(root)) if strict else _mounted(root)
                kitchen = Kitchen(mounted, self._home, groups, shared, program, early=strict, pooled=self.pools(spec))
                self._kinds[key] = Kind(self._context.launcher.learn(recipe(wanted, kitchen)), groups)
            return self._kinds[key]

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> Iterator[LaunchedInstance]:
        with (
            self._endpoint(spec) as (slot, endpoint),
            folder(self._own / spec.id) as own,
            self._storage(spec).root(spec.image, own) as root,
        ):
            place = _place(spec, own, root, endpoint, slot)
            holdings = Holdings(_held(own, root), root.shared, root.pids, slot.namespace.device if slot else None)
            with launched(self._context, spec, phases, self._kind(spec, root), place, holdings) as instance:
                yield instance

    @contextmanager
    def _endpoint(self, spec: InstanceSpec) -> Iterator[tuple[Slot | None, Endpoint | None]]:
        """Where it will be reached; of the pool, or its own until it ends."""
        network = self._context.network
        if self.pools(spec):
            slot = self._taken(spec)
            yield slot, slot.namespace.endpoint
        elif _settings(spec).network == "bridge":
            endpoint = network.allocate()
            try:
                yield None, endpoint
            finally:
                network.release(endpoint)
        else:
            yield None, None

    def _taken(self, spec: InstanceSpec) -> Slot:
        if self._pool is None or self._pooled != kind_of(spec):
            raise UsageError(f"{spec.id}: no pool was filled for it")
        return self._pool.take()

    def sources(self, spec: InstanceSpec) -> Sequence[str]:
        """The unpacked layers that overlays lie on, and what other storages made of them."""
        layers = (str(path) for path, _ in self._context.images.unpacked(spec.image))
        return (*layers, str(self._home / f"storage-{_settings(spec).storage}"))

    def reap(self, run: RunId) -> Sequence[Leftover]:
        found = [*reap_processes(run), *reap_pool(run)]
        for storage in sorted(self._home.glob("storage-*")):
            found += reap_storage(storage)
        for path in dict.fromkeys((self._home, self._own)):
            found += reap_folder(path)
        found += [Leftover("netdev", name) for name in self._netdevs(run) if delete_link(name)]
        return found

    def _netdevs(self, run: RunId) -> list[str]:
        mine = f"bn{token_of(run)}{DRIVER_LETTERS[self.name]}"
        return [name for name in netdevs(run) if name.startswith(mine)]

    def close(self) -> None:
        self.drain()
        self._stack.close()
        await_gone(lambda: self._netdevs(self._context.run))
        for path in dict.fromkeys((self._home, self._own)):
            shutil.rmtree(path, ignore_errors=True)
        for group in self._layout.parents(self._context.run):
            for rules in Path(group).glob("rules-*"):
                with contextlib.suppress(OSError):  # busy: `reap` names what is in it
                    rules.rmdir()
            remove_if_empty(group)


def _mounted(root: Root) -> tuple[str, ...]:
    """How the root is mounted, without what is one instance's own."""
    return OWN_ROOT if root.step[0] == "bind_root" else root.step


def _read_only(step: tuple[str, ...]) -> tuple[str, ...]:
    """The same layers with nothing to write to. Other storages are not for a user namespace."""
    if step[0] != "overlay_root":
        raise UsageError("container.security strict goes with container.storage overlay only")
    return ("overlay_read_only", step[1])


def _held(own: Path, root: Root) -> tuple[str, ...]:
    """Its folder with all in it, and what lies elsewhere."""
    return (str(own), *(path for path in root.own if not path.startswith(f"{own}/")))


def _place(spec: InstanceSpec, own: Path, root: Root, endpoint: Endpoint | None, slot: Slot | None) -> Placed:
    place = Placed(spec.id, str(own), spec.id, env={"BENCH_ADDRESS": endpoint.address if endpoint else ""})
    if root.step[0] == "bind_root":
        place = replace(place, root=root.step[1])
    if slot is not None:
        return replace(place, name=slot.group, network=slot.namespace.path)
    if endpoint is None:
        return place
    return replace(
        place, device=spec.netdev, bridge=endpoint.index, address=endpoint.address, prefix=endpoint.prefix,
        gateway=endpoint.gateway,
    )  # fmt: skip


def _settings(spec: InstanceSpec) -> ContainerSettings:
    if not isinstance(spec.settings, ContainerSettings):
        raise TypeError(type(spec.settings))
    return spec.settings
