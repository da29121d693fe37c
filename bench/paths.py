"""Where things are kept: the cache (images, kernels, answers of probes) and the state of runs under way.

Both may be deleted when no run is alive; a cache is made again, state is what `bench clean` would remove.
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.model import RunId, token_of


def cache_dir() -> Path:
    """`$BENCH_CACHE`, else /var/cache/bench as root, else ~/.cache/bench."""
    if chosen := os.environ.get("BENCH_CACHE"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/bench")
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bench"


def state_dir() -> Path:
    """`$BENCH_STATE`, else /var/lib/bench as root, else ~/.local/state/bench: parent of all runs' state folders.

    Short, because socket paths end at 108 bytes; on disk, because what instances write is measured there.
    """
    if chosen := os.environ.get("BENCH_STATE"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/bench")
    return Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "bench"


def run_state(run: RunId) -> Path:
    """The state folder of one run: its lock, its registry, its instances' writable parts and sockets."""
    return state_dir() / token_of(run)
