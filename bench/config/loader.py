"""TOML -> Scenario. Every fault is a ConfigError that names the file (or the option), the key and what is allowed."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import msgspec

from bench.config import schema
from bench.config.bounds import NUMBERS
from bench.config.overrides import override, payload_table
from bench.config.profiles import SETTINGS, split_driver
from bench.config.scenario import (
    BUILTIN_PAYLOADS,
    TOUCH,
    PayloadEntry,
    Scenario,
    payload_for,
    settings_for,
    unconnected,
)
from bench.config.words import WORDS, did_you_mean
from bench.config.written import as_raw
from bench.errors import ConfigError
from bench.levels import GUEST_NEEDS
from bench.model import MIB, VmSettings
from bench.sweep import MOST_CONDITIONS, all_conditions, as_text, conditions, flat, refusal

T = TypeVar("T")
_CLONES_OF_DISKS = {("clone", storage) for storage in ("copy", "qcow2-backing", "reflink")}
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


def load_scenario(source: Path, *, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario in `source`, with `--set` values (`a.b=value`) over it. Raises ConfigError."""
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: cannot be read: {error}") from error
    return parse_scenario(text, str(source), overrides=overrides)


def parse_scenario(text: str, source: str, *, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario that `text` from `source` is, with `--set` values over it. Raises ConfigError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not a TOML file: {error}") from error
    origins = {override(raw, one): "--set" for one in overrides}
    return Loader(source, raw, origins).scenario()


class Loader:
    """One pass over a raw scenario. `origins`: key path -> the option it came from, so that messages blame that."""

    def __init__(self, source: str, raw: dict[str, Any], origins: Mapping[str, str]) -> None:
        self._source = source
        self._raw = raw
        self._origins = origins

    def scenario(self) -> Scenario:
        self._check_keys(self._raw, Scenario, "")
        raw = self._with_numbers()
        raw["sweep"] = self._swept(raw.get("sweep", {}))
        if "payload" in raw:
            raw["payload"] = payload_table(raw["payload"])
        for driver in SETTINGS:
            if isinstance(raw.get(driver), dict):
                self._convert(raw[driver], SETTINGS[driver], driver)
        entries = raw.get("payloads")
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            self._check_payload(name, entry)
        scenario = self._convert(raw, Scenario, "")
        self._check_bounds(raw)
        self._check_name(scenario)
        scenario = msgspec.structs.replace(scenario, drivers=self._full_names(scenario.drivers))
        self._check_choices(scenario)
        return self._with_sweep(scenario) if scenario.sweep else scenario

    def _swept(self, table: Any) -> dict[str, list[str]]:
        """[sweep] as key path -> texts, as far as one can tell without the scenario."""
        if not isinstance(table, dict):
            self._fail("sweep", "must be a table: key path = [values]")
        found: dict[str, list[str]] = {}
        for given, values in flat(table).items():
            path = "payload.name" if given == "payload" else given
            if schema.kind_at(path) is None:
                self._fail(f"sweep.{path}", "there is no such key")
            if why := refusal(path):
                self._fail(path, why)
            if not isinstance(values, list | tuple) or not values:
                self._fail(f"sweep.{path}", "must be a list of values")
            found[path] = [as_text(value) for value in values]
        return found

    def _with_sweep(self, scenario: Scenario) -> Scenario:
        """Its values in the one form the scenario would write them in; each of its conditions has to be able to run."""
        if scenario.to_limit.on and (counts := [path for path in scenario.sweep if path.startswith("count.")]):
            self._fail(counts[0], "to the limit there is no number to vary")
        if scenario.kind != "ramp":
            self._fail("sweep", f"nothing can be varied in a scenario of kind {scenario.kind}")
        touched = any(path.startswith(f"payload.{TOUCH}") for path in scenario.sweep)
        if touched and (scenario.payload.name != TOUCH or "payload.name" in scenario.sweep):
            self._fail("payload", f"what is varied is of payload {TOUCH} alone: use --set payload={TOUCH}")
        drivers = list(dict.fromkeys(driver for driver, _ in scenario.targets()))
        for count in (len(conditions(scenario, driver)) for driver in drivers):
            if count > MOST_CONDITIONS:
                self._fail("sweep", f"{count} conditions of one driver are more than {MOST_CONDITIONS}")
        written: dict[tuple[str, str], str] = {}
        for condition in all_conditions(scenario, drivers):
            variant = as_raw(self._variant(scenario, condition))
            written |= {(path, text): as_text(schema.value_at(variant, path)) for path, text in condition.items()}
        found = {
            path: tuple(written[path, text] for text in texts if (path, text) in written)
            for path, texts in scenario.sweep.items()
        }
        for path, texts in found.items():
            if not texts:
                self._fail(path, "can't be varied: no driver of this run has it for itself")
            if len(set(texts)) < len(texts):
                self._fail(path, f"{', '.join(scenario.sweep[path])} has a value twice")
        return msgspec.structs.replace(scenario, sweep=found)

    def _variant(self, scenario: Scenario, condition: Mapping[str, str]) -> Scenario:
        """The scenario of one condition; what is wrong with it is the sweep's fault."""
        raw = {**as_raw(scenario), "sweep": {}}
        for path, text in condition.items():
            if "," in text:
                self._fail(path, f"{text!r} holds a comma, which no value of a condition can")
            override(raw, f"{path}={text}")
        return Loader(self._source, raw, self._origins).scenario()

    def _fail(self, path: str, text: str) -> NoReturn:
        for key, option in self._origins.items():
            if path == key or path.startswith((f"{key}.", f"{key}[")):
                raise ConfigError(f"{option} {path}: {text}" if option == "--set" else f"{option}: {text}")
        raise ConfigError(f"{self._source}: {path}: {text}")

    def _check_keys(self, raw: Mapping[str, Any], kind: Any, path: str) -> None:
        keys = schema.keys(kind)
        for key, value in raw.items():
            inner = schema.inner(keys, key)
            if inner is None:
                self._fail(schema.join(path, key), schema.unknown(key, keys, path))
            if isinstance(value, dict) and schema.is_table(inner):
                self._check_keys(value, inner, schema.join(path, key))

    def _with_numbers(self) -> dict[str, Any]:
        """A copy in which sizes and durations are numbers."""
        raw = {key: dict(value) if isinstance(value, dict) else value for key, value in self._raw.items()}
        for path, number in NUMBERS.items():
            table, key = schema.parent(raw, path)
            if number.kind in ("size", "duration") and isinstance(table.get(key), str):
                try:
                    table[key] = number.parse(table[key])
                except ValueError as error:
                    self._fail(path, str(error))
        return raw

    def _convert(self, raw: Any, kind: type[T], path: str) -> T:
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as error:
            text, _, place = str(error).partition(" - at `$")
            where = schema.join(path, place.rstrip("`").lstrip("."))
            if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
                self._fail(schema.join(where, missing[1]), "this key is required")
            self._fail(where or "the file", self._explain(text, where))

    def _explain(self, text: str, path: str) -> str:
        """msgspec's message in the words of this module, with what is allowed and what was found."""
        value = schema.value_at(self._raw, path)
        if text.startswith("Invalid enum value"):
            allowed = " or ".join(json.dumps(choice) for choice in get_args(schema.plain(schema.kind_at(path))))
            return f"{value!r} is not allowed: {allowed}"
        if match := re.fullmatch(r"Expected `([a-z]+)(?: \| null)?`, got `([a-z]+)`", text):
            found = "" if isinstance(value, dict | list) or value is None else f" ({value!r})"
            return f"must be {WORDS.get(match[1], match[1])}, not {WORDS.get(match[2], match[2])}{found}"
        return text.replace("`", "") + ("" if value is None else f", got {value!r}")

    def _check_bounds(self, raw: dict[str, Any]) -> None:
        for path, number in NUMBERS.items():
            table, key = schema.parent(raw, path)
            value = table.get(key)
            if value is not None and not number.low <= value <= number.high:  # false for nan too
                low, high = number.show(number.low), number.show(number.high)
                self._fail(path, f"{schema.value_at(self._raw, path)!r} is out of range: {low} to {high}")

    def _check_payload(self, name: str, raw: Any) -> None:
        path = f"payloads.{name}"
        if not _NAME.fullmatch(name):
            self._fail(path, "a payload's name is lower-case letters, digits and -, at most 32")
        if name in BUILTIN_PAYLOADS:
            self._fail(path, "this is the name of a built-in payload; choose another one")
        entry = self._convert(raw, PayloadEntry, path)
        if not entry.command:
            self._fail(f"{path}.command", "must hold at least the program")
        forms = {key: getattr(entry.ready, key) for key in ("line", "port", "http")}
        given = [key for key, value in forms.items() if value is not None]
        if len(given) != 1 or forms["line"] == "":
            said = " and ".join(given) if len(given) > 1 else "an empty line" if given else "none"
            self._fail(f"{path}.ready", f"must have exactly one of line (a text), port, http; it has {said}")

    def _check_name(self, scenario: Scenario) -> None:
        if not _NAME.fullmatch(scenario.name):
            self._fail("name", f"{scenario.name!r} is not allowed: lower-case letters, digits and -, at most 32")
        if not scenario.image:
            self._fail("image", "must not be empty")

    def _full_names(self, drivers: Sequence[str]) -> tuple[str, ...]:
        if not drivers:
            self._fail("drivers", f"must name at least one of {', '.join(SETTINGS)}")
        full: list[str] = []
        for index, text in enumerate(drivers):
            try:
                name = ":".join(split_driver(text))
            except ConfigError as error:
                self._fail(f"drivers[{index}]", error.message)
            if name in full:
                self._fail(f"drivers[{index}]", f"{name} is there twice")
            full.append(name)
        return tuple(full)

    def _check_choices(self, scenario: Scenario) -> None:
        """Keys that must fit each other."""
        names = (*BUILTIN_PAYLOADS, *scenario.payloads)
        if (name := scenario.payload.name) not in names:
            self._fail("payload", f"there is no payload {name!r}{did_you_mean(name, names)}")
        self._check_ramps(scenario)
        for driver, profile in scenario.targets():
            settings = settings_for(scenario, driver, profile)
            if isinstance(settings, VmSettings) and (settings.start, settings.storage) in _CLONES_OF_DISKS:
                self._fail(
                    "vm.storage",
                    f'{settings.storage!r} does not go with start = "clone": clones would write '
                    'to one disk; use "shared-ro"',
                )
            elsewhere = scenario.scratch.filesystem != "none"
            if isinstance(settings, VmSettings) and settings.storage == "reflink" and elsewhere:
                self._fail("vm.storage", '"reflink" does not go with scratch.filesystem: the template lies elsewhere')
        self._check_networks(scenario)

    def _check_networks(self, scenario: Scenario) -> None:
        """Who has none is neither ready by a port nor answers; experiments that need no answer can be made."""
        payload = payload_for(scenario)
        needs = "reply" if payload.reply else "ready.port" if payload.ready.port else "ready.http"
        if payload.ready.line is not None and payload.reply is None:
            return
        for driver, profile in scenario.targets():
            if not unconnected(scenario, driver, profile):
                continue
            if scenario.kind == "neighbours" and payload.ready.line is not None:
                if not scenario.neighbours.unconnected:
                    self._fail("neighbours.victims", f"{driver}:{profile} has no network: add a victim that needs none")
            else:
                self._fail(
                    f"{driver}.network",
                    f'"none" does not go with payload {payload.name}, whose {needs} needs a network: '
                    'use "bridge", or a payload that is ready by a line and has no reply (like idle)',
                )

    def _check_ramps(self, scenario: Scenario) -> None:
        """How far ramps go, and whether what is touched fits into what is declared."""
        if scenario.kind != "ramp" and (pooled := [name for name in scenario.drivers if name.endswith(":pooled")]):
            self._fail("drivers", f"{pooled[0]} is for ramps: it differs in nothing that a probe could find")
        if scenario.kind == "neighbours":
            self._check_neighbours(scenario)
        if scenario.kind != "ramp" and scenario.to_limit.on:
            self._fail("to_limit.on", 'goes with kind = "ramp" only')
        if any(high <= low for low, high in pairwise((0, *scenario.steps))):
            self._fail("steps", f"{list(scenario.steps)} must be whole numbers from 1 on, each larger than the last")
        if scenario.to_limit.on and (pooled := [name for name in scenario.drivers if name.endswith(":pooled")]):
            self._fail("drivers", f"{pooled[0]} does not go with --to-limit: its pool is made for a known number")
        self._check_precise(scenario)
        if scenario.payload.name == TOUCH:
            self._check_touch(scenario, scenario.payload.touch_mib)

    def _check_touch(self, scenario: Scenario, touched: int) -> None:
        """What is touched must fit into what is declared, and into a guest beside its kernel. MiB."""
        if touched > (most := scenario.limits.memory // 2 // MIB):
            self._fail("payload.touch_mib", f"{touched} is more than half of limits.memory: at most {most}")
        for driver, profile in scenario.targets():
            settings = settings_for(scenario, driver, profile)
            if not isinstance(settings, VmSettings):
                continue
            if touched > (most := (settings.memory or scenario.limits.memory) // MIB - GUEST_NEEDS):
                little = f"{touched} leaves the kernel of {driver}:{profile} too little RAM"
                self._fail("payload.touch_mib", f"{little}: at most {most}, or raise vm.memory")

    def _check_neighbours(self, scenario: Scenario) -> None:
        """An aggressor asks for more than is declared and for less than is raised: there must be room between them."""
        keys = scenario.neighbours
        for name in ("victims", "aggressors", "limits"):
            given = getattr(keys, name)
            if not given or len(set(given)) < len(given):
                self._fail(f"neighbours.{name}", f"{list(given)} must name at least one, and each once")
        for name in ("memory", "cpus", "pids"):
            if (raised := getattr(scenario.raised, name)) <= (least := getattr(scenario.limits, name)):
                self._fail(f"raised.{name}", f"{raised} must be more than limits.{name}, which is {least}")

    def _check_precise(self, scenario: Scenario) -> None:
        wanted = scenario.precise
        if not wanted.width:
            return
        if scenario.kind != "ramp":
            self._fail("precise.width", f"a scenario of kind {scenario.kind} has no start-up to be precise about")
        if wanted.rounds < (least := wanted.least(scenario.rounds)):
            self._fail("precise.rounds", f"{wanted.rounds} is less than the {least} rounds before the first look")
