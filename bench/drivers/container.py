"""Adapter to the built-in runtime: own mount, uts, ipc, pid, network and cgroup namespaces on shared layers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.container.groups import layout
from bench.container.rootfs import default_steps
from bench.drivers.context import RunContext
from bench.drivers.launched import LaunchedInstance, drop_link, folder, launched, order, reap
from bench.drivers.network import netdevs
from bench.drivers.process import needs_root, remove_if_empty
from bench.linux import syscalls
from bench.linux.capabilities import CONTAINER_DEFAULT, last_capability
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

NAMESPACES = (
    syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNET
)
_WANTED = frozenset({"mnt", "uts", "ipc", "pid", "net", "cgroup"})


class ContainerDriver:
    name = "container"

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._layout = layout()

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
            "capabilities": f"{len(CONTAINER_DEFAULT)} kept",
            "seccomp": "none",
            "init": "the payload is pid 1",
        }

    def prepare(self, spec: InstanceSpec) -> None:
        self._context.launcher.start()
        self._layout.prepare(spec.run)
        self._context.images.layer_trees(spec.image)
        if _settings(spec).network == "bridge":
            self._context.network.ensure()

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> Iterator[LaunchedInstance]:
        network = self._context.network
        address = network.allocate() if _settings(spec).network == "bridge" else None
        groups = self._layout.groups(spec.run, spec.id, spec.limits)
        layers = [str(path) for path in self._context.images.layer_trees(spec.image)]
        try:
            with folder(self._context.state / "container" / spec.id) as own:
                what = {
                    **order(spec, groups, address),
                    "namespaces": NAMESPACES,
                    "hostname": spec.id,
                    "steps": [step.pack() for step in default_steps(layers, str(own))],
                    "network": self._device(spec, address),
                    "capabilities": sorted(CONTAINER_DEFAULT),
                    "last_capability": last_capability(),
                }
                with launched(self._context, spec, phases, groups, what, address, _written(own), layers) as instance:
                    yield instance
        finally:
            if address is not None:
                drop_link(spec.netdev)
                network.release(address)

    def _device(self, spec: InstanceSpec, address: str | None) -> dict[str, str] | None:
        network = self._context.network
        if address is None:
            return None
        return {
            "device": spec.netdev,
            "bridge": network.bridge,
            "address": address,
            "prefix": str(network.subnet.prefixlen),
            "gateway": network.gateway,
        }

    def reap(self, run: RunId) -> Sequence[Leftover]:
        found = reap(run, self._context.state / "container")
        mine = f"bn{token_of(run)}{DRIVER_LETTERS[self.name]}"
        for name in netdevs(run):
            if name.startswith(mine) and delete_link(name):
                found.append(Leftover("netdev", name))
        return found

    def close(self) -> None:
        shutil.rmtree(self._context.state / "container", ignore_errors=True)
        for path in self._layout.parents(self._context.run):
            remove_if_empty(path)


def _written(own: Path) -> tuple[str, ...]:
    """Where overlayfs puts what this container writes."""
    return (str(own / "upper"), str(own / "work"))


def _settings(spec: InstanceSpec) -> ContainerSettings:
    if not isinstance(spec.settings, ContainerSettings):
        raise TypeError(type(spec.settings))
    return spec.settings
