"""TOML -> Scenario. Every fault is a ConfigError that names the file (or the option), the key and what is allowed.

`Scenario` holds the user's intent, complete and validated: bytes and seconds inside, every default filled in.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import re
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from bench.errors import ConfigError, UsageError
from bench.flight import Launch
from bench.levels import GUEST_NEEDS, MOST_TOUCHED, RAISED, Neighbours, PayloadKeys, Reserve, Service, ToLimit
from bench.model import (
    GIB,
    MIB,
    ContainerSettings,
    HttpCheck,
    Limits,
    Payload,
    ProcessSettings,
    Ready,
    Settings,
    VmSettings,
)
from bench.precision import Precise
from bench.sweep import MOST_CONDITIONS, all_conditions, as_text, conditions, flat, refusal, split_values

T = TypeVar("T")

SCHEMA = 1
"""Version of the scenario format. 1: first version (0.1.0)."""

# --- drivers, profiles, payloads that are there without being declared -------------------------------------------

SETTINGS: Mapping[str, type[Settings]] = {
    "process": ProcessSettings,
    "container": ContainerSettings,
    "vm": VmSettings,
}
DEFAULT_PROFILE: Mapping[str, str] = {"process": "default", "container": "default", "vm": "stock"}
_LEAN: Mapping[str, object] = {
    "storage": "qcow2-backing",
    "memory": 80 * MIB,
    "devices": "minimal",
    "balloon": "none",
    "tb_cache": 24 * MIB,
    "thp": False,
}
_MICRO: Mapping[str, object] = {
    **_LEAN,
    "kernel": "micro",
    "tb_cache": 8 * MIB,
    "storage": "shared-ro",
    "memory": 48 * MIB,
    "cpu_query": "sets",
    "chipset": "bare",
    "calibrate": False,
}
PROFILES: Mapping[str, Mapping[str, object]] = {
    "process:default": {},
    "container:default": {},
    "container:pooled": {},  # see drivers.container
    "container:bare": {"security": "none"},
    "container:strict": {"security": "strict", "network": "none"},
    "container:fuse-overlayfs": {"storage": "fuse-overlayfs"},
    "container:copy": {"storage": "copy"},
    "container:reflink": {"storage": "reflink"},
    "container:btrfs": {"storage": "btrfs"},
    "vm:stock": {},
    "vm:lean": _LEAN,
    "vm:micro": _MICRO,
    "vm:clone": {**_MICRO, "start": "clone", "tb_cache": 3 * MIB},
}
"""`driver:profile` -> the settings in which it differs from the driver's own defaults."""


SYNTHETIC = "synthetic"
"""The driver of tests and the self-test, which runs nothing: no scenario can name it, and it has no keys."""


class PayloadEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """[payloads.NAME]: the model's Payload without its name."""

    command: tuple[str, ...]
    ready: Ready
    env: dict[str, str] = {}
    reply: HttpCheck | None = None


TOUCH = "touch"
BUILTIN_PAYLOADS: Mapping[str, Payload] = {
    "httpd": Payload(
        "httpd", ("/bin/payload-httpd",), Ready(line="bench-ready"), {"BENCH_PORT": "8080"}, HttpCheck(port=8080)
    ),
    "idle": Payload("idle", ("/bin/payload-idle",), Ready(line="bench-ready")),
    TOUCH: Payload(TOUCH, ("/bin/payload-touch",), Ready(line="bench-ready")),  # and what [payload] says, in its `env`
}
"""Entries of the form a user writes; their commands are in the payload layer of the default image."""


# --- the records -------------------------------------------------------------------------------------------------


class Count(Struct, frozen=True, forbid_unknown_fields=True):
    """[count]: how many instances a ramp goes up to; a driver without its own number takes `default`."""

    default: int = 64
    process: int | None = None
    container: int | None = None
    vm: int | None = None


class Scratch(Struct, frozen=True, forbid_unknown_fields=True):
    """[scratch]: a file system made for the run, where instances' own files go; at most `size` bytes, a sparse file."""

    filesystem: Literal["none", "ext4", "xfs", "btrfs"] = "none"
    size: int = 8 * GIB


class Scenario(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A validated scenario. `drivers` holds full names ("vm:stock"); durations are seconds."""

    schema: Literal[1]
    name: str
    title: str = ""
    kind: Literal["ramp", "battery", "neighbours"] = "ramp"  # a trial: a ramp, attacks, loads next door
    drivers: tuple[str, ...] = ("process", "container", "vm")
    image: str = "default"
    payload: PayloadKeys = PayloadKeys()
    rounds: int = 3
    warmups: int = 1
    cache: Literal["warm", "cold"] = "warm"
    ksm: Literal["as-is", "off", "on"] = "as-is"
    seed: int | None = None
    timeout: float = 60.0  # launch to ready
    stop_timeout: float = 10.0
    settle: float = 0.5  # wait before a sample
    max_time: float | None = None  # of the whole run
    steps: tuple[int, ...] = ()  # numbers alive to sample at, beside 0 and the last; the plan's own if empty
    count: Count = Count()
    limits: Limits = Limits()
    raised: Limits = RAISED
    neighbours: Neighbours = Neighbours()
    reserve: Reserve = Reserve()
    to_limit: ToLimit = ToLimit()
    service: Service = Service()
    scratch: Scratch = Scratch()
    precise: Precise = Precise()
    launch: Launch = Launch()
    sweep: dict[str, tuple[str, ...]] = {}  # key path -> values as `--set` writes them; see bench.sweep
    payloads: dict[str, PayloadEntry] = {}
    process: dict[str, Any] = {}  # keys of SETTINGS, over those of the profile
    container: dict[str, Any] = {}
    vm: dict[str, Any] = {}

    def count_for(self, driver: str) -> int:
        """How many instances of `driver` the ramp goes up to; to the limit, at most."""
        if self.to_limit.on:
            return self.to_limit.count
        own: int | None = getattr(self.count, driver, None)
        return self.count.default if own is None else own

    def targets(self) -> tuple[tuple[str, str], ...]:
        """(driver, profile) of each of `drivers`."""
        return tuple(split_driver(text) for text in self.drivers)


def split_driver(text: str) -> tuple[str, str]:
    """`vm:stock` and bare `vm` -> ("vm", "stock"). Raises ConfigError for what is not there."""
    driver, _, profile = text.partition(":")
    if driver not in SETTINGS:
        raise ConfigError(f"there is no driver {driver!r}{_known(driver, SETTINGS)}")
    profile = profile or DEFAULT_PROFILE[driver]
    if f"{driver}:{profile}" not in PROFILES:
        raise ConfigError(f"there is no profile {driver}:{profile}{_known(f'{driver}:{profile}', PROFILES)}")
    return driver, profile


def settings_for(scenario: Scenario, driver: str, profile: str) -> Settings:
    """The driver's effective keys: its defaults, under the profile's, under the scenario's own section."""
    if driver == SYNTHETIC:
        return ProcessSettings()
    merged = {**PROFILES[f"{driver}:{profile}"], **getattr(scenario, driver)}
    return msgspec.convert(merged, SETTINGS[driver])


def payload_for(scenario: Scenario) -> Payload:
    """What runs inside: the scenario's own entry, or a built-in one."""
    keys = scenario.payload
    entry = scenario.payloads.get(keys.name)
    if entry is None:
        builtin = BUILTIN_PAYLOADS[keys.name]
        return msgspec.structs.replace(builtin, env=keys.env) if keys.name == TOUCH else builtin
    return Payload(keys.name, entry.command, entry.ready, entry.env, entry.reply)


# --- sizes and durations as people write them -----------------------------------------------------------------------

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


# --- what values are allowed ----------------------------------------------------------------------------------------


class _Number(Struct, frozen=True):
    """A key with bounds, both included. `kind` says how it may be written and how the bounds are shown."""

    kind: Literal["count", "number", "size", "duration"]
    low: float
    high: float

    def parse(self, text: str) -> float:
        return parse_size(text) if self.kind == "size" else parse_duration(text)

    def show(self, value: float) -> str:
        if self.kind == "size":
            return format_size(int(value))
        if self.kind == "duration":
            return format_duration(float(value))
        return f"{value:,}"


_INSTANCES = _Number("count", 1, 100_000)
_DAY = 86_400.0
_NUMBERS: Mapping[str, _Number] = {
    "rounds": _Number("count", 1, 1_000),
    "warmups": _Number("count", 0, 1_000),
    "seed": _Number("count", 0, 2**63 - 1),
    "timeout": _Number("duration", 0.001, _DAY),
    "stop_timeout": _Number("duration", 0.001, _DAY),
    "settle": _Number("duration", 0.0, 3600.0),
    "max_time": _Number("duration", 1.0, 30 * _DAY),
    "count.default": _INSTANCES,
    "count.process": _INSTANCES,
    "count.container": _INSTANCES,
    "count.vm": _INSTANCES,
    "limits.memory": _Number("size", 4 * MIB, 16 << 40),
    "limits.cpus": _Number("number", 0.01, 1024.0),
    "limits.pids": _Number("count", 1, 1 << 22),
    "raised.memory": _Number("size", 4 * MIB, 16 << 40),
    "raised.cpus": _Number("number", 0.01, 1024.0),
    "raised.pids": _Number("count", 1, 1 << 22),
    "neighbours.window": _Number("duration", 0.1, 20.0),
    "neighbours.lead": _Number("duration", 0.0, 20.0),
    "neighbours.rate": _Number("number", 0.1, 10_000.0),
    "reserve.memory": _Number("size", 0, 16 << 40),
    "reserve.fraction": _Number("number", 0.0, 0.95),
    "reserve.pressure": _Number("number", 0.0, 1.0),
    "reserve.disk": _Number("size", 0, 16 << 40),
    "reserve.pids": _Number("count", 0, 1 << 22),
    "reserve.descriptors": _Number("count", 0, 1 << 30),
    "to_limit.count": _INSTANCES,
    "to_limit.time": _Number("duration", 1.0, 30 * _DAY),
    "service.p99": _Number("duration", 0.001, 3600.0),
    "service.errors": _Number("number", 0.0, 1.0),
    "service.rate": _Number("number", 0.1, 10_000.0),
    "service.per_instance": _Number("number", 0.1, 10_000.0),
    "service.duration": _Number("duration", 0.001, 3600.0),
    "service.timeout": _Number("duration", 0.001, 60.0),
    "payload.touch_mib": _Number("count", 0, MOST_TOUCHED),
    "payload.touch_per_second": _Number("number", 0.001, 1000.0),
    "launch.concurrency": _Number("count", 1, 1024),
    "precise.width": _Number("number", 0.0, 1.0),
    "precise.rounds": _Number("count", 1, 1_000),
    "scratch.size": _Number("size", 320 * MIB, 16 << 40),
    "vm.disk": _Number("size", 8 * MIB, 16 << 40),
    "vm.memory": _Number("size", 16 * MIB, 16 << 40),
    "vm.tb_cache": _Number("size", MIB, 2047 * MIB),
}
_CLONES_OF_DISKS = {("clone", storage) for storage in ("copy", "qcow2-backing", "reflink")}
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_WORDS = {
    "int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false",
    "array": "a list", "object": "a table", "null": "nothing",
}  # fmt: skip


# --- loading --------------------------------------------------------------------------------------------------------


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
    origins = {_override(raw, one): "--set" for one in overrides}
    return _Loader(source, raw, origins).scenario()


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
    raw = _raw(scenario)
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
    return _Loader(f"scenario {scenario.name}", {**raw, **given}, origins).scenario()


def _share(text: str) -> float:
    """`5%` -> 0.05. Raises ConfigError."""
    number = text.strip().removesuffix("%")
    if not re.fullmatch(r"\d{1,3}(\.\d+)?", number.strip()) or number == text.strip():
        raise ConfigError(f"--until-precise {text}: write it like 5%")
    return float(number) / 100


def with_values(scenario: Scenario, values: Mapping[str, str]) -> Scenario:
    """`scenario` without its sweep and with these values, key path -> text as `--set` writes it. Raises ConfigError."""
    raw = {**_raw(scenario), "sweep": {}}
    for path, text in values.items():
        _override(raw, f"{path}={text}")
    return _Loader(f"scenario {scenario.name}", raw, {}).scenario()


def _override(raw: dict[str, Any], text: str) -> str:
    """Put one `a.b=value`, or `a.b=value,value` as a sweep, into `raw`; returns the key's path."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ConfigError(f"--set {text}: write it as key=value, like --set vm.accel=tcg")
    kind: Any = Scenario
    parts = path.split(".")
    for depth, part in enumerate(parts):
        keys = _keys(kind)
        if not part or _inner(keys, part) is None:
            raise ConfigError(f"--set {path}: {_unknown(part, keys, '.'.join(parts[:depth]))}")
        kind = _inner(keys, part)
    if parts[0] == "payload" and isinstance(raw.get("payload"), dict | str):
        raw["payload"] = _payload_table(raw["payload"])
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
    plain = _plain(kind) in (str, PayloadKeys) and not text.startswith(('"', "'"))
    return text if plain else _toml_value(text)


def _payload_table(given: Any) -> Any:
    """`payload = "NAME"` as the table it is short for; anything else as it stands."""
    return {"name": given} if isinstance(given, str) else given


def _toml_value(text: str) -> object:
    """`text` as a TOML value if it is one, else as it stands."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text  # a line break in it must not add keys


class _Loader:
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
            raw["payload"] = _payload_table(raw["payload"])
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
            if _kind_at(path) is None:
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
            variant = _raw(self._variant(scenario, condition))
            written |= {(path, text): as_text(_value_at(variant, path)) for path, text in condition.items()}
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
        raw = {**_raw(scenario), "sweep": {}}
        for path, text in condition.items():
            if "," in text:
                self._fail(path, f"{text!r} holds a comma, which no value of a condition can")
            _override(raw, f"{path}={text}")
        return _Loader(self._source, raw, self._origins).scenario()

    def _fail(self, path: str, text: str) -> NoReturn:
        for key, option in self._origins.items():
            if path == key or path.startswith((f"{key}.", f"{key}[")):
                raise ConfigError(f"{option} {path}: {text}" if option == "--set" else f"{option}: {text}")
        raise ConfigError(f"{self._source}: {path}: {text}")

    def _check_keys(self, raw: Mapping[str, Any], kind: Any, path: str) -> None:
        keys = _keys(kind)
        for key, value in raw.items():
            inner = _inner(keys, key)
            if inner is None:
                self._fail(_join(path, key), _unknown(key, keys, path))
            if isinstance(value, dict) and _is_table(inner):
                self._check_keys(value, inner, _join(path, key))

    def _with_numbers(self) -> dict[str, Any]:
        """A copy in which sizes and durations are numbers."""
        raw = {key: dict(value) if isinstance(value, dict) else value for key, value in self._raw.items()}
        for path, number in _NUMBERS.items():
            table, key = _parent(raw, path)
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
            where = _join(path, place.rstrip("`").lstrip("."))
            if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
                self._fail(_join(where, missing[1]), "this key is required")
            self._fail(where or "the file", self._explain(text, where))

    def _explain(self, text: str, path: str) -> str:
        """msgspec's message in the words of this module, with what is allowed and what was found."""
        value = _value_at(self._raw, path)
        if text.startswith("Invalid enum value"):
            allowed = " or ".join(json.dumps(choice) for choice in get_args(_plain(_kind_at(path))))
            return f"{value!r} is not allowed: {allowed}"
        if match := re.fullmatch(r"Expected `([a-z]+)(?: \| null)?`, got `([a-z]+)`", text):
            found = "" if isinstance(value, dict | list) or value is None else f" ({value!r})"
            return f"must be {_WORDS.get(match[1], match[1])}, not {_WORDS.get(match[2], match[2])}{found}"
        return text.replace("`", "") + ("" if value is None else f", got {value!r}")

    def _check_bounds(self, raw: dict[str, Any]) -> None:
        for path, number in _NUMBERS.items():
            table, key = _parent(raw, path)
            value = table.get(key)
            if value is not None and not number.low <= value <= number.high:  # false for nan too
                low, high = number.show(number.low), number.show(number.high)
                self._fail(path, f"{_value_at(self._raw, path)!r} is out of range: {low} to {high}")

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
            self._fail("payload", f"there is no payload {name!r}{_known(name, names)}")
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
        payload = payload_for(scenario)
        needs = "reply" if payload.reply else "ready.port" if payload.ready.port else "ready.http"
        if payload.ready.line is not None and payload.reply is None:
            return
        for driver, profile in scenario.targets():
            if getattr(settings_for(scenario, driver, profile), "network", None) == "none":
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


# --- walking the schema ---------------------------------------------------------------------------------------------


def _plain(kind: Any) -> Any:
    """`kind` without Annotated and without None."""
    if hasattr(kind, "__metadata__"):
        return _plain(kind.__origin__)
    if get_origin(kind) in (Union, types.UnionType):
        rest = [arg for arg in get_args(kind) if arg is not type(None)]
        return _plain(rest[0]) if len(rest) == 1 else kind
    return kind


def _keys(kind: Any) -> dict[str, Any]:
    """Key -> type of a table; `*` stands for any key; empty if `kind` is not a table."""
    kind = _plain(kind)
    if _is_table(kind) and get_origin(kind) is not dict:
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        return {**fields, **SETTINGS} if kind is Scenario else fields
    return {"*": get_args(kind)[1]} if get_origin(kind) is dict else {}


def _is_table(kind: Any) -> bool:
    kind = _plain(kind)
    return get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Struct))


def _inner(keys: Mapping[str, Any], key: str) -> Any:
    """Type of `key` among `keys`; None if there is no such key."""
    return keys.get(key, keys.get("*"))


def _kind_at(path: str) -> Any:
    kind: Any = Scenario
    for part in path.split("."):
        kind = _inner(_keys(kind), part)
    return kind


def _value_at(raw: Mapping[str, Any], path: str) -> Any:
    """What the user wrote at `path`; None if it can't be told."""
    value: Any = raw
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return value


def _parent(raw: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The table that may hold `path`, and the last key; an empty table if it is not there."""
    *above, key = path.split(".")
    table = _value_at(raw, ".".join(above)) if above else raw
    return (table if isinstance(table, dict) else {}), key


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key and not key.startswith("[") else path + key


def _unknown(key: str, keys: Iterable[str], path: str) -> str:
    if not keys:
        return f"{path or 'it'} has no keys"
    return f"unknown key {key!r}{_known(key, keys)}"


def _known(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: what it may have meant, and all there is."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)  # two-letter names too
    return (f", did you mean {close[0]!r}?" if close else ".") + f" There is: {', '.join(names)}"


# --- writing --------------------------------------------------------------------------------------------------------


def effective_toml(scenario: Scenario) -> str:
    """The whole scenario, defaults included, as TOML that loads to the same scenario again."""
    return "\n".join(_toml_table(_raw(scenario))).lstrip() + "\n"


def _raw(scenario: Scenario) -> dict[str, Any]:
    """As `tomllib` would give it: no None, sizes and durations as people write them."""
    raw: dict[str, Any] = _without_none(msgspec.to_builtins(scenario))
    for path, number in _NUMBERS.items():
        table, key = _parent(raw, path)
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


# --- finding --------------------------------------------------------------------------------------------------------


def builtin_scenarios() -> dict[str, Path]:
    """Name -> file of every scenario that goes by a name: those in ./scenarios/, then those that bench ships."""
    shipped = Path(str(importlib.resources.files("bench") / "scenarios"))
    found: dict[str, Path] = {}
    for folder in (Path("scenarios"), shipped):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def find_scenario(name_or_path: str) -> Path:
    """The file of a scenario given by name or by path. Raises UsageError that lists what there is."""
    path = Path(name_or_path)
    if "/" in name_or_path or path.suffix == ".toml":
        if path.is_file():
            return path
        raise UsageError(f"there is no scenario file {name_or_path}", hint="bench list scenarios")
    known = builtin_scenarios()
    if name_or_path not in known:
        text = f"there is no scenario {name_or_path!r}{_known(name_or_path, known)}"
        raise UsageError(text, hint="bench list scenarios")
    return known[name_or_path]
