"""10,000 idle containers alive, beside as many of the equal floor: `make bench-runtime-scale`.

Whole ramps in the order floor, ours, ours, floor, so that a drift of the machine hits both alike: each container with
its own namespaces, loopback only, limits on. Compared at about 1,000, 5,000 and 10,000 alive: the launch median; at
the top: the host's memory per container. All the while `/bin/true` is started from outside. Then 2,000 with a veth
pair each over several bridges. Exits 1 when a bound breaks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from bench.container.client import Launcher
from bench.samplers.host import HostSampler
from benchmarks.contestants import Floor, Ours, equal_floor
from benchmarks.interleaved import Bound, judge, report
from benchmarks.stage import Stage, stage

POINTS = (0.1, 0.5, 1.0)  # parts of the number asked for
WINDOW = 200  # launches before each point that are compared
LAUNCH_BOUND, MEMORY_BOUND = 1.5, 1.15
TEARDOWN_BOUND = 180.0  # seconds
TRUE_BOUND = 0.1  # seconds, p99 of /bin/true from outside


class Ramp(Struct):
    """What one ramp gave: seconds of each launch, bytes of the host per container, seconds of the teardown."""

    who: str
    launches: list[float]
    memory: float
    teardown: float
    true: list[float]

    def window(self, part: float) -> list[float]:
        """The launches up to this part of the ramp."""
        end = int(len(self.launches) * part)
        return self.launches[max(0, end - WINDOW) : end]


def free_memory() -> float:
    values = {reading.metric: reading.value for reading in HostSampler().read(())}
    return values["host.memory.available"] + values["host.memory.pcp"]


@contextlib.contextmanager
def outsider() -> Iterator[list[float]]:
    """Start /bin/true ten times a second; seconds of each."""
    times: list[float] = []
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(0.1):
            began = time.monotonic_ns()
            os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
            times.append((time.monotonic_ns() - began) / 1e9)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join()


def ramp(who: str, count: int, start: Callable[[], float], end: Callable[[], None]) -> Ramp:
    """Launch `count`, measure at the top, end them all. What a failure left is for the contestant's own end."""
    forget()
    before, launches = free_memory(), []
    with outsider() as true:
        for number in range(count):
            launches.append(start())
            if not (number + 1) % 1000:
                print(
                    f"  {who}: {number + 1} alive, last 200: {1000 * statistics.median(launches[-200:]):.2f} ms",
                    flush=True,
                )
    settle()
    memory = (before - free_memory()) / count
    began = time.monotonic()
    end()
    made = Ramp(who, launches, memory, time.monotonic() - began, true)
    print(f"  {who}: {memory / 1024:.0f} KiB each; all gone after {made.teardown:.0f} s", flush=True)
    return made


def forget() -> None:
    """Free what the kernel keeps of the dead: thousands of memory groups stay until the caches charged to them go."""
    for _ in range(2):
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        settle()


def settle() -> None:
    """Until the kernel's deferred work no longer moves the free memory."""
    last, deadline = free_memory(), time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = free_memory()
        if abs(now - last) < 2 << 20:
            return
        last = now


def verdicts(ramps: list[Ramp], count: int) -> int:
    floors = [one for one in ramps if one.who == "floor"]
    ours = [one for one in ramps if one.who == "ours"]
    judged = []
    for part in POINTS:
        label = f"{int(count * part)} alive"
        times = {
            f"ours, {label}": [value for one in ours for value in one.window(part)],
            f"floor, {label}": [value for one in floors for value in one.window(part)],
        }
        print(" | ".join(f"{name}: {1000 * statistics.median(values):.2f} ms" for name, values in times.items()))
        judged.append(judge(Bound(f"ours, {label}", f"floor, {label}", LAUNCH_BOUND), times))
    memory = {"memory of ours": [one.memory for one in ours], "memory of the floor": [one.memory for one in floors]}
    judged.append(judge(Bound("memory of ours", "memory of the floor", MEMORY_BOUND), memory))
    return report(judged) | _absolute(ramps)


def _absolute(ramps: list[Ramp]) -> int:
    """What is bound in seconds, not beside the floor."""
    slowest = max(one.teardown for one in ramps if one.who != "floor")
    true = sorted(value for one in ramps if one.who != "floor" for value in one.true)
    p99 = true[int(0.99 * len(true))]
    checks = [
        ("teardown of all", slowest, TEARDOWN_BOUND),
        (f"/bin/true from outside, p99 of {len(true)}", p99, TRUE_BOUND),
    ]
    for what, value, bound in checks:
        print(f"{'holds ' if value <= bound else 'BROKEN'}  {what} = {value:.3g} s, at most {bound:.3g} s")
    return int(any(value > bound for _, value, bound in checks))


def left_behind(field: Stage, before: set[str]) -> int:
    """Groups, folders, interfaces that are still there: printed, and counted as a broken bound."""
    groups = [path for parent in field.groups.parents.values() for path in Path(parent).glob("*/")]
    interfaces = {name for name in os.listdir("/sys/class/net") if name.startswith("bnours")} - before
    folders = [path for path in field.folder.glob("ours-*")]
    found = [*groups, *folders, *interfaces]
    print(f"{'BROKEN' if found else 'holds '}  left behind: {len(found)}, at most 0")
    return int(bool(found))


def run_idle(options: argparse.Namespace, home: Path) -> int:
    with stage(home / "idle", bridges=0) as field:
        ramps: list[Ramp] = []
        for who in ("floor", "ours", "ours", "floor"):
            with contextlib.ExitStack() as stack:
                if who == "floor":
                    floor: Floor = stack.enter_context(equal_floor(field, f"work-{len(ramps)}", networked=False))
                    ramps.append(ramp(who, options.count, floor.start, floor.end_all))
                else:
                    mine = Ours(field, stack.enter_context(Launcher()), f"ours{len(ramps)}", networked=False)
                    ramps.append(ramp(who, options.count, lambda one=mine: one.start(keep=True), mine.end_all))  # type: ignore[misc]
        return verdicts(ramps, options.count) | left_behind(field, set())


def run_networked(options: argparse.Namespace, home: Path) -> int:
    """Several bridges: each holds 500 of them."""
    with stage(home / "networked", bridges=-(-options.networked // 500)) as field, Launcher() as launcher:
        mine = Ours(field, launcher, "ours")
        made = ramp("networked", options.networked, lambda: mine.start(keep=True), mine.end_all)
        deadline = time.monotonic() + 60
        while any(name.startswith("bnours") for name in os.listdir("/sys/class/net")) and time.monotonic() < deadline:
            time.sleep(0.5)  # a pair goes with its namespace, which the kernel takes down in its own time
        return _absolute([made]) | left_behind(field, set())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--networked", type=int, default=2_000)
    parser.add_argument(
        "--folder", default="/var/lib", help="on a file system that an overlay's upper folder may be on"
    )
    options = parser.parse_args()
    if os.geteuid():
        print("needs root")
        return 3
    with tempfile.TemporaryDirectory(prefix="bench-scale-", dir=options.folder) as home:
        return run_idle(options, Path(home)) | run_networked(options, Path(home))


if __name__ == "__main__":
    sys.exit(main())
