"""Neighbours: who stands beside whom, what an experiment keeps, and what is made of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.analysis.dearest import dearest, simultaneous
from bench.analysis.isolation import Target
from bench.analysis.neighbours import Losses, Neighbourly, Row, neighbours, sound
from bench.analysis.tables import table
from bench.config.find import find_scenario
from bench.config.loader import load_scenario
from bench.config.scenario import BUILTIN_PAYLOADS
from bench.drivers.base import Instance
from bench.errors import CommandError, ConfigError, Interrupted, LaunchError
from bench.levels import RAISED, Neighbours
from bench.limiters import Stop
from bench.linux.http_load import Answer
from bench.model import MIB, Completed, Footprint, HttpCheck, InstanceSpec, Limits, PhaseLog, ProcessSettings
from bench.neighbourhood import Kit, Measured, Neighbourhood
from bench.plan import Trial, estimate, make_plan
from bench.probes.neighbours.cells import Cell, amount, cells
from bench.probes.neighbours.uses import Charged, charge_of, uses
from bench.probes.neighbours.work import FEW, of_answers, pressed, times_of, worked
from bench.records import Beside, LimitsOf, NeighbourRecord, Outcome, Press, Record, TrialRecord, Use, Victim
from bench.report.build import render
from bench.store import RunData
from bench.verbs.show_neighbours import print_neighbours
from tests.fakes import IMAGE, RUN, FakeDriver, FakeInstance
from tests.unit.fabricated import host, info

READY_BY_A_PORT = ("payload=web", "payloads.web.command=['a']", "payloads.web.ready.port=80")
TRIAL = Trial("r1-container:default", 1, "container", "default", "neighbours", 64, (), 0, 1)


# --- the scenario and its plan ---------------------------------------------------------------------------------------


def test_every_victim_has_both_controls_and_every_aggressor_both_limits() -> None:
    found = cells(Neighbours(), "seed")
    assert len(found) == len(set(map(repr, found))) == 4 * (2 + 6 * 2) == Neighbours().experiments
    assert {one.aggressor for one in found if one.victim == "disk"} >= {"none", "polite", "send", "receive"}
    assert found == cells(Neighbours(), "seed") != cells(Neighbours(), "another")


def test_an_aggressor_asks_for_more_than_is_declared_and_less_than_is_raised() -> None:
    declared = Limits()
    assert declared.memory // MIB < amount("memory", declared, RAISED) < RAISED.memory // MIB
    assert declared.pids < amount("fork", declared, RAISED) < RAISED.pids
    assert amount("cpu", declared, RAISED) > RAISED.cpus
    assert amount("cpu", declared, Limits(cpus=1000.0)) == 64, "bounded on any host"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("drivers=['container:pooled']", "for ramps"),
        ("to_limit.on=true", "ramp"),
        ("raised.cpus=0.5", "more than limits.cpus"),
        ("raised.memory=256 MiB", "more than limits.memory"),
        ("neighbours.victims=['cpu', 'cpu']", "each once"),
        ("neighbours.aggressors=[]", "at least one"),
        ("neighbours.window=1 min", "out of range"),
    ],
)
def test_a_scenario_that_could_show_nothing_is_refused(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_scenario(find_scenario("neighbours"), overrides=[change])


def test_the_scenario_is_one_trial_a_driver_and_round() -> None:
    chosen = load_scenario(find_scenario("neighbours"))
    plan = make_plan(chosen, seed=1)
    assert {trial.kind for trial in plan.trials} == {"neighbours"}
    assert len(plan.trials) == 3 * chosen.rounds
    assert plan.trials[0].most == 3
    assert 600 < estimate(plan, chosen).seconds < 7200


def test_an_instance_without_a_network_works_beside_those_that_need_none() -> None:
    drivers = ["drivers=['container:strict']", "rounds=1"]
    chosen = load_scenario(find_scenario("neighbours"), overrides=drivers)
    assert chosen.neighbours.unconnected == 3 * (2 + 4 * 2)
    seconds = {
        name: estimate(plan, one).seconds
        for name, one in {
            "none": chosen,
            "bridge": load_scenario(find_scenario("neighbours"), overrides=[*drivers, "container.network=bridge"]),
        }.items()
        if (plan := make_plan(one, seed=1))
    }
    assert seconds["none"] < seconds["bridge"], "what can't be made takes no time"
    with pytest.raises(ConfigError, match=r"neighbours\.victims: container:strict has no network"):
        load_scenario(find_scenario("neighbours"), overrides=[*drivers, "neighbours.victims=['httpd']"])
    with pytest.raises(ConfigError, match=r"ready\.port needs a network"):
        load_scenario(find_scenario("neighbours"), overrides=[*drivers, *READY_BY_A_PORT])


# --- answers ---------------------------------------------------------------------------------------------------------


def test_failed_requests_are_slower_than_any() -> None:
    found = of_answers([Answer(0, 0.001)] * 9 + [Answer(0, None), Answer(1, 5.0)], 0)
    assert (found.n, found.failed) == (10, 1)
    assert found.quantiles["0.5"] == 0.001
    assert "0.99" not in found.quantiles
    assert found.values == (0.001,) * 9


def test_many_values_are_kept_as_quantiles() -> None:
    found = times_of([float(value) for value in range(FEW)])
    assert found.values == ()
    assert found.quantiles == {"0": 0.0, "0.5": 499.0, "0.9": 899.0, "0.99": 989.0, "1": 999.0}


def test_what_a_load_program_says_is_read_or_refused() -> None:
    assert worked(["w"], Completed(0, '{"took":[1,2]}\n', "")).took == (1, 2)
    assert pressed(["p"], Completed(0, '{"missing":"no disk"}', "")).missing == "no disk"
    with pytest.raises(CommandError, match="exit status 137"):
        worked(["w"], Completed(137, "", ""))
    with pytest.raises(CommandError, match="nothing was said"):
        pressed(["p"], Completed(0, "", ""))


def test_groups_of_both_kinds_are_read_and_those_missing_are_absent(tmp_path: Path) -> None:
    for name, text in {"m/memory.usage_in_bytes": "7", "u/memory.current": "8", "u/pids.current": "3"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    one = charge_of(Footprint("i", cgroups={"memory": "/m"}), lambda footprint: None, tmp_path)()
    two = charge_of(Footprint("i", cgroups={"unified": "/u"}), lambda footprint: 0.5, tmp_path)()
    assert (one.cpu, one.memory, one.pids) == (None, 7, None)
    assert (two.cpu, two.memory, two.pids) == (0.5, 8, 3)


def test_uses_are_those_of_the_window() -> None:
    found = [Charged(at / 10, at / 20, 100 * at, None) for at in range(20)]
    by_limit = {one.limit: one for one in uses(found, Limits(memory=1000, cpus=0.4), 0.35, 1.05)}
    assert set(by_limit) == {"cpus", "memory"}
    assert by_limit["cpus"].mean == pytest.approx(0.5)
    assert by_limit["memory"].most == 1000
    assert len(by_limit["memory"].values) == 7


# --- a trial ---------------------------------------------------------------------------------------------------------


class Neighbour(FakeInstance):
    """Works 20 ms; presses until that is over, or, `lazy`, not at all."""

    driver: Street

    def __init__(self, driver: Street, spec: InstanceSpec, phases: PhaseLog) -> None:
        super().__init__(driver, spec, phases)
        self.address = "127.0.0.1" if driver.networked else None

    def exec(self, argv: Sequence[str], *, timeout: float) -> Completed:
        self.driver.said.append((self.spec.number, self.spec.limits, list(argv[1:])))
        verb, kind, _ = argv[1:4]
        if verb == "press":
            return self._press(kind)
        if self.driver.interrupts:
            raise Interrupted(2)
        time.sleep(0.02)
        self.driver.worked.set()
        took = 2_000_000 if self.driver.pressing else 1_000_000
        return Completed(0, json.dumps({"took": [took] * 5}), "")

    def _press(self, kind: str) -> Completed:
        if kind in self.driver.kills:
            self.running = False
            raise LaunchError("it has ended")
        if not self.driver.lazy:
            self.driver.pressing = True
            self.driver.worked.wait(2)
            self.driver.pressing = False
            self.driver.worked.clear()
        return Completed(0, '{"amount":4.0,"unit":"things","refused":1}', "")

    def kill(self) -> None:
        super().kill()
        self.driver.events.append(f"kill {self.spec.number}")
        self.driver.worked.set()


class Street(FakeDriver):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[int, Limits, list[str]]] = []
        self.worked = threading.Event()
        self.pressing = self.lazy = self.interrupts = False
        self.networked = True
        self.kills: set[str] = set()

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> Iterator[FakeInstance]:
        with super().launch(spec, phases):
            yield Neighbour(self, spec, phases)


@contextmanager
def serve(beside: Instance, seconds: float) -> Iterator[tuple[str, int]]:
    yield "198.18.0.1", 4000


def run_trial(
    street: Street, stop: Stop | None = None, looks: int | None = None, calm: float = 0.0, **keys: object
) -> dict[str, Measured]:
    """By the experiments' names. `stop`: what the host says once all three are alive, at the first `looks` (always)."""
    left = iter(range(looks if looks is not None else 1_000_000))

    def stopped(limits: Limits) -> Stop | None:
        return stop if street.alive >= {1, 2, 3} and next(left, None) is not None else None

    def ask(check: HttpCheck, addresses: Sequence[str], order: Sequence[int], rate: float, late: float) -> list[Answer]:
        time.sleep(0.02)
        street.worked.set()
        return [Answer(target, 0.001) for target in order]

    chosen = Neighbours(**{"window": 0.02, "lead": 0.01, **keys})  # type: ignore[arg-type]
    kit = Kit(
        program="/load", keys=chosen, declared=Limits(), raised=RAISED, check=HttpCheck(port=80), ask=ask, serve=serve,
        stop=stopped, cpu_seconds=lambda footprint: None, shield=nullcontext, timeout=1.0, patience=1.0, calm=calm,
    )  # fmt: skip
    kept: dict[str, Measured] = {}

    def spec(number: int, limits: Limits) -> InstanceSpec:
        payload = BUILTIN_PAYLOADS["httpd"]
        return InstanceSpec(RUN, "container", "default", number, IMAGE, payload, limits, ProcessSettings())

    def keep(cell: Cell, found: Measured) -> None:
        kept[cell.name] = found

    try:
        Neighbourhood(kit).run(TRIAL, street, spec, "seed", keep, lambda text: None)
    finally:
        assert street.alive == set()
        assert not [one for one in threading.enumerate() if one.name.startswith("bench-") and one.is_alive()]
    return kept


def test_a_victim_beside_a_load_is_told_from_one_beside_nothing() -> None:
    street = Street()
    kept = run_trial(street, victims=("cpu",), aggressors=("cpu", "send"))
    slow = kept["cpu beside cpu, limits raised"]
    assert slow.times is not None
    assert slow.press is not None
    assert slow.times.quantiles["0.5"] == 0.002
    assert (slow.press.amount, slow.press.refused) == (4.0, 1)
    assert slow.press.beside > 0.9
    idle = kept["cpu beside none, limits declared"].times
    assert idle is not None
    assert idle.quantiles["0.5"] == 0.001
    assert kept["cpu beside none, limits declared"].press is None
    pressing = [(limits.cpus, words) for _, limits, words in street.said if words[:2] == ["press", "cpu"]]
    assert {cpus for cpus, _ in pressing} == {1.0, 2.0}
    assert len({tuple(words) for _, words in pressing}) == 1, "with and without limits it asks for the same"
    assert ["198.18.0.1", "4000"] in [words[-2:] for _, _, words in street.said if words[1] == "send"]


def test_a_load_that_was_not_there_proves_nothing() -> None:
    street = Street()
    street.lazy = True
    found = run_trial(street, victims=("cpu",), aggressors=("fork",), lead=0.5)["cpu beside fork, limits raised"]
    assert found.press is not None
    assert found.press.beside < 0.5
    assert not sound(record(1, "fork", "raised", press=found.press))


def test_a_polite_neighbour_is_asked_in_turn_and_not_counted() -> None:
    found = run_trial(Street(), victims=("httpd",), aggressors=("cpu",), rate=100.0, window=0.1)
    polite, alone = (found[f"httpd beside {name}, limits declared"].times for name in ("polite", "none"))
    assert polite is not None
    assert alone is not None
    assert polite.n == alone.n == 10


def test_what_can_not_be_measured_says_why() -> None:
    street = Street()
    street.networked = False
    found = run_trial(street, victims=("httpd", "cpu"), aggressors=("receive",))
    assert "no network" in (found["httpd beside none, limits declared"].missing or "")
    assert "no network" in (found["cpu beside receive, limits raised"].missing or "")
    assert found["cpu beside none, limits declared"].missing is None


def test_without_a_network_only_what_needs_one_is_left_out() -> None:
    """All asked for is recorded, with times or with the reason; what is made is the same work as anywhere."""
    asked = Neighbours(("httpd", "cpu", "disk"), ("cpu", "disk", "send"))
    alone, connected = Street(), Street()
    alone.networked = False
    kept = run_trial(alone, victims=asked.victims, aggressors=asked.aggressors)
    assert kept.keys() == {cell.name for cell in cells(asked, "seed")}
    unmade = {name: one for name, one in kept.items() if one.missing}
    assert set(unmade) == {name for name in kept if "httpd" in name or "send" in name}
    assert len(kept) - len(unmade) == asked.unconnected == 12
    assert all((one.missing or "").startswith("no network") and one.times is None for one in unmade.values())
    run_trial(connected, victims=("cpu", "disk"), aggressors=("cpu", "disk"))
    alike = [sorted((limits.pids, words) for _, limits, words in one.said) for one in (alone, connected)]
    assert alike[0] == alike[1]


def test_the_hosts_reserve_comes_before_a_load() -> None:
    street = Street()
    found = run_trial(street, Stop("memory", "too little"), victims=("cpu",), aggressors=("memory",))
    assert "reserve" in (found["cpu beside memory, limits raised"].missing or "")
    assert not [words for _, _, words in street.said if words[0] == "press"]


def test_pressure_of_the_load_before_may_pass_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.neighbourhood._LOOK", 0.01)
    pressure, keys = Stop("pressure", "some waited"), dict(victims=("cpu",), aggressors=("memory",))
    passed = run_trial(Street(), pressure, looks=3, calm=0.1, **keys)
    assert [one.missing for one in passed.values() if one.missing] == []
    stayed = run_trial(Street(), pressure, looks=3, calm=0.02, **keys)
    assert len([one for one in stayed.values() if "reserve" in (one.missing or "")]) == 1, "left out, not waited for"


def test_who_dies_of_its_load_is_launched_again() -> None:
    street = Street()
    street.kills = {"memory"}
    found = run_trial(street, victims=("cpu",), aggressors=("memory", "fork"))
    assert "it has ended" in (found["cpu beside memory, limits raised"].missing or "")
    assert found["cpu beside fork, limits raised"].missing is None
    assert len([event for event in street.events if event.startswith("launch")]) > 3


def test_an_interruption_ends_the_load_and_all_instances() -> None:
    street = Street()
    street.interrupts = True
    with pytest.raises(Interrupted):
        run_trial(street, victims=("disk",), aggressors=("disk",))


# --- what is made of it ----------------------------------------------------------------------------------------------


def record(
    number: int, aggressor: Beside, limits: LimitsOf = "declared", median: float = 0.001, p99: float = 0.002,
    victim: Victim = "cpu", driver: str = "container", **changes: object,
) -> NeighbourRecord:  # fmt: skip
    press = Press(2.0, "CPUs", 0, 1.0) if aggressor not in ("none",) else None
    fields = dict(
        trial=f"r{number}-{driver}", driver=driver, profile="default", payload="httpd", round=number, date=0.0,
        victim=victim, aggressor=aggressor, limits=limits, window=1.0, press=press,
        times=msgspec.structs.replace(times_of([median] * 3), quantiles={"0.5": median, "0.99": p99}),
    )  # fmt: skip
    return NeighbourRecord(**{**fields, **changes})  # type: ignore[arg-type]


VICTIMS, AGGRESSORS = Neighbours().victims, Neighbours().aggressors
DRIFT = (1.0, 1.5, 0.7, 1.2)


def experiments(driver: str = "container", accelerator: str | None = None) -> list[Record]:
    """Four rounds on a host that drifts: a CPU aggressor doubles without limits, costs a tenth with, fork nothing."""
    found: list[Record] = []
    for number, drift in enumerate(DRIFT, start=1):
        noise = 1 + 0.01 * (number % 2)
        cpus = tuple(1.0 + 0.02 * at for at in range(5))
        held = (Use("cpus", 1.0, 1.04, 1.08, cpus),)
        over = (Use("cpus", 1.0, 1.5, 1.9, (1.5, 1.9)),)
        found += [
            record(number, "none", median=0.001 * drift, driver=driver),
            record(number, "polite", median=0.0011 * drift, driver=driver),
            record(number, "cpu", "declared", median=0.0011 * drift * noise, driver=driver, uses=held),
            record(number, "cpu", "raised", median=0.002 * drift * noise, driver=driver, uses=over),
            record(number, "fork", "raised", median=0.001 * drift * noise, driver=driver),
            TrialRecord(
                trial=f"r{number}-{driver}", driver=driver, profile="default", payload="httpd", round=number, date=0.0,
                outcome=Outcome.SUCCEEDED, alive=3, asked=3, limiter="count", launching_ns=0, battery=True,
                accelerator=accelerator,
            ),
        ]  # fmt: skip
    return found


def data(records: Sequence[Record]) -> RunData:
    return RunData(info(drivers={"container:default": {}, "vm:default": {}}), host(), tuple(records))


def test_a_loss_is_found_with_its_interval_and_none_where_there_is_none() -> None:
    found = neighbours(data(experiments()))
    assert found is not None
    rows = {(row.aggressor, row.limits): row for row in found.rows}
    raised, planted = rows["cpu", "raised"].idle.median, rows["fork", "raised"].idle.median
    assert raised is not None
    assert planted is not None
    assert raised.low is not None
    assert raised.high is not None
    assert raised.low < 1.01 < raised.high < 1.1
    assert raised.n == 4
    assert planted.low is not None
    assert planted.low < 0.01
    assert abs(planted.value) < 0.02, "a neighbour that costs nothing shows no loss, whatever the host drifts"
    against_polite = rows["cpu", "declared"].polite.median
    assert against_polite is not None
    assert abs(against_polite.value) < 0.02, "what polite work costs too is no lack of isolation"
    assert ("none", "declared") not in rows
    chosen = dearest(found, found.targets[0], "raised")
    assert chosen is not None
    assert (chosen.row.aggressor, chosen.of, chosen.shown) == ("cpu", 2, True)
    assert chosen.loss.value == pytest.approx(raised.value)
    assert chosen.loss.low is not None
    assert 0.9 < chosen.loss.low < raised.low, "wider than the row's own, for there was a choice"


ROUNDS = 5
TARGET = Target("container", "default", None)


def noise(seed: int, rounds: int = ROUNDS, **planted: float) -> Neighbourly:
    """Four victims beside six aggressors that cost nothing; all of a victim are set against one control a round.

    `planted`: an aggressor beside which every unit takes that many times as long.
    """
    random = np.random.default_rng(seed)
    rows = []
    for victim in VICTIMS:
        idle = random.lognormal(0.0, 0.1, rounds)
        for aggressor in AGGRESSORS:
            ratios = planted.get(aggressor, 1.0) * random.lognormal(0.0, 0.1, rounds) / idle
            none = Losses(None, None)
            rows.append(Row(TARGET, victim, aggressor, "declared", none, none, rounds, 0, 0, "", (), tuple(ratios)))
    return Neighbourly((TARGET,), tuple(rows), ())


def test_out_of_noise_the_dearest_is_claimed_as_rarely_as_is_said() -> None:
    """Of 400 runs in which nobody costs anything."""
    runs = [noise(seed) for seed in range(400)]
    claimed = sum((one := dearest(run, TARGET, "declared")) is not None and one.shown for run in runs)
    by_itself = sum(any((simultaneous(row.ratios, 1).low or 0) > 0 for row in run.rows) for run in runs)
    assert claimed <= 0.05 * len(runs)
    assert by_itself > 0.15 * len(runs), "uncorrected, chance alone would be named far more often than in 5 %"


def test_a_loss_is_claimed_also_after_a_choice_of_many_but_not_from_two_rounds() -> None:
    found = dearest(noise(1, disk=3.0), TARGET, "declared")
    assert found is not None
    assert (found.row.aggressor, found.of, found.shown) == ("disk", 24, True)
    few = dearest(noise(1, rounds=2, disk=3.0), TARGET, "declared")
    assert few is not None
    assert few.loss.low is not None
    assert not few.shown, "two rounds can't carry a choice out of 24"
    assert few.loss.value == max(simultaneous(row.ratios, 24).value for row in noise(1, rounds=2, disk=3.0).rows)
    one = dearest(noise(1, rounds=1), TARGET, "declared")
    assert one is not None
    assert (one.loss.low, one.loss.high, one.shown) == (None, None, False)


def test_what_was_chosen_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_neighbours(noise(1, disk=3.0))
    print_neighbours(noise(1))
    shown = capsys.readouterr().out
    assert "of 24 neighbours measured the dearest was disk beside" in shown
    assert "no loss is shown beside any of 24 neighbours measured; the largest found was" in shown
    assert shown.count("corrected for being chosen out of 24; n = 5 rounds.") == 2


def test_a_limit_that_did_not_hold_is_seen() -> None:
    found = neighbours(data(experiments()))
    assert found is not None
    assert {(one.limits, one.limit): one.honoured for one in found.held} == {
        ("declared", "cpus"): True,
        ("raised", "cpus"): False,
    }


def test_a_guests_groups_hold_its_hypervisor_and_are_not_judged() -> None:
    memory = (Use("memory", 100.0, 120.0, 130.0, (120.0, 130.0)),)
    guest = neighbours(data([record(1, "memory", driver="vm", uses=memory)]))
    own = neighbours(data([record(1, "memory", uses=memory)]))
    assert guest is not None
    assert own is not None
    assert [one.honoured for one in guest.held] == [None]
    assert [one.honoured for one in own.held] == [False]


def test_rounds_without_their_load_are_left_out() -> None:
    records = [
        record(1, "none"), record(2, "none"), record(1, "cpu", median=0.002),
        record(2, "cpu", median=0.009, press=Press(1.0, "CPUs", 0, 0.5)), record(3, "cpu", missing="it died"),
    ]  # fmt: skip
    found = neighbours(data(records))
    assert found is not None
    [row] = found.rows
    assert row.n == 1
    assert row.idle.median is not None
    assert row.idle.median.value == pytest.approx(1.0)
    assert row.idle.median.low is None
    assert set(row.missing) == {"it died", "the load was not beside the victim all the time"}


def test_a_load_without_its_control_says_what_is_missing() -> None:
    found = neighbours(data([record(1, "none", times=None, missing="it died"), record(1, "cpu"), record(2, "cpu")]))
    assert found is not None
    [row] = found.rows
    assert row.n == 2
    assert row.idle.median is None
    assert [reason.rpartition(": ")[2] for reason in row.missing] == ["it died", "there is none"]
    assert dearest(found, found.targets[0], "declared") is None


def test_no_claim_is_made_from_guests_under_tcg(capsys: pytest.CaptureFixture[str]) -> None:
    run = data([*experiments(), *experiments("vm", "tcg")])
    page = render(run)
    found = neighbours(run)
    assert found is not None
    print_neighbours(found)
    for text in (page, capsys.readouterr().out):
        assert "vm:default: not measured under kvm" in text
        assert "vm:default, limits" not in text
        assert "container:default, limits raised" in text
        assert "+102" in text or "+101" in text


def test_records_are_read_back_and_are_a_table() -> None:
    one = record(1, "cpu", uses=(Use("pids", 64.0, 3.0, 5.0, (3.0, 5.0)),))
    assert msgspec.json.decode(msgspec.json.encode(one), type=Record) == one
    found = table(data([one, record(1, "send", missing="no network", times=None, press=None)]), "neighbours")
    assert list(found["p50"].isna()) == [False, True]
    assert found["pids"][0] == 5.0
    assert found["missing"][1] == "no network"


def test_a_run_without_experiments_has_no_section() -> None:
    assert neighbours(data([])) is None
