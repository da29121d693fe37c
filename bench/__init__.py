"""bench: containers against virtual machines, measured on your own host."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is not imported: the launcher of containers loads this too
    from pathlib import Path

    from bench.analysis.tables import Tables

__version__ = "0.1.0"


def load(run: str | Path, results: str | Path = "results") -> Tables:
    """A run as pandas frames: `load("results/RUN").launches`. See bench.analysis.tables.load."""
    import importlib

    found: Tables = importlib.import_module("bench.analysis.tables").load(run, results)  # pandas, for those who ask
    return found
