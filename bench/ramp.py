"""The state of the trial under way: what is alive, what was reached, and what ended it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from bench.drivers.base import Instance
from bench.limiters import Stop
from bench.model import InstanceSpec, PhaseLog, Reading
from bench.plan import Trial
from bench.records import Outcome


@dataclass
class Live:
    """An instance that must be ended."""

    spec: InstanceSpec
    instance: Instance
    context: AbstractContextManager[Instance]
    phases: PhaseLog
    warmup: bool


@dataclass
class Ramp:
    """State of the trial under way."""

    trial: Trial
    began: float  # time.monotonic()
    launched: int = 0
    live: list[Live] = field(default_factory=list)
    launching_ns: int = 0
    alive: int = 0
    sampled: int = 0  # alive at the last sample
    useful: int | None = None
    limiter: str = ""
    evidence: str = ""
    outcome: Outcome = Outcome.SUCCEEDED
    readings: tuple[Reading, ...] = ()

    def complete(self) -> Stop:
        """Nothing stopped it before all that were asked for, or the scenario allows, were alive."""
        return Stop("count", f"to_limit.count is {self.trial.count}" if self.trial.to_limit else "")

    def end(self, stop: Stop, levels: str) -> None:
        """To the limit whatever stops a ramp is what was looked for, once an instance was up; else a fault is one."""
        self.limiter, self.evidence, fault = stop
        found = self.trial.to_limit and self.alive > 0
        self.outcome = Outcome.FAILED if fault and not found else Outcome.SUCCEEDED
        if levels and self.trial.to_limit:
            self.evidence += f"\nread then: {levels}"
