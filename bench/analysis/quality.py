"""Doubts: what in a run makes its numbers worth less than they look, each with its remedy.

A doubt names the driver and the size of the trouble as a share or a ratio, so that it needs no units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from msgspec import Struct

from bench.analysis.frames import Frames, Series, frames
from bench.analysis.headline import COUNT, accelerator_mark, by_series, startup_metric
from bench.analysis.resampling import LEAST, Estimate, coverage_bound
from bench.model import Outcome, Summary
from bench.store import RunData

WIDE = 0.10  # of the median: the interval of a headline metric
ROUNDS = 6  # the least at which an interval from whole ramps can be worth 95 %
RESIDUAL = 0.25  # of memory.marginal
FIRST = 1.5  # the first launch of a ramp over the median of the others
DRIFT = 1.25  # start-up in the last quarter of a ramp over the first quarter
LEVELS = 8  # different numbers alive that a drift can be told from
BUSY = 0.5  # load a CPU at the start
GOOD_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter")

_MORE_ROUNDS = f"run more rounds: --rounds {ROUNDS} or more"


class Doubt(Struct, frozen=True):
    """One reason to doubt the run, and what to do about it."""

    message: str
    remedy: str


class _Case(Struct, frozen=True):
    """What the checks of one series look at."""

    series: Series
    metrics: dict[str, Estimate]
    launches: pd.DataFrame  # succeeded
    failed: pd.DataFrame
    trials: pd.DataFrame


def quality(data: RunData, summary: Summary) -> list[Doubt]:
    """All doubts: about the reading of the files, the host, the run, then each driver."""
    tables = frames(data)
    doubts = [Doubt(text, "nothing to do: what was written before it is used") for text in data.warnings]
    doubts += [*_host(data), *_run(data, summary, tables)]
    for series in tables.series:
        case = _case(tables, series, summary)
        mark = accelerator_mark(series, summary.accelerator)
        name = f"{series.name} ({mark})" if mark else series.name
        doubts += [Doubt(f"{name}: {doubt.message}", doubt.remedy) for check in _CHECKS for doubt in check(case)]
    return doubts


def _case(tables: Frames, series: Series, summary: Summary) -> _Case:
    launches = tables.launches[tables.launches["series"] == series.key]
    good = launches["outcome"] == Outcome.SUCCEEDED.value
    metrics = by_series(summary).get(series, {})
    trials = tables.trials[tables.trials["series"] == series.key]
    return _Case(series, metrics, launches[good], launches[~good], trials)


# --- the host and the run --------------------------------------------------------------------------------------


def _host(data: RunData) -> Iterator[Doubt]:
    host = data.host
    if host.load1 > BUSY * host.cpus:
        yield Doubt(
            f"The host was busy when the run began: load {host.load1:.2f} on {host.cpus} CPUs",
            "stop what else runs and measure again; `bench doctor` shows the load",
        )
    if host.governor not in (None, "performance"):
        yield Doubt(
            f"The CPU frequency governor is {host.governor}: clocks change while we measure",
            "cpupower frequency-set -g performance",
        )
    if host.clocksource not in (None, *GOOD_CLOCKS):
        yield Doubt(
            f"The clock source is {host.clocksource}: reading the time is slow or coarse",
            "boot with clocksource=tsc if the CPU's TSC is stable",
        )
    if host.virtualization:
        yield Doubt(
            f"This host is itself a virtual machine ({host.virtualization}): its neighbours' noise is in the numbers",
            "repeat on bare metal before planning capacity with these numbers",
        )
    if host.ksm:
        yield Doubt(
            "KSM is on: memory of one more falls while pages are merged, and merging costs CPU",
            "echo 2 > /sys/kernel/mm/ksm/run, or wait until pages_shared has settled",
        )


def _run(data: RunData, summary: Summary, tables: Frames) -> Iterator[Doubt]:
    if data.info.status != "done":
        yield Doubt(f"The run did not finish (status: {data.info.status})", "run the scenario again for the rest")
    if summary.accelerator == "tcg" and any(series.driver == "vm" for series in tables.series):
        yield Doubt(
            "Guests ran under tcg, emulation without hardware support: their times and CPU use say nothing of VMs "
            "in general",
            "run on a host where a guest boots under KVM; `bench doctor` says why it does not here",
        )
    rounds = int(tables.trials["round"].max()) if len(tables.trials) else 0
    if 0 < rounds < ROUNDS:
        yield Doubt(_few_rounds(rounds), _MORE_ROUNDS)
    for warning in data.info.warnings:
        yield Doubt(warning, "see the run's logs/ and trials.jsonl")


def _few_rounds(rounds: int) -> str:
    if rounds < LEAST:
        return f"Too few rounds ({rounds}): slopes and rates get no interval below {LEAST}, start-up's is too narrow"
    worth = _percent(coverage_bound(rounds))
    return f"{rounds} rounds: an interval from {rounds} ramps is worth at most {worth}, not 95 %"


# --- one driver: what is said follows its name -----------------------------------------------------------------


def _wide(case: _Case) -> Iterator[Doubt]:
    for name in (startup_metric(case.metrics), "memory.marginal", "disk.marginal"):
        found = case.metrics.get(name)
        if found and found.width is not None and found.width > WIDE:
            yield Doubt(f"the interval of {name} is {_percent(found.width)} of its value wide", _MORE_ROUNDS)


def _slope(case: _Case) -> Iterator[Doubt]:
    found = case.metrics.get("memory.marginal")
    if found is None:
        return
    remedy = "run more instances (--count): what they cost grows with N, the host's noise does not"
    if found.value <= 0:
        yield Doubt("memory.marginal is not positive: the host's own changes are larger than the instances", remedy)
    elif found.low is not None and found.low <= 0:
        yield Doubt("memory.marginal can't be told from zero", remedy)


def _residual(case: _Case) -> Iterator[Doubt]:
    whole, rest = case.metrics.get("memory.marginal"), case.metrics.get("memory.residual")
    if whole and rest and whole.value > 0 and abs(rest.value) > RESIDUAL * whole.value:
        share = rest.value / whole.value
        yield Doubt(
            f"{_percent(share)} of memory.marginal is in neither PSS nor the cgroups' kernel memory",
            "plan with memory.marginal; slab and percpu in trials.jsonl show namespaces, cgroups and mounts",
        )


def _limited(case: _Case) -> Iterator[Doubt]:
    for limiter, trials in case.trials[case.trials["limiter"] != COUNT].groupby("limiter"):
        fewest, asked = trials["alive"].min(), trials["asked"].max()
        yield Doubt(
            f"{len(trials)} of {len(case.trials)} ramps ended early, at {fewest} of {asked} instances: {limiter}",
            f"see the evidence; raise what limits ({limiter}), or ask for fewer with --count",
        )


def _failed(case: _Case) -> Iterator[Doubt]:
    if len(case.failed):
        count = len(case.failed) + len(case.launches)
        yield Doubt(
            f"{len(case.failed)} of {count} launches did not succeed; leaving their times out flatters the rest",
            "see their errors and the run's logs/",
        )


def _first(case: _Case) -> Iterator[Doubt]:
    """Over all ramps, so that one slow launch by chance is no doubt."""
    times = case.launches[startup_metric(case.metrics).removeprefix("startup.")].astype(float)
    first = times[case.launches["alive"] == 0].median()
    rest = times[case.launches["alive"] > 0].median()
    if first > FIRST * rest:  # false for NaN, where there is no rest
        yield Doubt(
            f"the first launch of a ramp takes {first / rest:.1f} times as long as the others",
            "warm up longer (--set warmups=3), or read it as the cost of a cold start",
        )


def _drift(case: _Case) -> Iterator[Doubt]:
    """By rank, as start-up need not grow in a line."""
    rows = case.launches[["alive", startup_metric(case.metrics).removeprefix("startup.")]].dropna().astype(float)
    alive, times = rows.to_numpy().T
    if len(np.unique(alive)) < LEVELS:
        return
    from scipy import stats  # half a second to import, for the few runs that come this far

    first, last = np.quantile(alive, (0.25, 0.75))
    change = float(np.median(times[alive >= last]) / np.median(times[alive <= first]))
    if change > DRIFT and stats.spearmanr(alive, times).pvalue < 0.01:
        yield Doubt(
            f"start-up depends on N: {_percent(change - 1)} longer in the last quarter of a ramp than in the first",
            "compare drivers at the same --count, or read start-up over N",
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


_CHECKS: tuple[Callable[[_Case], Iterator[Doubt]], ...] = (_wide, _slope, _residual, _limited, _failed, _first, _drift)
