"""Density and start-up against isolation, axis by axis, over runs of one host. Axes are never added up to a score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from bench.analysis.dearest import Dearest, dearest, measured, pair
from bench.analysis.exposure import exposures
from bench.analysis.frames import frames
from bench.analysis.headline import headline
from bench.analysis.isolation import Target, matrix
from bench.analysis.neighbours import Neighbourly, neighbours
from bench.analysis.resampling import Estimate
from bench.analysis.summary import summarise
from bench.errors import UsageError
from bench.records import Containment, LimitsOf
from bench.store import RunData

Gain = Literal["per_gib", "startup"]
GAINS: Mapping[Gain, str] = {"per_gib": "instances per GiB", "startup": "start-up, s"}
_SAME = ("hostname", "kernel", "cpu_model", "cpus")


class Point(Struct, frozen=True):
    """One driver in one profile. `cost`: on an axis of isolation, where less is better."""

    target: Target
    gain: Estimate
    cost: float
    front: bool  # nobody has both a better gain and a lower cost, or one of them at the same other


class Tradeoff(Struct, frozen=True):
    """One figure. `absent`: targets whose gain is known and that have no place on this axis, and why. `note`: what has
    to be known to read the axis."""

    gain: Gain
    axis: str
    points: tuple[Point, ...]
    absent: Mapping[str, str]
    note: str = ""


class Costs(Struct, frozen=True):
    """Of one axis, by name of the target."""

    of: Mapping[str, tuple[Target, float]]
    note: str = ""


def tradeoffs(runs: Sequence[RunData]) -> list[Tradeoff]:
    """Every gain against every axis for which at least two targets have both. Raises UsageError if hosts differ."""
    require_one_host(runs)
    axes = {name: costs for run in runs for name, costs in _axes(run) if costs.of}
    gains = {gain: {name: one for run in runs for name, one in _gains(run, gain).items()} for gain in GAINS}
    return [
        made
        for gain, found in gains.items()
        for axis, costs in axes.items()
        if (made := _made(gain, axis, found, costs))
    ]


def require_one_host(runs: Sequence[RunData]) -> None:
    """Raises UsageError naming the fact in which hosts differ."""
    for other in runs[1:]:
        for fact in _SAME:
            if (one := getattr(runs[0].host, fact)) != (two := getattr(other.host, fact)):
                raise UsageError(
                    f"{runs[0].info.run} and {other.info.run} are of different hosts: {fact} {one} and {two}",
                    hint="runs that are set against each other have to be of one host",
                )


def _gains(run: RunData, gain: Gain) -> dict[str, Estimate]:
    """By target: of series under no condition, the first payload where there are several."""
    tables = frames(run)
    found: dict[str, Estimate] = {}
    for row in headline(summarise(run, tables), run, tables) if tables.series else ():
        one = row.per_gib if gain == "per_gib" else row.startup
        if one is not None and not row.series.condition:
            found.setdefault(row.series.target, one)
    return found


def _axes(run: RunData) -> Iterator[tuple[str, Costs]]:
    found = matrix(run)
    if found is not None:
        yield (
            "probes escaped",
            Costs({one.name: (one, found.tally(one)[Containment.ESCAPED]) for one in found.targets}),
        )
    for axis in exposures(run):
        if (title := _EXPOSED.get(axis.axis)) is None:
            continue
        row = next((one for one in axis.counts if one.name == title[1]), None)
        targets = [one for one in axis.targets if title[0] != _CALLS or axis.kernels.get(one.name) == "host"]
        if row is not None:
            counts = {one.name: (one, row.cells[one.name].high) for one in targets if one.name in row.cells}
            yield title[0], Costs(counts)
    yield from _losses(run)


_CALLS = "calls of the host's kernel that work inside"
_EXPOSED = {
    "calls": (_CALLS, "works"),
    "host-calls": ("host system calls made under load", "distinct"),
    "facts": ("facts of the host visible inside", "the host's"),
}


_LIMITS: tuple[LimitsOf, ...] = ("declared", "raised")


def _losses(run: RunData) -> Iterator[tuple[str, Costs]]:
    """The dearest neighbour's; guests under tcg have none to state."""
    found = neighbours(run)
    for limits in _LIMITS if found is not None else ():
        assert found is not None
        yield f"loss beside the dearest neighbour, limits {limits}, %", _dearest(found, limits)


def _dearest(found: Neighbourly, limits: LimitsOf) -> Costs:
    """All targets choose out of the same neighbours: one that had fewer to choose from would look better for it."""
    rows = [measured(found, target, limits) for target in found.targets if target.accelerator != "tcg"]
    pairs = [{pair(row) for row in some} for some in rows if some]
    common = set.intersection(*pairs) if pairs else set()
    chosen = [
        one for target in found.targets
        if target.accelerator != "tcg" and (one := dearest(found, target, limits, common))
    ]  # fmt: skip
    costs = {one.row.target.name: (one.row.target, 100 * one.loss.value) for one in chosen}
    return Costs(costs, _note(chosen, limits, len(set().union(*pairs)) - len(common)))


def _note(chosen: Sequence[Dearest], limits: LimitsOf, left_out: int) -> str:
    if not chosen:
        return ""
    of = chosen[0].of
    others = f", without {left_out} that not all had" if left_out else ""
    chance = [one.row.target.name for one in chosen if not one.shown]
    clear = f"; not clear of 0 (95 %, corrected for the choice): {', '.join(chance)}" if chance else ""
    return f"the dearest neighbour, limits {limits}, was chosen out of {of}{others}{clear}"


def _made(gain: Gain, axis: str, gains: Mapping[str, Estimate], costs: Costs) -> Tradeoff | None:
    both = {name: (*costs.of[name], gains[name]) for name in gains if name in costs.of}
    if len(both) < 2:
        return None
    better = _better(gain)

    def beaten(name: str) -> bool:
        _, cost, own = both[name]
        return any(
            other <= cost and not better(own.value, found.value) and (other, found.value) != (cost, own.value)
            for rival, (_, other, found) in both.items() if rival != name
        )  # fmt: skip

    points = tuple(Point(target, found, cost, not beaten(name)) for name, (target, cost, found) in both.items())
    absent = {
        name: "not measured" if axis != _CALLS else "its own kernel answers" for name in gains if name not in costs.of
    }
    return Tradeoff(gain, axis, points, absent, costs.note)


def _better(gain: Gain) -> Callable[[float, float], bool]:
    """Whether the first is better than the second: more instances per GiB, fewer seconds."""
    return (lambda one, two: one > two) if gain == "per_gib" else (lambda one, two: one < two)
