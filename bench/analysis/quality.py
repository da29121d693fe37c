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
from bench.analysis.modes import two_modes
from bench.analysis.resampling import MANY, Estimate, generator, ramp_sample
from bench.analysis.slopes import bends
from bench.analysis.summary import used_memory
from bench.precision import precision_said
from bench.records import DISTURBED, NoteRecord, Outcome
from bench.store import RunData
from bench.summary import Summary

WIDE = 0.10  # of the median: the interval of a headline metric
ROUNDS = 6  # the least we would build on; a permutation test of fewer than four against four shows nothing
RESIDUAL = 0.25  # of memory.marginal
BEND = 0.05  # of its rise that memory over N departs from a line in the middle: halves whose slopes differ by a fifth
COUNTED = 0.02  # between used blocks of a file system made for the run and what was counted on it
BLOCK = 4096  # bytes an instance: a block of a file system is no difference (a folder that something is mounted on)
FIRST = 1.5  # the first launch of a ramp over the median of the others
DRIFT = 1.25  # start-up in the last quarter of a ramp over the first quarter
TREND = 1.1  # start-up of the first third of the rounds over the last third, or the other way round
MODES = 1.1  # the slower of two clusters of launches over the faster
STEAL = 0.01  # of the CPU time of the run that the hypervisor gave to others
LEVELS = 8  # different numbers alive that a drift can be told from
BUSY = 0.5  # load a CPU at the start
BOUNDS = (COUNT, "max-time")  # limiters that are no limit of the host
GOOD_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter")

_MORE_ROUNDS = f"run more rounds: --rounds {ROUNDS} or more"
SYNTHETIC = "synthetic"  # the driver whose instances are made up


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
    used: pd.Series[float]  # memory, by trial and n
    rng: np.random.Generator


def quality(data: RunData, summary: Summary, tables: Frames | None = None) -> list[Doubt]:
    """All doubts: about the reading of the files, the host, the run, then each driver.

    `tables`: the frames of `data`, if made before.
    """
    tables = tables or frames(data)
    doubts = [*_synthetic(tables)]
    doubts += [Doubt(text, "nothing to do: what was written before it is used") for text in data.warnings]
    doubts += [*_host(data), *_steal(tables), *_run(data, summary, tables)]
    for series in tables.series:
        case = _case(tables, series, summary, data.info.seed)
        mark = accelerator_mark(series, summary.accelerator)
        name = f"{series.name} ({mark})" if mark else series.name
        doubts += [Doubt(f"{name}: {doubt.message}", doubt.remedy) for check in _CHECKS for doubt in check(case)]
    return doubts


def _case(tables: Frames, series: Series, summary: Summary, seed: int) -> _Case:
    launches = tables.launches[tables.launches["series"] == series.key]
    good = launches["outcome"] == Outcome.SUCCEEDED.value
    metrics = by_series(summary).get(series, {})
    trials = tables.trials[tables.trials["series"] == series.key]
    used = used_memory(tables, series)
    return _Case(series, metrics, launches[good], launches[~good], trials, used, generator(seed, *series.seeds, "bend"))


def _synthetic(tables: Frames) -> Iterator[Doubt]:
    if any(series.driver == SYNTHETIC for series in tables.series):
        yield Doubt(
            "Synthetic: no instance ran, every number of this run is made up to test the analysis",
            "measure with real drivers: `bench list drivers`",
        )


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
    if host.turbo:
        yield Doubt(
            "Turbo is on: the CPU's clock follows its heat and what else runs",
            "echo 1 > /sys/devices/system/cpu/intel_pstate/no_turbo, or echo 0 > /sys/devices/system/cpu/cpufreq/boost",
        )
    if host.thp == "always":
        yield Doubt(
            "Transparent huge pages are always on: memory is given in 2 MiB pages while there are any, so what one "
            "more takes depends on how fragmented the host's memory is",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
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


def _steal(tables: Frames) -> Iterator[Doubt]:
    """CPU time that a hypervisor below this host gave to others while it was wanted here."""
    names = ["host.cpu.steal", "host.cpu.total"]
    if not set(names) <= set(tables.steps.columns):
        return
    read = tables.steps[names].dropna()
    stolen, whole = read.max() - read.min() if len(read) else (0.0, 0.0)
    if whole > 0 and stolen / whole > STEAL:
        yield Doubt(
            f"{_percent(stolen / whole)} of the CPU time during the run was taken by the hypervisor below (steal)",
            "measure while its other guests are quiet, or on bare metal",
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
    if data.info.precision and not data.info.precision.reached:
        yield Doubt(precision_said(data.info.precision), "allow more rounds: --max-rounds; or ask for less")
    rounds = int(tables.trials["round"].max()) if len(tables.trials) else 0
    if 0 < rounds < ROUNDS:
        yield Doubt(_few_rounds(rounds), _MORE_ROUNDS)
    notes = (one.text for one in data.records if isinstance(one, NoteRecord) and one.level == "warning")
    for warning in dict.fromkeys((*data.info.warnings, *notes)):  # a run that was killed has them in notes only
        apart = "run one at a time" if warning.startswith(DISTURBED) else "see the run's logs/ and trials.jsonl"
        yield Doubt(warning, apart)


def _few_rounds(rounds: int) -> str:
    if rounds == 1:
        return "One round: slopes and rates get no interval, and start-up's speaks of that ramp alone"
    return (
        f"{rounds} rounds: intervals assume that ramps scatter about normally (Student's t; from {MANY} on they are "
        "resampled), and a comparison of so few ramps shows only what is never mixed"
    )


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


def _bent(case: _Case) -> Iterator[Doubt]:
    """Only where the ramps agree that it is bent: one of them alone is noise."""
    found = bends(case.used)
    if len(found) < 2:
        return
    bend = ramp_sample(float(found.mean()), len(found), found, case.rng, positive=False).estimate()
    certain = bend.low is not None and bend.high is not None and (bend.low > 0 or bend.high < 0)
    if certain and abs(bend.value) > BEND:
        side, cost = ("above", "less and less") if bend.value > 0 else ("below", "more and more")
        yield Doubt(
            f"memory over N is no line: in the middle of a ramp it lies {_percent(abs(bend.value))} of its rise {side} "
            f"one, each instance costs {cost}",
            "read memory.marginal as the mean over these N only, and measure at the N you plan for (--count)",
        )


def _miscounted(case: _Case) -> Iterator[Doubt]:
    used, counted = case.metrics.get("disk.used"), case.metrics.get("disk.counted")
    if used is None or counted is None:
        return
    off = used.value - counted.value
    if abs(off) > BLOCK and abs(off) > COUNTED * max(abs(used.value), abs(counted.value)):
        whole = f"{_percent(abs(off) / abs(used.value))} of it" if used.value else "all of it"
        way = "is in no file of the instances" if off > 0 else "was counted too much"
        yield Doubt(
            f"disk of one more is not what its file system says (disk.used): {whole} {way}",
            "plan with disk.used, which holds the file system's own records of files too (inodes of xfs, trees of "
            "btrfs); on ext4, look for files that are in no footprint",
        )


def _limited(case: _Case) -> Iterator[Doubt]:
    to_limit = case.trials["to_limit"].astype(bool)
    unmet = case.trials[to_limit & case.trials["limiter"].isin(BOUNDS)]
    if len(unmet):
        yield Doubt(
            f"{len(unmet)} of {int(to_limit.sum())} ramps to the limit ended at a bound of the scenario, at "
            f"{unmet['alive'].min()} instances and more: the limit was not found",
            "raise to_limit.count and to_limit.time",
        )
    for limiter, trials in case.trials[~to_limit & (case.trials["limiter"] != COUNT)].groupby("limiter"):
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
    first, last = np.quantile(alive, (0.25, 0.75))
    change = float(np.median(times[alive >= last]) / np.median(times[alive <= first]))
    if change > DRIFT and _rank_p(alive, times) < 0.01:
        yield Doubt(
            f"start-up depends on N: {_percent(change - 1)} longer in the last quarter of a ramp than in the first",
            "compare drivers at the same --count, or read start-up over N",
        )


def _trend(case: _Case) -> Iterator[Doubt]:
    """Over rounds: a host that is still warming up, or one that gets slower the longer the run lasts."""
    column = startup_metric(case.metrics).removeprefix("startup.")
    medians = case.launches.groupby("round")[column].median().dropna().astype(float)
    if len(medians) < ROUNDS:
        return
    third = len(medians) // 3
    first, last = float(medians.iloc[:third].median()), float(medians.iloc[-third:].median())
    slower, faster = max(first, last), min(first, last)
    rounds = medians.index.to_numpy(dtype=float)
    if slower > TREND * faster and _rank_p(rounds, medians.to_numpy()) < 0.01:
        went = "fell" if last < first else "rose"
        yield Doubt(
            f"start-up {went} from round to round, by {_percent(abs(last / first - 1))} from the first third of the "
            "rounds to the last",
            "let the host settle, raise --set warmups, and run again: drift hits all drivers, but widens intervals",
        )


def _rank_p(x: np.ndarray, y: np.ndarray) -> float:
    from scipy import stats  # half a second to import, for the few runs that come this far

    return float(stats.spearmanr(x, y).pvalue)


def _bimodal(case: _Case) -> Iterator[Doubt]:
    """Two kinds of launch under one name: their median is the time of neither."""
    metric = startup_metric(case.metrics).removeprefix("startup.")
    found = two_modes(case.launches[metric].dropna().to_numpy(dtype=float))
    if found and found.slow > MODES * found.fast:
        yield Doubt(
            f"start-up has two modes: {_percent(found.share)} of launches take {found.slow / found.fast:.1f} times as "
            "long as the others",
            "see the figure of every launch, and find what tells the two apart (N, round, a cache, another CPU)",
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


_CHECKS: tuple[Callable[[_Case], Iterator[Doubt]], ...] = (
    _wide,
    _slope,
    _residual,
    _bent,
    _miscounted,
    _limited,
    _failed,
    _first,
    _drift,
    _trend,
    _bimodal,
)
