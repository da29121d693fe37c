"""Walking the schema of a scenario, and what a user wrote, by key paths (`vm.storage`, `drivers[0]`)."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from bench.config.profiles import SETTINGS
from bench.config.scenario import Scenario
from bench.config.words import did_you_mean


def plain(kind: Any) -> Any:
    """`kind` without Annotated and without None."""
    if hasattr(kind, "__metadata__"):
        return plain(kind.__origin__)
    if get_origin(kind) in (Union, types.UnionType):
        rest = [arg for arg in get_args(kind) if arg is not type(None)]
        return plain(rest[0]) if len(rest) == 1 else kind
    return kind


def keys(kind: Any) -> dict[str, Any]:
    """Key -> type of a table; `*` stands for any key; empty if `kind` is not a table."""
    kind = plain(kind)
    if is_table(kind) and get_origin(kind) is not dict:
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        return {**fields, **SETTINGS} if kind is Scenario else fields
    return {"*": get_args(kind)[1]} if get_origin(kind) is dict else {}


def is_table(kind: Any) -> bool:
    kind = plain(kind)
    return get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Struct))


def inner(keys: Mapping[str, Any], key: str) -> Any:
    """Type of `key` among `keys`; None if there is no such key."""
    return keys.get(key, keys.get("*"))


def kind_at(path: str) -> Any:
    kind: Any = Scenario
    for part in path.split("."):
        kind = inner(keys(kind), part)
    return kind


def value_at(raw: Mapping[str, Any], path: str) -> Any:
    """What the user wrote at `path`; None if it can't be told."""
    value: Any = raw
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return value


def parent(raw: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The table that may hold `path`, and the last key; an empty table if it is not there."""
    *above, key = path.split(".")
    table = value_at(raw, ".".join(above)) if above else raw
    return (table if isinstance(table, dict) else {}), key


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key and not key.startswith("[") else path + key


def unknown(key: str, keys: Iterable[str], path: str) -> str:
    if not keys:
        return f"{path or 'it'} has no keys"
    return f"unknown key {key!r}{did_you_mean(key, keys)}"
