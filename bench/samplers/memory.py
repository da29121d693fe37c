"""Memory of instances: what their host processes map, and what is charged to their cgroups.

A sum is reported only if all of it could be read: a part that is missing would make it too low. What has ended
(a process, a cgroup that was removed) is no part of it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.linux import cgroups, procfs
from bench.model import Footprint, GuestRam, Reading


class MemorySampler:
    """instances.memory.{pss,uss,cgroup,kernel} and instances.processes; of guests also what is RAM of theirs, and what
    their hypervisors take beside it."""

    name = "memory"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, footprints: Sequence[Footprint]) -> list[Reading]:
        readings = self._processes(host_pids(footprints, self._root))
        readings += self._guests(footprints, {reading.metric: reading.value for reading in readings})
        folders = memory_groups(footprints, self._root)
        if folders is not None:
            readings += _charged(folders)
        return readings

    def _processes(self, pids: Iterable[int]) -> list[Reading]:
        found = [process_memory(pid, self._root) for pid in pids]
        alive = [memory for memory in found if memory is not None]
        readings = [Reading("instances.processes", float(len(alive)), "count")]
        sums = [memory for memory in alive if memory]
        if len(sums) == len(alive):
            readings += [
                Reading("instances.memory.pss", float(sum(pss for pss, _ in sums)), "bytes"),
                Reading("instances.memory.uss", float(sum(uss for _, uss in sums)), "bytes"),
            ]
        return readings

    def _guests(self, footprints: Sequence[Footprint], sums: Mapping[str, float]) -> list[Reading]:
        """instances.memory.{guest,touched,overhead}: only if all instances that run are guests and tell."""
        running = [one for one in footprints if one.pids]
        rams = [one.ram for one in running if one.ram is not None]
        if not running or len(rams) < len(running) or "instances.memory.pss" not in sums:
            return []
        found = [ram_memory(ram, self._root) for ram in rams]
        if None in found:
            return []
        pss, rss = (float(sum(one[place] for one in found if one)) for place in (0, 1))
        return [
            Reading("instances.memory.guest", pss, "bytes"),
            Reading("instances.memory.touched", rss, "bytes"),
            Reading("instances.memory.overhead", sums["instances.memory.pss"] - pss, "bytes"),
        ]


def ram_memory(ram: GuestRam, root: Path = Path("/")) -> tuple[int, int] | None:
    """(PSS, RSS) in bytes of a guest's RAM; None if its mapping can't be told apart, or is not ours to read."""
    try:
        with open(root / f"proc/{ram.pid}/smaps") as file:
            values = procfs.mapped(file, ram.start, ram.size)
    except OSError:  # it has ended, or is not ours to read
        return None
    if values is None or not {"Pss", "Rss"} <= values.keys():
        return None
    return values["Pss"], values["Rss"]


def host_pids(footprints: Sequence[Footprint], root: Path = Path("/")) -> list[int]:
    """Every host process of the instances, once: those named, and all in their cgroups and below."""
    found = {pid for footprint in footprints for pid in footprint.pids}
    for path in {path for footprint in footprints for path in footprint.cgroups.values()}:
        found.update(cgroups.pids(str(under(root, path))))
    return sorted(found)


def process_memory(pid: int, root: Path = Path("/")) -> tuple[int, int] | tuple[()] | None:
    """(PSS, USS) in bytes; () if it is not ours to read; None if the process has ended."""
    try:
        with open(root / f"proc/{pid}/smaps_rollup") as file:
            values = procfs.sizes(file.read())
    except PermissionError:
        return ()
    except OSError:  # ENOENT, or ESRCH: it ended while we read, or is a zombie, which maps nothing
        return None
    if "Pss" not in values:
        return None
    return values["Pss"], values.get("Private_Clean", 0) + values.get("Private_Dirty", 0)


def memory_groups(footprints: Sequence[Footprint], root: Path = Path("/")) -> list[Path] | None:
    """Folders that still exist and count the instances' memory; None if an instance has none."""
    paths: set[str] = set()
    for footprint in footprints:
        if not footprint.cgroups and not footprint.pids:
            continue  # it has ended, and its groups with it
        path = footprint.cgroups.get("memory") or footprint.cgroups.get("unified")
        if path is None:
            return None
        paths.add(path)
    return [folder for path in sorted(paths) if (folder := under(root, path)).is_dir()]


def _charged(folders: Sequence[Path]) -> list[Reading]:
    """Sums over groups; each group's figure includes the groups below it (v1: use_hierarchy, always on since 5.11)."""
    readings = []
    for metric, one in (("instances.memory.cgroup", _usage), ("instances.memory.kernel", _kernel)):
        values = [one(folder) for folder in folders]
        known = [value for value, folder in zip(values, folders, strict=True) if value is not None or folder.is_dir()]
        if None not in known:
            readings.append(Reading(metric, float(sum(value or 0 for value in known)), "bytes"))
    return readings


def _usage(folder: Path) -> int | None:
    v2 = procfs.number(folder / "memory.current")
    return procfs.number(folder / "memory.usage_in_bytes") if v2 is None else v2


def _kernel(folder: Path) -> int | None:
    v1 = procfs.number(folder / "memory.kmem.usage_in_bytes")
    return procfs.keyed(procfs.read(folder / "memory.stat") or "").get("kernel") if v1 is None else v1


def under(root: Path, path: str) -> Path:
    """An absolute path of the host, below an injected root."""
    return root / path.lstrip("/")
