"""The answer in words, made from the numbers: never a sentence the data do not carry."""

from __future__ import annotations

from collections.abc import Iterator

from bench.analysis import Estimate, HeadlineRow, Series
from bench.analysis.headline import COUNT, Ratio
from bench.analysis.quality import BOUNDS
from bench.report.format import estimate, interval, quantity
from bench.store import RunData

COMPARED = ("startup.ready", "startup.reply", "memory.marginal")
TCG = (
    "The virtual machines ran under tcg, which emulates the CPU in software: their numbers hold for this host as it "
    "is, and say nothing of virtual machines with hardware support."
)


def answer(data: RunData, rows: list[HeadlineRow], ratios: list[Ratio]) -> list[str]:
    """Sentences: what was run, how the drivers compare, what the comparison does not say."""
    if not any(row.startup or row.memory for row in rows):
        return ["Nothing was measured: no launch of this run succeeded. See the trials and doubts below."]
    found = list(_compared(rows, ratios)) or [_alone(row) for row in rows if row.startup]
    sentences = [_setting(data), *found, *_limits(rows)]
    if any(row.accelerator == "tcg" for row in rows):
        sentences.append(TCG)
    return sentences


def _name(row: HeadlineRow) -> str:
    """`vm:stock (tcg)`."""
    return f"{row.series.name} ({row.accelerator})" if row.accelerator else row.series.name


def _setting(data: RunData) -> str:
    host = data.host
    size = f"{host.cpus} CPUs, {quantity(host.memory_total, 'bytes')} of memory"
    return f"Measured on {host.hostname} ({size}) with the payload {data.info.payload.name}."


def _compared(rows: list[HeadlineRow], ratios: list[Ratio]) -> Iterator[str]:
    """A sentence for each pair of drivers, the pair with the largest gap first."""
    by_series = {row.series: row for row in rows}
    pairs: dict[tuple[Series, Series], list[str]] = {}
    for ratio in sorted(ratios, key=lambda one: -one.times.value):
        upper, lower = by_series[ratio.upper], by_series[ratio.lower]
        if ratio.metric == "memory.marginal" or {upper.startup_metric, lower.startup_metric} == {ratio.metric}:
            pairs.setdefault((ratio.upper, ratio.lower), []).append(_clause(ratio, upper, lower))
    for (high, low), clauses in pairs.items():
        yield f"Compared with {_name(by_series[low])}, {_name(by_series[high])} {', and '.join(clauses)}."


def _clause(ratio: Ratio, upper: HeadlineRow, lower: HeadlineRow) -> str:
    """`takes 405 times (95 %: 387 to 419) as long to reply, 2.81 s against 6.93 ms`."""
    memory, times = ratio.metric == "memory.marginal", ratio.times
    if times.low is not None and times.low <= 1:
        return "shows no difference in memory of one more" if memory else "shows no difference in start-up"
    ends = f"95 %: {found}" if (found := interval(times, "times")) else "no interval: too few rounds"
    factor = f"{quantity(_three(times.value), 'times')} times ({ends})"
    if memory:
        values = f"{_value(upper.memory, 'bytes')} against {_value(lower.memory, 'bytes')}"
        return f"costs {factor} the memory for one more, {values}"
    until = "reply" if ratio.metric == "startup.reply" else "be ready"
    return f"takes {factor} as long to {until}, {_value(upper.startup, 's')} against {_value(lower.startup, 's')}"


def _value(found: Estimate | None, unit: str) -> str:
    return quantity(found.value if found else None, unit)


def _three(value: float) -> float:
    """Three significant digits: a ratio of 405.2 is not known better than as 405."""
    return float(f"{value:.3g}")


def _alone(row: HeadlineRow) -> str:
    """A run of one driver compares nothing: then say what it is."""
    until = "answers" if row.startup_metric == "startup.reply" else "is ready"
    memory = f"; one more costs {estimate(row.memory, 'bytes')} of memory" if row.memory else ""
    return f"{_name(row)} {until} after {estimate(row.startup, 's')}{memory}."


def _to_limit(row: HeadlineRow) -> str:
    """`container:default got to 512 (480 to 540) instances alive, 472 useful, limited by memory in 3 ramps.`"""
    ramps = f"{row.ramps} {'ramp' if row.ramps == 1 else 'ramps'}"
    useful = f", {estimate(row.useful, 'instances')} useful" if row.useful else ""
    if set(row.limiters) <= set(BOUNDS):
        return (
            f"{_name(row)} got to {estimate(row.density, 'instances')} instances alive{useful}, where a bound of the "
            f"scenario ended its {ramps} ({row.stopped}): its limit was not found."
        )
    return (
        f"{_name(row)} got to {estimate(row.density, 'instances')} instances alive{useful}, limited by {row.stopped} "
        f"in {ramps}."
    )


def _limits(rows: list[HeadlineRow]) -> Iterator[str]:
    """How many ran at once, and what stopped them where it was not the number asked for."""
    for row in rows:
        if row.to_limit:
            yield _to_limit(row)
    rows = [row for row in rows if not row.to_limit]
    for row in rows:
        if row.alive is not None and row.limiters != (COUNT,):
            limits = ", ".join(limiter for limiter in row.limiters if limiter != COUNT)
            yield f"{_name(row)} reached {row.alive} of {row.asked} instances, limited by {limits}."
    full = [row for row in rows if row.limiters == (COUNT,)]
    names = ", ".join(f"{row.asked} {_name(row)}" for row in full)
    if full and len(full) == len(rows):
        yield f"All instances asked for ran at once ({names}): the host's limit was not reached."
    elif full:
        yield f"All of the others ran at once ({names})."
