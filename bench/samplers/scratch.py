"""The file systems made for a run say themselves how much of them is in use: what counting files must come to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.linux.files import flush
from bench.linux.mountinfo import Mount, by_point, mounts
from bench.model import Footprint, Reading
from bench.samplers.disk import measure

_KINDS = frozenset({"ext4", "xfs", "btrfs"})


class ScratchSampler:
    """scratch.disk.{used,counted} over the file systems mounted below `folder`; absent where there are none.

    `counted` are the instances' files on them, shared ones and shared extents once, as `DiskSampler` counts them.
    """

    name = "scratch"

    def __init__(self, folder: Path, proc: Path = Path("/proc"), write_out: Callable[[str], None] = flush) -> None:
        self._inside = f"{folder.absolute()}/"
        self._proc, self._write_out = proc, write_out

    def read(self, footprints: Sequence[Footprint]) -> list[Reading]:
        found = by_point(mounts(self._proc))
        made = [mount for point, mount in found.items() if point.startswith(self._inside) and mount.kind in _KINDS]
        if not made:
            return []
        for mount in made:
            self._write_out(mount.point)  # what is written later has no blocks yet, or more set aside than it will take

        def wanted(mount: Mount | None) -> bool:
            return mount in made

        shared = measure((path for one in footprints for path in one.disk_shared), found=found, wanted=wanted)
        own = measure((path for one in footprints for path in one.disk_own), shared, found, wanted)
        return [
            Reading("scratch.disk.used", float(sum(_used(mount.point) for mount in made)), "bytes"),
            Reading("scratch.disk.counted", float(shared.allocated + own.allocated), "bytes"),
        ]


def _used(point: str) -> int:
    state = os.statvfs(point)
    return (state.f_blocks - state.f_bfree) * state.f_frsize
