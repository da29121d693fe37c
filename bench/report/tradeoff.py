"""Figures of density and start-up against isolation; nothing is added up over axes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from bench.analysis.tradeoff import GAINS, Gain, Point, Tradeoff
from bench.report.format import quantity
from bench.report.svg import MUTED, TEXT, Drawing, drawn, look

_TITLES: dict[Gain, str] = {
    "per_gib": "Instances per GiB against isolation, axis by axis",
    "startup": "Start-up against isolation, axis by axis",
}
_UNITS: dict[Gain, str] = {"per_gib": "instances", "startup": "s"}


def drawings(found: Sequence[Tradeoff]) -> list[Drawing]:
    """One figure a gain, a panel an axis."""
    by_gain = [(gain, [one for one in found if one.gain == gain]) for gain in GAINS]
    return [_drawing(gain, some) for gain, some in by_gain if some]


def _drawing(gain: Gain, found: Sequence[Tradeoff]) -> Drawing:
    names = list(dict.fromkeys(point.target.name for one in found for point in one.points))
    better = "up" if gain == "per_gib" else "down"
    notes = [one.note for one in found if one.note]
    absent = [f"{name} has no place on {one.axis}: {why}" for one in found for name, why in one.absent.items()]
    caption = (
        "Each panel is one axis of isolation, and there is no sum of them. Better is left and "
        f"{better}; {GAINS[gain]} on a logarithmic axis. "
        "The line joins those that no other beats on both (Pareto front). Hollow: guests under tcg, "
        "whose start-up is the emulator's. " + "; ".join([*notes, *absent])
    )
    return drawn(
        f"tradeoff-{gain.replace('_', '-')}", _TITLES[gain], caption.strip(), _alt(gain, found),
        (320 * -(-len(found) // 2), 300 * len(found)), partial(_draw, found, names),
    )  # fmt: skip


def _alt(gain: Gain, found: Sequence[Tradeoff]) -> str:
    """The finding in numbers."""
    parts = []
    for one in found:
        told = ", ".join(
            f"{_name(point)} {quantity(point.gain.value, _UNITS[gain])} at {point.cost:.4g}"
            + (" (on the front)" if point.front else "")
            for point in one.points
        )
        parts.append(f"{GAINS[gain]} against {one.axis}: {told}")
    return ". ".join(parts) + "."


def _name(point: Point) -> str:
    mark = point.target.accelerator
    return f"{point.target.name} ({mark})" if mark else point.target.name


def _draw(found: Sequence[Tradeoff], names: Sequence[str], figure: Figure, wide: bool) -> None:
    columns = 2 if wide and len(found) > 1 else 1
    grid = figure.subplots(-(-len(found) // columns), columns, squeeze=False)
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    for one, axes in zip(found, grid.flat, strict=False):
        _panel(one, names, axes)


def _panel(one: Tradeoff, names: Sequence[str], axes: Axes) -> None:
    front = sorted((point.cost, point.gain.value) for point in one.points if point.front)
    axes.plot([cost for cost, _ in front], [gain for _, gain in front], color=MUTED, linewidth=1.0)
    for point in one.points:
        style = look(names.index(point.target.name))
        fill = "none" if point.target.accelerator == "tcg" else style.colour
        axes.plot(
            [point.cost], [point.gain.value], style.marker, color=style.colour, markerfacecolor=fill, markersize=7
        )
        axes.annotate(
            _name(point), (point.cost, point.gain.value), (0, 8), textcoords="offset points", ha="center", va="bottom",
            color=TEXT, fontsize=10,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))  # they often lie within a decade
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, _UNITS[one.gain])))
    axes.minorticks_off()
    axes.margins(0.25)
    axes.set_xlabel(one.axis)
    axes.set_ylabel(GAINS[one.gain].partition(",")[0])  # the ticks have units
