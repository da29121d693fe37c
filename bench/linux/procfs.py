"""Texts of /proc, /sys and cgroup folders as numbers. What is not there is None: never 0, never an error."""

from __future__ import annotations

import os
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


def process_cpu(pid: int, root: Path = Path("/")) -> float | None:
    """User and system CPU seconds of one process, without its children; None if it is gone."""
    text = read(root / f"proc/{pid}/stat")
    if text is None:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold blanks and parentheses
    return (int(fields[11]) + int(fields[12])) / _TICKS
