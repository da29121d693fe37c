"""All a run needs, and who is told of it: common to ramps, batteries and experiments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from bench.config.scenario import Scenario
from bench.drivers.base import Driver
from bench.ksm import Ksm
from bench.limiters import Stop
from bench.linux import http_load
from bench.model import Footprint, Image, Limits, Payload, RunId
from bench.plan import Plan, Trial
from bench.records import LaunchRecord, Record, TrialRecord
from bench.samplers.base import Sampler
from bench.service import Ask


class Sink(Protocol):
    """Where records go."""

    def append(self, record: Record) -> None: ...
    def sync(self) -> None: ...


class Progress(Protocol):
    """Who is told what happens."""

    def trial(self, trial: Trial) -> None: ...
    def doing(self, text: str) -> None: ...
    def launched(self, trial: Trial, record: LaunchRecord) -> None: ...
    def ended(self, record: TrialRecord) -> None: ...


class Headroom(Protocol):
    """What the host has left above its reserve; see bench.headroom."""

    def stop(self, limits: Limits) -> Stop | None: ...
    def said(self) -> str: ...


@dataclass(frozen=True)
class Job:
    """All a run needs; built by the session."""

    run: RunId
    scenario: Scenario
    plan: Plan
    image: Image
    payload: Payload
    drivers: Mapping[str, Driver]
    samplers: Sequence[Sampler]
    progress: Progress
    logs: str
    headroom: Headroom
    cpu_seconds: Callable[[Footprint], float | None]
    accelerators: Callable[[str], str | None]  # driver name -> accelerator of its guests
    shield: Callable[[], AbstractContextManager[None]]
    deadline: float | None = None  # time.monotonic() after which no launch begins
    enough: Callable[[int], bool] = lambda number: False  # whether the run ends with this round
    ask: Ask = http_load.ask  # how instances are asked whether they are useful
    ksm: Ksm | None = None  # the host's merging of equal pages, if it may be switched
