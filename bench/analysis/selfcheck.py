"""How often our statistics err, counted: what they say of themselves against what they do.

False positives: the same thing measured twice must come out different in at most the stated share of runs. Coverage:
intervals must hold the truth in at least the stated share, where the truth is known. Power: a difference that is there
must be found, or a test that never says anything would pass. Each count is held against a binomial bound, which a
procedure that keeps its word crosses once in a thousand counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct

from bench.analysis import permutation
from bench.analysis.comparison import ALPHA, HEADLINE, Row, decided
from bench.analysis.frames import Frames, Series
from bench.analysis.resampling import Floats, generator
from bench.analysis.summary import ramp_values, sample_of
from bench.metrics import METRICS

COMPARED = ("startup.ready", "launch.rate", "teardown.removed", "memory.marginal", "memory.fixed")
COVERAGE = 0.95
POWER = 0.80
_CROSSED = 0.001  # how often a procedure that keeps its word crosses its bound


class Check(Struct, frozen=True):
    """One count: of `n` chances it happened in a share of `observed`. `bound` is the last share that keeps the word."""

    kind: Literal["false positives", "coverage", "power"]
    what: str
    stated: float
    observed: float
    bound: float
    n: int

    @property
    def holds(self) -> bool:
        return self.observed <= self.bound if self.kind == "false positives" else self.observed >= self.bound


class Count:
    """Counts how often each of some names was hit. Mutable."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.chances: Counter[str] = Counter()

    def add(self, name: str, hit: bool) -> None:
        self.hits[name] += hit
        self.chances[name] += 1

    def checks(self, kind: Literal["false positives", "coverage", "power"], stated: float) -> list[Check]:
        return [check(kind, name, self.hits[name], n, stated) for name, n in self.chances.items()]


def check(kind: Literal["false positives", "coverage", "power"], what: str, hits: int, n: int, stated: float) -> Check:
    """The count with its binomial bound: from above for false positives, from below for the others."""
    from scipy import stats  # half a second to import

    share = 1 - _CROSSED if kind == "false positives" else _CROSSED
    return Check(kind, what, stated, hits / n, float(stats.binom.ppf(share, n, stated)) / n, n)


def ramps_of(tables: Frames, series: Series) -> dict[str, Floats]:
    """What each ramp gave of each metric compared here; metrics the run does not hold are left out."""
    found = {metric: ramp_values(tables, series, metric) for metric in COMPARED}
    return {metric: ramps for metric, ramps in found.items() if len(ramps)}


def compared(one: Mapping[str, Floats], other: Mapping[str, Floats], seed: int) -> list[Row]:
    """Verdicts on two sets of ramps: the same test, correction and rule as those of `bench compare`."""
    rows = []
    for metric in one.keys() & other.keys():
        ramps = one[metric], other[metric]
        p = permutation.permutation_p(*ramps, generator(seed, metric, "selftest"))
        effect = permutation.dominance(*ramps)
        unit = METRICS[metric].unit
        rows.append(Row("", "", "", metric, unit, None, None, None, p, None, effect, 0.0, "no difference shown"))
    return list(decided(sorted(rows, key=lambda row: COMPARED.index(row.metric))))


def count_verdicts(found: Iterable[Row], into: Count) -> None:
    """Every p of at most 5 % by its metric, and whether any verdict was given after correction."""
    rows = list(found)
    for row in rows:
        into.add(row.metric, row.p is not None and row.p <= ALPHA)
    for name, family in (("headline", True), ("other", False)):
        verdicts = [row.verdict != "no difference shown" for row in rows if (row.metric in HEADLINE) is family]
        into.add(f"any verdict on {name} metrics, corrected", any(verdicts))


def count_covered(tables: Frames, truths: Mapping[str, float], seed: int, label: str, into: Count) -> None:
    """Whether the interval of each metric of the run's only series holds its truth."""
    (series,) = tables.series
    for metric, truth in truths.items():
        sample = sample_of(tables, series, metric, seed)
        found = sample.estimate() if sample else None
        held = False if found is None or found.low is None or found.high is None else found.low <= truth <= found.high
        into.add(f"{metric}, {label}", held)
