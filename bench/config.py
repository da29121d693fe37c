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
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from bench.errors import ConfigError, UsageError
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
}
PROFILES: Mapping[str, Mapping[str, object]] = {
    "process:default": {},
    "container:default": {},
    "container:pooled": {},  # see drivers.container
    "container:fuse-overlayfs": {"storage": "fuse-overlayfs"},
    "container:copy": {"storage": "copy"},
    "container:reflink": {"storage": "reflink"},
    "container:btrfs": {"storage": "btrfs"},
    "vm:stock": {},
    "vm:lean": _LEAN,
    "vm:micro": _MICRO,
    "vm:clone": {**_MICRO, "start": "clone", "tb_cache": 4 * MIB},
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


BUILTIN_PAYLOADS: Mapping[str, Payload] = {
    "httpd": Payload(
        "httpd", ("/bin/payload-httpd",), Ready(line="bench-ready"), {"BENCH_PORT": "8080"}, HttpCheck(port=8080)
    ),
    "idle": Payload("idle", ("/bin/payload-idle",), Ready(line="bench-ready")),
}
"""Entries of the form a user writes; their commands are in the payload layer of the default image."""


# --- the records -------------------------------------------------------------------------------------------------


class Count(Struct, frozen=True, forbid_unknown_fields=True):
    """[count]: how many instances a ramp goes up to; a driver without its own number takes `default`."""

    default: int = 64
    process: int | None = None
    container: int | None = None
    vm: int | None = None


class Reserve(Struct, frozen=True, forbid_unknown_fields=True):
    """[reserve]: memory that stays available to the host; the larger of the two holds. Bytes, share of the total."""

    memory: int = 2 * GIB
    fraction: float = 0.10


class Scenario(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A validated scenario. `drivers` holds full names ("vm:stock"); durations are seconds."""

    schema: Literal[1]
    name: str
    title: str = ""
    drivers: tuple[str, ...] = ("process", "container", "vm")
    image: str = "default"
    payload: str = "httpd"
    rounds: int = 3
    warmups: int = 1
    seed: int | None = None
    timeout: float = 60.0  # launch to ready
    stop_timeout: float = 10.0
    settle: float = 0.5  # wait before a sample
    max_time: float | None = None  # of the whole run
    count: Count = Count()
    limits: Limits = Limits()
    reserve: Reserve = Reserve()
    payloads: dict[str, PayloadEntry] = {}
    process: dict[str, Any] = {}  # keys of SETTINGS, over those of the profile
    container: dict[str, Any] = {}
    vm: dict[str, Any] = {}

    def count_for(self, driver: str) -> int:
        """How many instances of `driver` the ramp goes up to."""
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
    entry = scenario.payloads.get(scenario.payload)
    if entry is None:
        return BUILTIN_PAYLOADS[scenario.payload]
    return Payload(scenario.payload, entry.command, entry.ready, entry.env, entry.reply)


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
    "reserve.memory": _Number("size", 0, 16 << 40),
    "reserve.fraction": _Number("number", 0.0, 0.95),
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
) -> Scenario:
    """`scenario` with command-line options over it; an error names the option.

    `drivers` may hold comma-separated names; `count` holds for every driver.
    """
    names = [name.strip() for text in drivers for name in text.split(",")] if drivers is not None else None
    options = {
        "drivers": names,
        "count": None if count is None else {"default": count},
        "rounds": rounds,
        "seed": seed,
        "image": image,
        "max_time": max_time,
    }
    given = {key: value for key, value in options.items() if value is not None}
    origins = {key: f"--{key.replace('_', '-')}" for key in given}
    return _Loader(f"scenario {scenario.name}", {**_raw(scenario), **given}, origins).scenario()


def _override(raw: dict[str, Any], text: str) -> str:
    """Put one `a.b=value` into `raw`; returns the key's path."""
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
    table = raw
    for part in parts[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):  # the file itself is wrong there; the loader says so
            inner = table[part] = {}
        table = inner
    table[parts[-1]] = value if _plain(kind) is str and not value.startswith(('"', "'")) else _toml_value(value)
    return path


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
        return scenario

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
        if scenario.payload not in names:
            self._fail("payload", f"there is no payload {scenario.payload!r}{_known(scenario.payload, names)}")
        for driver, profile in scenario.targets():
            settings = settings_for(scenario, driver, profile)
            if isinstance(settings, VmSettings) and (settings.start, settings.storage) in _CLONES_OF_DISKS:
                self._fail(
                    "vm.storage",
                    f'{settings.storage!r} does not go with start = "clone": clones would write '
                    'to one disk; use "shared-ro"',
                )
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
