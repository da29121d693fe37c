"""Sizes and durations as people write them; bytes and seconds inside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

from bench.model import GIB, MIB

_SIZES = {
    "TiB": 1 << 40, "GiB": GIB, "MiB": MIB, "KiB": 1 << 10,
    "TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1,
}  # fmt: skip
_DURATIONS = {"h": Fraction(3600), "min": Fraction(60), "s": Fraction(1), "ms": Fraction(1, 1000)}
_QUANTITY = re.compile(r"\s*(\d{1,15}(?:\.\d+)?)\s*([A-Za-z]+)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """`256 MiB` -> bytes. Raises ValueError."""
    value = _quantity(text, _SIZES, "256 MiB")
    if value.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(value)


def format_size(size: int) -> str:
    """Bytes in the largest binary unit that divides them: exact, `parse_size` gives them back."""
    unit = next((unit for unit, factor in _SIZES.items() if unit[1:] == "iB" and size and size % factor == 0), "B")
    return f"{size // _SIZES[unit]} {unit}"


def parse_duration(text: str) -> float:
    """`60 s`, `15 min`, `500 ms`, `1 h` -> seconds. Raises ValueError."""
    return float(_quantity(text, _DURATIONS, "60 s"))


def format_duration(seconds: float) -> str:
    """Seconds in the largest unit that divides them, else in s: exact, `parse_duration` gives them back."""
    for unit, factor in _DURATIONS.items():
        whole = Fraction(round(seconds / float(factor)))
        if whole and float(whole * factor) == seconds:
            return f"{whole} {unit}"
    return f"{Decimal(repr(seconds)):f} s" if seconds else "0 s"


def _quantity(text: str, units: Mapping[str, int | Fraction], example: str) -> Fraction:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} is not understood; write it like {example!r}, with one of {', '.join(units)}")
    return Fraction(match[1]) * units[match[2]]
