"""All axes of one instance, one after the other; an axis that fails says why, and the others go on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bench.drivers.base import Instance
from bench.errors import BenchError
from bench.linux.callcount import counting
from bench.model import Completed, HttpCheck
from bench.probes.exposure import calls, facts, functions, hostcalls, setup
from bench.records import Axis, Exposure

Run = Callable[[Sequence[str]], Completed]
"""Runs the program of images/programs/exposure.c with these words."""

BOOT_ID = next(place for place, fact in enumerate(facts.CATALOGUE) if fact.name == "boot id")


class Looked(NamedTuple):
    """One axis; seconds it took."""

    exposure: Exposure
    seconds: float


@dataclass(frozen=True)
class Host:
    """The host without a boundary: how the program runs there, and what the trial of all calls found."""

    run: Run
    calls: Mapping[int, calls.Tried]


def look(instance: Instance, inside: Run, host: Host, check: HttpCheck | None) -> Iterator[Looked]:
    """Every axis. `check`: what the instance's server is asked for its load; None without one."""
    axes: dict[Axis, Callable[[], Exposure]] = {
        "host-calls": lambda: _host_calls(instance, check),  # first: while nothing else has run inside
        "calls": lambda: calls.exposure(calls.tried(inside), host.calls),
        "functions": functions.exposure,
        "facts": lambda: facts.exposure(facts.read(host.run), facts.read(inside), facts.read(host.run)),
        "setup": lambda: _setup(instance),
    }
    for axis, measure in axes.items():
        began = time.monotonic()
        try:
            found = measure()
        except BenchError as error:
            found = Exposure(axis, missing=error.message)
        except OSError as error:
            found = Exposure(axis, missing=f"{error.filename or axis}: {error.strerror}")
        yield Looked(found, time.monotonic() - began)


def kernel_of(inside: Run, host: Run) -> Literal["host", "own"]:
    """Whose kernel answers inside. Raises LaunchError, CommandError."""
    boot = facts.CATALOGUE[BOOT_ID : BOOT_ID + 1]
    [ours], [theirs] = facts.read(inside, boot), facts.read(host, boot)
    return "host" if ours.text is not None and ours.text == theirs.text else "own"


def _host_calls(instance: Instance, check: HttpCheck | None) -> Exposure:
    with counting() as counter:
        return hostcalls.measured(hostcalls.Watched(counter, instance), check)


def _setup(instance: Instance) -> Exposure:
    return setup.exposure([setup.state(pid) for pid in instance.footprint().pids], setup.state(os.getpid()))
