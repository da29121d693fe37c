"""`bench clean`."""

from __future__ import annotations

import click

from bench.errors import HostError, UsageError
from bench.model import Leftover, token_of
from bench.verbs import session
from bench.verbs.out import emit_json
from bench.verbs.registry import Entry, entries


def sweep(run: str | None, as_json: bool) -> int:
    """Remove what dead runs left; say what was found. A live run is never touched."""
    if run is not None and not any(_means(run, entry) for entry in entries()):
        raise UsageError(
            f"no run {run!r} has left anything in this host's state folder",
            hint="bench list runs shows finished runs; they need no cleaning",
        )
    report = []
    for entry, found in session.clean(lambda entry: run is None or _means(run, entry)):
        report.append({"run": entry.run, "alive": found is None, "removed": found or []})
        if found is None and run is not None:
            raise HostError(f"{entry.run} is alive (pid {entry.pid})", hint=f"stop it first: kill -INT {entry.pid}")
        if not as_json:
            _say(entry, found)
    if as_json:
        emit_json(report)
    elif not report:
        click.echo("nothing to clean")
    return 0


def _means(text: str, entry: Entry) -> bool:
    return text in (entry.run, token_of(entry.run))


def _say(entry: Entry, found: list[Leftover] | None) -> None:
    if found is None:
        click.echo(f"{entry.run}: alive (pid {entry.pid}), left alone")
        return
    click.echo(f"{entry.run}: removed its state folder and {len(found)} leftovers")
    for one in found:
        click.echo(f"  {one.kind} {one.name}")
