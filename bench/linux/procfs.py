"""Texts of /proc, /sys and cgroup folders as numbers. What is not there is None: never 0, never an error."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def read(path: Path | str) -> str | None:
    """The file's text, stripped; None if it is gone, not there, or not ours to read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:  # ESRCH too: a process that ends between open and read
        return None


def number(path: Path | str) -> int | None:
    """The whole number a file holds; None also for "max" and the like."""
    text = read(path)
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None


def sizes(text: str) -> dict[str, int]:
    """`Name:  123 kB` lines, as in meminfo and smaps_rollup -> bytes."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB" and words[1].isdecimal():
            found[words[0].rstrip(":")] = int(words[1]) * 1024
    return found


def mapped(smaps: Iterable[str], start: int, size: int) -> dict[str, int] | None:
    """Sums in bytes over the mappings of a /proc/PID/smaps that lie in `size` bytes from address `start`.

    None if there are none, or one reaches beyond: then what lies within can't be told. An open file is read no
    further than it has to be: the kernel makes its lines as they are asked for, and all take milliseconds.
    """
    total: dict[str, int] = {}
    inside = found = False
    for line in smaps:
        words = line.split()
        if words and words[0][-1] != ":":  # the head of a mapping: `7f00-7f80 rw-p 00000000 00:00 0 name`
            low, high = (int(end, 16) for end in words[0].split("-"))
            if low >= start + size:
                break
            inside = high > start
            if inside and not (start <= low and high <= start + size):
                return None
            found = found or inside
        elif inside and len(words) == 3 and words[2] == "kB":
            name = words[0][:-1]
            total[name] = total.get(name, 0) + int(words[1]) * 1024
    return total if found else None


def meminfo(root: Path = Path("/")) -> dict[str, int]:
    """/proc/meminfo in bytes; empty if it can't be read."""
    return sizes(read(root / "proc/meminfo") or "")


def percpu_lists(root: Path = Path("/")) -> int | None:
    """Bytes free in the kernel's per-CPU page lists, over all zones; None without /proc/zoneinfo."""
    text = read(root / "proc/zoneinfo")
    if text is None:
        return None
    lines = (line.split() for line in text.splitlines())
    return _PAGE * sum(int(words[1]) for words in lines if len(words) == 2 and words[0] == "count:")


def keyed(text: str) -> dict[str, int]:
    """`name 123` lines, as in cpu.stat and memory.stat."""
    pairs = (line.split() for line in text.splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2 and words[1].isdecimal()}


def pressure_total(text: str, kind: str = "some") -> int | None:
    """Microseconds of stall since boot, from /proc/pressure/*."""
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == kind and words[-1].startswith("total="):
            return int(words[-1].removeprefix("total="))
    return None


def pressure_average(text: str, kind: str = "some") -> float | None:
    """Share of the last ten seconds that was stalled, from /proc/pressure/*."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == kind and words[1].startswith("avg10="):
            return float(words[1].removeprefix("avg10=")) / 100
    return None


def process_cpu(pid: int, root: Path = Path("/")) -> float | None:
    """User and system CPU seconds of one process, without its children; None if it is gone."""
    text = read(root / f"proc/{pid}/stat")
    if text is None:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold blanks and parentheses
    return (int(fields[11]) + int(fields[12])) / _TICKS
