"""The report's section on neighbours: losses, and whether limits were honoured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bench.analysis.dearest import Dearest, every_dearest
from bench.analysis.neighbours import Neighbourly, Row
from bench.records import Beside, LimitsOf, Victim
from bench.report import format

_UNITS = {"cpus": "CPUs", "memory": "bytes", "pids": "count"}


def section(found: Neighbourly | None) -> Markup:
    """HTML of it; empty without experiments."""
    if found is None:
        return Markup("")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(loss=format.loss, quantity=format.quantity)
    text = files("bench.report").joinpath("neighbours.html").read_text(encoding="utf-8")
    tcg = any(target.accelerator == "tcg" for target in found.targets)
    return Markup(environment.from_string(text).render(found=found, tcg=tcg, units=_UNITS))


def said(found: Neighbourly | None) -> list[str]:
    """Sentences: what cost most, for each driver with and without limits; no claim from guests under tcg."""
    if found is None:
        return []
    emulated = [
        f"{target.name}: not measured under kvm. Its guests ran under tcg, so their figures measure the emulator too, "
        "and no claim is made from them."
        for target in found.targets if target.accelerator == "tcg"
    ]  # fmt: skip
    return [*map(_said, every_dearest(found)), *emulated]


def _said(chosen: Dearest) -> str:
    row = chosen.row
    took = f"{row.aggressor} beside {row.victim}, whose median unit took {format.loss(chosen.loss)} longer"
    if chosen.shown:
        said = f"of {chosen.of} neighbours measured the dearest was {took}"
    else:
        why = "has no interval" if chosen.loss.low is None else "is not clear of 0"
        said = (
            f"no loss is shown beside any of {chosen.of} neighbours measured; the largest found was {took}, which {why}"
        )
    corrected = "" if chosen.loss.low is None else f", corrected for being chosen out of {chosen.of}"
    return f"{row.target.name}, limits {row.limits}: {said}{corrected}; n = {chosen.loss.n} rounds."


def unmeasured(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Who stood beside whom, and why that has no result: one line for all aggressors of a victim with one reason."""
    asked = Counter((row.target.name, row.victim, row.aggressor) for row in rows)
    found: dict[tuple[str, Victim, str], dict[Beside, list[LimitsOf]]] = {}
    for row in rows:
        for reason in row.missing:
            some = found.setdefault((row.target.name, row.victim, reason), {})
            some.setdefault(row.aggressor, []).append(row.limits)
    lines = []
    for (target, victim, reason), some in found.items():
        names = [
            name if len(limits) == asked[target, victim, name] else f"{name} (limits {', '.join(limits)})"
            for name, limits in some.items()
        ]
        lines.append((f"{target}, {victim} beside {', '.join(names)}", reason))
    return lines
