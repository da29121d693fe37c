"""The host's own figures: what no per-instance view can leave out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.linux import procfs
from bench.model import Footprint, Reading

_MEMINFO = {
    "MemAvailable": "host.memory.available",
    "Slab": "host.memory.slab",
    "PageTables": "host.memory.pagetables",
    "KernelStack": "host.memory.kernelstack",
    "Percpu": "host.memory.percpu",
}


class HostSampler:
    """host.memory.* from /proc/meminfo, host.pressure.memory where the kernel has PSI."""

    name = "host"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, footprints: Sequence[Footprint]) -> list[Reading]:
        values = procfs.meminfo(self._root)
        readings = [Reading(metric, float(values[key]), "bytes") for key, metric in _MEMINFO.items() if key in values]
        stalled = procfs.pressure_total(procfs.read(self._root / "proc/pressure/memory") or "")
        if stalled is not None:
            readings.append(Reading("host.pressure.memory", stalled / 1e6, "s"))
        return readings
