"""What a run leaves behind: the lines of trials.jsonl, and `run.json`. Frozen; docs/result-format.md describes each."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from msgspec import Struct

from bench.model import Condition, Image, Limits, Payload, Reading, RunId

SCHEMA = 2
"""Version of the records in a run folder. 1: first version (0.1.0). 2: records have a condition."""


class Outcome(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"


class Labels(Struct, frozen=True, kw_only=True):
    """What every record says of itself."""

    trial: str  # "r1-container:default", "r1-container:default [cache=cold]"
    driver: str
    profile: str
    payload: str
    round: int  # from 1
    date: float  # seconds since the epoch; only dates things
    condition: Condition = {}
    schema: int = SCHEMA


class LaunchRecord(Labels, frozen=True, kw_only=True, tag="launch", tag_field="kind"):
    """One launch. `phases`: ns since the harness asked; `alive`: instances of the ramp alive before it."""

    instance: str
    alive: int
    warmup: bool
    outcome: Outcome
    phases: dict[str, int]
    readings: tuple[Reading, ...] = ()
    error: str | None = None


class StepRecord(Labels, frozen=True, kw_only=True, tag="step", tag_field="kind"):
    """Readings with `n` instances of one ramp alive (n = 0: before the first)."""

    n: int
    readings: tuple[Reading, ...]


class TeardownRecord(Labels, frozen=True, kw_only=True, tag="teardown", tag_field="kind"):
    """The end of one instance: phases stop, stopped, removed, in ns since its launch was asked for."""

    instance: str
    warmup: bool
    phases: dict[str, int]
    error: str | None = None


class TrialRecord(Labels, frozen=True, kw_only=True, tag="trial", tag_field="kind"):
    """The end of a trial: its outcome, how many instances were alive, and what limited it."""

    outcome: Outcome
    alive: int  # most instances alive and ready at once
    asked: int
    limiter: str  # one of limiters.LIMITERS; "count" when the N asked for was reached
    launching_ns: int  # time spent launching, samples and settling left out
    evidence: str = ""
    accelerator: str | None = None
    readings: tuple[Reading, ...] = ()  # of the ramp as a whole: pool.*
    to_limit: bool = False  # it went on until something stopped it; `asked` was a bound
    useful: int | None = None  # largest step at which the service level was held; None if nobody watched
    battery: bool = False  # of probes or neighbours, no ramp: `alive` and `asked` are the instances that takes


class Containment(StrEnum):
    """What one probe found. Weaker is worse: see docs/isolation.md."""

    CONTAINED = "contained"  # what the attack went for was not reached
    DEGRADED = "degraded"  # nothing outside was reached, but the boundary is thinner than claimed
    ESCAPED = "escaped"  # something outside was reached: a secret read, an object changed, the host's kernel asked
    UNAVAILABLE = "unavailable"  # this host's kernel has not what the attack is about
    ERROR = "error"  # the probe itself failed


class Finding(Struct, frozen=True):
    """The result of one probe, with what shows it."""

    outcome: Containment
    evidence: str

    @property
    def through(self) -> bool:
        """Whether the attack got something: what a control has to."""
        return self.outcome in (Containment.ESCAPED, Containment.DEGRADED)


Severity = Literal["low", "medium", "high", "critical"]


class FindingRecord(Labels, frozen=True, kw_only=True, tag="probe", tag_field="kind"):
    """One probe of one instance, and the same attack without the boundary (`control`; absent if it could not be made).

    `place`: where the control ran, as a bare process of this host or of a disposable guest.
    """

    instance: str
    probe: str  # "process.signal"
    claim: str  # what a good boundary guarantees
    severity: Severity  # of an escape
    finding: Finding
    place: Literal["process", "guest"]
    control: Finding | None = None
    seconds: float = 0.0

    @property
    def counts(self) -> bool:
        """A probe whose control did not get through proves nothing."""
        return self.control is not None and self.control.through


class Exposed(Struct, frozen=True, omit_defaults=True):
    """One thing looked at: a call, a fact, a part of the set-up. Texts are what was said inside and on the host."""

    name: str
    found: str  # the class it is counted in
    inside: str | None = None
    host: str | None = None
    per_second: float | None = None  # of host calls: under load, the idle background taken off


Axis = Literal["calls", "host-calls", "functions", "facts", "setup"]


class Exposure(Struct, frozen=True, omit_defaults=True):
    """One axis of what is open to an instance. `missing`: why it was not measured. `counts` is in the table's order."""

    axis: Axis
    items: tuple[Exposed, ...] = ()
    counts: dict[str, int] = {}
    missing: str | None = None


class ExposureRecord(Labels, frozen=True, kw_only=True, tag="exposure", tag_field="kind"):
    """One axis of one instance; docs/exposure.md explains each. `kernel`: whose kernel answers inside."""

    instance: str
    kernel: Literal["host", "own"]
    exposure: Exposure
    seconds: float = 0.0  # it took


Victim = Literal["httpd", "cpu", "disk", "memory"]
Aggressor = Literal["cpu", "memory", "fork", "disk", "send", "receive"]
Beside = Literal["none", "polite", Aggressor]
"""What is next to a victim: nothing that does anything, its own work once more, or an aggressor."""
LimitsOf = Literal["declared", "raised"]


class Times(Struct, frozen=True, omit_defaults=True):
    """How long a victim's units of work, or requests to it, took. `quantiles`: share -> seconds, failed ones slower
    than any and absent where it falls among them; `values`: all that did not fail, where they are few."""

    n: int  # failed ones included
    failed: int = 0
    quantiles: dict[str, float] = {}
    values: tuple[float, ...] = ()


class Use(Struct, frozen=True):
    """What a neighbour's groups were charged, as read every moment of an experiment, beside the limit in force."""

    limit: Literal["cpus", "memory", "pids"]
    declared: float  # CPUs, bytes, count
    mean: float
    most: float
    values: tuple[float, ...]


class Press(Struct, frozen=True, omit_defaults=True):
    """An aggressor's own word on its load; `refused`: processes it was refused, or that were killed for their memory.

    `beside`: the share of the victim's window in which it was at work.
    """

    amount: float
    unit: str
    refused: int = 0
    beside: float = 0.0


class NeighbourRecord(Labels, frozen=True, kw_only=True, tag="neighbour", tag_field="kind"):
    """One victim beside one neighbour for a short time. `limits`: the neighbour's; the victim's are declared.

    `missing`: why there is no result.
    """

    victim: Victim
    aggressor: Beside
    limits: LimitsOf
    window: float  # seconds asked for
    times: Times | None = None
    press: Press | None = None
    uses: tuple[Use, ...] = ()
    missing: str | None = None


class NoteRecord(Struct, frozen=True, kw_only=True, tag="note", tag_field="kind"):
    """A message that belongs to the run (a warning, a leftover found, an interruption)."""

    date: float
    level: Literal["info", "warning", "error"]
    text: str
    schema: int = SCHEMA


DISTURBED = "another run was alive on this host meanwhile: "
"""How a note begins that says so; the other's id follows."""

Record = (
    LaunchRecord
    | StepRecord
    | TeardownRecord
    | TrialRecord
    | FindingRecord
    | ExposureRecord
    | NeighbourRecord
    | NoteRecord
)


class Precision(Struct, frozen=True):
    """How a run ended that went on until it was precise. `wanted`: width of a start-up interval over its median;
    `widths`: what it was at the end, by driver, profile and condition; None where there was no interval."""

    wanted: float
    reached: bool
    why: Literal["precise", "rounds", "time"]  # what ended it
    rounds: int
    widths: dict[str, float | None]


class RunInfo(Struct, frozen=True, kw_only=True):
    """`run.json`: what was asked, planned and used. `drivers`: "vm:stock" -> versions and choices; `settings`: the same
    -> its effective keys, which a record's driver and profile lead to, save for those that a condition holds."""

    run: RunId
    scenario: str
    title: str
    started: float
    ended: float | None
    status: Literal["running", "done", "failed", "interrupted"]
    seed: int
    command: tuple[str, ...]
    scenario_toml: str  # effective, after --set
    plan: tuple[str, ...]  # trials in the order they run
    conditions: tuple[Condition, ...] = ()  # of its trials, in the order of the sweep; empty where nothing is varied
    image: Image
    payload: Payload
    limits: Limits
    drivers: dict[str, dict[str, str]]
    settings: dict[str, dict[str, str | int | float | bool | None]] = {}
    accelerator: str | None  # "kvm" or "tcg"; None if no VM ran
    versions: dict[str, str]
    oom_score_adj: int | None = None  # of the harness while it ran; every instance's is higher
    warnings: tuple[str, ...] = ()
    precision: Precision | None = None  # of a run that was to go on until it is precise, once it has ended
    schema: int = SCHEMA
