"""What may be varied within a run, and the conditions that come of it. Pure; texts as `--set` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING

from bench.model import Condition, condition_text

if TYPE_CHECKING:
    from bench.config.scenario import Scenario

MOST_CONDITIONS = 100
"""Of one driver: more is a slip of the keyboard, not a plan."""

CONCURRENCY = "launch.concurrency"
"""Above 1 it is a condition also where nothing is varied: such launches had to share the host with others in flight."""
COLD = "cold"
"""A value of `cache` that is a condition also where nothing is varied: cold launches are never taken for others."""
AS_IS = "as-is"
"""The value of `ksm` that is none: where the host's merging is switched, that is a condition in any case."""
_ANY = ("cache", "ksm", "settle", "stop_timeout", "timeout", "warmups")
_TABLES = ("count", "launch", "limits", "payload")
_DRIVERS = ("process", "container", "vm")
_NOT: Mapping[str, str] = {
    "steps": "it is a list itself, written in brackets: steps=[1,10,100]",
    "vm.accel": "a run has one accelerator",
    "payloads": "name one of several payloads with payload=A,B",
}
RULE = "a value that holds a comma is written in quotes or brackets"


def split_values(text: str) -> list[str]:
    """`0,16,64` -> its three values; commas within quotes or brackets divide nothing."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts]


def refusal(path: str) -> str:
    """Why the key `path` can't take several values in one run; empty if it can."""
    table = path.split(".")[0]
    for key in (path, table):
        if key in _NOT:
            return f"can't be varied within a run: {_NOT[key]}"
    if path in _ANY or ("." in path and table in (*_TABLES, *_DRIVERS)):
        return ""
    return f"can't be varied within a run, as it is one for all of its trials; {RULE}"


def flat(table: Mapping[str, object], above: str = "") -> dict[str, object]:
    """[sweep] as key path -> values: TOML reads `a.b = [1, 2]` as a table in a table."""
    found: dict[str, object] = {}
    for key, value in table.items():
        path = f"{above}.{key}" if above else key
        found |= flat(value, path) if isinstance(value, Mapping) else {path: value}
    return found


def as_text(value: object) -> str:
    """A TOML value as `--set` writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def conditions(scenario: Scenario, driver: str) -> list[Condition]:
    """Those of `driver`: all combinations of what concerns it, in the order given; one without keys if nothing does."""
    swept = {path: values for path, values in scenario.sweep.items() if _concerns(path, driver, scenario)}
    mode: Condition = {"cache": scenario.cache} if scenario.cache == COLD and "cache" not in swept else {}
    if scenario.ksm != AS_IS and "ksm" not in swept:
        mode["ksm"] = scenario.ksm
    if scenario.launch.concurrency > 1 and CONCURRENCY not in swept:
        mode[CONCURRENCY] = str(scenario.launch.concurrency)
    return [{**mode, **dict(zip(swept, values, strict=True))} for values in product(*swept.values())]


def all_conditions(scenario: Scenario, drivers: Iterable[str]) -> tuple[Condition, ...]:
    """Each once, over all `drivers`; empty where nothing is varied."""
    found = {condition_text(one): one for driver in drivers for one in conditions(scenario, driver)}
    return () if list(found) == [""] else tuple(found.values())


def _concerns(path: str, driver: str, scenario: Scenario) -> bool:
    """A key of one driver varies nothing for the others; nor does `count.default` for one with a number of its own."""
    table, _, key = path.partition(".")
    if path == "count.default":
        return f"count.{driver}" not in scenario.sweep and getattr(scenario.count, driver, None) is None
    own = table if table in _DRIVERS else key if table == "count" else driver
    return own == driver
