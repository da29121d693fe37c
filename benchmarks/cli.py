"""What `bench --help` costs beside an empty Python: the verbs load what they need, the command line nothing more."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.interleaved import Bound, judge, race, report, table

ROUNDS = 40


def timed(*argv: str) -> float:
    began = time.monotonic_ns()
    subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic_ns() - began) / 1e9


def main() -> int:
    contestants = {
        "python -c pass": lambda: timed("-c", "pass"),
        "bench --help": lambda: timed("-m", "bench", "--help"),
    }
    times = race(contestants, dict.fromkeys(contestants, ROUNDS), seed=1)
    print(table(times, "python -c pass"))
    return report([judge(Bound("bench --help", "python -c pass", 5.0), times)])


if __name__ == "__main__":
    sys.exit(main())
