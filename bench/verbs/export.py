"""`bench export`: a run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from bench.analysis.tables import COLUMNS, table
from bench.errors import UsageError
from bench.store import RunData, find_run, read_run
from bench.store.files import make_folder, not_writable
from bench.store.timings import write_timings
from bench.verbs.query import connection

Form = Literal["csv", "parquet", "pyperf"]


def export(text: str, form: Form, output: Path | None, results: Path) -> Path:
    """Write RUN to `output` (default: a folder, or for pyperf a file, named after the run) and return its path.

    csv and parquet: one file a table. Raises UsageError if the run has nothing of what the form holds.
    """
    data = read_run(find_run(results, text))
    for warning in data.warnings:
        click.echo(f"bench: warning: {warning}", err=True)
    target = output or Path(f"{data.info.run}.pyperf.json" if form == "pyperf" else f"{data.info.run}-{form}")
    try:
        make_folder(target.parent if form == "pyperf" else target)
        _WRITERS[form](data, target)
    except OSError as error:
        raise not_writable(target, error) from error
    return target


def _csv(data: RunData, folder: Path) -> None:
    for name in COLUMNS:
        table(data, name).to_csv(folder / f"{name}.csv", index=False)


def _parquet(data: RunData, folder: Path) -> None:
    with connection() as database:
        for name in COLUMNS:
            database.from_df(table(data, name)).write_parquet(str(folder / f"{name}.parquet"))


def _pyperf(data: RunData, target: Path) -> None:
    write_timings(data, target)
    if not target.is_file():
        raise UsageError(f"{data.info.run}: no launch succeeded, so there are no times to export")


_WRITERS = {"csv": _csv, "parquet": _parquet, "pyperf": _pyperf}
