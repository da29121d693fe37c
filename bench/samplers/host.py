"""The host's own figures: what no per-instance view can leave out.

MemAvailable alone misleads on current kernels. Freed pages rest in per-CPU lists, which since Linux 6.7 grow with what
is freed at once and shrink by megabytes a second: after 1.8 GiB were freed here, 230 MiB were free and counted nowhere,
and came back over half a minute, in the middle of the next ramp. /proc/zoneinfo tells how many pages the lists hold.
And where a hypervisor takes free pages back (free page reporting), up to 128 MiB vanish for up to 150 ms every two
seconds: one read is not enough, the median of several over a longer time is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
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
_FREE = ("host.memory.available", "host.memory.pcp")


class HostSampler:
    """host.memory.* from /proc/meminfo and /proc/zoneinfo, host.pressure.memory where the kernel has PSI, host.cpu.*.

    All figures of memory are from one moment: the one whose free memory is the median of `reads` moments.
    """

    name = "host"

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        reads: int = 9,
        interval: float = 0.05,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._root = root
        self._reads, self._interval, self._sleep = reads, interval, sleep

    def read(self, footprints: Sequence[Footprint]) -> list[Reading]:
        readings = [Reading(metric, float(value), "bytes") for metric, value in self._memory().items()]
        stalled = procfs.pressure_total(procfs.read(self._root / "proc/pressure/memory") or "")
        if stalled is not None:
            readings.append(Reading("host.pressure.memory", stalled / 1e6, "s"))
        return readings + self._cpu()

    def _cpu(self) -> list[Reading]:
        """Of all CPUs since boot; guest time is in user time and not counted twice."""
        words = (procfs.read(self._root / "proc/stat") or "").partition("\n")[0].split()
        if len(words) < 9 or words[0] != "cpu":
            return []
        ticks = [int(word) for word in words[1:9]]
        second = os.sysconf("SC_CLK_TCK")
        return [
            Reading("host.cpu.steal", ticks[7] / second, "s"),
            Reading("host.cpu.total", sum(ticks) / second, "s"),
        ]

    def _memory(self) -> dict[str, int]:
        moments = [self._moment()]
        for _ in range(self._reads - 1):
            self._sleep(self._interval)
            moments.append(self._moment())
        return sorted(moments, key=lambda one: sum(one.get(metric, 0) for metric in _FREE))[len(moments) // 2]

    def _moment(self) -> dict[str, int]:
        values = procfs.meminfo(self._root)
        found = {metric: values[key] for key, metric in _MEMINFO.items() if key in values}
        if (lists := procfs.percpu_lists(self._root)) is not None:
            found["host.memory.pcp"] = lists
        return found
