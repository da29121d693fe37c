"""`bench show` and `bench report`: reading a run folder needs no root, no libvirt, no driver."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import click

from bench.analysis.exposure import exposures
from bench.analysis.findings import with_findings
from bench.analysis.frames import frames
from bench.analysis.headline import COUNT, HeadlineRow, headline
from bench.analysis.isolation import matrix
from bench.analysis.neighbours import neighbours
from bench.analysis.quality import quality
from bench.analysis.reconcile import Balance, harness_cost, reconcile
from bench.analysis.summary import summarise
from bench.analysis.takes import DiskTaken, disk_taken
from bench.model import target_name
from bench.precision import precision_said
from bench.report.format import estimate, quantity
from bench.store.reader import RunData, find_run, read_run
from bench.summary import Summary
from bench.verbs.out import emit_json, table
from bench.verbs.show_density import print_density
from bench.verbs.show_exposure import print_exposures
from bench.verbs.show_isolation import print_matrix
from bench.verbs.show_neighbours import print_neighbours


def show_run(text: str, results: Path, as_json: bool) -> int:
    """`bench show RUN`."""
    path = find_run(results, text)
    if as_json:
        emit_json(summary_of(path))
    else:
        print_summary(path, full=True)
    return 0


def _read(path: Path) -> RunData:
    """The run, out of the collector's sight: it stays to the end, and a million records take long to look through."""
    data = read_run(path)
    gc.freeze()
    return data


def summary_of(path: Path) -> Summary:
    """What `--json` prints: the numbers of ramps, and what probes and neighbours found."""
    data = _read(path)
    return with_findings(summarise(data), data)


def write_report(text: str, results: Path, output: Path | None, beside: Sequence[str] = ()) -> Path:
    """`bench report RUN [BESIDE...]`: the path of the file written."""
    from bench.report.build import build_report  # draws: half a second to import, which `show` need not wait for

    path = find_run(results, text)
    target = output or Path("reports") / f"{path.name}.html"
    others = [_read(find_run(results, one)) for one in beside]
    build_report(_read(path), target, others)
    return target


def print_summary(path: Path, *, full: bool = False) -> None:
    """The headline table (with `full`, every metric) and the doubts, on stdout."""
    data = _read(path)
    tables = frames(data)
    summary = summarise(data, tables)
    for warning in (*data.warnings, *data.info.warnings):
        click.echo(f"bench: warning: {warning}", err=True)
    found = headline(summary, data, tables)
    rows = [_headline_cells(row) for row in found]
    columns = [
        "driver",
        "start-up, median [95 %]",
        "memory of one more",
        "disk of one more",
        "instances per GiB",
        "alive",
        "limited by",
    ]
    findings = matrix(data)
    if findings is not None:
        print_matrix(findings, evidence=full)
    print_exposures(exposures(data), items=full)
    experiments = neighbours(data)
    if experiments is not None:
        print_neighbours(experiments)
    if (findings is None and experiments is None) or tables.series:
        table(columns, rows, right=(1, 2, 3, 4, 5))
    print_density(found, data.records, evidence=full)
    if data.info.precision:
        click.echo(precision_said(data.info.precision))
    if full and tables.series:
        click.echo()
        _print_metrics(summary)
        _print_memory(reconcile(tables))
        _print_disk(disk_taken(tables))
        _print_harness(*harness_cost(tables))
    for doubt in quality(data, summary, tables):
        click.echo(f"doubt: {doubt.message}\n       {doubt.remedy}", err=not full)


def _headline_cells(row: HeadlineRow) -> list[str]:
    mark = f" ({row.accelerator})" if row.accelerator else ""
    alive = "-" if row.alive is None else f"{row.alive}/{row.asked}"
    if row.to_limit and row.alive is not None:
        alive = str(row.alive)
    cells = [
        estimate(value, unit)
        for value, unit in ((row.startup, "s"), (row.memory, "bytes"), (row.disk, "bytes"), (row.per_gib, "instances"))
    ]
    reached = "its bound" if row.to_limit else "N asked for"
    limits = ", ".join(reached if text == "count" else text for text in row.limiters)
    return [f"{row.series.name}{mark}", *cells, alive, limits]


def _print_metrics(summary: Summary) -> None:
    rows = [
        [
            target_name(row.driver, row.profile, row.condition),
            row.metric,
            quantity(row.median, row.unit),
            "-"
            if row.low is None or row.high is None
            else f"{quantity(row.low, row.unit)} .. {quantity(row.high, row.unit)}",
            str(row.n),
        ]
        for row in summary.summary
    ]
    mark = f", guests under {summary.accelerator}" if summary.accelerator else ""
    table(["driver", "metric", "median", "95 % interval", "n"], rows, right=(2, 3, 4), title=f"{summary.run}{mark}")


def _print_memory(found: list[Balance]) -> None:
    """Nothing where no ramp has a step at N = 0."""
    if not found:
        return
    click.echo()
    rows = [
        [
            one.series.name,
            str(one.n),
            *(quantity(value, "bytes") for value in (one.lost, one.pss, one.guest, one.overhead, one.kernel)),
            quantity(one.residual, "bytes"),
            "" if one.residual is None or one.lost <= 0 else f"{100 * one.residual / one.lost:.0f} %",
            quantity(one.host_kernel, "bytes"),
        ]
        for one in found
    ]
    title = "Memory at each N, since N = 0, mean over ramps: host lost = PSS (guest RAM + overhead) + kernel + residual"
    columns = ["driver", "N", "host lost", "PSS", "guest RAM", "overhead", "kernel", "residual", "", "host's kernel"]
    table(columns, rows, right=range(1, len(columns)), title=title)


def _print_disk(found: list[DiskTaken]) -> None:
    if not found:
        return
    click.echo()
    rows = [
        [
            one.series.name,
            str(one.n),
            quantity(one.here, "bytes"),
            str(one.asked),
            quantity(one.there, "bytes"),
            "extrapolated" if one.extrapolated else "measured",
            "" if one.limiters == (COUNT,) else ", ".join(one.limiters),
        ]
        for one in found
    ]
    title = "Disk of all instances together, what they share once: with the most alive, and with all asked for"
    columns = ["driver", "N alive", "disk", "N asked", "disk", "", "limited by"]
    table(columns, rows, right=(1, 2, 3, 4), title=title)


def _print_harness(seconds: float | None, memory: float | None) -> None:
    if seconds is not None or memory is not None:
        click.echo(f"\nharness: {quantity(seconds, 's')} of CPU, {quantity(memory, 'bytes')} of memory (PSS) at most")
