"""What neighbours cost: each experiment against its round's own controls, and whether limits were honoured.

A loss is how much longer a victim's units of work (or its answers) took: the ratio of two medians, or two 99th
percentiles, of one round, less 1; over rounds the geometric mean, with Student's t on the logarithms. Each interval
holds for its own row; `dearest` says what holds of one that was chosen out of many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct

from bench.analysis.isolation import Target
from bench.analysis.resampling import Estimate, generator, ramp_sample
from bench.records import Beside, LimitsOf, NeighbourRecord, TrialRecord, Victim
from bench.store import RunData

BESIDE = 0.9
"""The share of a victim's window in which the load has to have been at work: a round with less is left out."""
QUOTA = 1.05
"""Of the declared CPUs, on the mean: a quota counts as held up to here, for time is accounted in slices."""
_PRESSED = {"cpu": "cpus", "memory": "memory", "fork": "pids"}
"""Aggressor -> the limit that it presses against."""
Key = tuple[str, Victim, Beside, LimitsOf]


class Losses(Struct, frozen=True):
    """Against one control; None without a round that has both."""

    median: Estimate | None
    p99: Estimate | None


class Row(Struct, frozen=True):
    """One victim beside one neighbour. `n`: sound rounds; `samples`: units or requests in them; `failed`: of those."""

    target: Target
    victim: Victim
    aggressor: Beside
    limits: LimitsOf
    idle: Losses  # against nobody pressing
    polite: Losses  # against the victim's own work next door
    n: int
    samples: int
    failed: int
    load: str  # what the aggressor said of its load, in the last sound round
    missing: tuple[str, ...]  # why rounds have no result
    ratios: tuple[float, ...] = ()  # a round: the median over that of its idle control

    @property
    def claims(self) -> bool:
        """Figures of guests under tcg are the emulator's as much as the boundary's."""
        return self.target.accelerator != "tcg"


class Held(Struct, frozen=True):
    """One limit of a neighbour that was pressed against it, over all sound rounds. CPUs, bytes, count.

    `honoured` is None where the groups hold more than what was declared: a guest's hold its hypervisor too.
    """

    target: Target
    limits: LimitsOf
    limit: str
    declared: float
    mean: float
    most: float
    readings: int
    honoured: bool | None


class Neighbourly(Struct, frozen=True):
    """All of a run."""

    targets: tuple[Target, ...]
    rows: tuple[Row, ...]
    held: tuple[Held, ...]


def neighbours(data: RunData) -> Neighbourly | None:
    """What the run's experiments give; None if it has none."""
    records = [one for one in data.records if isinstance(one, NeighbourRecord)]
    if not records:
        return None
    accelerators = {one.trial: one.accelerator for one in data.records if isinstance(one, TrialRecord)}
    order = {name: place for place, name in enumerate(data.info.drivers)}
    found = {Target(one.driver, one.profile, accelerators.get(one.trial)): None for one in records}
    targets = tuple(sorted(found, key=lambda target: order.get(target.name, len(order))))
    by_key: dict[Key, list[NeighbourRecord]] = {}
    for one in sorted(records, key=lambda record: record.round):
        by_key.setdefault((f"{one.driver}:{one.profile}", one.victim, one.aggressor, one.limits), []).append(one)
    rows = [
        _row(target, key, by_key, data.info.seed)
        for target in targets
        for key in sorted(by_key, key=_place)
        if key[0] == target.name and key[2] != "none"
    ]
    held = [one for target in targets for one in _held(target, records)]
    return Neighbourly(targets, tuple(rows), tuple(held))


_ORDER = ("polite", "cpu", "memory", "fork", "disk", "send", "receive")
_VICTIMS = ("httpd", "cpu", "disk", "memory")


def _place(key: Key) -> tuple[int, int, str]:
    _, victim, aggressor, limits = key
    return _VICTIMS.index(victim), _ORDER.index(aggressor) if aggressor in _ORDER else -1, limits


def sound(record: NeighbourRecord) -> bool:
    """Whether it has times, and the load was there while they were taken."""
    if record.times is None or record.missing or not record.times.n:
        return False
    return record.press is None or record.press.beside >= BESIDE


def _row(target: Target, key: Key, by_key: Mapping[Key, Sequence[NeighbourRecord]], seed: int) -> Row:
    name, victim, aggressor, limits = key
    own = by_key[key]
    good = [one for one in own if sound(one)]
    idle = by_key.get((name, victim, "none", "declared"), ())
    polite = by_key.get((name, victim, "polite", "declared"), ()) if aggressor != "polite" else ()
    labels = (name, victim, aggressor, limits)
    return Row(
        target, victim, aggressor, limits, _losses(good, idle, seed, *labels, "idle"),
        _losses(good, polite, seed, *labels, "polite"), len(good), sum(one.times.n for one in good if one.times),
        sum(one.times.failed for one in good if one.times), _load(good), _missing(own, idle),
        tuple(_ratios(good, idle, "0.5")),
    )  # fmt: skip


def _missing(own: Sequence[NeighbourRecord], idle: Sequence[NeighbourRecord]) -> tuple[str, ...]:
    reasons = [one.missing or "the load was not beside the victim all the time" for one in own if not sound(one)]
    alone = {one.round: one for one in idle}
    for one in own:
        if sound(one) and not ((control := alone.get(one.round)) and sound(control)):
            why = control.missing if control and control.missing else "there is none"
            reasons.append(f"nothing to set it against, an idle neighbour in the same round: {why}")
    return tuple(dict.fromkeys(reasons))


def _load(good: Sequence[NeighbourRecord]) -> str:
    press = next((one.press for one in reversed(good) if one.press is not None), None)
    if press is None:
        return ""
    refused = f", {press.refused:,} refused or killed" if press.refused else ""
    return (
        f"{press.amount:,.4g} {press.unit}{refused}"
        if press.amount < 100
        else f"{press.amount:,.0f} {press.unit}{refused}"
    )


def _losses(good: Sequence[NeighbourRecord], control: Sequence[NeighbourRecord], seed: int, *labels: str) -> Losses:
    return Losses(*(_loss(_ratios(good, control, share), seed, *labels, share) for share in ("0.5", "0.99")))


def _ratios(good: Sequence[NeighbourRecord], control: Sequence[NeighbourRecord], share: str) -> list[float]:
    """Paired by round: what drifts meanwhile hits both."""
    base = {one.round: one for one in control if sound(one)}
    return [above / below for one in good if (above := _at(one, share)) and (below := _at(base.get(one.round), share))]


def _loss(ratios: Sequence[float], seed: int, *labels: str) -> Estimate | None:
    if not ratios:
        return None
    value = math.exp(sum(map(math.log, ratios)) / len(ratios))
    rng = generator(seed, *labels)
    found = ramp_sample(value, len(ratios), np.array(ratios), rng, positive=True).estimate()
    low, high = (None if end is None else end - 1 for end in (found.low, found.high))
    return Estimate(found.value - 1, low, high, found.n, found.method)


def _at(record: NeighbourRecord | None, share: str) -> float | None:
    return record.times.quantiles.get(share) if record is not None and record.times is not None else None


def _held(target: Target, records: Sequence[NeighbourRecord]) -> list[Held]:
    """Each limit, with and without, while somebody pressed against it."""
    found: dict[tuple[LimitsOf, str], list[tuple[float, Sequence[float]]]] = {}
    for one in records:
        limit = _PRESSED.get(one.aggressor)
        if f"{one.driver}:{one.profile}" != target.name or limit is None or not sound(one):
            continue
        for use in one.uses:
            if use.limit == limit:
                found.setdefault((one.limits, limit), []).append((use.declared, use.values))
    return [_kept(target, *key, some) for key, some in sorted(found.items())]


def _kept(target: Target, limits: LimitsOf, limit: str, some: Sequence[tuple[float, Sequence[float]]]) -> Held:
    declared = some[0][0]
    values = [value for _, slices in some for value in slices]
    mean, most = sum(values) / len(values), max(values)
    honoured = mean <= declared * QUOTA if limit == "cpus" else most <= declared
    judged = None if target.driver == "vm" and limit != "cpus" else honoured
    return Held(target, limits, limit, declared, mean, most, len(values), judged)
