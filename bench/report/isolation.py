"""The report's section on findings: a matrix whose cells lead to their evidence."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bench.analysis.isolation import WORST, Matrix, Row, Target, contrasts


def section(found: Matrix | None) -> Markup:
    """HTML of it; empty without findings."""
    if found is None:
        return Markup("")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = files("bench.report").joinpath("isolation.html").read_text(encoding="utf-8")
    tcg = any(target.accelerator == "tcg" for target in found.targets)
    return Markup(
        environment.from_string(text).render(
            found=found, worst=WORST, tcg=tcg, anchor=_anchor, contrasts=contrasts(found)
        )
    )


def _anchor(row: Row, target: Target) -> str:
    return f"finding-{row.probe}-{target.driver}-{target.profile}"


def said(found: Matrix | None) -> list[str]:
    """The findings in sentences: one a driver."""
    if found is None:
        return []
    sentences = [f"{found.counted} of {len(found.rows)} attacks succeed without a boundary."]
    for target in found.targets:
        counts = {outcome: count for outcome, count in found.tally(target).items() if count}
        mark = f" (guests under {target.accelerator})" if target.accelerator else ""
        listed = ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items())
        sentences.append(f"From inside {target.name}{mark}: {listed}.")
    return sentences
