"""Run A against run B: a verdict for every metric of either; what can't be compared says why, and nothing is dropped.

Ramps are permuted (see `permutation`), and p-values are corrected for how many were asked (Benjamini-Hochberg), in two
families: the headline metrics of all drivers, and all others, so that a long list of phases does not hide a regression
of what people plan with. A verdict takes a corrected p of at most 5 % and a change above the metric's threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from msgspec import Struct
from msgspec.structs import replace

from bench.analysis.frames import Frames, Series, frames
from bench.analysis.headline import accelerator_mark
from bench.analysis.permutation import dominance, least_p, permutation_p, ramps_needed
from bench.analysis.resampling import Estimate, Sample, generator, ratio
from bench.analysis.summary import accelerator_of, ramp_values, sample_of
from bench.metrics import METRICS, summary_metrics
from bench.store import RunData

ALPHA = 0.05
_DENSITY = {"density.alive", "density.useful"}
HEADLINE = frozenset(_DENSITY | {"startup.reply", "startup.ready", "launch.rate", "memory.marginal", "disk.marginal"})
Verdict = Literal["better", "worse", "differs", "no difference shown", "not comparable"]
_HARDWARE = ("machine", "cpu_model", "cpus", "memory_total", "virtualization")
_SETUP = (
    "hostname", "kernel", "distribution", "governor", "turbo", "thp", "ksm", "clocksource", "cgroup", "qemu_version",
    "libvirt_version", "python", "bench",
)  # fmt: skip
_MEMORY = 0.01  # of memory_total: what two boots of one machine may differ by
_IN_GROUPS = frozenset({"memory.marginal", "memory.residual", "memory.kernel", "memory.cgroup", "pool.memory"})
"""What holds the host's cost of an empty memory cgroup once for each instance."""
_GROUP_SHARE = 0.05  # of memory.marginal: what that cost may differ by between two runs


class Row(Struct, frozen=True):
    """One metric of one driver. `change`: B over A, less 1, with its 95 % interval; `q`: p after correction.

    `effect` is Cliff's delta: how much oftener a ramp of B is above one of A than below. `why` says what stands behind
    a verdict that is not better or worse.
    """

    driver: str
    profile: str
    payload: str
    metric: str
    unit: str
    a: Estimate | None
    b: Estimate | None
    change: Estimate | None
    p: float | None
    q: float | None
    effect: float | None
    threshold: float
    verdict: Verdict
    why: str = ""
    condition: str = ""


class Comparison(Struct, frozen=True):
    """`notes`: what else differs between the runs, and what so few ramps can't show."""

    a: str
    b: str
    alpha: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        return any(row.verdict == "worse" for row in self.rows)

    @property
    def incomplete(self) -> bool:
        """Something could not be compared, or there was nothing to compare."""
        return not self.rows or any(row.verdict == "not comparable" for row in self.rows)


class Side(Struct, frozen=True):
    """One of the two runs."""

    data: RunData
    tables: Frames

    @classmethod
    def of(cls, data: RunData) -> Side:
        return cls(data, frames(data))


def compare(a: Side, b: Side, thresholds: Mapping[str, float], default: float = 0.0) -> Comparison:
    """Verdicts on all metrics that A or B holds, in A's order, then B's. `thresholds`: metric -> share of A's value."""
    rows: list[Row] = []
    for series in dict.fromkeys((*a.tables.series, *b.tables.series)):
        reasons = list(incomparable(a, b, series))
        groups = list(_groups_differ(a, b, series))
        for metric in summary_metrics():
            why = [*reasons, *(groups if metric.name in _IN_GROUPS else ())]
            row = _row(a, b, series, metric.name, thresholds.get(metric.name, default), why)
            rows += [row] if row else []
    judged = tuple(decided(rows))
    return Comparison(a.data.info.run, b.data.info.run, ALPHA, judged, tuple(_notes(a, b, judged)))


# --- what may be compared ----------------------------------------------------------------------------------------


def incomparable(a: Side, b: Side, series: Series) -> Iterator[str]:
    """Why numbers of `series` in the two runs are not of the same thing; nothing if they are."""
    for field in _HARDWARE:
        one, other = getattr(a.data.host, field), getattr(b.data.host, field)
        if one != other and not (field == "memory_total" and abs(one - other) <= _MEMORY * max(one, other)):
            yield f"hosts differ: {field} {one} and {other}"
    for what in ("limits", "payload"):
        if getattr(a.data.info, what) != getattr(b.data.info, what):
            yield f"sizes differ: {what}" if what == "limits" else "payloads differ"
    if a.data.info.image.layers != b.data.info.image.layers:
        yield "images differ"
    if series in a.tables.series and series in b.tables.series:
        asked = [sorted({int(n) for n in _trials(side, series)["asked"]}) for side in (a, b)]
        if asked[0] != asked[1]:
            yield f"sizes differ: ramps to N = {asked[0]} and {asked[1]}"
        marks = [accelerator_mark(series, accelerator_of(side.data, side.tables)) for side in (a, b)]
        if marks[0] != marks[1]:
            yield f"accelerators differ: {marks[0]} and {marks[1]}"


def _groups_differ(a: Side, b: Side, series: Series) -> Iterator[str]:
    """Why memory can't be compared although the hardware is the same: a host that once ran thousands of instances keeps
    more for each memory cgroup until it is booted again, and every instance pays for it."""
    costs = [side.data.host.empty_memcg_bytes for side in (a, b)]
    if costs[0] is None or costs[1] is None:
        return
    each = [sample_of(side.tables, series, "memory.marginal", side.data.info.seed) for side in (a, b)]
    least = min((abs(one.value) for one in each if one is not None), default=0.0)
    if abs(costs[0] - costs[1]) > _GROUP_SHARE * least:
        yield (
            f"hosts differ: an empty memory cgroup cost {costs[0]} bytes and {costs[1]}, and each instance has one; "
            "boot the host, then measure again"
        )


def _trials(side: Side, series: Series) -> pd.DataFrame:
    return side.tables.trials[side.tables.trials["series"] == series.key]


# --- one metric --------------------------------------------------------------------------------------------------


def _row(a: Side, b: Side, series: Series, metric: str, threshold: float, reasons: Sequence[str]) -> Row | None:
    """Before its p is corrected; None if neither run holds the metric."""
    one, other = (sample_of(side.tables, series, metric, side.data.info.seed) for side in (a, b))
    if one is None and other is None:
        return None
    row = Row(
        *series[:3], metric, METRICS[metric].unit, one.estimate() if one else None, other.estimate() if other else None,
        None, None, None, None, threshold, "not comparable", "; ".join(reasons), series.condition,
    )  # fmt: skip
    if one is None or other is None:
        return replace(row, why="; ".join([*reasons, f"only in {'A' if one else 'B'}"]))
    if reasons:
        return row
    rng = generator(a.data.info.seed, *series.seeds, metric, "compare")
    ramps = [ramp_values(side.tables, series, metric) for side in (a, b)]
    p = permutation_p(ramps[0], ramps[1], rng)
    return replace(row, change=change(one, other, rng), p=p, effect=dominance(*ramps), verdict="no difference shown")


def change(one: Sample, other: Sample, rng: np.random.Generator) -> Estimate | None:
    """How much larger `other` is, as a share of `one`; None where `one` is not above zero."""
    if one.value <= 0:
        return None
    found = ratio(other, one, rng)
    ends = [None if end is None else end - 1 for end in (found.low, found.high)]
    return Estimate(found.value - 1, ends[0], ends[1], found.n, found.method)


# --- all of them together ----------------------------------------------------------------------------------------


def decided(rows: Sequence[Row]) -> Iterator[Row]:
    """`rows` with corrected p-values and verdicts."""
    from scipy import stats  # half a second to import

    families: dict[bool, list[int]] = {True: [], False: []}
    for place, row in enumerate(rows):
        if row.p is not None:
            families[row.metric in HEADLINE].append(place)
    corrected: dict[int, float] = {}
    for places in families.values():
        if places:
            found = stats.false_discovery_control([rows[place].p for place in places])
            corrected.update(zip(places, map(float, found), strict=True))
    for place, row in enumerate(rows):
        yield _verdict(row, corrected[place]) if place in corrected else row


def _verdict(row: Row, q: float) -> Row:
    if q > ALPHA or not row.effect:
        return replace(row, q=q)
    if row.change is not None and abs(row.change.value) <= row.threshold:
        return replace(row, q=q, why=f"changed by {100 * row.change.value:+.2g} %, within the threshold")
    better = METRICS[row.metric].better
    if better is None:
        return replace(row, q=q, verdict="differs", why="neither direction is better by itself")
    return replace(row, q=q, verdict="better" if (row.effect > 0) == (better == "higher") else "worse")


def _notes(a: Side, b: Side, rows: Sequence[Row]) -> Iterator[str]:
    for field in _SETUP:
        one, other = getattr(a.data.host, field), getattr(b.data.host, field)
        if one != other:
            yield f"{field}: {one} in A, {other} in B"
    costs = [side.data.host.empty_memcg_bytes for side in (a, b)]
    if (costs[0] is None) != (costs[1] is None):
        yield f"what an empty memory cgroup costs was measured in {'B' if costs[0] is None else 'A'} only"
    for name in a.data.info.drivers.keys() & b.data.info.drivers.keys():
        keys = [side.data.info.drivers[name] for side in (a, b)]
        for key in sorted(keys[0].keys() | keys[1].keys()):
            if keys[0].get(key) != keys[1].get(key):
                yield f"{name} {key}: {_short(keys[0].get(key))} in A, {_short(keys[1].get(key))} in B"
    for label, side in (("A", a), ("B", b)):
        if side.data.info.status != "done":
            yield f"{label} did not finish (status: {side.data.info.status})"
    yield from _power(a, b, rows)


def _short(value: str | None) -> str:
    """A domain's XML is not for a line."""
    if value is None:
        return "absent"
    return value if len(value) <= 40 and "\n" not in value else "something else"


def _power(a: Side, b: Side, rows: Sequence[Row]) -> Iterator[str]:
    family = sum(row.p is not None and row.metric in HEADLINE for row in rows)
    ramps = [min((len(_trials(side, series)) for series in side.tables.series), default=0) for side in (a, b)]
    if family and min(ramps) and least_p(*ramps) * family > ALPHA:
        yield (
            f"{ramps[0]} ramps against {ramps[1]} give no p below {least_p(*ramps):.2g}, and {family} headline metrics "
            f"were compared: to show a difference in one of them takes {ramps_needed(ALPHA, family)} rounds in each run"
        )
