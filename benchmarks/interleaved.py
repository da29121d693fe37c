"""Contestants take turns, in an order shuffled each round: whatever else this machine does hits all of them alike.

Absolute times move by tens of percent on a shared machine, so a bound is always on the ratio of two medians of one run.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Contestant = Callable[[], float]
"""One launch, warm; its duration in seconds."""


class Bound(NamedTuple):
    """`ours` may take at most `ratio` times as long as `other`, by their medians."""

    ours: str
    other: str
    ratio: float


class Verdict(NamedTuple):
    """A bound and what was measured: both medians' ratio with a 95 % bootstrap interval."""

    bound: Bound
    ratio: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return self.ratio <= self.bound.ratio


def race(
    contestants: Mapping[str, Contestant], rounds: Mapping[str, int], seed: int, warm: int = 2, settle: float = 0.0
) -> Times:
    """Seconds of every contestant, `rounds[name]` each, spread evenly over the whole race; warm-ups are thrown away.

    `settle`: seconds before each turn, whoever's it is, for the kernel to finish what the last one left to it.
    """
    order = random.Random(seed)
    for name in contestants:
        for _ in range(warm):
            contestants[name]()
    turns = [(turn / rounds[name] + order.random() / rounds[name], name) for name in contestants
             for turn in range(rounds[name])]  # fmt: skip
    times: Times = {name: [] for name in contestants}
    for _, name in sorted(turns):
        time.sleep(settle)
        times[name].append(contestants[name]())
    return times


Times = dict[str, list[float]]


def judge(bound: Bound, times: Mapping[str, Sequence[float]], seed: int = 1, resamples: int = 2000) -> Verdict:
    """The ratio of medians, and how far resampling both sides moves it."""
    ours, other = times[bound.ours], times[bound.other]
    draw = random.Random(seed)
    ratios = sorted(
        statistics.median(draw.choices(ours, k=len(ours))) / statistics.median(draw.choices(other, k=len(other)))
        for _ in range(resamples)
    )
    ratio = statistics.median(ours) / statistics.median(other)
    return Verdict(bound, ratio, ratios[math.floor(0.025 * resamples)], ratios[math.ceil(0.975 * resamples) - 1])


def table(times: Mapping[str, Sequence[float]], base: str) -> str:
    """Milliseconds of each contestant, fastest first, and its ratio to `base`."""
    middle = statistics.median(times[base])
    lines = [f"{'':24}{'n':>5}{'median':>10}{'p10':>9}{'p90':>9}{'x ' + base:>20}"]
    for name, values in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        deciles = statistics.quantiles(values, n=10)
        shown = [1000 * value for value in (statistics.median(values), deciles[0], deciles[-1])]
        lines.append(
            f"{name:24}{len(values):5}{shown[0]:7.2f} ms{shown[1]:9.2f}{shown[2]:9.2f}"
            f"{statistics.median(values) / middle:20.2f}"
        )
    return "\n".join(lines)


def report(verdicts: Sequence[Verdict]) -> int:
    """Print each bound with what was measured. Returns the exit code: 1 when one is broken."""
    for one in verdicts:
        word = "holds " if one.holds else "BROKEN"
        print(
            f"{word}  {one.bound.ours} / {one.bound.other} = {one.ratio:.3g} ({one.low:.3g} to {one.high:.3g}), "
            f"at most {one.bound.ratio:.3g}"
        )
    return 0 if all(one.holds for one in verdicts) else 1
