"""What `bench show RUN --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from bench.model import HostFacts, RunId
from bench.records import Axis, Beside, Containment, Exposed, Finding, LimitsOf, Severity, Victim

Method = Literal["t", "bootstrap", "launches"]


class SummaryRow(Struct, frozen=True):
    """One row of `bench show`. `median`, `low`, `high` in `unit`; the interval is at 95 %, absent if n is too small.

    `method` says what it rests on: "t" on ramps, "bootstrap" of ramps, or the "launches" of a single ramp.
    """

    driver: str
    profile: str
    payload: str
    metric: str
    unit: str
    n: int
    median: float
    low: float | None
    high: float | None
    method: Method | None = None
    condition: str = ""  # see condition_text


class FindingRow(Struct, frozen=True, omit_defaults=True):
    """One probe of one driver: the worst it found, in `found` of its `rounds`. Without `counts` it proves nothing."""

    driver: str
    profile: str
    probe: str
    claim: str
    severity: Severity
    outcome: Containment
    evidence: str
    instance: str
    found: int
    rounds: int
    counts: bool  # its control got through
    place: Literal["process", "guest"]  # of the control
    control: Finding | None = None
    accelerator: str | None = None


class Span(Struct, frozen=True):
    """Least and most of one count over the rounds."""

    low: int
    high: int


class ExposureRow(Struct, frozen=True, omit_defaults=True):
    """One axis of one driver. `items`: those of facts and of the set-up, in the last round. `missing`: why it was not
    measured. `kernel`: whose answers inside, "host" or "own"."""

    driver: str
    profile: str
    axis: Axis
    kernel: str
    counts: dict[str, Span] = {}
    items: Sequence[Exposed] = []
    missing: str | None = None
    accelerator: str | None = None


class Loss(Struct, frozen=True):
    """How much longer a victim's work took, as a share (0.5: half as long again), with its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    n: int  # rounds
    method: Method | None


class Losses(Struct, frozen=True, omit_defaults=True):
    """Against one control; absent without a round that has both."""

    median: Loss | None = None
    p99: Loss | None = None


class LossRow(Struct, frozen=True, omit_defaults=True):
    """One victim beside one neighbour. `n`: sound rounds; `samples`: units of work or requests in them."""

    driver: str
    profile: str
    victim: Victim
    aggressor: Beside
    limits: LimitsOf  # the neighbour's
    n: int
    samples: int
    failed: int
    idle: Losses  # against an idle neighbour
    polite: Losses  # against the victim's own work next door
    load: str = ""  # what the neighbour said of its load
    missing: Sequence[str] = []  # why rounds have no result
    accelerator: str | None = None


class LimitRow(Struct, frozen=True, omit_defaults=True):
    """One limit of a neighbour that pressed against it. CPUs, bytes, count. `honoured`: absent where not judged."""

    driver: str
    profile: str
    limits: LimitsOf
    limit: str
    declared: float
    mean: float
    most: float
    readings: int
    honoured: bool | None = None
    accelerator: str | None = None


class DearestRow(Struct, frozen=True):
    """The neighbour that cost a victim's median most, chosen `out_of` all measured of this driver with these limits.
    `loss` against an idle neighbour: its interval holds at 95 % for all of those at once. `shown`: it is above 0."""

    driver: str
    profile: str
    limits: LimitsOf
    victim: Victim
    aggressor: Beside
    out_of: int
    loss: Loss
    shown: bool


class NeighbourSummary(Struct, frozen=True, omit_defaults=True):
    """Of a run of kind "neighbours". `dearest`: none of guests under tcg."""

    losses: Sequence[LossRow]
    limits: Sequence[LimitRow]
    dearest: Sequence[DearestRow] = []


class Summary(Struct, frozen=True, omit_defaults=True):
    """What `bench show RUN --json` prints. What the run has none of is absent, of the last three."""

    run: RunId
    scenario: str
    host: HostFacts
    accelerator: str | None
    summary: Sequence[SummaryRow]
    findings: Sequence[FindingRow] = []
    exposure: Sequence[ExposureRow] = []
    neighbours: NeighbourSummary | None = None
