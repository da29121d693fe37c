"""Disk of instances: physical blocks, everything shared counted once; beside it what `du` and `ls` would claim.

Shared are files that several instances read (layers, backing files), hard links, and extents that several files have in
common: of a reflinked copy or a snapshot only what was written since has blocks of its own. st_blocks does not tell
those apart, FIEMAP does.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from msgspec import Struct

from bench.linux.files import Placement, placement
from bench.linux.mountinfo import Mount, by_point, mount_of, mounts
from bench.model import Footprint, Reading

_BLOCK = 512  # unit of st_blocks, whatever the file system's own block is
SHARING = frozenset({"btrfs", "xfs", "bcachefs"})
"""File systems on which files can have extents in common: the others need not be asked."""

_GONE = (FileNotFoundError, NotADirectoryError)  # removed, or replaced, since it was listed

Inode = tuple[int, int]  # device, number
Range = tuple[str, int, int]  # file system ("major:minor"), first byte on it, the byte after the last


class Usage(Struct, frozen=True):
    """Bytes of some trees, each inode once. `linked`: inodes that other trees may hold as well (hard links).

    `blocks` is what the inodes say; `allocated` has what `ranges` name once, and not what was counted elsewhere. These
    are all that lie there, shared or not: a clone may be made of them later.
    """

    allocated: int
    apparent: int
    linked: frozenset[Inode] = frozenset()
    blocks: int = 0
    ranges: frozenset[Range] = frozenset()


_NOTHING = Usage(0, 0)


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
        found = by_point(mounts())
        shared = self._usage((path for footprint in footprints for path in footprint.disk_shared), found)
        per_instance = [self._usage(footprint.disk_shared, found) for footprint in footprints]
        own = measure((path for footprint in footprints for path in footprint.disk_own), shared, found)
        sums = {
            "instances.disk.own": own.allocated,
            "instances.disk.shared": shared.allocated,
            "instances.disk.claimed": own.blocks + sum(usage.blocks for usage in per_instance),
            "instances.disk.apparent": own.apparent + sum(usage.apparent for usage in per_instance),
        }
        return [Reading(metric, float(value), "bytes") for metric, value in sums.items()]

    def _usage(self, paths: Iterable[str], found: Mapping[str, Mount]) -> Usage:
        key = frozenset(paths)
        if key in self._shared:
            return self._shared[key]
        usage = measure(sorted(key), _NOTHING, found)
        if all(os.path.lexists(path) for path in key):  # what is still to be made must be looked for again
            self._shared[key] = usage
        return usage


def measure(
    paths: Iterable[str],
    elsewhere: Usage = _NOTHING,
    found: Mapping[str, Mount] | None = None,
    wanted: Callable[[Mount | None], bool] = lambda mount: True,
) -> Usage:
    """Usage of files and trees; what was counted `elsewhere` is left out, and what has vanished is no part of it.

    `found`: this host's mounts; `wanted`: which of them to look at.
    """
    found = by_point(mounts()) if found is None else found
    tally = _Tally(elsewhere)
    for path in dict.fromkeys(paths):
        mount = mount_of(os.path.realpath(path), found)
        if wanted(mount):
            for name, status in walk(path):
                tally.add(name, status, mount)
    return tally.usage()


class _Tally:
    """What `measure` has counted so far."""

    def __init__(self, elsewhere: Usage) -> None:
        self._elsewhere = elsewhere
        self._seen: set[Inode] = set(elsewhere.linked)
        self._linked: set[Inode] = set()
        self._ranges: list[Range] = []
        self._blocks = self._placed = self._apparent = 0

    def add(self, path: str, status: os.stat_result, mount: Mount | None) -> None:
        inode = (status.st_dev, status.st_ino)
        if inode in self._seen:
            return
        self._seen.add(inode)
        self._blocks += status.st_blocks * _BLOCK
        self._apparent += status.st_size
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            self._linked.add(inode)
        if mount is not None and mount.kind in SHARING and status.st_blocks:
            self._place(path, status, mount)
        else:
            self._placed += status.st_blocks * _BLOCK

    def _place(self, path: str, status: os.stat_result, mount: Mount) -> None:
        """What has blocks, and which; data that btrfs keeps beside an inode have none, though st_blocks says so."""
        found = Placement((), mount.kind == "btrfs" and stat.S_ISLNK(status.st_mode))
        if stat.S_ISREG(status.st_mode):
            with contextlib.suppress(*_GONE):
                found = placement(path)
        if not found.inline:
            self._placed += status.st_blocks * _BLOCK
            self._ranges += [(mount.device, one.physical, one.physical + one.length) for one in found.extents]

    def usage(self) -> Usage:
        """Every range of bytes once, however many files have it."""
        several = sum(end - start for _, start, end in self._ranges)
        ranges, before = frozenset(self._ranges), self._elsewhere.ranges
        once = union(ranges | before) - union(before) if ranges else 0
        allocated = self._placed - several + once
        return Usage(allocated, self._apparent, frozenset(self._linked), self._blocks, ranges)


def union(ranges: Iterable[Range]) -> int:
    """Bytes covered, however often."""
    total = 0
    for _, some in groupby(sorted(ranges), key=lambda one: one[0]):
        reached = 0
        for _, start, end in some:
            total += max(0, end - max(start, reached))
            reached = max(reached, end)
    return total


def walk(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """`path` and all below it on the same device, each with its lstat; links are not followed.

    Raises PermissionError.
    """
    try:
        top = os.lstat(path)
    except _GONE:
        return
    yield path, top
    folders = [path] if stat.S_ISDIR(top.st_mode) else []
    while folders:
        for entry in _entries(folders.pop()):
            try:
                status = entry.stat(follow_symlinks=False)
            except _GONE:
                continue
            if status.st_dev == top.st_dev:
                yield entry.path, status
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except _GONE:
        return []
