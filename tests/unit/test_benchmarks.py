"""A bound that cannot break is none: the judge of the benchmarks, on made-up times."""

from __future__ import annotations

import pytest

from benchmarks import sampling, vm_scale
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


def test_a_crowd_of_guests_is_judged_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    few = vm_scale.Check("guests alive", 59, 60, at_least=True)
    assert vm_scale.tell([few]) == 1
    assert vm_scale.tell([vm_scale.Check("guests left", 1, 0)]) == 1
    assert vm_scale.tell([vm_scale.Check("guests left", 0, 0), few._replace(value=60)]) == 0
    assert capsys.readouterr().out.count("BROKEN") == 2


def test_who_holds_the_guests_says_so_or_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    said = ["  100 alive\n", "held: 20261124-000000-vm-aaaaaa 1\n", "never read\n"]
    assert vm_scale.listen(said) == ("20261124-000000-vm-aaaaaa", 1)
    assert vm_scale.listen(said[:1]) is None
    assert "never" not in capsys.readouterr().out


def test_a_sample_that_takes_too_long_breaks_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    quick = sampling.Cost({"footprints": 0.1, "memory": 0.9}, cpu=0.8, readings=30)
    slow = sampling.Cost({"footprints": 0.1, "memory": 3.1}, cpu=0.8, readings=30)
    assert sampling.verdict([quick, quick, quick], 1000) == 0
    assert sampling.verdict([quick, quick, slow], 1000) == 1
    assert "BROKEN  the slowest of them = 3.2 s" in capsys.readouterr().out
    busy = sampling.Cost(quick.parts, cpu=3.5, readings=30)
    assert sampling.verdict([busy], 1000) == 1
