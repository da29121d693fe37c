"""The baseline: the payload as a plain child process in a chroot of the image's tree. No namespaces, no privileges
dropped; its own cgroups, so that its limits hold and its cost is counted as an instance's is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from bench.container.groups import layout
from bench.drivers.context import RunContext
from bench.drivers.launched import LaunchedInstance, launched, order, reap
from bench.model import HostFacts, InstanceSpec, Leftover, PhaseLog, RunId, Support, token_of


def loopback_address(run: RunId, number: int) -> str:
    """127.x.y.z: x from the run's token, so that two runs on one host do not meet; y.z from the instance's number."""
    octet = 64 + sum(ord(letter) * 31**place for place, letter in enumerate(token_of(run))) % 190
    return f"127.{octet}.{number // 250 % 256}.{number % 250 + 1}"


def needs_root(host: HostFacts, what: str) -> Support | None:
    """The first reason why groups and roots can't be made here, or None."""
    if not host.root:
        return Support(False, f"{what} needs root", "sudo bench ...")
    if host.cgroup == "none":
        return Support(False, "no cgroup hierarchy is mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    if missing := {"memory", "pids"} - set(host.cgroup_controllers):
        names = ", ".join(sorted(missing))
        return Support(False, f"cgroup controller not available: {names}", f"boot with cgroup_enable={names}")
    return None


class ProcessDriver:
    name = "process"

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._layout = layout()

    def support(self, host: HostFacts) -> Support:
        return needs_root(host, "chroot and cgroups") or Support(True)

    def describe(self) -> Mapping[str, str]:
        return {
            "root": "chroot into the image's merged tree, shared by all",
            "network": "host, 127.x.y.z",
            "cgroup": self._layout.kind,
        }

    def prepare(self, spec: InstanceSpec) -> None:
        self._context.launcher.start()
        self._layout.prepare(spec.run)
        self._context.images.tree(spec.image)

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> Iterator[LaunchedInstance]:
        tree = str(self._context.images.tree(spec.image))
        groups = self._layout.groups(spec.run, spec.id, spec.limits)
        address = loopback_address(spec.run, spec.number)
        what = {**order(spec, groups, address), "chroot": tree}
        with launched(self._context, spec, phases, groups, what, address, (), (tree,)) as instance:
            yield instance

    def reap(self, run: RunId) -> Sequence[Leftover]:
        return reap(run, self._context.state / "process")

    def close(self) -> None:
        for path in self._layout.parents(self._context.run):
            remove_if_empty(path)


def remove_if_empty(path: str) -> None:
    """The run's own groups are shared by the drivers: the last one to close removes them."""
    if os.path.isdir(path) and not any(entry.is_dir() for entry in os.scandir(path)):
        os.rmdir(path)
