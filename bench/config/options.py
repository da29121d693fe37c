"""A scenario with the command line's options, or with the values of a condition, over it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bench.config.loader import Loader
from bench.config.overrides import override
from bench.config.scenario import Scenario
from bench.config.written import as_raw
from bench.errors import ConfigError


def with_options(
    scenario: Scenario,
    *,
    drivers: Sequence[str] | None = None,
    count: int | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    image: str | None = None,
    max_time: str | float | None = None,
    to_limit: bool = False,
    cold: bool = False,
    until_precise: str | None = None,
    max_rounds: int | None = None,
) -> Scenario:
    """`scenario` with command-line options over it; an error names the option.

    `drivers` may hold comma-separated names; `count` holds for every driver, and to the limit it is the most.
    """
    raw = as_raw(scenario)
    bounds = {**raw["to_limit"], "on": scenario.to_limit.on or to_limit}
    if bounds["on"] and count is not None:
        bounds["count"] = count
    if count is not None and (swept := [path for path in scenario.sweep if path.startswith("count.")]):
        raise ConfigError(f"--count: {swept[0]} is varied in this run: leave one of the two out")
    precise = {**raw["precise"]}
    if until_precise is not None:
        precise["width"] = _share(until_precise)
    if max_rounds is not None:
        if not precise["width"]:
            raise ConfigError("--max-rounds: is of --until-precise; without it there are --rounds")
        precise["rounds"] = max_rounds
    if cold and "cache" in scenario.sweep:
        raise ConfigError("--cold: cache is varied in this run: leave one of the two out")
    names = [name.strip() for text in drivers for name in text.split(",")] if drivers is not None else None
    options = {
        "drivers": names,
        "count": None if count is None or bounds["on"] else {"default": count},
        "rounds": rounds,
        "seed": seed,
        "image": image,
        "max_time": max_time,
        "cache": "cold" if cold else None,
    }
    given = {key: value for key, value in options.items() if value is not None}
    origins = {key: f"--{key.replace('_', '-')}" for key in given} | {"to_limit.count": "--count", "cache": "--cold"}
    origins |= {"precise.width": "--until-precise", "precise.rounds": "--max-rounds"}
    given |= {"to_limit": bounds, "precise": precise}
    return Loader(f"scenario {scenario.name}", {**raw, **given}, origins).scenario()


def _share(text: str) -> float:
    """`5%` -> 0.05. Raises ConfigError."""
    number = text.strip().removesuffix("%")
    if not re.fullmatch(r"\d{1,3}(\.\d+)?", number.strip()) or number == text.strip():
        raise ConfigError(f"--until-precise {text}: write it like 5%")
    return float(number) / 100


def with_values(scenario: Scenario, values: Mapping[str, str]) -> Scenario:
    """`scenario` without its sweep and with these values, key path -> text as `--set` writes it. Raises ConfigError."""
    raw = {**as_raw(scenario), "sweep": {}}
    for path, text in values.items():
        override(raw, f"{path}={text}")
    return Loader(f"scenario {scenario.name}", raw, {}).scenario()
