"""The report's section on exposure: one table an axis, with all that was looked at behind it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bench.analysis.exposure import AxisTable


def section(found: Sequence[AxisTable]) -> Markup:
    """HTML of it; empty for none."""
    if not found:
        return Markup("")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = files("bench.report").joinpath("exposure.html").read_text(encoding="utf-8")
    return Markup(environment.from_string(text).render(found=found))
