"""The report's section on neighbours: losses, and whether limits were honoured."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bench.analysis.isolation import Target
from bench.analysis.neighbours import Neighbourly, worst
from bench.records import LimitsOf
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
    sentences = []
    for target in found.targets:
        if target.accelerator == "tcg":
            sentences.append(
                f"{target.name}: not measured under kvm. Its guests ran under tcg, so their figures measure the "
                "emulator too, and no claim is made from them."
            )
            continue
        sentences += [text for limits in _LIMITS if (text := _said(found, target, limits))]
    return sentences


_LIMITS: tuple[LimitsOf, ...] = ("declared", "raised")


def _said(found: Neighbourly, target: Target, limits: LimitsOf) -> str | None:
    row = worst(found, target, limits)
    if row is None:
        return None
    loss, count = format.loss(row.idle.median), _measured(found, target, limits)
    clear = row.idle.median is not None and row.idle.median.low is not None and row.idle.median.low > 0
    said = "was" if clear else "may have been, though its interval is not clear of 0 or not known,"
    return (
        f"{target.name}, limits {limits}: of {count} neighbours measured the dearest {said} {row.aggressor} beside "
        f"{row.victim}, whose median unit took {loss} longer; n = {row.n} rounds."
    )


def _measured(found: Neighbourly, target: Target, limits: LimitsOf) -> int:
    rows = [
        row for row in found.rows
        if row.target == target and row.limits == limits and row.aggressor != "polite" and row.n
    ]  # fmt: skip
    return len(rows)
