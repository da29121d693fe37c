"""What neighbours cost, on stdout."""

from __future__ import annotations

import click

from bench.analysis.isolation import Target
from bench.analysis.neighbours import Held, Neighbourly, Row
from bench.report.format import loss, quantity
from bench.report.neighbours import said, unmeasured
from bench.verbs.out import table

_UNITS = {"cpus": "CPUs", "memory": "bytes", "pids": "count"}


def print_neighbours(found: Neighbourly) -> None:
    """Losses, then limits, then the sentences of the report."""
    columns = [
        "driver", "victim", "beside", "limits", "median", "p99", "median against polite", "n", "failed", "load",
    ]  # fmt: skip
    title = (
        "Loss: how much longer a victim's work took than beside an idle neighbour, over n rounds; "
        "95 % intervals, each for its row alone"
    )
    table(columns, [_cells(row) for row in found.rows], right=(4, 5, 6, 7, 8), title=title)
    if found.held:
        click.echo()
        columns = ["driver", "limits", "limit", "declared", "mean", "most in 0.1 s", "readings", "honoured"]
        table(
            columns, [_held(one) for one in found.held], right=(3, 4, 5, 6), title="Limits of neighbours that pressed"
        )
    click.echo()
    for sentence in said(found):
        click.echo(sentence)
    for who, reason in unmeasured(found.rows):
        click.echo(f"  not measured: {who}: {reason}")


def _heading(target: Target) -> str:
    return f"{target.name} ({target.accelerator})" if target.accelerator else target.name


def _cells(row: Row) -> list[str]:
    limits = "" if row.aggressor == "polite" else row.limits
    share = f"{row.failed}/{row.samples}" if row.failed else ""
    return [
        _heading(row.target), row.victim, row.aggressor, limits, loss(row.idle.median), loss(row.idle.p99),
        loss(row.polite.median), str(row.n), share, row.load,
    ]  # fmt: skip


def _held(one: Held) -> list[str]:
    unit = _UNITS[one.limit]
    values = [quantity(value, unit) for value in (one.declared, one.mean, one.most)]
    honoured = "not judged: hypervisor included" if one.honoured is None else "yes" if one.honoured else "NO"
    return [_heading(one.target), one.limits, one.limit, *values, str(one.readings), honoured]
