"""`bench show` and `bench report`: reading a run folder needs no root, no libvirt, no driver."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from bench.analysis.frames import frames
from bench.analysis.headline import HeadlineRow, headline
from bench.analysis.quality import quality
from bench.analysis.summary import summarise
from bench.model import Summary
from bench.report.build import build_report
from bench.report.format import estimate, quantity
from bench.store.reader import RunData, find_run, read_run
from bench.verbs.out import emit_json, table


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
    return summarise(_read(path))


def write_report(text: str, results: Path, output: Path | None) -> Path:
    """`bench report RUN`: the path of the file written."""
    path = find_run(results, text)
    target = output or Path("reports") / f"{path.name}.html"
    build_report(_read(path), target)
    return target


def print_summary(path: Path, *, full: bool = False) -> None:
    """The headline table (with `full`, every metric) and the doubts, on stdout."""
    data = _read(path)
    tables = frames(data)
    summary = summarise(data, tables)
    for warning in (*data.warnings, *data.info.warnings):
        click.echo(f"bench: warning: {warning}", err=True)
    rows = [_headline_cells(row) for row in headline(summary, data, tables)]
    columns = [
        "driver",
        "start-up, median [95 %]",
        "memory of one more",
        "disk of one more",
        "instances per GiB",
        "alive",
        "limited by",
    ]
    table(columns, rows, right=(1, 2, 3, 4, 5))
    if full:
        click.echo()
        _print_metrics(summary)
    for doubt in quality(data, summary, tables):
        click.echo(f"doubt: {doubt.message}\n       {doubt.remedy}", err=not full)


def _headline_cells(row: HeadlineRow) -> list[str]:
    mark = f" ({row.accelerator})" if row.accelerator else ""
    alive = "-" if row.alive is None else f"{row.alive}/{row.asked}"
    cells = [
        estimate(value, unit)
        for value, unit in ((row.startup, "s"), (row.memory, "bytes"), (row.disk, "bytes"), (row.per_gib, "instances"))
    ]
    limits = ", ".join("N asked for" if text == "count" else text for text in row.limiters)
    return [f"{row.series.driver}:{row.series.profile}{mark}", *cells, alive, limits]


def _print_metrics(summary: Summary) -> None:
    rows = [
        [
            f"{row.driver}:{row.profile}",
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
