"""CPU seconds charged to instances' cgroups, hypervisor and helpers included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.linux import procfs
from bench.model import Footprint, Reading
from bench.samplers.memory import under


class CpuSampler:
    """instances.cpu; absent if one of them can't be read."""

    name = "cpu"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, footprints: Sequence[Footprint]) -> list[Reading]:
        total = 0.0
        for footprint in footprints:
            seconds = cpu_seconds(footprint, self._root)
            if seconds is None:
                return []
            total += seconds
        return [Reading("instances.cpu", total, "s")]


def cpu_seconds(footprint: Footprint, root: Path = Path("/")) -> float | None:
    """Since the instance's cgroup was made; the groups below it are in it. None if it can't be told."""
    if (path := footprint.cgroups.get("cpuacct")) is not None:
        nanoseconds = procfs.number(under(root, path) / "cpuacct.usage")
        return None if nanoseconds is None else nanoseconds / 1e9
    if (path := footprint.cgroups.get("unified")) is not None:
        microseconds = procfs.keyed(procfs.read(under(root, path) / "cpu.stat") or "").get("usage_usec")
        return None if microseconds is None else microseconds / 1e6
    return None
