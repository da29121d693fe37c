"""Drivers that are there, their keys, and their profiles."""

from __future__ import annotations

from collections.abc import Mapping

from bench.config.words import did_you_mean
from bench.errors import ConfigError
from bench.model import MIB, ContainerSettings, ProcessSettings, Settings, VmSettings

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
    "vm:clone": {**_MICRO, "start": "clone", "tb_cache": 5 * MIB, "storage": "shared-dax"},
}
"""`driver:profile` -> the settings in which it differs from the driver's own defaults."""
SYNTHETIC = "synthetic"
"""The driver of tests and the self-test, which runs nothing: no scenario can name it, and it has no keys."""


def split_driver(text: str) -> tuple[str, str]:
    """`vm:stock` and bare `vm` -> ("vm", "stock"). Raises ConfigError for what is not there."""
    driver, _, profile = text.partition(":")
    if driver not in SETTINGS:
        raise ConfigError(f"there is no driver {driver!r}{did_you_mean(driver, SETTINGS)}")
    profile = profile or DEFAULT_PROFILE[driver]
    if f"{driver}:{profile}" not in PROFILES:
        raise ConfigError(f"there is no profile {driver}:{profile}{did_you_mean(f'{driver}:{profile}', PROFILES)}")
    return driver, profile
