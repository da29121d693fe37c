"""The VM profiles against their bounds: `make bench-vm`.

Start-up in rounds whose order is shuffled, so that a drift of the machine hits all alike: stock, lean, micro, micro's
own QEMU command line by hand without libvirt, and clone. Then the memory of each profile, a group of guests at a time:
USS of their QEMUs and the host's own change. Then a row of clones. Prints the tables; exits 1 when a bound breaks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from bench.model import MIB
from benchmarks.interleaved import Bound, judge, race, report, table
from benchmarks.vm_stage import Stage, by_hand, memory_available, stage, uss

ROUNDS = {"stock": 5, "lean": 7, "micro": 11, "micro by hand": 11, "clone": 11}
BOUNDS = (Bound("micro", "micro by hand", 1.15), Bound("micro", "stock", 0.35))
MEMORY = {"lean": 150 * MIB, "micro": 50 * MIB, "clone": 20 * MIB}  # of one more idle guest
CLONE_READY = 0.25  # seconds, median of the last half of the row


def launch(field: Stage, profile: str) -> Callable[[], float]:
    """One guest from the request to `ready`, in seconds; then removed."""

    def one() -> float:
        with field.guest(profile) as (_, seconds):
            return seconds

    return one


def memory_of(field: Stage, profile: str, count: int) -> tuple[float, float]:
    """(median USS of a guest's QEMU, the host's change per guest) with `count` idle ones alive. Bytes."""
    with ExitStack() as stack:
        stack.enter_context(field.guest(profile))  # what is shared by all is there before we begin
        time.sleep(1)
        before = memory_available()
        guests = [stack.enter_context(field.guest(profile))[0] for _ in range(count)]
        time.sleep(2)
        own = statistics.median(uss(guest.pid) for guest in guests)
        return own, (before - memory_available()) / count


def check_memory(field: Stage, count: int) -> int:
    broken = 0
    for profile in ("stock", "lean", "micro", "clone"):
        own, host = memory_of(field, profile, min(count, 4) if profile == "stock" else count)
        bound = MEMORY.get(profile)
        line = f"{profile}: USS {own / MIB:.1f} MiB, host {host / MIB:.1f} MiB a guest"
        if bound is None:
            print(f"        {line}")
            continue
        holds = max(own, host) <= bound
        broken |= not holds
        print(f"{'holds ' if holds else 'BROKEN'}  {line}, at most {bound / MIB:.0f} MiB")
    return int(broken)


def check_row(field: Stage, count: int) -> int:
    """`count` clones alive at a time, and how long the later half took."""
    with ExitStack() as stack:
        times = [stack.enter_context(field.guest("clone"))[1] for _ in range(count)]
    middle = statistics.median(times[count // 2 :])
    holds = middle <= CLONE_READY
    print(
        f"{'holds ' if holds else 'BROKEN'}  clone ready, median of the last half of {count}: {middle:.3f} s "
        f"(max {max(times):.3f}), at most {CLONE_READY} s"
    )
    return int(not holds)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the rounds and counts")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    part: float = options.scale
    rounds = {name: max(2, round(count * part)) for name, count in ROUNDS.items()}
    with stage() as field:
        contestants = {name: launch(field, name) for name in rounds if name != "micro by hand"}
        contestants["micro by hand"] = lambda: by_hand(field)
        times = race(contestants, rounds, options.seed, warm=1)
        print(f"accelerator {field.accelerator}; from the request to the payload's line\n{table(times, 'micro')}")
        broken = report([judge(bound, times) for bound in BOUNDS])
        broken |= check_memory(field, max(2, round(8 * part)))
        broken |= check_row(field, max(4, round(100 * part)))
    return broken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
