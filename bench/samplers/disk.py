"""Disk of instances: physical blocks, everything shared counted once; beside it what `du` and `ls` would claim."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from bench.model import Footprint, Reading

_BLOCK = 512  # unit of st_blocks, whatever the file system's own block is

_GONE = (FileNotFoundError, NotADirectoryError)  # removed, or replaced, since it was listed

Inode = tuple[int, int]  # device, number


class Usage(Struct, frozen=True):
    """Bytes of some trees, each inode once. `linked`: inodes that other trees may hold as well (hard links)."""

    allocated: int
    apparent: int
    linked: frozenset[Inode] = frozenset()


class DiskSampler:
    """instances.disk.{own,shared,claimed,apparent}; all absent if a tree is not ours to read.

    Shared trees are walked once: they don't change during a run.
    """

    name = "disk"

    def __init__(self) -> None:
        self._shared: dict[frozenset[str], Usage] = {}

    def read(self, footprints: Sequence[Footprint]) -> list[Reading]:
        try:
            return self._readings(footprints)
        except PermissionError:
            return []

    def _readings(self, footprints: Sequence[Footprint]) -> list[Reading]:
        shared = self._usage(path for footprint in footprints for path in footprint.disk_shared)
        per_instance = [self._usage(footprint.disk_shared) for footprint in footprints]
        own = measure((path for footprint in footprints for path in footprint.disk_own), shared.linked)
        sums = {
            "instances.disk.own": own.allocated,
            "instances.disk.shared": shared.allocated,
            "instances.disk.claimed": own.allocated + sum(usage.allocated for usage in per_instance),
            "instances.disk.apparent": own.apparent + sum(usage.apparent for usage in per_instance),
        }
        return [Reading(metric, float(value), "bytes") for metric, value in sums.items()]

    def _usage(self, paths: Iterable[str]) -> Usage:
        key = frozenset(paths)
        if key in self._shared:
            return self._shared[key]
        usage = measure(sorted(key))
        if all(os.path.lexists(path) for path in key):  # what is still to be made must be looked for again
            self._shared[key] = usage
        return usage


def measure(paths: Iterable[str], elsewhere: frozenset[Inode] = frozenset()) -> Usage:
    """Usage of files and trees; inodes counted `elsewhere` are left out, and what has vanished is no part of it."""
    seen: set[Inode] = set()
    linked: set[Inode] = set()
    allocated = apparent = 0
    for path in dict.fromkeys(paths):
        for status in walk(path):
            inode = (status.st_dev, status.st_ino)
            if inode in seen or inode in elsewhere:
                continue
            seen.add(inode)
            allocated += status.st_blocks * _BLOCK
            apparent += status.st_size
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                linked.add(inode)
    return Usage(allocated, apparent, frozenset(linked))


def walk(path: str) -> Iterator[os.stat_result]:
    """lstat of `path` and of all below it on the same device; links are not followed. Raises PermissionError."""
    try:
        top = os.lstat(path)
    except _GONE:
        return
    yield top
    folders = [path] if stat.S_ISDIR(top.st_mode) else []
    while folders:
        for entry in _entries(folders.pop()):
            try:
                status = entry.stat(follow_symlinks=False)
            except _GONE:
                continue
            if status.st_dev == top.st_dev:
                yield status
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except _GONE:
        return []
