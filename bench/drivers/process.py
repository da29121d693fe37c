"""The baseline: the payload as a plain child process in a chroot of the image's tree. No namespaces, no privileges
dropped; its own cgroups, so that its limits hold and its cost is counted as an instance's is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bench.container.bundle import Account
from bench.container.client import Placed
from bench.container.groups import Groups, layout, run_group
from bench.container.profile import OOM_SCORE_ADJ
from bench.container.spec import resources_of
from bench.container.spec_records import User
from bench.drivers.context import RunContext
from bench.drivers.launched import (
    Holdings,
    Kind,
    LaunchedInstance,
    account,
    environment,
    kind_of,
    launched,
    reap_processes,
)
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
        self._kinds: dict[bytes, Kind] = {}

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
        self._layout.prepare(run_group(spec.run))
        self._kind(spec)

    def _kind(self, spec: InstanceSpec) -> Kind:
        key = kind_of(spec)
        if key not in self._kinds:
            groups = self._layout.groups(run_group(spec.run), resources_of(spec.limits))
            who = account(self._context, spec)
            recipe = _recipe(spec, str(self._context.images.tree(spec.image)), groups, who)
            self._kinds[key] = Kind(self._context.launcher.learn(recipe), groups)
        return self._kinds[key]

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> Iterator[LaunchedInstance]:
        tree = str(self._context.images.tree(spec.image))
        place = Placed(spec.id, env={"BENCH_ADDRESS": loopback_address(spec.run, spec.number)})
        with launched(self._context, spec, phases, self._kind(spec), place, Holdings(shared=(tree,))) as instance:
            yield instance

    def sources(self, spec: InstanceSpec) -> Sequence[str]:
        """The image's merged tree."""
        return (str(self._context.images.tree(spec.image)),)

    def reap(self, run: RunId) -> Sequence[Leftover]:
        return reap_processes(run)

    def close(self) -> None:
        for path in self._layout.parents(self._context.run):
            remove_if_empty(path)


def remove_if_empty(path: str) -> None:
    """The run's own groups are shared by the drivers: the last one to close removes them."""
    if os.path.isdir(path) and not any(entry.is_dir() for entry in os.scandir(path)):
        os.rmdir(path)


def _recipe(spec: InstanceSpec, tree: str, groups: Groups, who: Account) -> dict[str, Any]:
    """No namespaces and no rights dropped but those that go with root; the steps that are left."""
    inside: list[list[Any]] = [["chroot", tree], ["working_directory", spec.image.workdir]]
    if (user := who.user) != User(0, 0):
        inside.append(["user", user.uid, user.gid, list(user.additional_gids)])
    into, joined = ([], []) if groups.unified else ([["own_groups"]], [["join_groups"]])
    return {
        "namespaces": 0, "joins": [], "uid_map": "", "gid_map": "", "shared": [], "hooks": [], "terminal": False,
        "unified": groups.parents["unified"] if groups.unified else "", "groups": groups.recipe(), "umask": 0o022,
        "steps": [["session"], ["oom_score_adj", OOM_SCORE_ADJ], *into, *inside],
        "exec_steps": [["session"], *joined, *inside],
        "argv": list(spec.payload.command), "env": environment(spec, who.home),
    }  # fmt: skip
