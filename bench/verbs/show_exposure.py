"""What is open to instances, on stdout: one table an axis."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bench.analysis.exposure import LISTED, AxisTable, Item
from bench.analysis.isolation import Target
from bench.verbs.out import table


def print_exposures(found: Sequence[AxisTable], *, items: bool) -> None:
    """Counts of every axis; with `items`, fact by fact and part by part too."""
    for one in found:
        click.echo()
        if one.counts:
            rows = [[row.name, *(one.cell(row, target) for target in one.targets)] for row in one.counts]
            heads = [_heading(one, target) for target in one.targets]
            table(["count", *heads], rows, right=range(1, len(heads) + 1), title=_title(one))
        else:
            click.echo(one.title)
        for reason, names in one.reasons.items():
            click.echo(f"  not measured for {names}: {reason}")
        if items and one.axis in LISTED and one.items:
            click.echo()
            rows = [[item.name, *(_found(item, target) for target in one.targets)] for item in one.items]
            table(["item", *(_heading(one, target) for target in one.targets)], rows)


def _title(one: AxisTable) -> str:
    return f"{one.title} (own: of the guest's own kernel)" if _marks_kernels(one) else one.title


def _marks_kernels(one: AxisTable) -> bool:
    return one.axis == "calls" and "own" in one.kernels.values()


def _heading(one: AxisTable, target: Target) -> str:
    marks = [target.accelerator] if target.accelerator else []
    if _marks_kernels(one) and one.kernels.get(target.name) == "own":
        marks.append("own")
    return f"{target.name} ({', '.join(marks)})" if marks else target.name


def _found(item: Item, target: Target) -> str:
    cell = item.cells.get(target.name)
    return cell.found if cell else "-"
