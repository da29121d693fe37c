"""`Scenario`: the user's intent, complete and validated: bytes and seconds inside, every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from bench.config.profiles import PROFILES, SETTINGS, SYNTHETIC, split_driver
from bench.flight import Launch
from bench.levels import RAISED, Neighbours, PayloadKeys, Reserve, Service, ToLimit
from bench.model import GIB, HttpCheck, Limits, Payload, ProcessSettings, Ready, Settings
from bench.precision import Precise

SCHEMA = 1
"""Version of the scenario format. 1: first version (0.1.0)."""


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


def settings_for(scenario: Scenario, driver: str, profile: str) -> Settings:
    """The driver's effective keys: its defaults, under the profile's, under the scenario's own section."""
    if driver == SYNTHETIC:
        return ProcessSettings()
    merged = {**PROFILES[f"{driver}:{profile}"], **getattr(scenario, driver)}
    return msgspec.convert(merged, SETTINGS[driver])


def unconnected(scenario: Scenario, driver: str, profile: str) -> bool:
    """Whether its instances have no network."""
    return getattr(settings_for(scenario, driver, profile), "network", None) == "none"


def payload_for(scenario: Scenario) -> Payload:
    """What runs inside: the scenario's own entry, or a built-in one."""
    keys = scenario.payload
    entry = scenario.payloads.get(keys.name)
    if entry is None:
        builtin = BUILTIN_PAYLOADS[keys.name]
        return msgspec.structs.replace(builtin, env=keys.env) if keys.name == TOUCH else builtin
    return Payload(keys.name, entry.command, entry.ready, entry.env, entry.reply)
