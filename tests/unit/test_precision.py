"""A run that goes on until it is precise: when it may end, that it says so, and that its intervals keep their word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bench.analysis import frames, quality, resampling, summarise
from bench.analysis.selfcheck import Count, count_covered
from bench.cli import cli
from bench.config.loader import load_scenario
from bench.config.options import with_options
from bench.config.scenario import Scenario, payload_for
from bench.config.written import effective_toml
from bench.drivers.synthetic import Costs, Noise
from bench.errors import ConfigError
from bench.model import RunId
from bench.plan import least_rounds, make_plan, most_rounds
from bench.precision import LEAST_ROUNDS, Judge, Precise, precision_said
from bench.records import Outcome, Precision, TrialRecord
from bench.report.build import render
from bench.runner import Runner
from bench.store import RunWriter, read_info
from bench.verbs import precise, resume, run, session
from bench.verbs.synthetic import Design, measured_until
from tests import fakes
from tests.unit.fabricated import TRUTHS, run_data

Widths = Sequence[float | None]
STARTUP = Path("scenarios/startup.toml")


def startup(**options: object) -> Scenario:
    return with_options(load_scenario(STARTUP, overrides=["drivers=['container']", "rounds=3"]), **options)  # type: ignore[arg-type]


def rounds_of(
    widths: Callable[[int], Widths], most: int = 30, least: int = 10, late: int = 999
) -> tuple[int, Precision]:
    """The last round of a run whose series are as wide as `widths` says at the end of each, and the verdict."""
    number = 0
    judge = Judge(
        Precise(0.05, most), least, lambda: {f"s{place}": one for place, one in enumerate(widths(number))},
        lambda: number >= late,
    )  # fmt: skip
    for number in range(1, most + 1):
        if number < most and judge.enough(number):
            break
    return number, judge.verdict(number)


# --- when it ends ----------------------------------------------------------------------------------------------------


def test_it_does_not_end_before_its_least_rounds_however_narrow() -> None:
    last, found = rounds_of(lambda number: [0.01])
    assert (last, found.reached, found.why) == (10, True, "precise")


def test_it_has_to_be_precise_twice_in_a_row() -> None:
    last, _ = rounds_of(lambda number: [0.01 if number in (10, 12, 15, 16) else 0.06])
    assert last == 16


def test_all_series_have_to_be() -> None:
    last, found = rounds_of(lambda number: [0.01, 0.05 if number >= 20 else 0.051])
    assert (last, found.reached) == (21, True)


@pytest.mark.parametrize("widths", [[0.06], [0.01, None], []])
def test_it_ends_at_the_most_rounds_and_says_that_it_was_not(widths: Widths) -> None:
    last, found = rounds_of(lambda number: widths)
    assert (last, found.reached, found.why) == (30, False, "rounds")


def test_the_last_round_counts_too() -> None:
    assert rounds_of(lambda number: [0.01 if number >= 29 else 0.06])[1].reached
    assert not rounds_of(lambda number: [0.01 if number >= 30 else 0.06])[1].reached


def test_it_ends_when_the_time_is_over() -> None:
    last, found = rounds_of(lambda number: [0.06], late=4)
    assert (last, found.reached, found.why) == (4, False, "time")


def test_nobody_looks_before_it_matters() -> None:
    looked: list[int] = []

    def look(number: int) -> Widths:
        looked.append(number)
        return [0.01]

    rounds_of(look)
    assert looked == [9, 10]


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_options() -> None:
    found = startup(until_precise="5%", max_rounds=40)
    assert found.precise == Precise(0.05, 40)
    assert (least_rounds(found), most_rounds(found)) == (LEAST_ROUNDS, 40)
    assert (least_rounds(startup()), most_rounds(startup())) == (3, 3)
    assert least_rounds(startup(rounds=25, until_precise="2.5 %")) == 25


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"until_precise": "5"}, "--until-precise 5: write it like 5%"),
        ({"until_precise": "much%"}, "write it like 5%"),
        ({"until_precise": "500%"}, "--until-precise: 5.0 is out of range"),
        ({"until_precise": "5%", "max_rounds": 9}, "--max-rounds: 9 is less than the 10 rounds before the first look"),
        ({"max_rounds": 40}, "--max-rounds: is of --until-precise"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        startup(**options)
    assert said in caught.value.message


def test_the_rounds_it_begins_with_are_those_of_a_run_without_it() -> None:
    plan = make_plan(startup(until_precise="5%"), 3)
    assert plan.up_to(3).trials == make_plan(startup(), 3).trials
    assert plan.trials[-1].round == 60


def test_a_dry_run_says_where_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "startup", "--until-precise", "5%", "--max-rounds", "31", "--dry-run"]
    assert cli.main(words, standalone_mode=False) == 0
    out = capsys.readouterr().out
    assert "at most 5.00% of its median wide, 31 rounds at most" in out
    assert "r20-" in out, "the scenario's own rounds"
    assert "r21-" not in out


# --- the run ---------------------------------------------------------------------------------------------------------


def test_the_runner_ends_with_a_whole_round(tmp_path: Path) -> None:
    driver, asked = fakes.FakeDriver(), list[int]()

    def enough(number: int) -> bool:
        asked.append(number)
        return number == 3

    recorder = fakes.Recorder(driver)
    scenario = fakes.scenario(tmp_path, rounds=5, count__default=1, limits__pids="64,65")
    job = replace(fakes.job(driver, recorder, scenario), enough=enough)
    Runner(job).run(recorder, [])
    assert asked == [1, 2, 3]
    assert [one.round for one in recorder.of(TrialRecord)] == [1, 1, 2, 2, 3, 3]


def test_the_synthetic_driver_is_measured_until_it_is_precise() -> None:
    """On noise of 3 % a tenth needs few rounds, a hundredth more than there are; in both the truth is found."""
    costs, noise = Costs(), Noise(launch=0.03, ramp=0.0)
    design = Design(costs={"a": costs}, noise=noise, count=2, seed=5)
    data, found = measured_until(design, Precise(0.10, 14), LEAST_ROUNDS)
    assert (found.reached, found.rounds) == (True, LEAST_ROUNDS)
    (row,) = [one for one in summarise(data).summary if one.metric == "startup.ready"]
    assert row.low is not None
    assert row.high is not None
    assert row.low <= costs.ready <= row.high
    assert (row.high - row.low) / row.median == pytest.approx(found.widths["synthetic:a"])
    _, missed = measured_until(design, Precise(0.0001, 14), LEAST_ROUNDS)
    assert (missed.reached, missed.rounds, missed.why) == (False, 14, "rounds")


@pytest.mark.slow
def test_stopping_does_not_cost_the_intervals_their_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that their own precision stopped as many hold the truth as of others, within what chance allows."""
    monkeypatch.setattr(resampling, "RESAMPLES", 1000)
    count, costs = Count(), Costs()
    for seed in range(200):
        design = Design(costs={"a": costs}, noise=Noise(launch=0.1, ramp=0.05), count=1, seed=seed)
        data, found = measured_until(design, Precise(0.12, 60), LEAST_ROUNDS)
        if found.reached:
            count_covered(frames(data), {"startup.ready": costs.ready}, seed, "stopped", count)
    (check,) = count.checks("coverage", 0.95)
    assert check.n >= 190
    assert check.holds, check


# --- what comes of it ------------------------------------------------------------------------------------------------

REACHED = Precision(0.05, True, "precise", 12, {"container:default": 0.041, "vm:stock": 0.02})
MISSED = Precision(0.05, False, "rounds", 60, {"container:default": 0.041, "vm:stock": None})


def test_it_is_said_in_words() -> None:
    assert precision_said(REACHED) == (
        "precision of 5 % of each start-up median reached after 12 rounds; widest: container:default has 4.1 %"
    )
    assert "not reached after 60 rounds (the most rounds allowed); widest: vm:stock has no interval" in (
        precision_said(MISSED)
    )


@pytest.mark.parametrize(
    ("precision", "failed", "signal", "code"),
    [
        (None, False, None, 0),
        (REACHED, False, None, 0),
        (MISSED, False, None, 5),
        (MISSED, True, None, 1),
        (None, False, 2, 130),
    ],
)
def test_exit_status(precision: Precision | None, failed: bool, signal: int | None, code: int) -> None:
    trial = next(one for one in run_data(rounds=1, truths=TRUTHS[:1]).records if isinstance(one, TrialRecord))
    trials = [msgspec.structs.replace(trial, outcome=Outcome.FAILED)] if failed else [trial]
    assert session.Outcomes(RunId("r"), Path(), trials, signal, precision).exit_code == code


def test_the_run_keeps_it_and_those_who_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = run_data(rounds=2, truths=tuple(replace(truth, count=2) for truth in TRUTHS[:1]))
    with RunWriter(tmp_path, data.info, data.host) as writer:
        for record in data.records:
            writer.append(record)
        writer.finish("done", 1.0, precision=MISSED)
    monkeypatch.setattr("bench.report.build.figures", lambda scene: [])
    for kept in (MISSED, REACHED):
        told = msgspec.structs.replace(data, info=msgspec.structs.replace(data.info, precision=kept))
        doubts = [one for one in quality(told, summarise(told)) if "precision of" in one.message]
        assert len(doubts) == (not kept.reached)
        assert precision_said(kept) in render(told)
    assert read_info(writer.path).precision == MISSED


def test_widths_are_those_of_the_headline() -> None:
    found = summarise(run_data(rounds=3, truths=tuple(replace(truth, count=2) for truth in TRUTHS[:2])))
    widths = precise.widths(found, ["process:default", "container:default", "vm:stock"])
    row = next(one for one in found.summary if (one.driver, one.metric) == ("container", "startup.reply"))
    assert row.low is not None
    assert row.high is not None
    assert widths["container:default"] == (row.high - row.low) / row.median
    assert widths["vm:stock"] is None, "not launched, or never ready"


def test_a_run_that_can_t_be_measured_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    judge = precise.judge(startup(until_precise="5%"), tmp_path / "missing", None)
    assert not judge.enough(10)
    assert "precision can't be told" in caplog.text


def test_one_that_had_ended_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_STATE", str(tmp_path / "state"))
    scenario = startup(until_precise="5%", seed=1)
    data = run_data(rounds=1, truths=TRUTHS[1:2])
    info = msgspec.structs.replace(
        data.info, scenario_toml=effective_toml(scenario), plan=make_plan(scenario, 1).order, seed=1,
        payload=payload_for(scenario),
    )  # fmt: skip
    with RunWriter(tmp_path, info, data.host) as writer:
        writer.finish("done", 1.0, precision=REACHED)
    options = run.Options(None, None, None, None, None, None, ())
    assert resume.request(str(writer.path), None, options, tmp_path, None).plan.trials == ()
