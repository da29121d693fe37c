"""Verdicts: a difference that is there is named, one that is not is not, and nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from bench.analysis import resampling
from bench.analysis.comparison import Comparison, Row, Side, compare, decided
from bench.analysis.permutation import dominance, least_p, permutation_p, ramps_needed
from bench.errors import UsageError
from bench.model import MIB, Limits
from bench.records import TrialRecord
from bench.store import RunData
from bench.verbs.compare import compare_runs, parse_thresholds
from tests.unit.fabricated import KIB, TRUTHS, host, info, run_data
from tests.unit.test_analysis import edited
from tests.unit.test_store import written

CONTAINER = changed(TRUTHS[1], count=16)
SLOW = changed(CONTAINER, ready=1.3 * CONTAINER.ready)


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "RESAMPLES", 1_000)
        yield


def side(seed: int, *, rounds: int = 6, truth: Any = CONTAINER, **facts: object) -> Side:
    data = run_data(rounds=rounds, seed=seed, truths=(truth,))
    return Side.of(msgspec.structs.replace(data, info=info(accelerator=None), host=host(**facts)))


@pytest.fixture(scope="module")
def base() -> Side:
    return side(1)


def rows(found: Comparison) -> dict[str, Row]:
    return {row.metric: row for row in found.rows}


# --- the test ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [(4, 4), (3, 6), (5, 4)])
def test_p_agrees_with_scipy(one: int, other: int) -> None:
    rng = np.random.default_rng(one)
    a, b = rng.exponential(1, one), rng.exponential(1.5, other)
    theirs = stats.permutation_test(
        (np.log(a), np.log(b)), lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis), vectorized=True
    )
    if one == other:  # scipy doubles the smaller tail, which is the same where the distribution is symmetric
        assert permutation_p(a, b, rng) == pytest.approx(theirs.pvalue)
    assert permutation_p(a, b, rng) == pytest.approx(permutation_p(b, a, rng))


def test_many_ramps_are_drawn_and_never_give_zero() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 30), rng.normal(9, 1, 30)
    assert 0 < permutation_p(a, b, rng) < 1e-3
    assert permutation_p(a, rng.normal(0, 1, 25), rng) > 0.01


def test_equal_values_are_no_difference() -> None:
    same = np.full(6, 24576.0)
    assert permutation_p(same, same, np.random.default_rng(1)) == 1.0
    assert dominance(same, same) == 0.0


def test_what_few_ramps_can_show() -> None:
    assert least_p(3, 3) == pytest.approx(0.1)
    assert least_p(4, 4) == pytest.approx(2 / 70)
    assert least_p(3, 6) == pytest.approx(1 / 84)
    assert ramps_needed(0.05, 1) == 4
    assert dominance(np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])) == 1.0


def test_p_values_are_corrected_within_their_family() -> None:
    def row(metric: str, p: float) -> Row:
        return Row("d", "p", "x", metric, "s", None, None, None, p, None, 1.0, 0.0, "no difference shown")

    found = rows_of(
        decided([row("startup.ready", 0.02), *(row(f"startup.{name}", 0.02) for name in ("init", "kernel"))])
    )
    assert found["startup.ready"].q == pytest.approx(0.02), "one headline metric is a family of one"
    many = [row("startup.init", 0.02), *(row(name, 0.9) for name in ("startup.kernel", "memory.pss", "memory.uss"))]
    assert rows_of(decided(many))["startup.init"].q == pytest.approx(0.08)


def rows_of(found: Iterator[Row]) -> dict[str, Row]:
    return {row.metric: row for row in found}


# --- verdicts ----------------------------------------------------------------------------------------------------


def test_a_slower_start_is_worse_and_the_way_back_better(base: Side) -> None:
    slow = side(2, truth=SLOW)
    there, back = rows(compare(base, slow, {}))["startup.reply"], rows(compare(slow, base, {}))["startup.reply"]
    assert (there.verdict, back.verdict) == ("worse", "better")
    assert there.change is not None
    assert there.change.low is not None
    assert there.change.high is not None
    assert there.change.low <= 0.26 <= there.change.high, "the reply takes 0.8 ms more, in both"
    assert there.effect == 1.0
    assert there.q is not None
    assert there.p is not None
    assert there.p <= there.q <= 0.05


def test_a_higher_rate_is_better(base: Side) -> None:
    assert rows(compare(side(2, truth=SLOW), base, {}))["launch.rate"].verdict == "better"


def test_the_same_twice_is_no_difference(base: Side) -> None:
    found = compare(base, side(4), {})
    assert {row.verdict for row in found.rows} == {"no difference shown"}
    assert not found.regressed
    assert not found.incomplete


def test_unequal_numbers_of_ramps_are_compared(base: Side) -> None:
    found = rows(compare(base, side(2, rounds=9, truth=SLOW), {}))
    assert found["startup.reply"].verdict == "worse"


def test_a_change_within_the_threshold_is_no_verdict(base: Side) -> None:
    found = rows(compare(base, side(2, truth=SLOW), {"startup.reply": 0.5}))
    assert found["startup.reply"].verdict == "no difference shown"
    assert "within the threshold" in found["startup.reply"].why
    assert found["startup.ready"].verdict == "worse", "the threshold is of one metric"


def test_three_rounds_show_nothing_and_say_so() -> None:
    found = compare(side(1, rounds=3), side(2, rounds=3, truth=changed(SLOW, ready=9.0)), {})
    assert {row.verdict for row in found.rows} == {"no difference shown"}
    assert any("3 ramps against 3 give no p below 0.1" in note for note in found.notes)


@pytest.mark.parametrize(
    ("facts", "why"),
    [({"cpu_model": "Another"}, "cpu_model"), ({"cpus": 64}, "cpus"), ({"memory_total": 8 << 30}, "memory_total")],
)
def test_other_hardware_is_not_comparable(base: Side, facts: dict[str, object], why: str) -> None:
    found = compare(base, side(2, **facts), {})
    assert {row.verdict for row in found.rows} == {"not comparable"}
    assert all(why in row.why for row in found.rows)
    assert found.incomplete
    assert all(row.a and row.b for row in found.rows), "the values are shown all the same"


def test_other_software_is_noted(base: Side) -> None:
    found = compare(base, side(2, kernel="6.9", hostname="other"), {})
    assert not found.incomplete
    assert "kernel: 6.1.0-fake in A, 6.9 in B" in found.notes
    assert any(note.startswith("hostname") for note in found.notes)


def test_memory_is_not_comparable_with_a_host_that_remembers_a_crowd(base: Side) -> None:
    crowded = side(2, empty_memcg_bytes=1200 * KIB)
    there, back = compare(base, crowded, {}), compare(crowded, base, {})
    for found in (there, back):
        refused = {row.metric for row in found.rows if row.verdict == "not comparable"}
        assert refused == {"memory.marginal", "memory.residual", "memory.kernel", "memory.cgroup"}
        assert all("an empty memory cgroup cost" in row.why for row in found.rows if row.metric in refused)
        assert found.incomplete, "exit 5"


def test_what_an_empty_group_costs_is_nothing_beside_a_large_instance() -> None:
    truth = changed(TRUTHS[2], driver="container")
    found = compare(side(1, truth=truth), side(2, truth=truth, empty_memcg_bytes=1200 * KIB), {})
    assert not found.incomplete


def test_a_cost_that_only_one_run_measured_is_noted(base: Side) -> None:
    found = compare(base, side(2, empty_memcg_bytes=None), {})
    assert not found.incomplete
    assert "what an empty memory cgroup costs was measured in A only" in found.notes


def test_other_sizes_are_not_comparable(base: Side) -> None:
    large = msgspec.structs.replace(base.data, info=info(accelerator=None, limits=Limits(512 * MIB, 1.0, 64)))
    assert all("limits" in row.why for row in compare(base, Side.of(large), {}).rows)
    found = compare(base, side(2, truth=changed(CONTAINER, count=32)), {})
    assert all("N = [16] and [32]" in row.why for row in found.rows)


def test_guests_under_another_accelerator_are_not_comparable() -> None:
    guests = run_data(rounds=4, truths=(TRUTHS[2],))
    kvm = edited(msgspec.structs.replace(guests, info=info(accelerator="kvm")), TrialRecord, accelerator="kvm")
    found = compare(Side.of(guests), Side.of(kvm), {})
    assert all("accelerators differ: tcg and kvm" in row.why for row in found.rows)


def test_what_only_one_run_holds_is_a_row(base: Side) -> None:
    both = Side.of(run_data(rounds=6, truths=(TRUTHS[0], CONTAINER)))
    found = compare(base, both, {})
    alone = [row for row in found.rows if row.driver == "process"]
    assert alone
    assert {row.why for row in alone} == {"only in B"}
    assert {row.verdict for row in alone} == {"not comparable"}


# --- the verb ----------------------------------------------------------------------------------------------------


def stored(results: Path, token: str, found: Side) -> str:
    named = info(run=f"20200101-000000-density-{token}", accelerator=None)
    return str(written(results, msgspec.structs.replace(found.data, info=named)))


def test_exit_codes_and_the_table(base: Side, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = stored(tmp_path, "aaaaaa", base)
    b = stored(tmp_path, "bbbbbb", side(2, truth=SLOW))
    other = stored(tmp_path, "cccccc", side(2, cpus=64))
    assert compare_runs(a, b, (), tmp_path, False) == 4
    said = capsys.readouterr().out
    assert "startup.reply" in said
    assert "worse" in said
    assert compare_runs(b, a, (), tmp_path, False) == 0
    capsys.readouterr()
    assert compare_runs(a, b, ("90%",), tmp_path, True) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=Comparison).alpha == 0.05
    assert compare_runs(a, other, (), tmp_path, False) == 5
    assert "hosts differ: cpus" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["startup.no=5%", "startup.ready=5", "startup.ready=-1%", "fast", "memory.uss=nan%"])
def test_thresholds_are_checked(text: str) -> None:
    with pytest.raises(UsageError, match=text.partition("=")[0]):
        parse_thresholds([text])


def test_thresholds_are_shares() -> None:
    assert parse_thresholds(["startup.ready=5%", "2.5%"]) == ({"startup.ready": 0.05}, 0.025)


def test_nothing_to_compare_is_incomplete() -> None:
    empty = Side.of(RunData(info(), host(), ()))
    assert compare(empty, empty, {}).incomplete
