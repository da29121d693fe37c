"""The contract of a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bench.model import Footprint, Reading


class Sampler(Protocol):
    @property
    def name(self) -> str: ...

    def read(self, footprints: Sequence[Footprint]) -> Sequence[Reading]:
        """Sums over `footprints`, and the host's own figures, as they are now. What can't be read is absent."""
        ...
