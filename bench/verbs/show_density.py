"""How many fit, in the terminal: alive, useful, and what stopped the ramps."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bench.analysis.headline import HeadlineRow
from bench.records import Record, TrialRecord
from bench.report.format import estimate
from bench.verbs.out import table


def print_density(found: Sequence[HeadlineRow], records: Sequence[Record], *, evidence: bool) -> None:
    """Of ramps to the limit, and where the service level was watched; with `evidence`, what shows each limiter."""
    shown = [row for row in found if row.to_limit or row.useful]
    if not shown:
        return
    click.echo()
    table(["driver", "alive [95 %]", "useful [95 %]", "ramps", "limited by"], list(map(_cells, shown)), right=(1, 2, 3))
    if evidence:
        click.echo()
        for record in records:
            if isinstance(record, TrialRecord) and record.evidence:
                click.echo(f"{record.trial}: {record.limiter}: {record.evidence}".replace("\n", "\n    "))


def _cells(row: HeadlineRow) -> list[str]:
    return [
        f"{row.series.name}{f' ({row.accelerator})' if row.accelerator else ''}",
        estimate(row.density, "instances"),
        estimate(row.useful, "instances") if row.useful else "not watched",
        str(row.ramps),
        row.stopped,
    ]
