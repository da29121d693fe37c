"""What verbs print: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from bench.model import to_json

_PIPE_WIDTH = 160  # a pipe has none of its own; wider tables are hard to read wherever they end up


def emit_json(value: object) -> None:
    """One JSON document on stdout."""
    click.echo(msgspec.json.format(to_json(value), indent=2).decode())


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), title: str | None = None
) -> None:
    """A table on stdout, as wide as its text needs when stdout is no terminal. `right`: columns of numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH, no_color=True)
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        grid.add_column(column, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    with console.capture() as capture:
        console.print(grid)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))
