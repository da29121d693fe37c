"""Drivers by name, imported on first use: a driver nobody asks for costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from bench.drivers.base import Driver
from bench.drivers.context import RunContext
from bench.errors import UsageError

_DRIVERS: Mapping[str, tuple[str, str, str]] = {
    "process": ("bench.drivers.process", "ProcessDriver", "a plain child process in a chroot, the baseline"),
    "container": ("bench.drivers.container", "ContainerDriver", "the built-in runtime: namespaces, cgroups, overlayfs"),
    "vm": ("bench.drivers.vm", "VmDriver", "a QEMU guest through libvirt"),
}


def driver_names() -> tuple[str, ...]:
    return tuple(_DRIVERS)


def describe_driver(name: str) -> str:
    """One line on what it is."""
    return _DRIVERS[name][2]


def make_driver(name: str, context: RunContext) -> Driver:
    """Building a driver acquires nothing. Raises UsageError for a name that is not there."""
    if name not in _DRIVERS:
        raise UsageError(f"there is no driver {name!r}", hint=f"there are: {', '.join(_DRIVERS)}")
    module, attribute, _ = _DRIVERS[name]
    driver: Driver = getattr(importlib.import_module(module), attribute)(context)
    return driver
