"""One run as one HTML file that needs nothing else: no network, no fonts, no scripts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from bench.analysis import Estimate, Series, frames, headline, quality, summarise
from bench.analysis.exposure import exposures
from bench.analysis.frames import Frames
from bench.analysis.headline import accelerator_mark, by_series, ratios
from bench.analysis.isolation import matrix
from bench.analysis.neighbours import neighbours
from bench.analysis.quality import SYNTHETIC
from bench.analysis.reconcile import Balance, harness_cost, reconcile
from bench.analysis.resampling import MANY, PLENTY
from bench.analysis.takes import disk_taken
from bench.analysis.tradeoff import tradeoffs
from bench.metrics import METRICS, Metric
from bench.model import to_json
from bench.precision import precision_said
from bench.records import LaunchRecord, NoteRecord, Outcome, TrialRecord
from bench.report import format
from bench.report.answer import COMPARED, TCG, answer
from bench.report.exposure import section as exposure_section
from bench.report.figures import Scene, figures
from bench.report.isolation import said, section
from bench.report.neighbours import said as neighbours_said
from bench.report.neighbours import section as neighbours_section
from bench.report.svg import PALETTE
from bench.report.tradeoff import drawings
from bench.store import RunData
from bench.store.files import make_folder, not_writable, write_atomic
from bench.summary import Summary

_SHAPES = ("●", "■", "▲", "◆", "▼", "✚")  # in the order of svg.MARKERS
_BYTES = frozenset({"memory_total", "memory_available", "swap_total", "empty_memcg_bytes", "empty_netns_bytes"})


class Key(NamedTuple):
    """How a series is marked beside its name in tables: the colour's number and the shape its figures use."""

    colour: int
    shape: str


def build_report(data: RunData, target: Path, beside: Sequence[RunData] = ()) -> None:
    """Write the report of `data` to `target`; missing folders are made. Raises ResultsError if it can't be written.

    `beside`: other runs of the same host, for the figures of density against isolation alone. Raises UsageError if it
    is another host.
    """
    page = (render(data, beside) if beside else render(data)).encode()
    try:
        make_folder(target.parent)
    except OSError as error:
        raise not_writable(target.parent, error) from error
    write_atomic(target, page)


def render(data: RunData, beside: Sequence[RunData] = ()) -> str:
    """The report as text; the same data give the same text."""
    room = files("bench.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(quantity=format.quantity, interval=format.interval)
    environment.filters.update(date=_date, span=_span, code=_code, shell=shlex.join)
    template = environment.from_string(room.joinpath("report.html").read_text(encoding="utf-8"))
    css = Markup(room.joinpath("report.css").read_text(encoding="utf-8"))
    return template.render(css=css, **_measured(data, beside), **_said(data))


def _measured(data: RunData, beside: Sequence[RunData]) -> dict[str, object]:
    """What the analysis makes of the run."""
    tables = frames(data)
    summary = summarise(data, tables)
    rows = headline(summary, data, tables)
    found = by_series(summary)
    metrics = {(series, name): one for series, some in found.items() for name, one in some.items()}
    scene = Scene(tables, tuple(rows), metrics, data.host.memory_available, data.info.seed)
    findings, experiments = matrix(data), neighbours(data)
    looked = findings is not None or experiments is not None or bool(beside)
    against = drawings(tradeoffs((data, *beside))) if looked else []
    ramps = (findings is None and experiments is None) or bool(tables.series)
    return {
        "isolation": section(findings) + exposure_section(exposures(data)) + neighbours_section(experiments),
        "ramps": ramps,
        "rows": rows, "table": _table(found), "balances": _balances(tables), "doubts": quality(data, summary, tables),
        "disk": disk_taken(tables), "harness": harness_cost(tables),
        "answer": answer(data, rows, ratios(data, COMPARED, tables))
        if ramps
        else [*said(findings), *neighbours_said(experiments)],
        "figures": [(drawing, Markup(drawing.wide), Markup(drawing.narrow)) for drawing in (*figures(scene), *against)],
        "keys": _keys(scene.tables.series), "glossary": _glossary(summary),
        "mark": lambda series: accelerator_mark(series, summary.accelerator),
        "named_mark": lambda name: summary.accelerator if name.startswith("vm:") else None,
        "tcg": TCG if summary.accelerator == "tcg" else "", "accelerator": summary.accelerator,
    }  # fmt: skip


def _said(data: RunData) -> dict[str, object]:
    """What the run says of itself."""
    trials = [record for record in data.records if isinstance(record, TrialRecord)]
    rounds = max((record.round for record in trials), default=0)
    return {
        "info": data.info, "precision_said": precision_said, "host": data.host,
        "synthetic": any(trial.driver == SYNTHETIC for trial in trials),
        "facts": _facts(data), "trials": trials, "rounds": rounds, "many": MANY, "plenty": PLENTY,
        "by_t": rounds > 1 and not MANY <= rounds < PLENTY, "absent": format.ABSENT,
        "failures": [r for r in data.records if isinstance(r, LaunchRecord) and r.outcome is not Outcome.SUCCEEDED],
        "notes": [record for record in data.records if isinstance(record, NoteRecord)],
    }  # fmt: skip


def _keys(series: tuple[Series, ...]) -> Mapping[str, Key]:
    places = {one.name: place % len(PALETTE) for place, one in enumerate(series)}
    return {name: Key(place, _SHAPES[place]) for name, place in places.items()}


def _table(found: Mapping[Series, Mapping[str, Estimate]]) -> list[tuple[Series, list[tuple[Metric, Estimate]]]]:
    return [(series, [(METRICS[name], one) for name, one in some.items()]) for series, some in found.items()]


def _balances(tables: Frames) -> list[tuple[Series, list[Balance]]]:
    found: dict[Series, list[Balance]] = {}
    for one in reconcile(tables):
        found.setdefault(one.series, []).append(one)
    return list(found.items())


def _glossary(summary: Summary) -> list[Metric]:
    """Definitions of the metrics this report shows, in the glossary's order."""
    shown = {row.metric for row in summary.summary}
    return [metric for name, metric in METRICS.items() if name in shown]


def _facts(data: RunData) -> list[tuple[str, str]]:
    """Host facts in the record's order, as text."""
    return [(name.replace("_", " "), _fact(name, getattr(data.host, name))) for name in data.host.__struct_fields__]


def _fact(name: str, value: object) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name in _BYTES:
        return format.quantity(value, "bytes")
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value) if isinstance(value, str) else to_json(value).decode()


def _code(text: str) -> Markup:
    """`commands` in a message as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _date(seconds: float | None) -> str:
    return format.ABSENT if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _span(seconds: float) -> str:
    """`4 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
