"""Old run folders are brought up to date as they are read; their files are never rewritten.

A change that readers of the version before would misread (a field renamed, its unit or its sense changed) raises
`records.SCHEMA` and adds the step from the version before to `STEPS`. A field that is merely added does neither: it
has a default. Every version keeps a sample in tests/unit/data/runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Raw = dict[str, Any]
Step = Callable[[Raw], Raw]


def _without_condition(raw: Raw) -> Raw:
    """Version 1 varied nothing within a run: the condition is the empty one, which is the field's default."""
    return raw


STEPS: Mapping[int, Step] = {1: _without_condition}
"""Version -> what makes a file or a line of it one of the next."""


def upgraded(raw: Raw, version: int, target: int) -> Raw:
    """`raw`, an object of a file or of a line, of schema `version`, as `target` would have written it."""
    for older in range(version, target):
        raw = {**STEPS[older](raw), "schema": older + 1}
    return raw
