"""The matrix of findings on stdout."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bench.analysis.isolation import Change, Matrix, Row, Target, contrasts
from bench.model import target_name
from bench.records import Containment
from bench.verbs.out import table

_LOUD = {Containment.ESCAPED: "ESCAPED", Containment.DEGRADED: "Degraded"}


def print_matrix(found: Matrix, *, evidence: bool) -> None:
    """Every probe by every driver; with `evidence`, what shows each outcome other than contained."""
    rows = [_cells(row, found.targets) for row in found.rows]
    title = (
        "Findings: what an attack from inside reached; an outcome in (brackets) does not count, for its control failed"
    )
    table(["probe", "severity", "control", *map(_heading, found.targets)], rows, title=title)
    click.echo(f"\n{found.counted} of {len(found.rows)} controls got through without the boundary; of those probes:")
    for target in found.targets:
        tally = found.tally(target)
        click.echo(f"  {_heading(target)}: " + ", ".join(f"{count} {name.value}" for name, count in tally.items()))
    for one in contrasts(found):
        click.echo()
        rows = [[row.probe, row.severity, *(_cell(row, target) for target in one.targets)] for row in one.rows]
        title = f"{one.title}: {len(one.rows)} of {found.counted} probes differ"
        table(["probe", "severity", *map(_heading, one.targets)], rows, title=title)
    if evidence:
        _print_evidence(found)


def _heading(target: Target) -> str:
    return f"{target.name} ({target.accelerator})" if target.accelerator else target.name


def _cells(row: Row, targets: tuple[Target, ...]) -> list[str]:
    control = f"{row.place}: " + (row.control.outcome.value if row.control else "not run")
    return [row.probe, row.severity, control, *(_cell(row, target) for target in targets)]


def _cell(row: Row, target: Target) -> str:
    cell = row.cells.get(target.name)
    if cell is None:
        return "-"
    word = _LOUD.get(cell.finding.outcome, cell.finding.outcome.value)
    if cell.found < cell.rounds:
        word += f" {cell.found}/{cell.rounds}"
    return word if row.counts else f"({word})"


def _print_evidence(found: Matrix) -> None:
    click.echo("\nEvidence of what was not contained, and of controls that did not get through:")
    for row in found.rows:
        if not row.counts:
            said = row.control.evidence if row.control else "no guest, or no process, could be had for it"
            click.echo(f"  {row.probe}, its control: {said}")
        for target in found.targets:
            cell = row.cells.get(target.name)
            if cell is not None and cell.finding.outcome is not Containment.CONTAINED:
                click.echo(f"  {row.probe}, {target.name}: {cell.finding.outcome.value}: {cell.finding.evidence}")


def print_changes(found: Sequence[Change]) -> None:
    """What probes found in B that they had not in A, and the other way round; nothing where nothing changed."""
    if not found:
        return
    click.echo()
    rows = [
        [
            target_name(one.driver, one.profile), one.probe, one.severity, one.before.outcome.value,
            one.after.outcome.value, "weaker" if one.weaker else "not weaker", one.after.evidence,
        ]
        for one in found
    ]  # fmt: skip
    table(["driver", "probe", "severity", "A", "B", "verdict", "evidence in B"], rows, title="Findings that changed")
