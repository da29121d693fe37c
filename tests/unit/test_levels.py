"""How a scenario says how far to go, what counts as useful, and what the payload does."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.config.loader import load_scenario, parse_scenario
from bench.config.options import with_options
from bench.config.profiles import SETTINGS
from bench.config.scenario import Scenario, payload_for
from bench.config.written import effective_toml
from bench.errors import ConfigError
from bench.levels import PayloadKeys
from bench.verbs.run import Options, request, show_plan

LEAST = 'schema = 1\nname = "x"\n'
DENSITY = Path("scenarios/density.toml")


def scenario(*overrides: str, text: str = "") -> Scenario:
    return parse_scenario(LEAST + text, "x.toml", overrides=overrides)


def test_to_limit_is_off_and_bounded() -> None:
    plain = load_scenario(DENSITY)
    assert not plain.to_limit.on
    limit = with_options(plain, to_limit=True)
    assert limit.to_limit.on
    assert {limit.count_for(driver) for driver in SETTINGS} == {4096}
    assert limit.to_limit.time == 900
    assert with_options(limit) == limit, "what the scenario says stays"
    assert with_options(plain, to_limit=True, count=300).to_limit.count == 300
    assert with_options(plain, count=300).to_limit == plain.to_limit
    with pytest.raises(ConfigError, match="--count: 0 is out of range"):
        with_options(plain, to_limit=True, count=0)


def test_effective_toml_holds_all_of_it() -> None:
    chosen = with_options(load_scenario(DENSITY, overrides=["payload.touch_mib=3", "steps=[2, 9]"]), to_limit=True)
    assert parse_scenario(effective_toml(chosen), "run.json") == chosen


@pytest.mark.parametrize(
    ("text", "overrides", "keys"),
    [
        ("", (), PayloadKeys("httpd")),
        ('payload = "idle"', (), PayloadKeys("idle")),
        ('payload = { name = "touch", touch_mib = 4 }', (), PayloadKeys("touch", 4)),
        ('payload = "touch"', ("payload.touch_mib=64",), PayloadKeys("touch", 64)),
        ("", ("payload=touch", "payload.touch_per_second=2"), PayloadKeys("touch", 16, 2.0)),
        ("", ("payload.touch_mib=8", "payload='touch'"), PayloadKeys("touch", 8)),
        ('payload = { name = "touch", touch_mib = 4 }', ("payload=idle",), PayloadKeys("idle", 4)),
    ],
)
def test_a_payload_is_a_name_or_a_table(text: str, overrides: tuple[str, ...], keys: PayloadKeys) -> None:
    assert scenario(*overrides, text=text).payload == keys


def test_what_touch_takes_reaches_it_as_environment() -> None:
    touch = payload_for(scenario("payload=touch", "payload.touch_mib=32", "payload.touch_per_second=4"))
    assert touch.env == {"TOUCH_MIB": "32", "TOUCH_SECONDS": "0.25"}
    assert payload_for(scenario("payload=touch", "payload.touch_per_second=0.01")).env["TOUCH_SECONDS"] == "100"
    assert payload_for(scenario("payload=idle", "payload.touch_mib=32")).env == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("payload=tuch",), "--set payload: there is no payload 'tuch', did you mean 'touch'?"),
        (("payload.touch_mb=1",), "--set payload.touch_mb: unknown key 'touch_mb', did you mean 'touch_mib'?"),
        (("payload.touch_mib=-1",), "--set payload.touch_mib: -1 is out of range"),
        (("payload.touch_mib=some",), "--set payload.touch_mib: must be a whole number"),
        (("payload=touch", "payload.touch_mib=129"), "payload.touch_mib: 129 is more than half of limits.memory"),
        (
            ("payload=touch", "payload.touch_mib=64", "drivers=['vm:lean']"),
            "payload.touch_mib: 64 leaves the kernel of vm:lean too little RAM: at most 48, or raise vm.memory",
        ),
        (("payload.touch_per_second=0",), "--set payload.touch_per_second: 0 is out of range"),
        (("steps=[4, 2]",), "--set steps: [4, 2] must be whole numbers from 1 on, each larger than the last"),
        (("steps=[0, 2]",), "--set steps: [0, 2] must be"),
        (("reserve.pressure=2",), "--set reserve.pressure: 2 is out of range"),
        (("to_limit.time=0",), "--set to_limit.time: 0 is out of range"),
        (("service.watch=sometimes",), "--set service.watch: 'sometimes' is not allowed"),
        (("service.p99=0",), "--set service.p99: 0 is out of range"),
    ],
)
def test_what_is_wrong_is_named(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(*overrides)
    assert message in caught.value.message


def test_a_pool_has_a_size_and_a_limit_has_none() -> None:
    pooled = load_scenario(DENSITY, overrides=["drivers=['container:pooled']"])
    with pytest.raises(ConfigError, match="container:pooled does not go with --to-limit"):
        with_options(pooled, to_limit=True)


def test_a_dry_run_says_its_bounds_and_guesses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(None, 50, 2, 1, None, None, ("drivers=['process']",), to_limit=True)
    show_plan(request("density", options, Path("results"), None), as_json=False)
    said = capsys.readouterr().out
    assert "2 ramps to the limit, each of at most 50 instances and 15 min" in said
    assert "estimated" not in said
