"""What the host has left, read before each launch; the host must survive a ramp, and its owner must be able to log in.

Every figure comes from one small file or one call: all of them take 0.1 to 0.2 ms. One that can't be
read here (no PSI, no networks) is absent and stops nothing.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from bench.limiters import Stop
from bench.linux import procfs
from bench.model import Limits


class Kept(Struct, frozen=True):
    """What must be left to the host. Bytes, a share of time, counts."""

    memory: int = 0
    pressure: float = 1.0
    disk: int = 0
    pids: int = 0
    descriptors: int = 0


class Used(Struct, frozen=True):
    """How much of a limited thing is in use, and how much there is."""

    now: int
    most: int

    @property
    def left(self) -> int:
        return self.most - self.now

    def __str__(self) -> str:
        return f"{self.now} of {self.most}"


class Levels(Struct, frozen=True):
    """The host at one moment; None for what can't be read. `disk`: the least free of the places instances write to."""

    memory: int | None = None  # MemAvailable, bytes
    pressure: float | None = None  # PSI memory, some, avg10: share of time
    disk: int | None = None  # bytes
    pids: Used | None = None  # tasks of the host, of pid_max (threads have a pid each)
    descriptors: Used | None = None  # the busiest of our own processes, of its nofile
    files: Used | None = None  # open files of the host, of file-max
    ports: int | None = None  # bridge ports and addresses for instances still to come
    neighbours: Used | None = None  # of the host's table, of gc_thresh3: stops nothing by itself, but answers get lost
    overflows: int | None = None  # times that table was full since we began to look

    def __str__(self) -> str:
        """As evidence: `MemAvailable 3221225472 bytes, memory pressure avg10 1.4 %, ...`."""
        parts = {
            "MemAvailable": _with("bytes", self.memory),
            "memory pressure avg10": None if self.pressure is None else f"{100 * self.pressure:.1f} %",
            "free disk": _with("bytes", self.disk),
            "pids": self.pids,
            "descriptors": self.descriptors,
            "open files": self.files,
            "bridge ports left": self.ports,
            "neighbours": self.neighbours,
            "times the neighbour table was full (net.ipv4.neigh.default.gc_thresh3)": self.overflows or None,
        }
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


class HostHeadroom:
    """This host, held against a reserve.

    `places`: folders that instances write to. `pids`: our processes that hold descriptors for instances, besides this
    one. `ports`: how many more instances the run's networks can take; None without networks.
    """

    def __init__(
        self,
        reserve: Kept,
        places: Sequence[Path],
        pids: Callable[[], Sequence[int]],
        ports: Callable[[], int | None] = lambda: None,
        root: Path = Path("/"),
    ) -> None:
        self._reserve, self._places, self._pids, self._ports, self._root = reserve, places, pids, ports, root
        self._overflows = self._neighbours()[1]

    def stop(self, limits: Limits) -> Stop | None:
        """Why one more instance of this size must not be launched; None if it may be."""
        return shortage(self.levels(), self._reserve, limits)

    def said(self) -> str:
        """The levels as they are now, as evidence."""
        return str(self.levels())

    def levels(self) -> Levels:
        proc = self._root / "proc"
        memory = procfs.meminfo(self._root).get("MemAvailable")
        pressure = procfs.pressure_average(procfs.read(proc / "pressure/memory") or "")
        neighbours, full = self._neighbours()
        return Levels(
            memory, pressure, self._disk(), self._tasks(), self._descriptors(), self._files(), self._left(), neighbours,
            full - self._overflows,
        )  # fmt: skip

    def _left(self) -> int | None:
        try:
            return self._ports()
        except OSError:  # no descriptor to read the routes with
            return None

    def _disk(self) -> int | None:
        free = [found for place in self._places if (found := _free(place)) is not None]
        return min(free, default=None)

    def _tasks(self) -> Used | None:
        """The fourth word of loadavg: running/all tasks of the host."""
        words = (procfs.read(self._root / "proc/loadavg") or "").split()
        most = procfs.number(self._root / "proc/sys/kernel/pid_max")
        tasks = words[3].partition("/")[2] if len(words) > 3 else ""
        return Used(int(tasks), most) if tasks.isdecimal() and most is not None else None

    def _descriptors(self) -> Used | None:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        found = [open_descriptors(pid, self._root) for pid in ("self", *map(str, self._pids()))]
        return max((Used(one, most) for one in found if one is not None), key=lambda used: used.now, default=None)

    def _neighbours(self) -> tuple[Used | None, int]:
        """Of all network namespaces, which share a table; how often it has been full. Hexadecimal, a line a CPU."""
        head, *rows = (procfs.read(self._root / "proc/net/stat/arp_cache") or "").splitlines() or [""]
        names, most = head.split(), procfs.number(self._root / "proc/sys/net/ipv4/neigh/default/gc_thresh3")
        if most is None or not rows or not {"entries", "table_fulls"} <= set(names):
            return None, 0
        places = {name: names.index(name) for name in ("entries", "table_fulls")}
        counts = [{name: int(row.split()[place], 16) for name, place in places.items()} for row in rows]
        return Used(counts[0]["entries"], most), sum(one["table_fulls"] for one in counts)

    def _files(self) -> Used | None:
        words = (procfs.read(self._root / "proc/sys/fs/file-nr") or "").split()
        return Used(int(words[0]), int(words[2])) if len(words) == 3 else None


def shortage(levels: Levels, reserve: Kept, limits: Limits) -> Stop | None:
    """The first thing of which one more instance, taking all that it is declared, would touch the reserve."""
    return next(_shortages(levels, reserve, limits), None)


def _shortages(levels: Levels, reserve: Kept, limits: Limits) -> Iterator[Stop]:
    if levels.memory is not None and levels.memory < limits.memory + reserve.memory:
        yield Stop(
            "memory",
            f"MemAvailable is {levels.memory} bytes; what is launched next may take {limits.memory}, "
            f"and the reserve is {reserve.memory}",
        )
    if levels.pressure is not None and levels.pressure > reserve.pressure:
        yield Stop(
            "pressure",
            f"some task waited for memory in {100 * levels.pressure:.1f} % of the last 10 s (PSI some avg10); "
            f"{100 * reserve.pressure:.1f} % are allowed",
        )
    if levels.disk is not None and levels.disk < reserve.disk:
        yield Stop("disk", f"{levels.disk} bytes are free where instances write, and the reserve is {reserve.disk}")
    if levels.pids is not None and levels.pids.left < limits.pids + reserve.pids:
        yield Stop(
            "pids",
            f"{levels.pids} process ids are in use (pid_max); what is launched next may take {limits.pids}, "
            f"and the reserve is {reserve.pids}",
        )
    for what, used in (("descriptors of a process of ours", levels.descriptors), ("files on the host", levels.files)):
        if used is not None and used.left < reserve.descriptors:
            yield Stop("descriptors", f"{used} {what} are open, and the reserve is {reserve.descriptors}")
    if levels.ports is not None and levels.ports < 1:
        yield Stop("ports", "no bridge port and no address is left for one more")


def open_descriptors(pid: str, root: Path = Path("/")) -> int | None:
    """Of one process; None if it is gone. Since Linux 6.2 the folder's size tells, before that it is 0."""
    folder = root / f"proc/{pid}/fd"
    try:
        return os.stat(folder).st_size or len(os.listdir(folder))
    except OSError:
        return None


def _free(place: Path) -> int | None:
    """Bytes that are free for us on the file system of `place`, or of what is there of the path to it."""
    try:
        found = os.statvfs(next(one for one in (place, *place.parents) if one.exists()))
    except (OSError, StopIteration):
        return None
    return found.f_bavail * found.f_frsize


def _with(unit: str, value: int | None) -> str | None:
    return None if value is None else f"{value} {unit}"
