"""Numbers as people read them: the only place where bytes become MiB and seconds become milliseconds."""

from __future__ import annotations

import math
from typing import NamedTuple

from bench.analysis import Estimate

ABSENT = "–"  # noqa: RUF001 - an en dash, as in printed tables
_SPACE = "\N{NO-BREAK SPACE}"  # a number stays with its unit
_BYTES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_PLAIN = {"1/s": "/s", "instances": "", "count": "", "times": ""}


class Scale(NamedTuple):
    """Divide a value by `factor` and put `unit` behind it."""

    factor: float
    unit: str


def scale(unit: str, reference: float) -> Scale:
    """The unit in which `reference` (in the glossary's `unit`) is a number from 1 to about 1,000."""
    steps = {"bytes": _BYTES, "s": _SECONDS}.get(unit)
    if steps is None:
        return Scale(1, _PLAIN.get(unit, unit))
    return next((Scale(*step) for step in steps if abs(reference) >= step[0]), Scale(*steps[-1]))


def decimals(value: float) -> int:
    """Decimal places that give `value` three significant digits, at most three places."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(3, max(0, 2 - math.floor(math.log10(abs(value)))))


def quantity(value: float | None, unit: str) -> str:
    """`926 KiB`, `6.93 ms`, `1,131`; whole numbers of instances and bytes have no decimals."""
    if value is None:
        return ABSENT
    chosen = scale(unit, value)
    return _joined(_number(value / chosen.factor), chosen.unit)


def interval(found: Estimate | None, unit: str) -> str:
    """`6.74 to 7.08 ms`: in the unit of the value, and to its digits; empty if there is none."""
    if found is None or found.low is None or found.high is None:
        return ""
    chosen = scale(unit, found.value)
    ends = [end / chosen.factor for end in (found.low, found.high)]
    whole = all(map(_is_whole, ends))
    low, high = (_number(end, 0 if whole else decimals(found.value / chosen.factor)) for end in ends)
    return _joined(f"{low} to {high}", chosen.unit)


def estimate(found: Estimate | None, unit: str) -> str:
    """`6.93 ms (6.74 to 7.08 ms)`."""
    if found is None:
        return ABSENT
    ends = interval(found, unit)
    return quantity(found.value, unit) + (f" ({ends})" if ends else "")


def loss(found: Estimate | None) -> str:
    """A share of change in percent, signed: `+12 % (+8 to +15 %)`."""
    if found is None:
        return ABSENT
    ends = (found.low, found.high)
    span = "" if None in ends else f" ({' to '.join(_percent(end) for end in ends if end is not None)}{_SPACE}%)"
    return f"{_percent(found.value)}{_SPACE}%{span}"


def _percent(share: float) -> str:
    """Whole percents; beyond a thousand they say no more than `>+100,000`."""
    percent = 100 * share
    return f"{percent:+,.0f}" if percent < 1e5 else ">+100,000"


def _number(value: float, places: int | None = None) -> str:
    if places is None:
        places = 0 if _is_whole(value) else decimals(value)
    return f"{value:,.{places}f}"


def _is_whole(value: float) -> bool:
    """A slope through whole numbers is off by a few units in the last place."""
    return math.isclose(value, round(value), rel_tol=1e-9)


def _joined(number: str, unit: str) -> str:
    return f"{number}{unit}" if not unit or unit.startswith("/") else f"{number}{_SPACE}{unit}"
