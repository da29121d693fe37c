"""The synthetic driver goes through the real pipeline; its truths come back; a broken statistic is caught."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bench.analysis import comparison, frames, permutation, quality, resampling, selfcheck, summarise
from bench.analysis.resampling import Floats
from bench.analysis.selfcheck import Check, check
from bench.config.profiles import split_driver
from bench.drivers.registry import driver_names
from bench.drivers.synthetic import NONE, Costs
from bench.errors import ConfigError
from bench.records import LaunchRecord, TeardownRecord
from bench.report.build import render
from bench.store import read_run
from bench.verbs import selftest
from bench.verbs.synthetic import Design, measured, written

COSTS = Costs()


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Enough for what is asserted here; tests/integration/test_statistics.py counts at length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "RESAMPLES", 400)
        yield


def test_without_noise_every_cost_comes_back_to_the_byte() -> None:
    data = measured(Design(noise=NONE, rounds=2, count=8, warmups=1))
    found = {row.metric: row.median for row in summarise(data).summary}
    expected = {
        "startup.created": COSTS.created, "startup.started": COSTS.started, "startup.ready": COSTS.ready,
        "launch.rate": 1 / COSTS.ready, "launch.cpu": COSTS.cpu, "density.alive": 8, "memory.marginal": COSTS.marginal,
        "memory.fixed": COSTS.fixed, "memory.pss": COSTS.pss, "memory.uss": 0.9 * COSTS.pss,
        "memory.kernel": COSTS.kernel, "memory.cgroup": COSTS.pss + COSTS.kernel, "disk.marginal": COSTS.disk,
        "memory.residual": COSTS.marginal - COSTS.pss - COSTS.kernel, "disk.shared": COSTS.shared,
        "disk.claimed": COSTS.disk + COSTS.shared, "teardown.stopped": COSTS.stopped, "teardown.removed": COSTS.removed,
    }  # fmt: skip
    assert found == pytest.approx(expected)


def test_the_run_survives_the_store_and_is_marked_in_every_output(tmp_path: Path) -> None:
    design = Design(rounds=3, count=4)
    data = read_run(written(design, tmp_path))
    kept = {type(record): 0 for record in data.records}
    for record in data.records:
        kept[type(record)] += 1
    assert (kept[LaunchRecord], kept[TeardownRecord]) == (12, 12)
    alone = measured(design)
    assert [_undated(one) for one in data.records if isinstance(one, LaunchRecord)] == [
        _undated(one) for one in alone.records if isinstance(one, LaunchRecord)
    ]
    page = render(data)
    assert "Synthetic: no instance ran, every number of this run is made up" in page
    assert "<h1>Synthetic" in page
    assert quality(data, summarise(data))[0].message.startswith("Synthetic")
    assert {row.driver for row in summarise(data).summary} == {"synthetic"}


def _undated(record: LaunchRecord) -> Any:
    return msgspec.structs.replace(record, date=0.0)


def test_it_is_never_listed_among_the_real_ones() -> None:
    assert "synthetic" not in driver_names()
    with pytest.raises(ConfigError):
        split_driver("synthetic")


def test_the_same_seed_is_the_same_run() -> None:
    one, other = (frames(measured(Design(seed=7))).launches["ready"] for _ in range(2))
    assert list(one) == list(other)
    assert list(one) != list(frames(measured(Design(seed=8))).launches["ready"])


def broken(checks: Sequence[Check]) -> list[str]:
    return [f"{one.kind} {one.what}: {one.observed:.3f}" for one in checks if not one.holds]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    assert broken(selftest.coverage(25, seed=1)) == []


def test_the_same_driver_twice_differs_as_seldom_as_stated() -> None:
    assert broken(selftest.false_positives(40, seed=1)) == []


def test_a_difference_that_is_there_is_found() -> None:
    assert broken(selftest.power(20, seed=1)) == []


def careless(one: Floats, other: Floats, rng: np.random.Generator) -> float:
    """A test that takes the standard error for half of what it is."""
    gap = abs(one.mean() - other.mean())
    error = np.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)) / 2
    return float(0.01 if gap > 2 * error else 0.5)


def test_a_broken_test_statistic_is_caught(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(permutation, "permutation_p", careless)
    monkeypatch.setattr(selftest, "COVERED_ROUNDS", (3,))
    assert selftest.synthetic(30, 1, as_json=False) == 1
    said = capsys.readouterr().out
    assert "BROKEN" in said
    assert "synthetic: no instance ran" in said


def test_a_test_that_never_says_anything_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "permutation_p", lambda *_: 1.0)
    assert len(broken(selftest.power(20, seed=1))) == 2
    assert broken(selftest.false_positives(20, seed=1)) == []


def test_an_interval_that_is_too_narrow_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "sample_of", _halved(selfcheck.sample_of))
    monkeypatch.setattr(selftest, "COVERED_ROUNDS", (6,))
    assert broken(selftest.coverage(25, seed=1))


def _halved(sample_of: Any) -> Any:
    def narrow(*arguments: Any) -> Any:
        sample = sample_of(*arguments)
        return msgspec.structs.replace(sample, draws=sample.value + (sample.draws - sample.value) / 3)

    return narrow


@pytest.mark.parametrize(
    ("kind", "hits", "holds"),
    [("false positives", 50, True), ("false positives", 80, False), ("coverage", 950, True), ("coverage", 920, False)],
)
def test_counts_are_held_against_a_binomial_bound(kind: Any, hits: int, holds: bool) -> None:
    stated = comparison.ALPHA if kind == "false positives" else selfcheck.COVERAGE
    assert check(kind, "", hits, 1000, stated).holds is holds


def test_halves_take_one_ramp_of_each_pair() -> None:
    ramps = {"startup.ready": np.arange(8.0), "launch.rate": np.arange(7.0)}
    one, other = selftest._halves(ramps, seed=3)
    assert sorted([*one["startup.ready"], *other["startup.ready"]]) == list(range(8))
    assert sorted([*one["launch.rate"], *other["launch.rate"]]) == list(range(7))
    assert {value // 2 for value in one["startup.ready"]} == {0, 1, 2, 3}
