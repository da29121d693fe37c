"""What `bench show` and `bench report` cost on a run with 1,000,000 readings, made by the synthetic driver's records.

Bounds: show at most 5 s, report at most 20 s and 1 GiB of memory, the page at most 5 MiB. Each command runs in a
process of its own, as a user starts it; memory is its peak resident set.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from bench.drivers.synthetic import Costs
from bench.process import run
from bench.records import NoteRecord
from bench.store import RunData, RunWriter, read_run
from bench.verbs.synthetic import Design, measured

MIB = 1 << 20
READINGS = 1_000_000
KIB = 1024
ROUNDS = 10


class Bound(NamedTuple):
    what: str
    value: float
    most: float
    unit: str

    @property
    def holds(self) -> bool:
        return self.value <= self.most


class Cost(NamedTuple):
    seconds: float
    memory: int  # bytes, peak resident set


_MEASURE = """
import os, sys, time
began = time.monotonic()
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawn(sys.executable, sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(pid, 0)
print(status, time.monotonic() - began, usage.ru_maxrss)
"""


def cost(*words: str) -> Cost:
    """Run `bench WORDS`. Raises RuntimeError if it fails.

    By way of a small process: the peak of a child begins with that of the process it is spawned by, and ours has held a
    million readings.
    """
    argv = [sys.executable, "-I", "-c", _MEASURE, sys.executable, "-m", "bench", *words]
    status, seconds, kibibytes = run(argv, timeout=300).stdout.split()
    if status != "0":
        raise RuntimeError(f"bench {' '.join(words)} failed: {status}")
    return Cost(float(seconds), int(kibibytes) * KIB)


def made(results: Path, readings: int) -> Path:
    """A run of two profiles in ramps to 16, some rounds of it repeated under other numbers as often as it takes.

    Ten readings a step and one a launch: most readings are those of steps, as samplers give them.
    """
    costs = {"a": Costs(), "b": Costs(ready=0.012, marginal=2048.0 * KIB)}
    part = measured(Design(costs=costs, rounds=ROUNDS, count=16))
    repeats = -(-readings // counted(part))
    with RunWriter(results, part.info, part.host) as writer:
        for repeat in range(repeats):
            for record in part.records:
                if isinstance(record, NoteRecord):
                    continue
                number = record.round + repeat * ROUNDS
                writer.append(replace(record, round=number, trial=f"r{number}-{record.driver}:{record.profile}"))
        writer.finish("done", time.time())
    return writer.path


def counted(data: RunData) -> int:
    return sum(len(getattr(record, "readings", ())) for record in data.records)


def bounds(readings: int) -> Sequence[Bound]:
    with tempfile.TemporaryDirectory(prefix="bench-analysis-") as folder:
        began = time.monotonic()
        place = made(Path(folder), readings)
        size = (place / "trials.jsonl").stat().st_size
        print(f"made {counted(read_run(place)):,} readings, {size / MIB:.0f} MiB, in {time.monotonic() - began:.0f} s")
        page = Path(folder, "report.html")
        show, report = cost("show", str(place)), cost("report", str(place), "-o", str(page))
        return (
            Bound("bench show, time", show.seconds, 5, "s"),
            Bound("bench report, time", report.seconds, 20, "s"),
            Bound("bench report, memory", report.memory / MIB, 1024, "MiB"),
            Bound("the page", page.stat().st_size / MIB, 5, "MiB"),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--readings", type=int, default=READINGS)
    found = bounds(parser.parse_args().readings)
    for one in found:
        print(f"{'holds ' if one.holds else 'BROKEN'}  {one.what} = {one.value:.3g} {one.unit}, at most {one.most:g}")
    return int(not all(one.holds for one in found))


if __name__ == "__main__":
    sys.exit(main())
