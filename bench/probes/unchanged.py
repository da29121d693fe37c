"""Proof, after a battery, that this host is as it was: what a successful attack would have changed is compared."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from bench.linux import procfs
from bench.linux.mountinfo import unescaped

_FOLDERS = ("/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/fs")
_FILES = ("/sys/kernel/uevent_helper", "/proc/swaps")
_MOVING = (
    "random/", "ns_last_pid", "pty/nr", "dentry-state", "file-nr", "inode-nr", "inode-state", "aio-nr", "quota/",
    "nr_hugepages", "perf_event_max_sample_rate", "stat_refresh", "drop_caches", "compact_memory", "keys/",
)  # fmt: skip
"""Settings that tell a count or act when they are touched."""
_OURS = "attack"
"""What the attack program calls the source of what it mounts. Other mounts come and go on a host by themselves."""
_CLOCK = 0.5  # seconds; a daemon may slew the clock meanwhile


class Snapshot(Struct, frozen=True):
    """Settings by path, mounts by mount point, and how far the wall clock is from the monotonic one."""

    settings: dict[str, str]
    mounts: dict[str, str]
    clock: float


def snapshot(own: Sequence[Path]) -> Snapshot:
    """Now. `own`: folders of ours, whose mounts come and go."""
    found = {path: text for path in _paths() if (text := procfs.read(path)) is not None}
    places = tuple(str(path) for path in own)
    points = {point: text for point, text in _mounts(procfs.read("/proc/self/mountinfo") or "")}
    others = {point: text for point, text in points.items() if not point.startswith(places)}
    return Snapshot(found, others, time.time() - time.monotonic())


def _mounts(mountinfo: str) -> Iterator[tuple[str, str]]:
    """(mount point, what an attack could change of it: "tmpfs attack rw")."""
    for line in mountinfo.splitlines():
        own, _, rest = line.partition(" - ")
        kind, source = rest.split(" ")[:2]
        words = own.split()
        yield unescaped(words[4]), f"{kind} {source} {words[5].partition(',')[0]}"


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What a person would want to know of, one line each; empty if nothing is different."""
    paths = sorted(before.settings.keys() | after.settings.keys())
    changed = [
        f"{path}: {before.settings.get(path, 'absent').strip()!r} became {after.settings.get(path, 'absent').strip()!r}"
        for path in paths
        if before.settings.get(path) != after.settings.get(path)
    ]
    for point, text in sorted(after.mounts.items()):
        if (old := before.mounts.get(point, text)) != text:
            changed.append(f"mount {point}: {old} became {text}")
        elif point not in before.mounts and text.split()[1] == _OURS:
            changed.append(f"mounted by an attack: {point}")
    if abs(after.clock - before.clock) > _CLOCK:
        changed.append(f"the clock was moved by {after.clock - before.clock:+.3f} s")
    return changed


def _paths() -> Iterator[str]:
    for folder in _FOLDERS:
        for root, _, names in os.walk(folder):
            for name in names:
                path = f"{root}/{name}"
                if not any(word in path for word in _MOVING):
                    yield path
    yield from _FILES
