"""From an attack's answer to a finding. What is outside decides; the attacker's word only where nothing else can."""

from __future__ import annotations

import errno

from bench.probes.base import Answer, Scene
from bench.probes.program import describe
from bench.records import Containment, Finding

ABSENT = frozenset({errno.ENOSYS, errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP})
"""A kernel that lacks something says so; a boundary says EPERM or EACCES."""


def by_secret(scene: Scene, answer: Answer) -> Finding:
    """Escaped if the answer holds what only the canary holds."""
    if scene.world.held.secret in answer.said:
        return Finding(Containment.ESCAPED, f"{answer.step}: the canary's secret was read")
    said = describe(answer) + (", which is not the canary" if answer.done else "")
    return Finding(Containment.CONTAINED, said)


def by_kernel(scene: Scene, answer: Answer, reach: Containment, path: str | None = None) -> Finding:
    """`reach` if the call got through to the world's own kernel. `path`: without this file there is nothing to try."""
    if not scene.same_kernel:
        how = "done" if answer.done else "not done"
        return Finding(Containment.CONTAINED, f"{how}, in a kernel of its own: {describe(answer)}")
    if answer.done:
        return Finding(reach, describe(answer))
    if answer.errno in ABSENT:
        return Finding(Containment.UNAVAILABLE, describe(answer))
    if path is not None and answer.errno == errno.ENOENT and scene.world.read(path) is None:
        return Finding(Containment.UNAVAILABLE, f"the host has no {path} that can be read")
    return Finding(Containment.CONTAINED, describe(answer))
