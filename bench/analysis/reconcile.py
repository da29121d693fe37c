"""The views of memory side by side at every N of a ramp: what the host lost, and what accounts for it.

Changes since N = 0 of the same ramp, and means over the ramps: sums of means add up, so that in every row
`lost` = PSS + kernel memory of the cgroups + `residual`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from msgspec import Struct

from bench.analysis.frames import Frames, Series
from bench.analysis.summary import used_memory

INSTANCES = ("pss", "guest", "overhead", "kernel")
"""Names of instances.memory.* readings; `guest` and `overhead` are the two parts of a guest's `pss`."""
HOST = ("slab", "pagetables", "kernelstack", "percpu")
"""Names of host.memory.* readings: the kernel's memory as the host sees it, charged to a cgroup or not."""


_HARNESS = ("harness.cpu", "harness.memory.pss")


class Balance(Struct, frozen=True):
    """One N of one series, in bytes; what was not read, or not in all of the `ramps`, is None.

    `host_kernel`: change of slab, page tables, kernel stacks and per-CPU memory together.
    """

    series: Series
    n: int
    ramps: int
    lost: float
    pss: float | None
    guest: float | None
    overhead: float | None
    kernel: float | None
    host_kernel: float | None

    @property
    def residual(self) -> float | None:
        """What no view of the instances explains; negative where they count what the host gives to others as well."""
        return None if self.pss is None or self.kernel is None else self.lost - self.pss - self.kernel


def reconcile(tables: Frames) -> list[Balance]:
    """All series in the order of the run, N growing; ramps without a step at N = 0 are left out."""
    return [one for series in tables.series for one in _series(tables, series)]


def harness_cost(tables: Frames) -> tuple[float | None, float | None]:
    """Of our own processes in the run: CPU seconds until the last reading, and the most memory (PSS) in one."""
    found = [tables.steps[name].max() if name in tables.steps else np.nan for name in _HARNESS]
    seconds, memory = (None if np.isnan(value) else float(value) for value in found)
    return seconds, memory


def _series(tables: Frames, series: Series) -> Iterable[Balance]:
    changes = _changes(tables, series)
    alive = changes.index.get_level_values("n").to_numpy(dtype=np.int64)
    for n in np.unique(alive[alive > 0]):
        rows = changes[alive == n]
        mean = {str(name): float(value) for name, value in rows.mean(skipna=False).items()}
        known = {name: None if np.isnan(value) else value for name, value in mean.items()}
        yield Balance(
            series,
            int(n),
            len(rows),
            mean["lost"],
            known.get("pss"),
            known.get("guest"),
            known.get("overhead"),
            known.get("kernel"),
            known.get("host_kernel"),
        )


def _changes(tables: Frames, series: Series) -> pd.DataFrame:
    """A row for each trial and N, a column for each view."""
    lost = used_memory(tables, series)
    rows = tables.of("steps", series)
    found = {"lost": _since_start(lost)}
    for name in INSTANCES:
        if (metric := f"instances.memory.{name}") in rows:
            found[name] = rows[metric].astype(float)
    if {f"host.memory.{name}" for name in HOST} <= set(rows.columns):
        found["host_kernel"] = _since_start(rows[[f"host.memory.{name}" for name in HOST]].sum(axis=1, skipna=False))
    frame = pd.DataFrame(found)
    return frame[frame["lost"].notna()]


def _since_start(values: pd.Series[float]) -> pd.Series[float]:
    """Each value less that at N = 0 of its ramp; NaN where there is none."""
    start = values[values.index.get_level_values("n") == 0].droplevel("n")
    before = start.reindex(values.index.get_level_values("trial")).to_numpy(dtype=float)
    return values.astype(float) - before
