"""What is open to instances, as one table an axis: counts by drivers. Axes are never added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from bench.analysis.isolation import Target
from bench.records import Axis, Exposed, ExposureRecord, TrialRecord
from bench.store import RunData

TITLES: Mapping[Axis, str] = {
    "calls": "System calls reachable from inside, of those that have a name",
    "host-calls": "Host system calls that the instance's host processes make under load",
    "functions": "Functions of the host's kernel",
    "facts": "Facts of the host that are visible inside",
    "setup": "Set-up of the instance's host processes",
}
"""In the order they are shown."""
LISTED: Sequence[Axis] = ("facts", "setup")
"""Shown item by item where all is asked for; of the others there are too many: `bench query`."""


class Span(Struct, frozen=True):
    """Least and most of one count over the rounds."""

    low: int
    high: int

    @property
    def text(self) -> str:
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"


class Count(Struct, frozen=True):
    """A row; `cells` by target name, without those that it was not measured for."""

    name: str
    cells: Mapping[str, Span]


class Item(Struct, frozen=True):
    """One thing that was looked at, in the last round; `cells` by target name."""

    name: str
    cells: Mapping[str, Exposed]


class AxisTable(Struct, frozen=True):
    """`kernels`: whose kernel answers inside, by target name. `missing`: why an axis was not measured, the same."""

    axis: Axis
    title: str
    targets: tuple[Target, ...]
    kernels: Mapping[str, str]
    counts: tuple[Count, ...]
    items: tuple[Item, ...]
    missing: Mapping[str, str]

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why -> the targets that were not measured for it, with commas."""
        names: dict[str, list[str]] = {}
        for target in self.targets:
            if why := self.missing.get(target.name):
                names.setdefault(why, []).append(target.name)
        return {why: ", ".join(some) for why, some in names.items()}

    def cell(self, row: Count, target: Target) -> str:
        """What a table shows."""
        if span := row.cells.get(target.name):
            return span.text
        return "not measured" if target.name in self.missing else "-"


def exposures(data: RunData) -> list[AxisTable]:
    """The axes of the run that were looked at; empty if it has none."""
    records = [one for one in data.records if isinstance(one, ExposureRecord)]
    accelerators = {one.trial: one.accelerator for one in data.records if isinstance(one, TrialRecord)}
    found = dict.fromkeys(Target(one.driver, one.profile, accelerators.get(one.trial)) for one in records)
    order = {name: place for place, name in enumerate(data.info.drivers)}
    targets = tuple(sorted(found, key=lambda target: order.get(target.name, len(order))))
    by_axis = {axis: [one for one in records if one.exposure.axis == axis] for axis in TITLES}
    return [_table(axis, targets, some) for axis, some in by_axis.items() if some]


def _table(axis: Axis, targets: tuple[Target, ...], records: Sequence[ExposureRecord]) -> AxisTable:
    counts: dict[str, dict[str, Span]] = {}
    items: dict[str, dict[str, Exposed]] = {}
    missing: dict[str, str] = {}
    for record in records:
        name = f"{record.driver}:{record.profile}"
        if record.exposure.missing is not None:
            missing[name] = record.exposure.missing
        for count, value in record.exposure.counts.items():
            cells = counts.setdefault(count, {})
            before = cells.get(name, Span(value, value))
            cells[name] = Span(min(before.low, value), max(before.high, value))
        for item in record.exposure.items:
            items.setdefault(item.name, {})[name] = item
    kernels = {f"{one.driver}:{one.profile}": one.kernel for one in records}
    rows = tuple(Count(name, cells) for name, cells in counts.items())
    return AxisTable(
        axis, TITLES[axis], targets, kernels, rows, tuple(Item(name, cells) for name, cells in items.items()), missing
    )
