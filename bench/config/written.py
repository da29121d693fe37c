"""Scenario -> TOML, and the form that `tomllib` would give."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from bench.config import schema
from bench.config.bounds import NUMBERS
from bench.config.scenario import Scenario


def effective_toml(scenario: Scenario) -> str:
    """The whole scenario, defaults included, as TOML that loads to the same scenario again."""
    return "\n".join(_toml_table(as_raw(scenario))).lstrip() + "\n"


def as_raw(scenario: Scenario) -> dict[str, Any]:
    """As `tomllib` would give it: no None, sizes and durations as people write them."""
    raw: dict[str, Any] = _without_none(msgspec.to_builtins(scenario))
    for path, number in NUMBERS.items():
        table, key = schema.parent(raw, path)
        if number.kind in ("size", "duration") and key in table:
            table[key] = number.show(table[key])
    return raw


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value


def _toml_table(table: Mapping[str, Any], header: str = "") -> Iterator[str]:
    if header:
        yield f"\n[{header}]"
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    for key, value in table.items():
        if key not in inner:
            yield f"{_toml_key(key)} = {_toml_text(value)}"
    for key, value in inner.items():
        yield from _toml_table(value, f"{header}.{_toml_key(key)}" if header else _toml_key(key))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_text(key)


def _toml_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_text, value))}]"
    # JSON's escapes are TOML's, save for DEL, which TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
