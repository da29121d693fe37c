"""`bench compare A B`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from bench.analysis.comparison import Comparison, Row, Side, compare
from bench.analysis.isolation import changes, matrix
from bench.errors import UsageError
from bench.metrics import METRICS
from bench.model import target_name
from bench.report.format import ABSENT, estimate
from bench.store.reader import find_run, read_run
from bench.verbs.out import emit_json, table
from bench.verbs.show_isolation import print_changes

REGRESSION, INCOMPARABLE = 4, 5


def compare_runs(a: str, b: str, thresholds: Sequence[str], results: Path, as_json: bool) -> int:
    """Exit status: 4 if a metric is worse in B or a probe found more, else 5 if one could not be compared, else 0."""
    limits, default = parse_thresholds(thresholds)
    sides = [Side.of(read_run(find_run(results, text))) for text in (a, b)]
    for side in sides:
        for warning in side.data.warnings:
            click.echo(f"bench: warning: {warning}", err=True)
    found = compare(sides[0], sides[1], limits, default)
    matrices = [matrix(side.data) for side in sides]
    findings = changes(*matrices)
    if as_json:
        emit_json({**msgspec.to_builtins(found), "findings": findings} if findings else found)
    else:
        _print(found)
        print_changes(findings)
    weaker = any(one.weaker for one in findings)
    if not found.rows and None not in matrices:  # probes alone were compared
        return REGRESSION if weaker else 0
    return REGRESSION if found.regressed or weaker else INCOMPARABLE if found.incomplete else 0


def parse_thresholds(texts: Sequence[str]) -> tuple[dict[str, float], float]:
    """`startup.ready=5%` for one metric, `5%` for all others. Raises UsageError."""
    limits: dict[str, float] = {}
    default = 0.0
    for text in texts:
        name, equals, value = text.rpartition("=")
        share = _share(text, value)
        if not equals:
            default = share
        elif name in METRICS and METRICS[name].kind == "summary":
            limits[name] = share
        else:
            raise UsageError(f"--threshold {text}: there is no summary metric {name!r}", hint="bench list metrics")
    return limits, default


def _share(text: str, value: str) -> float:
    try:
        share = float(value.strip().removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not (value.strip().endswith("%") and 0 <= share < float("inf")):
        raise UsageError(f"--threshold {text}: write it like startup.ready=5%, or 5% for all metrics")
    return share


def _print(found: Comparison) -> None:
    columns = ["driver", "metric", "A", "B", "B over A", "effect", "p", "q", "verdict"]
    table(columns, [_cells(row) for row in found.rows], right=(2, 3, 4, 5, 6, 7), title=f"A {found.a}\nB {found.b}")
    for note in found.notes:
        click.echo(f"note: {note}")
    counts = ", ".join(f"{count} {word}" for word, count in _counted(found).items())
    click.echo(f"{len(found.rows)} metrics: {counts or 'nothing to compare'} (q at most {found.alpha:g})")


def _counted(found: Comparison) -> dict[str, int]:
    words = [row.verdict for row in found.rows]
    return {word: words.count(word) for word in dict.fromkeys(words)}


def _cells(row: Row) -> list[str]:
    values = [estimate(one, row.unit) for one in (row.a, row.b)]
    numbers = [ABSENT if one is None else f"{one:.2g}" for one in (row.effect, row.p, row.q)]
    verdict = f"{row.verdict}: {row.why}" if row.why else row.verdict
    return [target_name(row.driver, row.profile, row.condition), row.metric, *values, _change(row), *numbers, verdict]


def _change(row: Row) -> str:
    """`+3.1 % (-0.4 to +6.8)`."""
    if row.change is None:
        return ABSENT
    low, high = row.change.low, row.change.high
    ends = "" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * row.change.value:+.1f} %{ends}"
