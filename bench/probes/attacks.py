"""Probes that are one attack and one judgement, as data; those that take more are functions of `special`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.probes.base import Scene
from bench.probes.judges import by_kernel, by_secret
from bench.probes.program import attack
from bench.records import Containment, Finding, Severity

Words = Callable[[Scene], Sequence[str]]


@dataclass(frozen=True)
class Attack:
    """A probe. `judge` runs it; `without`, where it is there, is what the control runs instead."""

    id: str
    claim: str
    severity: Severity
    place: Literal["process", "guest"]
    judge: Callable[[Scene], Finding]
    without: Callable[[Scene], Finding] | None = None

    def run(self, scene: Scene) -> Finding:
        return self.judge(scene)

    def control(self, scene: Scene) -> Finding:
        return (self.without or self.judge)(scene)


def reads(id: str, claim: str, severity: Severity, words: Words) -> Attack:
    """The canary's secret is what it is after; harmless to the host, so its control runs there."""
    return Attack(id, claim, severity, "process", lambda scene: by_secret(scene, attack(scene, *words(scene))))


def asks(
    id: str,
    claim: str,
    severity: Severity,
    *words: str,
    reach: Containment = Containment.ESCAPED,
    place: Literal["process", "guest"] = "guest",
    path: str | None = None,
) -> Attack:
    """A call to the kernel is what it is about: `reach` if it is the host's kernel that does it."""
    return Attack(id, claim, severity, place, lambda scene: by_kernel(scene, attack(scene, *words), reach, path))
