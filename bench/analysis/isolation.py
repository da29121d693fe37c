"""Findings as a matrix: probes by drivers. Outcomes are counted apart; there is no score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from bench.records import Containment, Finding, FindingRecord, Severity, TrialRecord
from bench.store import RunData

WORST = (
    Containment.ESCAPED, Containment.DEGRADED, Containment.ERROR, Containment.UNAVAILABLE, Containment.CONTAINED,
)  # fmt: skip
"""Over several rounds a cell shows the first of these that was found."""


class Target(Struct, frozen=True):
    """A column: `container:default`; `accelerator` of its guests, where it has some."""

    driver: str
    profile: str
    accelerator: str | None = None

    @property
    def name(self) -> str:
        return f"{self.driver}:{self.profile}"


class Cell(Struct, frozen=True):
    """The worst finding of one probe for one target, and in how many of its rounds it was found."""

    finding: Finding
    found: int
    rounds: int
    instance: str


class Row(Struct, frozen=True):
    """One probe. `cells` by target name; a target that was not probed has none."""

    probe: str
    claim: str
    severity: Severity
    place: Literal["process", "guest"]
    control: Finding | None
    cells: Mapping[str, Cell]

    @property
    def counts(self) -> bool:
        """Without a control that got through, a probe proves nothing."""
        return self.control is not None and self.control.through


class Matrix(Struct, frozen=True):
    """All of it."""

    targets: tuple[Target, ...]
    rows: tuple[Row, ...]

    @property
    def counted(self) -> int:
        """Probes whose control got through."""
        return sum(row.counts for row in self.rows)

    def tally(self, target: Target) -> Mapping[Containment, int]:
        """How often each outcome was found, among the probes that count."""
        found = Counter(
            row.cells[target.name].finding.outcome for row in self.rows if row.counts and target.name in row.cells
        )
        return {outcome: found[outcome] for outcome in WORST}


def matrix(data: RunData) -> Matrix | None:
    """The findings of the run; None if it has none."""
    records = [one for one in data.records if isinstance(one, FindingRecord)]
    if not records:
        return None
    accelerators = {one.trial: one.accelerator for one in data.records if isinstance(one, TrialRecord)}
    targets = dict.fromkeys(Target(one.driver, one.profile, accelerators.get(one.trial)) for one in records)
    order = {name: place for place, name in enumerate(data.info.drivers)}
    ordered = tuple(sorted(targets, key=lambda target: order.get(target.name, len(order))))
    by_probe: dict[str, list[FindingRecord]] = {}
    for one in records:
        by_probe.setdefault(one.probe, []).append(one)
    return Matrix(ordered, tuple(_row(found) for found in by_probe.values()))


class Contrast(Struct, frozen=True):
    """Probes that count and whose outcomes differ between the targets of one question."""

    title: str
    targets: tuple[Target, ...]
    rows: tuple[Row, ...]


_HARDENING = ("container:bare", "container:default", "container:strict")


def contrasts(found: Matrix) -> list[Contrast]:
    """What a VM buys, and what hardening buys: each where the run holds at least two of its targets."""
    guests = tuple(target for target in found.targets if target.driver == "vm")
    default = tuple(target for target in found.targets if target.name == "container:default")
    hardened = tuple(target for name in _HARDENING for target in found.targets if target.name == name)
    questions = [("What hardening buys here", hardened)]
    if default and guests:
        questions.insert(0, ("What a VM buys here", default + guests))
    return [Contrast(title, some, _differing(found, some)) for title, some in questions if len(some) > 1]


def _differing(found: Matrix, targets: Sequence[Target]) -> tuple[Row, ...]:
    """What could not be tried on one of them makes no difference."""

    def outcomes(row: Row) -> set[Containment]:
        found = {row.cells[target.name].finding.outcome for target in targets if target.name in row.cells}
        return found - {Containment.UNAVAILABLE, Containment.ERROR}

    return tuple(row for row in found.rows if row.counts and len(outcomes(row)) > 1)


class Change(Struct, frozen=True):
    """A probe that counts in two runs and found something else in the later one."""

    driver: str
    profile: str
    probe: str
    severity: str
    before: Finding
    after: Finding

    @property
    def weaker(self) -> bool:
        """What was not tried, or failed, is no weakness that was found."""
        return self.after.through and WORST.index(self.after.outcome) < WORST.index(self.before.outcome)


def changes(before: Matrix | None, after: Matrix | None) -> list[Change]:
    """What changed from one run to another, in the order of the probes."""
    if before is None or after is None:
        return []
    earlier = {row.probe: row for row in before.rows if row.counts}
    found = []
    for row in after.rows:
        if not row.counts or row.probe not in earlier:
            continue
        for target in after.targets:
            old, new = earlier[row.probe].cells.get(target.name), row.cells.get(target.name)
            if old is None or new is None or old.finding.outcome is new.finding.outcome:
                continue
            pair = old.finding, new.finding
            found.append(Change(target.driver, target.profile, row.probe, row.severity, *pair))
    return found


def _row(found: Sequence[FindingRecord]) -> Row:
    first = found[0]
    by_target: dict[str, list[FindingRecord]] = {}
    for one in found:
        by_target.setdefault(f"{one.driver}:{one.profile}", []).append(one)
    controls = [one.control for one in found if one.control is not None]
    control = min(controls, key=lambda one: WORST.index(one.outcome), default=None)
    cells = {name: _cell(some) for name, some in by_target.items()}
    return Row(first.probe, first.claim, first.severity, first.place, control, cells)


def _cell(found: Sequence[FindingRecord]) -> Cell:
    worst = min(found, key=lambda one: WORST.index(one.finding.outcome))
    same = sum(one.finding.outcome is worst.finding.outcome for one in found)
    return Cell(worst.finding, same, len(found), worst.instance)
