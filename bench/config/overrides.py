"""`--set a.b=value` over a raw scenario."""

from __future__ import annotations

import tomllib
from typing import Any

from bench.config import schema
from bench.config.scenario import Scenario
from bench.errors import ConfigError
from bench.levels import PayloadKeys
from bench.sweep import refusal, split_values


def override(raw: dict[str, Any], text: str) -> str:
    """Put one `a.b=value`, or `a.b=value,value` as a sweep, into `raw`; returns the key's path."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ConfigError(f"--set {text}: write it as key=value, like --set vm.accel=tcg")
    kind: Any = Scenario
    parts = path.split(".")
    for depth, part in enumerate(parts):
        keys = schema.keys(kind)
        if not part or schema.inner(keys, part) is None:
            raise ConfigError(f"--set {path}: {schema.unknown(part, keys, '.'.join(parts[:depth]))}")
        kind = schema.inner(keys, part)
    if parts[0] == "payload" and isinstance(raw.get("payload"), dict | str):
        raw["payload"] = payload_table(raw["payload"])
        parts = ["payload", "name"] if path == "payload" else parts
    swept, place = raw.setdefault("sweep", {}), ".".join(parts)
    if isinstance(swept, dict):
        swept.pop(place, None)  # given last, it counts
        if len(values := split_values(value)) > 1:
            if why := refusal(place):
                raise ConfigError(f"--set {path}: {why}")
            swept[place] = [_set_value(one, kind) for one in values]
            return place
    table = raw
    for part in parts[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):  # the file itself is wrong there; the loader says so
            inner = table[part] = {}
        table = inner
    table[parts[-1]] = _set_value(value, kind)
    return path


def _set_value(text: str, kind: Any) -> object:
    """What `text` is for a key of `kind`; a payload is given by its name alone."""
    plain = schema.plain(kind) in (str, PayloadKeys) and not text.startswith(('"', "'"))
    return text if plain else _toml_value(text)


def payload_table(given: Any) -> Any:
    """`payload = "NAME"` as the table it is short for; anything else as it stands."""
    return {"name": given} if isinstance(given, str) else given


def _toml_value(text: str) -> object:
    """`text` as a TOML value if it is one, else as it stands."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text  # a line break in it must not add keys
