"""The plan is a pure function of scenario and seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config.scenario import Count, Scenario
from bench.errors import ConfigError
from bench.model import GIB, MIB
from bench.plan import estimate, make_plan, ramp_steps, trial_seconds

ALL = ("process:default", "container:default", "vm:stock")


def scenario(rounds: int = 3, drivers: tuple[str, ...] = ALL, **count: int) -> Scenario:
    return Scenario(schema=1, name="x", drivers=drivers, rounds=rounds, count=Count(**count))


@given(seed=st.integers(0, 2**63 - 1), rounds=st.integers(1, 20), count=st.integers(1, 500), vm=st.integers(1, 50))
def test_plan_properties(seed: int, rounds: int, count: int, vm: int) -> None:
    given_scenario = scenario(rounds, default=count, vm=vm)
    plan = make_plan(given_scenario, seed)
    assert plan == make_plan(given_scenario, seed)
    assert plan.seed == seed
    assert [trial.round for trial in plan.trials] == sorted(trial.round for trial in plan.trials)
    seen = Counter((trial.round, f"{trial.driver}:{trial.profile}") for trial in plan.trials)
    assert seen == {(number, name): 1 for number in range(1, rounds + 1) for name in ALL}
    assert len(set(plan.order)) == len(plan.trials)
    for trial in plan.trials:
        assert trial.count == (vm if trial.driver == "vm" else count)
        assert (trial.steps[0], trial.steps[-1]) == (0, trial.count)
        assert all(low < high for low, high in pairwise(trial.steps))


@pytest.mark.parametrize(
    ("count", "steps"), [(1, (0, 1)), (2, (0, 1, 2)), (3, (0, 1, 2, 3)), (8, (0, 1, 2, 4, 8)), (9, (0, 1, 2, 4, 8, 9))]
)
def test_steps(count: int, steps: tuple[int, ...]) -> None:
    assert ramp_steps(count) == steps


def test_seeds_and_rounds_differ() -> None:
    plans = [make_plan(scenario(8), seed) for seed in range(5)]
    assert len({plan.order for plan in plans}) == 5
    rounds = {tuple(trial.driver for trial in plans[0].trials if trial.round == number) for number in range(1, 9)}
    assert len(rounds) > 1, "every round in the same order lets drift favour one driver"


def test_ids_and_launches() -> None:
    plan = make_plan(scenario(2, ("container:default",), default=5), 1)
    assert plan.order == ("r1-container:default", "r2-container:default")
    assert plan.launches == 2 * (1 + 5)


def test_more_launches_than_interface_names_is_refused() -> None:
    make_plan(msgspec.structs.replace(scenario(9, ("process:default",), default=100_000), warmups=0), 1)
    with pytest.raises(ConfigError, match="1,000,000 launches are more than the 999,999"):
        make_plan(msgspec.structs.replace(scenario(10, ("process:default",), default=100_000), warmups=0), 1)


def test_estimate_tells_a_minute_from_an_hour() -> None:
    density = scenario(default=64, vm=8)
    plan = make_plan(density, 1)
    tcg, kvm = estimate(plan, density), estimate(plan, density, accelerator="kvm")
    assert 60 < tcg.seconds < 600
    assert kvm.seconds < tcg.seconds
    assert GIB < tcg.memory < 3 * GIB
    assert MIB < tcg.disk < GIB
    assert sum(trial_seconds(trial, density) for trial in plan.trials) == pytest.approx(tcg.seconds)


def test_estimate_follows_the_settings() -> None:
    small = msgspec.structs.replace(scenario(vm=8), vm={"storage": "qcow2-backing"})
    plan = make_plan(small, 1)
    assert estimate(plan, small).disk < estimate(plan, scenario(vm=8)).disk
    forced = msgspec.structs.replace(small, vm={"accel": "tcg"})
    assert estimate(plan, forced, accelerator="kvm").seconds == estimate(plan, forced).seconds
    half = msgspec.structs.replace(small, limits=msgspec.structs.replace(small.limits, cpus=0.5))
    assert estimate(plan, half).seconds > estimate(plan, small).seconds


def test_estimate_counts_copies_of_a_large_image() -> None:
    shared = scenario(drivers=("container:default",), default=100)
    copied = scenario(drivers=("container:copy",), default=100)
    small, large = (estimate(make_plan(one, 1), one, image=GIB).disk for one in (shared, copied))
    assert small < 10 * GIB
    assert 100 * GIB < large < 110 * GIB
