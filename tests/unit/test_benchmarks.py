"""A bound that cannot break is none: the judge of the benchmarks, on made-up times."""

from __future__ import annotations

import pytest

from benchmarks.interleaved import Bound, judge, race, report, table

TIMES = {"ours": [1.4, 1.5, 1.6] * 20, "floor": [0.9, 1.0, 1.1] * 20}


def test_a_bound_that_holds_and_one_that_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([judge(Bound("ours", "floor", 1.6), TIMES)]) == 0
    assert report([judge(Bound("ours", "floor", 1.6), TIMES), judge(Bound("ours", "floor", 1.4), TIMES)]) == 1
    assert "BROKEN  ours / floor = 1.5" in capsys.readouterr().out


def test_the_interval_holds_the_ratio() -> None:
    verdict = judge(Bound("ours", "floor", 2), TIMES)
    assert verdict.ratio == pytest.approx(1.5)
    assert verdict.low <= verdict.ratio <= verdict.high


def test_contestants_take_turns_and_each_runs_as_often_as_asked() -> None:
    order: list[str] = []

    def contestant(name: str) -> float:
        order.append(name)
        return 1.0

    times = race({"a": lambda: contestant("a"), "b": lambda: contestant("b")}, {"a": 20, "b": 10}, seed=3)
    assert {name: len(values) for name, values in times.items()} == {"a": 20, "b": 10}
    raced = order[4:]
    assert "b" in raced[:6], "the rarer one is spread over the whole race"
    assert "b" in raced[-6:]
    assert "a" in table(times, "b")
