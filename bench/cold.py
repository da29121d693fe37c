"""Cold launches: what a launch reads from disk is out of the page cache before it, and that is shown, not assumed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from bench.errors import HostError, LaunchError
from bench.linux import pagecache
from bench.model import Reading

_TRIES = 5
_PAUSE = 0.1  # s: the kernel may still hold a page that was read a moment ago


def require(drop: Path = pagecache.DROP_CACHES) -> None:
    """Raises HostError where caches can't be dropped."""
    if os.geteuid() != 0 or not os.access(drop, os.W_OK):
        raise HostError(
            f"launches can't be cold here: {drop} can't be written",
            hint="run as root, where /proc/sys is not read-only; or leave --cold out",
        )


def chill(paths: Sequence[str], drop: Path = pagecache.DROP_CACHES) -> tuple[Reading, ...]:
    """Drop the host's caches, and the files of `paths` (trees too) from the page cache; untimed.

    The readings show it: bytes of those files that were cached before, and after, which is none. Raises LaunchError
    where some stay, as such a launch would be neither cold nor warm.
    """
    files = list(pagecache.files_of(paths))
    try:
        before, left = _resident(files), dict[str, int]()
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE)
                os.sync()
            for path in files:
                pagecache.evict(path)
            drop.write_text(pagecache.ALL)
            if not (left := _resident(files)):
                break
        drop.write_text(pagecache.OBJECTS)  # to look at the files brought their inodes back
    except OSError as error:
        raise LaunchError(f"the page cache can't be emptied: {error}") from error
    if left:
        path, size = max(left.items(), key=lambda item: item[1])
        raise LaunchError(
            f"{sum(left.values())} bytes of what is launched stay in the page cache, {size} of them of {path}, "
            "which something else has mapped",
            hint="end what runs from it: another run, or guests of others",
        )
    return (
        Reading("cold.evicted", float(sum(before.values())), "bytes"),
        Reading("cold.resident", float(sum(left.values())), "bytes"),
    )


def _resident(files: Sequence[str]) -> dict[str, int]:
    """Bytes by file, of those that are cached."""
    return {path: size for path in files if (size := pagecache.resident(path))}
