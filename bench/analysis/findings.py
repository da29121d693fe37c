"""What isolation and neighbour trials found, as rows of the summary."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from bench.analysis import neighbours as cost
from bench.analysis.dearest import Dearest, every_dearest
from bench.analysis.exposure import LISTED, AxisTable, exposures
from bench.analysis.isolation import Matrix, matrix
from bench.analysis.resampling import Estimate
from bench.store import RunData
from bench.summary import (
    DearestRow,
    ExposureRow,
    FindingRow,
    LimitRow,
    Loss,
    Losses,
    LossRow,
    NeighbourSummary,
    Span,
    Summary,
)


def with_findings(summary: Summary, data: RunData) -> Summary:
    """`summary` of `data` with its findings, exposure and neighbours, as far as the run has them."""
    found, experiments = matrix(data), cost.neighbours(data)
    return replace(
        summary,
        findings=list(_probed(found)) if found else [],
        exposure=[row for axis in exposures(data) for row in _exposed(axis)],
        neighbours=_neighbours(experiments) if experiments else None,
    )


def _probed(found: Matrix) -> Iterator[FindingRow]:
    for row in found.rows:
        for target in found.targets:
            if cell := row.cells.get(target.name):
                yield FindingRow(
                    target.driver, target.profile, row.probe, row.claim, row.severity, cell.finding.outcome,
                    cell.finding.evidence, cell.instance, cell.found, cell.rounds, row.counts, row.place, row.control,
                    target.accelerator,
                )  # fmt: skip


def _exposed(table: AxisTable) -> Iterator[ExposureRow]:
    for target in table.targets:
        name = target.name
        if name not in table.kernels:
            continue
        counts = {row.name: Span(span.low, span.high) for row in table.counts if (span := row.cells.get(name))}
        listed = table.items if table.axis in LISTED else ()
        items = [item.cells[name] for item in listed if name in item.cells]
        yield ExposureRow(
            target.driver, target.profile, table.axis, table.kernels[name], counts, items, table.missing.get(name),
            target.accelerator,
        )  # fmt: skip


def _neighbours(found: cost.Neighbourly) -> NeighbourSummary:
    return NeighbourSummary(
        [_lost(row) for row in found.rows], [_held(one) for one in found.held], [*map(_chosen, every_dearest(found))]
    )


def _chosen(one: Dearest) -> DearestRow:
    row, loss = one.row, one.loss
    return DearestRow(
        row.target.driver, row.target.profile, row.limits, row.victim, row.aggressor, one.of,
        Loss(loss.value, loss.low, loss.high, loss.n, loss.method), one.shown,
    )  # fmt: skip


def _lost(row: cost.Row) -> LossRow:
    target = row.target
    return LossRow(
        target.driver, target.profile, row.victim, row.aggressor, row.limits, row.n, row.samples, row.failed,
        _losses(row.idle), _losses(row.polite), row.load, [*row.missing], target.accelerator,
    )  # fmt: skip


def _losses(found: cost.Losses) -> Losses:
    return Losses(_loss(found.median), _loss(found.p99))


def _loss(found: Estimate | None) -> Loss | None:
    return None if found is None else Loss(found.value, found.low, found.high, found.n, found.method)


def _held(one: cost.Held) -> LimitRow:
    target = one.target
    return LimitRow(
        target.driver, target.profile, one.limits, one.limit, one.declared, one.mean, one.most, one.readings,
        one.honoured, target.accelerator,
    )  # fmt: skip
