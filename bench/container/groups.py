"""Where an instance's cgroups are and what its declared limits are called there: v1, hybrid and v2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from msgspec import Struct

from bench.errors import HostError
from bench.linux import cgroups
from bench.model import Limits, RunId, token_of

_PERIOD = 100_000  # µs, the kernel's default


class Groups(Struct, frozen=True):
    """The cgroups of one instance: controller -> folder ("unified" alone on a pure v2 host), and files to write."""

    paths: dict[str, str]
    settings: dict[str, list[tuple[str, str]]]

    def order(self) -> list[tuple[str, list[tuple[str, str]]]]:
        return [(path, self.settings[name]) for name, path in self.paths.items()]

    @property
    def unified(self) -> str | None:
        return self.paths.get("unified")


class CgroupLayout(Struct, frozen=True):
    """How this host mounts its controllers."""

    v1: dict[str, str]  # controller -> mount point
    v2: str | None

    @property
    def kind(self) -> str:
        return ("hybrid" if self.v2 else "v1") if self.v1 else ("v2" if self.v2 else "none")

    def parents(self, run: RunId) -> list[str]:
        """The run's own group in each hierarchy."""
        tops = list(self.v1.values()) if self.v1 else [self.v2] if self.v2 else []
        return [f"{top}/bench-{token_of(run)}" for top in dict.fromkeys(tops)]

    def groups(self, run: RunId, instance: str, limits: Limits) -> Groups:
        """Folders and limits of `instance`."""
        below = f"bench-{token_of(run)}/{instance}"
        if self.v1:
            paths = {name: f"{self.v1[name]}/{below}" for name in cgroups.V1_CONTROLLERS if name in self.v1}
            return Groups(paths, {name: _v1_settings(name, limits) for name in paths})
        if self.v2:
            return Groups({"unified": f"{self.v2}/{below}"}, {"unified": _v2_settings(limits)})
        raise HostError("no cgroup hierarchy is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup")

    def prepare(self, run: RunId) -> None:
        """Make the run's own groups; on v2 hand the controllers down, which only then reach the instances."""
        for path in self.parents(run):
            os.makedirs(path, exist_ok=True)
        if not self.v1 and self.v2:
            for folder in (self.v2, *self.parents(run)):
                self._delegate(folder)

    def _delegate(self, folder: str) -> None:
        for name in ("memory", "cpu", "pids"):
            with open(f"{folder}/cgroup.controllers") as file:
                if name not in file.read().split():
                    raise HostError(
                        f"the {name} controller is not available in {folder}",
                        hint="cgroup_enable, or systemd's Delegate=",
                    )
            cgroups.write(f"{folder}/cgroup.subtree_control", f"+{name}")


def layout() -> CgroupLayout:
    """This host's layout, from /proc/self/mountinfo."""
    return CgroupLayout(*cgroups.current_mounts())


def _v1_settings(controller: str, limits: Limits) -> list[tuple[str, str]]:
    return {
        "memory": [("memory.limit_in_bytes", str(limits.memory))],
        "cpu": [("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", str(int(limits.cpus * _PERIOD)))],
        "pids": [("pids.max", str(limits.pids))],
    }.get(controller, [])


def _v2_settings(limits: Limits) -> list[tuple[str, str]]:
    return [
        ("memory.max", str(limits.memory)),
        ("cpu.max", f"{int(limits.cpus * _PERIOD)} {_PERIOD}"),
        ("pids.max", str(limits.pids)),
    ]


def members(paths: Sequence[str]) -> tuple[int, ...]:
    """Host pids in any of the groups, each once."""
    return tuple(sorted({pid for path in paths for pid in cgroups.pids(path)}))


def leftovers(run: RunId) -> list[str]:
    """Groups of the run that still exist, the run's own folders included."""
    return [path for path in layout().parents(run) if os.path.isdir(path)]


def remove_all(run: RunId) -> None:
    """Kill what is left in the run's groups and remove them. For a run whose launcher is gone."""
    import signal
    import time

    for path in leftovers(run):
        for _ in range(1000):
            if not (left := cgroups.pids(path)):
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        cgroups.remove(path)
