"""Whether a sample is two clusters rather than one."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from bench.analysis.resampling import Floats

LEAST = 20  # values
SHARE = 0.1  # of the values, at least, in the smaller cluster
APART = 4.0  # Ashman's D: distance of the means over their spread; 2.7 for the halves of a normal, 3.5 of a uniform


class Modes(Struct, frozen=True):
    """Medians of the two clusters, and the share of the values in the slower one."""

    fast: float
    slow: float
    share: float


def two_modes(values: Floats) -> Modes | None:
    """The best split of positive `values`, on logarithms, if its halves lie far apart for their spread; else None."""
    ordered = np.sort(values[values > 0])
    if len(ordered) < LEAST:
        return None
    cut = _best_cut(np.log(ordered))
    low, high = ordered[:cut], ordered[cut:]
    if min(len(low), len(high)) < SHARE * len(ordered):
        return None
    spread = np.sqrt((np.var(np.log(low)) + np.var(np.log(high))) / 2)
    if np.log(high).mean() - np.log(low).mean() <= APART * spread:
        return None
    return Modes(float(np.median(low)), float(np.median(high)), len(high) / len(ordered))


def _best_cut(ordered: Floats) -> int:
    """Where to cut sorted values so that the squares within both parts are least (Otsu's rule)."""
    count = len(ordered)
    sizes = np.arange(1, count)
    sums = np.cumsum(ordered)[:-1]
    between = (sums - sizes * ordered.mean()) ** 2 / (sizes * (count - sizes))
    return int(np.argmax(between)) + 1
