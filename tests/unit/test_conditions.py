"""Conditions: what several values of a key make of the plan, and that no number is pooled over two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click.testing
import msgspec
import pytest

from bench.analysis import frames, headline, summarise
from bench.analysis.comparison import Side, compare
from bench.analysis.headline import ratios
from bench.analysis.tables import table
from bench.cli import cli
from bench.config.loader import load_scenario, parse_scenario
from bench.config.options import with_options
from bench.config.scenario import Scenario, payload_for
from bench.config.written import effective_toml
from bench.errors import ConfigError, UsageError
from bench.model import Condition, InstanceSpec, condition_text, to_json
from bench.plan import estimate, make_plan
from bench.records import LaunchRecord, NoteRecord, Record, StepRecord, TrialRecord
from bench.report.build import render
from bench.runner import Runner
from bench.store import RunData, RunWriter
from bench.sweep import all_conditions, conditions, split_values
from bench.variants import Variants
from bench.verbs import resume
from bench.verbs.run import Options
from bench.verbs.show import print_summary
from tests import fakes
from tests.unit.fabricated import TRUTHS, run_data

LEAST = 'schema = 1\nname = "s"\nrounds = 2\ncount.default = 4\npayload = "touch"\n'


def scenario(*overrides: str, text: str = LEAST) -> Scenario:
    return parse_scenario(text, "s.toml", overrides=overrides)


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0,16, 64", ["0", "16", "64"]),
        ("[1,10,100]", ["[1,10,100]"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ('"a,b"', ['"a,b"']),
        ("'a,b',c", ["'a,b'", "c"]),
        ("{a=1,b=2}", ["{a=1,b=2}"]),
        ("512 MiB,1 GiB", ["512 MiB", "1 GiB"]),
        ("one", ["one"]),
    ],
)
def test_commas_divide_values_outside_quotes_and_brackets(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_several_values_are_a_sweep_and_a_list_is_one_value() -> None:
    found = scenario("payload.touch_mib=0,16", "limits.memory=512 MiB,1GiB", "steps=[1,2]")
    assert found.sweep == {"payload.touch_mib": ("0", "16"), "limits.memory": ("512 MiB", "1 GiB")}
    assert found.steps == (1, 2)


def test_a_file_can_hold_a_sweep_in_either_way_of_toml() -> None:
    quoted = scenario(text=LEAST + '[sweep]\n"payload.touch_mib" = [0, 16]\n')
    assert quoted.sweep == scenario(text=LEAST + "sweep.payload.touch_mib = [0, 16]\n").sweep
    assert quoted == scenario("payload.touch_mib=0,16")


def test_the_last_word_on_a_key_counts() -> None:
    assert scenario("payload.touch_mib=0,16", "payload.touch_mib=8").sweep == {}
    assert scenario("payload.touch_mib=8", "payload.touch_mib=0,16").sweep == {"payload.touch_mib": ("0", "16")}


def test_it_survives_its_own_toml_and_further_options() -> None:
    swept = scenario("payload.touch_mib=0,16", "vm.thp=true,false")
    assert parse_scenario(effective_toml(swept), "again") == swept
    assert with_options(swept, rounds=5).sweep == swept.sweep


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["title=a, b"], "title: can't be varied within a run"),
        (["image=a,b"], "image: can't be varied"),
        (["rounds=1,2"], "rounds: can't be varied"),
        (["steps=1,10"], "steps: can't be varied within a run: it is a list itself"),
        (["reserve.memory=1 GiB,2 GiB"], "reserve.memory: can't be varied"),
        (["vm.accel=kvm,tcg"], "vm.accel: can't be varied within a run: a run has one accelerator"),
        (["vm.storage=copy,nope"], "vm.storage: 'nope' is not allowed"),
        (["limits.memory=1 GiB,1024 MiB"], "limits.memory: 1 GiB, 1024 MiB has a value twice"),
        (["limits.memory=256 MiB,512 MiB", "payload.touch_mib=0,200"], "200 is more than half of limits.memory"),
        (["payload=idle", "payload.touch_mib=0,16"], "payload: what is varied is of payload touch alone"),
        (["drivers=['container']", "vm.thp=true,false"], "vm.thp: can't be varied: no driver of this run"),
        (["to_limit.on=true", "count.default=1,2"], "count.default: to the limit there is no number to vary"),
        (["limits.pids=" + ",".join(map(str, range(10, 120)))], "110 conditions of one driver are more than 100"),
        (["kind='battery'", "limits.pids=64,65"], "nothing can be varied in a scenario of kind battery"),
    ],
)
def test_what_can_t_be_varied_is_refused_by_name(overrides: Sequence[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(*overrides)
    assert said in caught.value.message


def test_count_of_the_command_line_does_not_go_with_a_varied_one() -> None:
    with pytest.raises(ConfigError, match=r"--count: count\.default is varied"):
        with_options(scenario("count.default=1,2"), count=8)


# --- what is planned -------------------------------------------------------------------------------------------------


def test_every_driver_runs_the_combinations_of_what_concerns_it() -> None:
    swept = scenario("payload.touch_mib=0,16", "vm.thp=true,false", "count.vm=1,2")
    assert [condition_text(one) for one in conditions(swept, "container")] == [
        "payload.touch_mib=0", "payload.touch_mib=16",
    ]  # fmt: skip
    assert len(conditions(swept, "vm")) == 2 * 2 * 2
    assert len(all_conditions(swept, ["container", "vm"])) == 2 + 8
    assert all_conditions(scenario(), ["container", "vm"]) == ()


def test_count_default_is_not_for_a_driver_with_its_own() -> None:
    swept = scenario("count.default=1,2", "count.vm=3")
    assert (len(conditions(swept, "container")), conditions(swept, "vm")) == (2, [{}])


def test_conditions_are_shuffled_within_each_round_with_the_drivers() -> None:
    swept = scenario("payload.touch_mib=0,16,64", "drivers=['container','process']", "rounds=20")
    plan = make_plan(swept, seed=7)
    assert len(plan.trials) == 20 * 2 * 3
    rounds = [[one.id.partition("-")[2] for one in plan.trials if one.round == number] for number in range(1, 21)]
    assert all(sorted(one) == sorted(rounds[0]) for one in rounds), "each once a round"
    assert len({tuple(one) for one in rounds}) > 10, "in an order of its own"
    assert plan == make_plan(swept, seed=7)
    assert plan.trials[0].id == f"r1-{plan.trials[0].driver}:default [{condition_text(plan.trials[0].condition)}]"
    assert len({one.first for one in plan.trials}) == len(plan.trials), "no instance number twice"


def test_without_a_sweep_the_plan_is_what_it_was() -> None:
    plan = make_plan(scenario(), seed=1)
    assert plan.order == tuple(f"r{one.round}-{one.driver}:{one.profile}" for one in plan.trials)


def test_a_trial_and_its_estimate_take_the_keys_of_its_condition() -> None:
    swept = scenario("count.default=2,64", "drivers=['container']", "rounds=1")
    plan = make_plan(swept, seed=1)
    assert sorted(one.count for one in plan.trials) == [2, 64]
    alone = scenario("count.default=2", "drivers=['container']", "rounds=1")
    assert estimate(plan, swept).seconds > 2 * estimate(make_plan(alone, 1), alone).seconds
    assert Variants(swept).of({"count.default": "64"}).count.default == 64


# --- what is run -----------------------------------------------------------------------------------------------------


class Noting(fakes.FakeDriver):
    """Remembers what it was prepared for."""

    def __init__(self) -> None:
        super().__init__()
        self.specs: list[InstanceSpec] = []

    def prepare(self, spec: InstanceSpec) -> None:
        self.specs.append(spec)


def test_a_launch_has_the_keys_of_its_condition_and_its_records_say_so(tmp_path: Path) -> None:
    driver = Noting()
    recorder = fakes.Recorder(driver)
    swept = fakes.scenario(tmp_path, limits__pids="64,128", payload="touch", payload__touch_mib="0,16")
    runner = Runner(fakes.job(driver, recorder, swept))
    runner.prepare()
    runner.run(recorder, [])
    made = {(spec.limits.pids, spec.payload.env["TOUCH_MIB"]) for spec in driver.specs}
    assert made == {(64, "0"), (64, "16"), (128, "0"), (128, "16")}, "prepared once for each"
    assert {condition_text(one.condition) for one in recorder.records if not isinstance(one, NoteRecord)} == {
        f"limits.pids={pids},payload.touch_mib={size}" for pids in (64, 128) for size in (0, 16)
    }
    assert len(recorder.of(TrialRecord)) == 4


def test_a_run_that_was_cut_short_goes_on_with_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_STATE", str(tmp_path / "state"))
    swept = scenario("payload.touch_mib=0,16", "drivers=['container']", "seed=3")
    plan = make_plan(swept, 3)
    data = run_data(rounds=1, truths=TRUTHS[1:2])
    ended = next(one for one in data.records if isinstance(one, TrialRecord))
    info = msgspec.structs.replace(
        data.info, scenario_toml=effective_toml(swept), plan=plan.order, seed=3, payload=payload_for(swept)
    )
    with RunWriter(tmp_path, info, data.host) as writer:
        writer.append(msgspec.structs.replace(ended, trial=plan.order[0], condition=plan.trials[0].condition))
    options = Options(None, None, None, None, None, None, ("payload.touch_mib=0,16",))
    left = resume.request(str(writer.path), None, options, tmp_path, None)
    assert left.plan.order == plan.order[1:]
    other = Options(None, None, None, None, None, None, ("payload.touch_mib=0,64",))
    with pytest.raises(UsageError, match="of another scenario"):
        resume.request(str(writer.path), None, other, tmp_path, None)


# --- what is made of it ----------------------------------------------------------------------------------------------

SMALL: Condition = {"payload.touch_mib": "4"}
LARGE: Condition = {"payload.touch_mib": "16"}


def _in(record: Record, condition: Condition, factor: float) -> Record:
    """The same record under `condition`, everything launched taking `factor` times as long."""
    if isinstance(record, NoteRecord):
        return record
    trial = f"{record.trial} [{condition_text(condition)}]"
    changed = msgspec.structs.replace(record, trial=trial, condition=condition)
    if isinstance(changed, LaunchRecord):
        return msgspec.structs.replace(changed, phases={name: int(ns * factor) for name, ns in changed.phases.items()})
    return changed


@pytest.fixture(scope="module")
def plain() -> RunData:
    return run_data(truths=tuple(replace(truth, count=4) for truth in TRUTHS))


@pytest.fixture(scope="module")
def varied(plain: RunData) -> RunData:
    """The fabricated run under two conditions, one of which takes ten times as long to start; records interleaved."""
    records = tuple(
        _in(record, condition, factor)
        for record in plain.records
        for condition, factor in ((LARGE, 10.0), (SMALL, 1.0))
    )
    info = msgspec.structs.replace(plain.info, conditions=(SMALL, LARGE))
    return msgspec.structs.replace(plain, info=info, records=records)


def test_numbers_of_two_conditions_are_never_pooled(plain: RunData, varied: RunData) -> None:
    alone = {(row.driver, row.metric): row for row in summarise(plain).summary}
    rows = summarise(varied).summary
    assert len(rows) == 2 * len(alone)
    for row in rows:
        base = alone[row.driver, row.metric]
        slower = 10 if row.condition == "payload.touch_mib=16" and row.metric.startswith("startup.") else 1
        assert row.n == base.n
        assert row.median == pytest.approx(base.median * slower, rel=1e-6), row


def test_series_stand_in_the_order_of_the_sweep(varied: RunData) -> None:
    names = [one.name for one in frames(varied).series]
    assert names[:2] == ["process:default [payload.touch_mib=4]", "process:default [payload.touch_mib=16]"]
    assert len(names) == 6


def test_drivers_are_compared_under_the_same_condition(varied: RunData) -> None:
    found = ratios(varied, ("startup.ready",))
    assert len(found) == 2 * 2
    assert all(one.upper.condition == one.lower.condition for one in found)


def test_a_key_that_only_one_driver_varies_is_no_bar(plain: RunData) -> None:
    """Guests under two conditions of their own, both against the containers, which have none."""
    records = [
        _in(one, condition, 1.0) if not isinstance(one, NoteRecord) and one.driver == "vm" else one
        for one in plain.records
        for condition in ({"vm.thp": "true"}, {"vm.thp": "false"})
    ]
    found = ratios(msgspec.structs.replace(plain, records=tuple(records)), ("startup.ready",))
    assert sorted(one.upper.condition for one in found if one.upper.driver == "vm") == ["vm.thp=false", "vm.thp=true"]
    assert {one.lower.driver for one in found} == {"container", "process"}


def test_a_comparison_of_two_runs_has_a_row_for_each(plain: RunData, varied: RunData) -> None:
    same = compare(Side.of(varied), Side.of(varied), {})
    assert not same.incomplete
    assert {row.condition for row in same.rows} == {"payload.touch_mib=4", "payload.touch_mib=16"}
    other = compare(Side.of(plain), Side.of(varied), {})
    assert {row.verdict for row in other.rows} == {"not comparable"}, "one condition is not another"


@pytest.mark.parametrize("name", ["launches", "teardowns", "readings", "trials", "summary"])
def test_tables_have_it_as_a_column(varied: RunData, plain: RunData, name: str) -> None:
    assert set(table(varied, name)["condition"]) == {"payload.touch_mib=4", "payload.touch_mib=16"}
    assert set(table(plain, name)["condition"]) == {""}


def test_what_people_read_names_it(
    varied: RunData, plain: RunData, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.report.build.figures", lambda scene: [])  # their names are those of the tables
    page = render(varied)
    assert "vm:stock [payload.touch_mib=16]" in page
    with RunWriter(tmp_path, varied.info, varied.host) as writer:
        for record in varied.records:
            writer.append(record)
        writer.finish("done", 1.0)
    for full in (True, False):
        print_summary(writer.path, full=full)
        assert "container:default [payload.touch_mib=4]" in capsys.readouterr().out
    assert b"container:default [payload.touch_mib=4] httpd ready" in (writer.path / "startup.pyperf.json").read_bytes()
    assert not any("[" in row.series.name for row in headline(summarise(plain), plain))


def test_records_are_read_back_with_it(varied: RunData) -> None:
    step = next(one for one in varied.records if isinstance(one, StepRecord))
    assert msgspec.json.decode(to_json(step), type=StepRecord) == step


def test_the_plan_is_shown_with_it() -> None:
    words = ["run", "density", "--drivers", "container", "--rounds", "1", "--set", "limits.pids=64,128", "--dry-run"]
    result = click.testing.CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert "r1-container:default [limits.pids=64]" in result.output
    assert "r1-container:default [limits.pids=128]" in result.output


def test_density_shows_how_to_write_one() -> None:
    text = Path("scenarios/density.toml").read_text().replace('# "limits.pids" =', '"limits.pids" =')
    assert parse_scenario(text, "density.toml").sweep == {"limits.pids": ("64", "128")}
    assert load_scenario(Path("scenarios/density.toml")).sweep == {}
