"""What measuring costs: memory and CPU of our own processes, to be taken off the host's change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.linux import procfs
from bench.model import Footprint, Reading
from bench.samplers.memory import process_memory


class HarnessSampler:
    """harness.memory.pss and harness.cpu, over this process and the helpers that `pids` names.

    CPU counts from the sampler's making. Time of waited-for children is left out: the launcher's are the payloads.
    """

    name = "harness"

    def __init__(self, pids: Callable[[], Sequence[int]], root: Path = Path("/"), own: int | None = None) -> None:
        self._helpers = pids
        self._root = root
        self._own = os.getpid() if own is None else own
        self._cpu: dict[int, float] = {}  # last seen, kept for helpers that have ended
        self._zero = self._cpu_total()

    def read(self, footprints: Sequence[Footprint]) -> list[Reading]:
        readings = [Reading("harness.cpu", self._cpu_total() - self._zero, "s")]
        found = [process_memory(pid, self._root) for pid in self._pids()]
        sums = [memory for memory in found if memory]
        if sums and () not in found:
            readings.append(Reading("harness.memory.pss", float(sum(pss for pss, _ in sums)), "bytes"))
        return readings

    def _pids(self) -> set[int]:
        return {self._own, *self._helpers()}

    def _cpu_total(self) -> float:
        for pid in self._pids():
            seconds = procfs.process_cpu(pid, self._root)
            if seconds is not None:
                self._cpu[pid] = seconds
        return sum(self._cpu.values())
