"""Samplers on small trees: sums are complete or absent, what has ended is skipped, shared things count once."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.linux import procfs
from bench.metrics import METRICS
from bench.model import Footprint, Reading
from bench.samplers import cpu_seconds, default_samplers
from bench.samplers.cpu import CpuSampler
from bench.samplers.disk import DiskSampler
from bench.samplers.harness import HarnessSampler
from bench.samplers.host import HostSampler
from bench.samplers.memory import MemorySampler
from bench.samplers.scratch import ScratchSampler
from tests.unit.guests import guest

HYBRID = Path(__file__).parent / "data/host/hybrid"


def values(readings: Sequence[Reading]) -> dict[str, float]:
    return {reading.metric: reading.value for reading in readings}


def put(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n" if text != "" else "")


def process(root: Path, pid: int, pss: int, clean: int = 0, dirty: int = 0) -> None:
    put(
        root / f"proc/{pid}/smaps_rollup",
        f"00400000-7fff00000000 ---p 00000000 00:00 0   [rollup]\nRss: {pss * 2} kB\nPss: {pss} kB\nPss_Dirty: 1 kB\n"
        f"Private_Clean: {clean} kB\nPrivate_Dirty: {dirty} kB",
    )


def group_v1(root: Path, name: str, usage: int, kernel: int, pids: Sequence[int] = (), cpu: int = 0) -> dict[str, str]:
    memory, cpuacct = f"/sys/fs/cgroup/memory/{name}", f"/sys/fs/cgroup/cpuacct/{name}"
    put(root / f"{memory[1:]}/memory.usage_in_bytes", usage)
    put(root / f"{memory[1:]}/memory.kmem.usage_in_bytes", kernel)
    put(root / f"{memory[1:]}/cgroup.procs", "\n".join(map(str, pids)))
    put(root / f"{cpuacct[1:]}/cpuacct.usage", cpu)
    put(root / f"{cpuacct[1:]}/cgroup.procs", "\n".join(map(str, pids)))
    return {"memory": memory, "cpuacct": cpuacct}


def group_v2(root: Path, name: str, usage: int, kernel: int, cpu: int = 0) -> dict[str, str]:
    path = f"/sys/fs/cgroup/{name}"
    put(root / f"{path[1:]}/memory.current", usage)
    put(root / f"{path[1:]}/memory.stat", f"anon 5\nkernel {kernel}\nkernel_stack 3")
    put(root / f"{path[1:]}/cpu.stat", f"usage_usec {cpu}\nuser_usec 1")
    put(root / f"{path[1:]}/cgroup.procs", "")
    return {"unified": path}


# --- memory


def test_memory_sums_processes_once_wherever_they_are_named(tmp_path: Path) -> None:
    for pid, pss in ((10, 100), (11, 50), (12, 7)):
        process(tmp_path, pid, pss, clean=1, dirty=2)
    one = Footprint("a", pids=(10,), cgroups=group_v1(tmp_path, "a", 1000, 100, [10, 11]))
    two = Footprint("b", pids=(12,), cgroups=group_v1(tmp_path, "b", 500, 50))
    assert values(MemorySampler(tmp_path).read([one, two])) == {
        "instances.processes": 3,
        "instances.memory.pss": 157 * 1024,
        "instances.memory.uss": 9 * 1024,
        "instances.memory.cgroup": 1500,
        "instances.memory.kernel": 150,
    }


def test_memory_finds_processes_in_groups_below(tmp_path: Path) -> None:
    process(tmp_path, 10, 100)
    groups = group_v1(tmp_path, "vm", 1000, 100)
    put(tmp_path / "sys/fs/cgroup/memory/vm/machine/emulator/cgroup.procs", 10)
    found = values(MemorySampler(tmp_path).read([Footprint("a", cgroups=groups)]))
    assert found["instances.memory.pss"] == 100 * 1024
    assert found["instances.memory.cgroup"] == 1000, "v1 and v2 count the groups below in the group above"


def test_memory_v2(tmp_path: Path) -> None:
    found = values(MemorySampler(tmp_path).read([Footprint("a", cgroups=group_v2(tmp_path, "a", 900, 90))]))
    assert (found["instances.memory.cgroup"], found["instances.memory.kernel"]) == (900, 90)


def test_hybrid_host_counts_in_v1(tmp_path: Path) -> None:
    groups = {**group_v2(tmp_path, "u", 1, 1, cpu=1), **group_v1(tmp_path, "a", 1000, 100, cpu=2 * 10**9)}
    found = values(MemorySampler(tmp_path).read([Footprint("a", cgroups=groups)]))
    assert found["instances.memory.cgroup"] == 1000
    assert cpu_seconds(Footprint("a", cgroups=groups), tmp_path) == 2.0


def test_what_has_ended_is_skipped(tmp_path: Path) -> None:
    process(tmp_path, 10, 100)
    put(tmp_path / "proc/12/smaps_rollup", "")  # a zombie maps nothing
    gone = Footprint("b", pids=(11, 12), cgroups={"memory": "/sys/fs/cgroup/memory/gone"})
    whole = Footprint("a", (10,), group_v1(tmp_path, "a", 7, 3))
    found = values(MemorySampler(tmp_path).read([whole, gone, Footprint("dead")]))
    assert found == {
        "instances.processes": 1,
        "instances.memory.pss": 100 * 1024,
        "instances.memory.uss": 0,
        "instances.memory.cgroup": 7,
        "instances.memory.kernel": 3,
    }


def test_a_sum_with_a_missing_part_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(tmp_path, 10, 100)
    groups = group_v2(tmp_path, "a", 900, 90)
    put(tmp_path / "sys/fs/cgroup/a/memory.stat", "anon 5")  # a kernel before 5.18
    whole = Footprint("a", (10,), groups)
    assert "instances.memory.kernel" not in values(MemorySampler(tmp_path).read([whole]))
    without_group = Footprint("b", (10,))
    assert "instances.memory.cgroup" not in values(MemorySampler(tmp_path).read([whole, without_group]))
    monkeypatch.setattr("bench.samplers.memory.process_memory", lambda pid, root: ())  # not ours to read
    found = values(MemorySampler(tmp_path).read([whole]))
    assert found["instances.processes"] == 1
    assert "instances.memory.pss" not in found


def test_no_instances_is_zero(tmp_path: Path) -> None:
    assert set(values(MemorySampler(tmp_path).read([])).values()) == {0.0}
    assert values(CpuSampler(tmp_path).read([])) == {"instances.cpu": 0.0}
    assert set(values(DiskSampler().read([])).values()) == {0.0}


def test_own_process_has_memory() -> None:
    found = values(MemorySampler().read([Footprint("me", pids=(os.getpid(),))]))
    assert found["instances.memory.pss"] > found["instances.memory.uss"] > 1 << 20


# --- CPU


def test_cpu(tmp_path: Path) -> None:
    one = Footprint("a", cgroups=group_v1(tmp_path, "a", 1, 1, cpu=1_500_000_000))
    two = Footprint("b", cgroups=group_v2(tmp_path, "b", 1, 1, cpu=250_000))
    assert values(CpuSampler(tmp_path).read([one, two])) == {"instances.cpu": 1.75}
    assert cpu_seconds(two, tmp_path) == 0.25
    assert cpu_seconds(Footprint("c"), tmp_path) is None
    assert CpuSampler(tmp_path).read([one, Footprint("c")]) == []
    assert cpu_seconds(Footprint("d", cgroups={"cpuacct": "/gone"}), tmp_path) is None


# --- disk


def write(path: Path, size: int) -> int:
    """Make a file; returns its allocated bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return os.lstat(path).st_blocks * 512


def blocks(*paths: Path) -> int:
    return sum(os.lstat(path).st_blocks * 512 for path in paths)


def test_disk_shared_counts_once_and_is_claimed_by_each(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    shared = write(layer / "a", 100_000) + blocks(layer)
    own = [write(tmp_path / name / "data", 20_000) + blocks(tmp_path / name) for name in ("one", "two")]
    footprints = [
        Footprint(name, disk_own=(str(tmp_path / name),), disk_shared=(str(layer),)) for name in ("one", "two")
    ]
    found = values(DiskSampler().read(footprints))
    assert found["instances.disk.own"] == sum(own)
    assert found["instances.disk.shared"] == shared
    assert found["instances.disk.claimed"] == sum(own) + 2 * shared
    apparent = 2 * (20_000 + 100_000) + sum(os.lstat(tmp_path / name).st_size for name in ("one", "two"))
    assert found["instances.disk.apparent"] == apparent + 2 * os.lstat(layer).st_size


def test_disk_hard_links_count_once(tmp_path: Path) -> None:
    size = write(tmp_path / "own/a", 50_000)
    os.link(tmp_path / "own/a", tmp_path / "own/b")
    found = values(DiskSampler().read([Footprint("x", disk_own=(str(tmp_path / "own"),))]))
    assert found["instances.disk.own"] == size + blocks(tmp_path / "own")
    (tmp_path / "shared").mkdir()
    os.link(tmp_path / "own/a", tmp_path / "shared/a")
    both = Footprint("x", disk_own=(str(tmp_path / "own"),), disk_shared=(str(tmp_path / "shared"),))
    assert values(DiskSampler().read([both]))["instances.disk.own"] == blocks(tmp_path / "own")


def test_disk_sparse_file_and_symbolic_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere / "big", 1 << 20)
    own = tmp_path / "own"
    own.mkdir()
    (own / "link").symlink_to(elsewhere)
    with open(own / "disk", "wb") as file:
        file.truncate(1 << 30)
    found = values(DiskSampler().read([Footprint("x", disk_own=(str(own), str(tmp_path / "gone")))]))
    assert found["instances.disk.own"] < 100_000
    assert found["instances.disk.apparent"] >= 1 << 30


def test_disk_does_not_cross_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "own/inner/a", 100_000)
    real = os.lstat

    class Elsewhere:
        """A DirEntry of another device."""

        path = str(tmp_path / "own/inner")

        def stat(self, follow_symlinks: bool) -> os.stat_result:
            status = list(real(self.path))
            status[2] += 1
            return os.stat_result(status, {"st_blocks": 1000})

    monkeypatch.setattr("bench.samplers.disk._entries", lambda folder: [Elsewhere()])
    found = values(DiskSampler().read([Footprint("x", disk_own=(str(tmp_path / "own"),))]))
    assert found["instances.disk.own"] == blocks(tmp_path / "own")


def test_disk_walks_shared_trees_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tmp_path / "layer"
    sampler, footprint = DiskSampler(), Footprint("x", disk_shared=(str(layer),))
    assert values(sampler.read([footprint]))["instances.disk.shared"] == 0
    write(layer / "a", 10_000)
    before = values(sampler.read([footprint]))
    assert before["instances.disk.shared"] > 0, "a tree that was not there yet is looked for again"
    monkeypatch.setattr("bench.samplers.disk._entries", lambda folder: pytest.fail("walked again"))
    assert values(sampler.read([footprint])) == before


def test_disk_that_can_not_be_read_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> list[os.DirEntry[str]]:
        raise PermissionError(folder)

    monkeypatch.setattr("bench.samplers.disk._entries", refuse)
    assert DiskSampler().read([Footprint("x", disk_own=(str(tmp_path),))]) == []


# --- host and harness


def test_host() -> None:
    found = values(HostSampler(HYBRID, sleep=lambda seconds: None).read([]))
    meminfo = procfs.meminfo(HYBRID)
    assert found == {
        "host.memory.available": meminfo["MemAvailable"],
        "host.memory.slab": meminfo["Slab"],
        "host.memory.pagetables": meminfo["PageTables"],
        "host.memory.kernelstack": meminfo["KernelStack"],
        "host.memory.percpu": meminfo["Percpu"],
        "host.pressure.memory": 1.5,
    }


def test_host_without_pressure_or_percpu(tmp_path: Path) -> None:
    put(tmp_path / "proc/meminfo", "MemAvailable: 10 kB\nHugePages_Total: 0")
    assert values(HostSampler(tmp_path, reads=1).read([])) == {"host.memory.available": 10240}


ZONES = """\
Node 0, zone      DMA
  pages free     3840
    cpu: 0
              count:    2
              high:     5
Node 0, zone   Normal
    cpu: 0
              count:    {count}
              high:     1378
  node_unreclaimable:  0
"""


def test_free_pages_in_percpu_lists_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "proc/meminfo", "MemAvailable: 10 kB")
    put(tmp_path / "proc/zoneinfo", ZONES.format(count=40))
    found = values(HostSampler(tmp_path, reads=1).read([]))
    assert found["host.memory.pcp"] == 42 * os.sysconf("SC_PAGE_SIZE")


def test_a_dip_of_free_memory_is_passed_over(tmp_path: Path) -> None:
    """What vanishes for less than half the moments is not the host's state; and a moment's figures stay together."""
    page = os.sysconf("SC_PAGE_SIZE")
    moments = iter([(1000, 5), (990, 8), (100, 0), (100, 0), (1010, 1)])

    def moment(seconds: float = 0) -> None:
        available, count = next(moments)
        put(tmp_path / "proc/meminfo", f"MemAvailable: {available} kB")
        put(tmp_path / "proc/zoneinfo", ZONES.format(count=count))

    moment()
    found = values(HostSampler(tmp_path, reads=5, sleep=moment).read([]))
    assert found == {"host.memory.available": 1010 * 1024, "host.memory.pcp": 3 * page}


def stat_line(root: Path, pid: int, user: int, system: int) -> None:
    put(root / f"proc/{pid}/stat", f"{pid} (a) b (c) S 1 1 1 0 -1 4194560 1 2 3 4 {user} {system} 900 900 20 0 1 0 5")


def test_harness_counts_from_its_making_and_keeps_what_ended(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    for pid in (1, 2):
        stat_line(tmp_path, pid, 10 * ticks, 0)
        process(tmp_path, pid, 100)
    helpers = [2]
    sampler = HarnessSampler(lambda: helpers, tmp_path, own=1)
    stat_line(tmp_path, 1, 11 * ticks, ticks)
    stat_line(tmp_path, 2, 10 * ticks, 3 * ticks)
    stat_line(tmp_path, 3, ticks, 0)
    process(tmp_path, 3, 50)
    helpers[:] = [2, 3, 1]
    assert values(sampler.read([])) == {"harness.cpu": 6.0, "harness.memory.pss": 250 * 1024}
    helpers[:] = []
    assert values(sampler.read([])) == {"harness.cpu": 6.0, "harness.memory.pss": 100 * 1024}


def test_harness_of_this_process() -> None:
    sampler = HarnessSampler(lambda: [])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    while resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 0.06:
        pass
    assert 0.03 < values(sampler.read([]))["harness.cpu"] < 5


# --- all of them


def test_every_reading_is_in_the_glossary_with_its_unit(tmp_path: Path) -> None:
    write(tmp_path / "own", 1)
    groups = group_v1(tmp_path, "a", 1, 1)
    footprint = Footprint("x", (os.getpid(),), {key: str(tmp_path / path[1:]) for key, path in groups.items()})
    readings = [reading for sampler in default_samplers(list) for reading in sampler.read([footprint])]
    readings += HostSampler(HYBRID).read([])  # pressure, where this kernel has none
    readings += MemorySampler(tmp_path).read([guest(tmp_path)])
    put(tmp_path / "proc/self/mountinfo", f"31 1 7:0 / {tmp_path}/mnt rw - ext4 /dev/loop0 rw")
    (tmp_path / "mnt").mkdir()
    readings += ScratchSampler(tmp_path, tmp_path / "proc", lambda point: None).read([])
    for reading in readings:
        assert (METRICS[reading.metric].unit, METRICS[reading.metric].kind) == (reading.unit, "raw")
    emitted = {reading.metric for reading in readings}
    others = {name for name in METRICS if name.startswith(("cold.", "host.ksm.", "service."))}  # no sampler's
    assert not emitted & others
    assert emitted | others == {name for name, metric in METRICS.items() if metric.kind == "raw"}


def test_names_are_those_of_the_contract() -> None:
    assert [sampler.name for sampler in default_samplers(list)] == ["host", "harness", "memory", "cpu", "disk"]


def test_a_sample_of_a_full_ramp_is_quick(tmp_path: Path) -> None:
    footprints = []
    for number in range(72):
        process(tmp_path, 100 + number, 10)
        groups = group_v1(tmp_path, f"i{number}", 1, 1, [100 + number])
        write(tmp_path / f"own{number}/a", 10)
        footprints.append(Footprint(str(number), (100 + number,), groups, (str(tmp_path / f"own{number}"),)))
    samplers = (MemorySampler(tmp_path), CpuSampler(tmp_path), DiskSampler())
    start = time.perf_counter()
    for sampler in samplers:
        sampler.read(footprints)
    assert time.perf_counter() - start < 1.0
