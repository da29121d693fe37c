"""`bench query`: SQL over all run folders, by DuckDB in this process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pandas as pd

from bench.analysis.tables import COLUMNS, empty, table
from bench.errors import ResultsError, UsageError
from bench.report.format import ABSENT
from bench.store import RunData, list_runs, read_run
from bench.verbs import out


def query(sql: str, results: Path, as_json: bool) -> int:
    """Print what `sql` gives. Raises UsageError with DuckDB's message if it is no query over the tables."""
    import duckdb

    wanted = [name for name in COLUMNS if re.search(rf"\b{name}\b", sql, re.IGNORECASE)]
    with connection() as database:
        for name, frame in _tables(results, wanted).items():
            database.register(name, frame)
        try:
            found = database.execute(sql)
            columns = [column[0] for column in found.description or ()]
            rows = found.fetchall()
        except duckdb.Error as error:
            raise UsageError(f"query: {error}", hint=f"the tables are {', '.join(COLUMNS)}") from error
    if as_json:
        out.emit_json([dict(zip(columns, map(_plain, row), strict=True)) for row in rows])
    else:
        out.table(columns, [[_text(value) for value in row] for row in rows], right=_numbers(rows))
    return 0


def connection() -> Any:
    """A database in memory that fetches nothing from anywhere."""
    import duckdb

    return duckdb.connect(config={"autoinstall_known_extensions": "false"})


def _tables(results: Path, wanted: list[str]) -> dict[str, pd.DataFrame]:
    """The tables the query names, of all runs; nothing is read for those it does not."""
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in wanted}
    for data in _runs(results) if wanted else ():
        for name, found in parts.items():
            found.append(table(data, name))
    return {name: pd.concat(found, ignore_index=True) if found else empty(name) for name, found in parts.items()}


def _runs(results: Path) -> Iterator[RunData]:
    """Every run that can be read; those that can't are named on stderr."""
    for path in list_runs(results):
        try:
            data = read_run(path)
        except ResultsError as error:
            click.echo(f"bench: warning: left out: {error.message}", err=True)
            continue
        for warning in data.warnings:
            click.echo(f"bench: warning: {warning}", err=True)
        yield data


def _plain(value: object) -> object:
    """What JSON has no word for (dates, decimals) as text."""
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)


def _text(value: object) -> str:
    if value is None:
        return ABSENT
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _numbers(rows: list[tuple[object, ...]]) -> list[int]:
    """Columns to set to the right."""
    return [place for place, value in enumerate(rows[0]) if isinstance(value, int | float)] if rows else []
