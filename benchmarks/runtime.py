"""How near a container launch is to the kernel's own cost, and to other runtimes: `make bench-runtime`.

Every contestant starts the same payload; what is timed ends when its first byte is read. Ours and the equal floor do
the same steps: mount, uts, ipc, pid, network and cgroup namespaces, overlay, masked paths, capabilities dropped,
seccomp loaded, memory, cpu and pids limits, a veth pair on a bridge with an address. The others do less (no union, no
veth), save docker. Exits 1 when a bound breaks, 3 when a contestant is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.container.client import Launcher
from benchmarks.contestants import (
    Contestant,
    Ours,
    Spawner,
    bare_floor,
    bwrap,
    equal_floor,
    lxc,
    oci,
)
from benchmarks.engine import docker
from benchmarks.interleaved import Bound, judge, race, report, table
from benchmarks.stage import stage

BOUNDS = (
    Bound("bench", "equal floor", 1.5),
    Bound("bench", "crun run", 1 / 3),
    Bound("bench", "runc run", 1 / 6),
    Bound("bench", "docker run", 1 / 50),
)
PROGRAMS = {
    "bwrap": "bubblewrap",
    "crun": "crun",
    "runc": "runc",
    "lxc-execute": "lxc",
    "dockerd": "docker.io",
    "gcc": "gcc",
}
SLOW = {"docker run": 0.2, "runc run": 0.5, "lxc-execute": 0.5}
"""Fewer turns for those whose launches take longest, as a part of the others'."""
SETTLE = 0.05  # s
"""Before each turn, the same for all. Network namespaces are taken down behind their owner's back, for tens of
milliseconds and under locks that a launch needs, so that a contestant pays for whoever was before it, and the quickest
in proportion most. In one run of 200 turns without the wait the bare floor took 1.7 ms after us and 3.1 ms after the
equal floor; in one with it, later and on a quieter host, 1.2 to 1.8 ms after anyone.
"""


def turn(contestant: Contestant) -> Callable[[], float]:
    """One launch, warm: right after one of its own, as in a ramp, and not in the caches that another one left."""

    def once() -> float:
        contestant.start()
        contestant.end()
        took = contestant.start()
        contestant.end()
        return took

    return once


def main() -> int:
    options = _options()
    if missing := [package for program, package in PROGRAMS.items() if not shutil.which(program)]:
        print(f"not installed: {' '.join(missing)}; apt-get install -y --no-install-recommends {' '.join(missing)}")
        return 3
    if os.geteuid():
        print("needs root")
        return 3
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-runtime-", dir=options.folder)))
        field = stack.enter_context(stage(home / "stage", bridges=1))
        launcher = stack.enter_context(Launcher())
        spawner = stack.enter_context(contextlib.closing(Spawner()))
        entered: list[Contestant] = [
            Ours(field, launcher),
            stack.enter_context(equal_floor(field)),
            stack.enter_context(bare_floor(field)),
        ]
        if not options.floors:
            entered += [bwrap(spawner, field), oci(spawner, field, "crun"), oci(spawner, field, "runc")]
            entered += [lxc(spawner, field), stack.enter_context(docker(spawner, field))]
        turns = {one.name: turn(one) for one in entered}
        rounds = {name: max(int(options.rounds * SLOW.get(name, 1)), 5) for name in turns}
        times = race(turns, rounds, options.seed, settle=SETTLE)
    print(table(times, "equal floor"))
    return report([judge(bound, times) for bound in BOUNDS if bound.other in times])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--folder", default="/var/lib", help="on a file system that an overlay's upper folder may be on"
    )
    parser.add_argument("--floors", action="store_true", help="only the floors: quick")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
