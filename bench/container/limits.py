"""What resources are called in the files of a group, v1's and v2's; and what there is a file for, but no effect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.container.spec_records import Cpu, Memory, Resources
from bench.errors import HostError

Settings = list[tuple[str, str]]
"""Files of a group and what to write there, in order."""

WITHOUT = {
    "memory.memsw.limit_in_bytes": "boot with swapaccount=1, or leave swap out",
    "blkio.weight": "weights need the bfq scheduler on the disk: leave the weight out",
    "blkio.bfq.weight": "weights need the bfq scheduler on the disk: leave the weight out",
}
"""Files that not every kernel has, and what to do."""


def refuse_idle(resources: Resources, slash: Path = Path("/")) -> None:
    """Raises HostError for what there is a file for, but no effect. `slash` holds the `sys` and `proc` to look at."""
    if resources.block_io is not None and resources.block_io.weight:
        schedulers = slash.glob("sys/block/*/queue/scheduler")
        if not any("[bfq]" in path.read_text() for path in schedulers):
            raise HostError("a blkio weight has no effect: no disk here is under bfq", hint=WITHOUT["blkio.weight"])
    memory = resources.memory or Memory()
    if memory.swap and memory.swap > max(memory.limit or 0, 0) and not _swap(slash):
        hint = "swapon, or leave linux.resources.memory.swap out"
        raise HostError(f"no swap on this host, so {memory.swap} bytes with swap can't be given", hint=hint)


def _swap(slash: Path) -> bool:
    return len((slash / "proc/swaps").read_text().splitlines()) > 1  # below its heading


def v1_settings(resources: Resources) -> Iterator[tuple[str, str, str]]:
    """Controller, file, value."""
    yield from _v1_memory(resources.memory or Memory())
    yield from _v1_cpu(resources.cpu or Cpu())
    if resources.pids is not None and resources.pids.limit:
        yield "pids", "pids.max", _or_max(resources.pids.limit)
    if resources.block_io is not None and resources.block_io.weight:
        yield "blkio", _weight_file(), str(resources.block_io.weight)


def _v1_memory(memory: Memory) -> Iterator[tuple[str, str, str]]:
    if memory.limit:
        yield "memory", "memory.limit_in_bytes", str(memory.limit)
    if memory.reservation:
        yield "memory", "memory.soft_limit_in_bytes", str(memory.reservation)
    if memory.swap:
        yield "memory", "memory.memsw.limit_in_bytes", str(memory.swap)
    if memory.swappiness is not None:
        yield "memory", "memory.swappiness", str(memory.swappiness)


def _v1_cpu(cpu: Cpu) -> Iterator[tuple[str, str, str]]:
    if cpu.shares:
        yield "cpu", "cpu.shares", str(cpu.shares)
    if cpu.period:
        yield "cpu", "cpu.cfs_period_us", str(cpu.period)
    if cpu.quota:
        yield "cpu", "cpu.cfs_quota_us", str(cpu.quota)
    if cpu.cpus:
        yield "cpuset", "cpuset.cpus", cpu.cpus
    if cpu.mems:
        yield "cpuset", "cpuset.mems", cpu.mems


def _weight_file() -> str:
    """bfq's own file where there is one."""
    below = Path("/sys/fs/cgroup/blkio")
    return "blkio.bfq.weight" if any(below.glob("*/blkio.bfq.weight")) else "blkio.weight"


def v2_settings(resources: Resources, top: Path) -> Settings:
    settings = [*_v2_memory(resources.memory or Memory()), *_v2_cpu(resources.cpu or Cpu())]
    if resources.pids is not None and resources.pids.limit:
        settings.append(("pids.max", _or_max(resources.pids.limit)))
    if resources.block_io is not None and resources.block_io.weight:
        if not any(top.glob("*/io.bfq.weight")) and not (top / "io.bfq.weight").exists():
            raise HostError("this kernel can't enforce io.bfq.weight", hint=WITHOUT["blkio.weight"])
        settings.append(("io.bfq.weight", str(resources.block_io.weight)))
    return settings


def _v2_memory(memory: Memory) -> Iterator[tuple[str, str]]:
    if memory.limit:
        yield "memory.max", _or_max(memory.limit)
    if memory.reservation:
        yield "memory.low", _or_max(memory.reservation)
    if memory.swap:
        yield "memory.swap.max", _or_max(memory.swap - max(memory.limit or 0, 0))
    if memory.swappiness is not None:
        raise HostError("cgroup v2 has no swappiness of a group", hint="leave linux.resources.memory.swappiness out")


def _v2_cpu(cpu: Cpu) -> Iterator[tuple[str, str]]:
    if cpu.shares:
        yield "cpu.weight", str(cpu_weight(cpu.shares))
    if cpu.quota or cpu.period:
        yield "cpu.max", f"{_or_max(cpu.quota or -1)} {cpu.period or 100_000}"
    if cpu.cpus:
        yield "cpuset.cpus", cpu.cpus
    if cpu.mems:
        yield "cpuset.mems", cpu.mems


def _or_max(value: int | None) -> str:
    return "max" if value is None or value < 0 else str(value)


def cpu_weight(shares: int) -> int:
    """v1's 2..262144 (default 1024) on v2's scale of 1..10000 (default 100), the way engines convert it."""
    return 1 + (min(max(shares, 2), 262_144) - 2) * 9999 // 262_142
