"""Every fault in a scenario names the file or the option, the key, and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config.find import builtin_scenarios, find_scenario
from bench.config.loader import load_scenario
from bench.config.options import with_options
from bench.config.profiles import DEFAULT_PROFILE, PROFILES, SETTINGS, split_driver
from bench.config.scenario import Scenario, payload_for, settings_for
from bench.config.units import format_duration, format_size, parse_duration, parse_size
from bench.config.written import effective_toml
from bench.errors import ConfigError, UsageError
from bench.model import GIB, MIB, HttpCheck, Limits, ProcessSettings, VmSettings

DENSITY = Path(__file__).parents[2] / "scenarios/density.toml"
LEAST = 'schema = 1\nname = "least"\n'


def load(tmp_path: Path, text: str, *overrides: str) -> Scenario:
    path = tmp_path / "mine.toml"
    path.write_text(LEAST + text)
    return load_scenario(path, overrides=overrides)


# --- what is right


def test_least_scenario_has_the_documented_defaults(tmp_path: Path) -> None:
    least, full = load(tmp_path, ""), load_scenario(DENSITY)
    assert least.limits == Limits(memory=256 * MIB, cpus=1.0, pids=64)
    assert least.reserve.memory == 2 * GIB
    same = "drivers image payload rounds warmups timeout stop_timeout settle limits reserve"
    for key in same.split():
        assert getattr(least, key) == getattr(full, key), key


def test_density_is_what_the_issue_asks_for() -> None:
    density = load_scenario(DENSITY)
    assert density.drivers == ("process:default", "container:default", "vm:stock")
    assert [density.count_for(driver) for driver in SETTINGS] == [64, 64, 8]
    assert (density.rounds, density.payload.name, density.limits.memory) == (3, "httpd", 256 * MIB)
    assert settings_for(density, "vm", "stock") == VmSettings(machine="q35", disk=128 * MIB)


def test_density_shows_every_key_and_the_commented_ones_load(tmp_path: Path) -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", DENSITY.read_text(), flags=re.MULTILINE)
    path = tmp_path / "full.toml"
    path.write_text(text)
    full = load_scenario(path)
    for field in msgspec.structs.fields(Scenario):
        assert re.search(rf"^(\[{field.name}[\].]|{field.name} = )", text, re.MULTILINE), field.name
    for driver, kind in SETTINGS.items():
        assert set(getattr(full, driver)) == {field.name for field in msgspec.structs.fields(kind)}
        shown, defaults = settings_for(full, driver, DEFAULT_PROFILE[driver]), kind()
        for field in msgspec.structs.fields(kind):  # one that is absent by default is shown with some value
            default = getattr(defaults, field.name)
            assert default is None or getattr(shown, field.name) == default, "the file shows the defaults"
    assert None not in (full.seed, full.max_time, full.count.process, full.count.container)


def test_own_section_overrides_the_profile(tmp_path: Path) -> None:
    scenario = load(tmp_path, '[vm]\ndisk = "1 GiB"\nstorage = "qcow2-backing"\n')
    assert settings_for(scenario, "vm", "stock") == VmSettings(storage="qcow2-backing", disk=GIB)
    assert settings_for(scenario, "process", "default") == ProcessSettings()


def test_profiles_are_valid() -> None:
    for name, overrides in PROFILES.items():
        msgspec.convert(dict(overrides), SETTINGS[split_driver(name)[0]])
    assert {f"{driver}:{profile}" for driver, profile in DEFAULT_PROFILE.items()} <= set(PROFILES)


def test_own_payload(tmp_path: Path) -> None:
    text = 'payload = "web"\n[payloads.web]\ncommand = ["/web"]\nready.http.port = 80\nenv = { A = "b" }\n'
    payload = payload_for(load(tmp_path, text))
    assert (payload.name, payload.command, payload.env) == ("web", ("/web",), {"A": "b"})
    assert payload.ready.http == HttpCheck(port=80, path="/", status=200)


def test_numbers_of_seconds_and_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    scenario = load(tmp_path, "timeout = 5\nsettle = 0.25\n[limits]\nmemory = 8388608\ncpus = 2\npids = 9\n")
    assert (scenario.timeout, scenario.settle, scenario.limits.memory) == (5.0, 0.25, 8 * MIB)


# --- what is wrong

WRONG = {
    "unknown key": ("round = 3", "round: unknown key 'round', did you mean 'rounds'?"),
    "unknown key in a table": ("[count]\nvms = 3", "count.vms: unknown key 'vms', did you mean 'vm'?"),
    "blocks of another disk": (
        "[vm]\nstorage = 'reflink'\n[scratch]\nfilesystem = 'xfs'",
        'vm.storage: "reflink" does not go with scratch.filesystem',
    ),
    "unknown settings key": ("[vm]\nstorag = 'copy'", "vm.storag: unknown key 'storag', did you mean 'storage'?"),
    "settings of a driver without": ("[process]\nnetwork = 'none'", "process.network: process has no keys"),
    "unknown key of a payload": (
        "[payloads.web]\ncommand = ['a']\nready.lin = 'x'",
        "payloads.web.ready.lin: unknown key 'lin', did you mean 'line'?",
    ),
    "unknown driver": ("drivers = ['process', 'vmm']", "drivers[1]: there is no driver 'vmm', did you mean 'vm'?"),
    "unknown profile": ("drivers = ['vm:stok']", "drivers[0]: there is no profile vm:stok, did you mean 'vm:stock'?"),
    "no driver": ("drivers = []", "drivers: must name at least one of process, container, vm"),
    "driver twice": ("drivers = ['vm', 'vm:stock']", "drivers[1]: vm:stock is there twice"),
    "wrong type": ("rounds = 'three'", "rounds: must be a whole number, not a text ('three')"),
    "fraction": ("rounds = 1.5", "rounds: must be a whole number, not a number (1.5)"),
    "boolean": ("[count]\nvm = true", "count.vm: must be a whole number, not true or false (True)"),
    "no table": ("vm = 3", "vm: must be a table, not a whole number (3)"),
    "zero": ("[count]\ndefault = 0", "count.default: 0 is out of range: 1 to 100,000"),
    "negative": ("[count]\nvm = -8", "count.vm: -8 is out of range: 1 to 100,000"),
    "absurd": ("[count]\nprocess = 100001", "count.process: 100001 is out of range: 1 to 100,000"),
    "no rounds": ("rounds = 0", "rounds: 0 is out of range: 1 to 1,000"),
    "not a number": ("timeout = nan", "timeout: nan is out of range: 1 ms to 24 h"),
    "infinite": ("settle = inf", "settle: inf is out of range: 0 s to 1 h"),
    "duration": ("timeout = '1 minute'", "timeout: '1 minute' is not understood; write it like '60 s'"),
    "size": ("[vm]\ndisk = '128M'", "vm.disk: '128M' is not understood; write it like '256 MiB'"),
    "no room": ("[vm]\ndisk = '1 MiB'", "vm.disk: '1 MiB' is out of range: 8 MiB to 16 TiB"),
    "small": ("[limits]\nmemory = 1\ncpus = 1\npids = 1", "limits.memory: 1 is out of range: 4 MiB to 16 TiB"),
    "choice": ("[vm]\naccel = 'xen'", 'vm.accel: \'xen\' is not allowed: "auto" or "kvm" or "tcg"'),
    "missing": ("[payloads.web]\nready.port = 1", "payloads.web.command: this key is required"),
    "no command": ("[payloads.web]\ncommand = []\nready.port = 1", "payloads.web.command: must hold at least"),
    "ready in no way": ("[payloads.web]\ncommand = ['a']\nready = {}", "payloads.web.ready: must have exactly one of"),
    "ready in two ways": (
        "[payloads.web]\ncommand = ['a']\nready = { port = 1, line = 'x' }",
        "payloads.web.ready: must have exactly one of line (a text), port, http; it has line and port",
    ),
    "empty line": (
        "[payloads.web]\ncommand = ['a']\nready.line = ''",
        "payloads.web.ready: must have exactly one of line (a text), port, http; it has an empty line",
    ),
    "port": (
        "[payloads.web]\ncommand = ['a']\nready.port = 65536",
        "payloads.web.ready.port: Expected int <= 65535, got 65536",
    ),
    "taken name": ("[payloads.idle]\ncommand = ['a']\nready.port = 1", "payloads.idle: this is the name of a built-in"),
    "odd name": ("[payloads.'a b']\ncommand = ['a']\nready.port = 1", "payloads.a b: a payload's name is lower-case"),
    "unknown payload": ("payload = 'htpd'", "payload: there is no payload 'htpd', did you mean 'httpd'?"),
    "no image": ("image = ''", "image: must not be empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_fault_names_file_and_key(tmp_path: Path, case: str) -> None:
    text, message = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(f"{tmp_path}/mine.toml: {message}")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("ready", "needs"),
    [("port = 80", "ready.port"), ("http.port = 80", "ready.http"), ("line = 'x'", None)],
)
def test_a_payload_that_needs_a_network_must_have_one(tmp_path: Path, ready: str, needs: str | None) -> None:
    text = f"payload = 'web'\ndrivers = ['vm']\n[vm]\nnetwork = 'none'\n[payloads.web]\ncommand = ['a']\nready.{ready}"
    if needs is None:
        assert payload_for(load(tmp_path, text)).ready.line == "x"
        needs, text = "reply", f"{text}\nreply.port = 80"
    with pytest.raises(ConfigError, match=f'vm.network: "none" does not go with payload web, whose {needs} needs'):
        load(tmp_path, text)


def test_a_driver_that_does_not_run_may_be_without_network(tmp_path: Path) -> None:
    load(tmp_path, "drivers = ['container']\n[vm]\nnetwork = 'none'")


def test_not_toml_and_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine.toml: not a TOML file: .*line 3"):
        load(tmp_path, "rounds = = 3")
    with pytest.raises(ConfigError, match=r"no\.toml: cannot be read"):
        load_scenario(tmp_path / "no.toml")
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: cannot be read"):
        load_scenario(tmp_path / "latin.toml")


@pytest.mark.parametrize("text", ["name = 'x'", "schema = 1"])
def test_schema_and_name_are_required(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="this key is required"):
        load_scenario(path)


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "-a", "a" * 33])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"--set name: .*is not allowed: lower-case"):
        load(tmp_path, "", f"name={name}")


# --- --set and options


def test_set_overrides_values_of_all_types(tmp_path: Path) -> None:
    sets = ("title=2024", "rounds=7", "vm.disk=1 GiB", "timeout=5 min", 'drivers=["vm"]', "count.vm=2", 'image="a b"')
    scenario = load(tmp_path, "", *sets)
    assert (scenario.title, scenario.rounds, scenario.timeout, scenario.image) == ("2024", 7, 300.0, "a b")
    assert (scenario.drivers, scenario.count_for("vm")) == (("vm:stock",), 2)
    assert settings_for(scenario, "vm", "stock") == VmSettings(disk=GIB)


def test_set_makes_what_is_not_there_and_the_last_one_holds(tmp_path: Path) -> None:
    scenario = load(
        tmp_path,
        "",
        "payloads.web.command=['a']",
        "payloads.web.ready.port=1",
        "payloads.web.env.N=80",
        "rounds=1",
        "rounds=2",
    )
    assert scenario.payloads["web"].env == {"N": "80"}
    assert scenario.rounds == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vm.storag=copy", "--set vm.storag: unknown key 'storag', did you mean 'storage'?"),
        ("vn.storage=copy", "--set vn.storage: unknown key 'vn', did you mean 'vm'?"),
        ("rounds.x=1", "--set rounds.x: rounds has no keys"),
        ("count.vm=0", "--set count.vm: 0 is out of range: 1 to 100,000"),
        ("vm.disk=big", "--set vm.disk: 'big' is not understood"),
        ("drivers=['vmm']", "--set drivers[0]: there is no driver 'vmm'"),
        ("rounds", "--set rounds: write it as key=value"),
        ("=3", "--set =3: write it as key=value"),
        ("rounds=1\nseed = 2", "--set rounds: must be a whole number, not a text"),
    ],
)
def test_a_bad_set_blames_the_option(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", text)
    assert caught.value.message.startswith(message)


def test_a_set_does_not_take_the_blame_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml: rounds: 0 is out of range"):
        load(tmp_path, "rounds = 0", "seed=3")


def test_options() -> None:
    density = load_scenario(DENSITY)
    changed = with_options(density, drivers=["vm,process"], count=3, rounds=2, seed=9, image="x", max_time="2 min")
    assert (changed.drivers, changed.rounds, changed.seed) == (("vm:stock", "process:default"), 2, 9)
    assert [changed.count_for(driver) for driver in SETTINGS] == [3, 3, 3]
    assert (changed.image, changed.max_time) == ("x", 120.0)
    assert with_options(density) == density


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drivers": ["process,vmm"]}, "--drivers: there is no driver 'vmm'"),
        ({"drivers": [""]}, "--drivers: there is no driver ''"),
        ({"count": 0}, "--count: 0 is out of range: 1 to 100,000"),
        ({"count": -1}, "--count: -1 is out of range"),
        ({"rounds": 10**9}, "--rounds: 1000000000 is out of range"),
        ({"seed": -1}, "--seed: -1 is out of range"),
        ({"max_time": "soon"}, "--max-time: 'soon' is not understood"),
        ({"image": ""}, "--image: must not be empty"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_options(load_scenario(DENSITY), **options)  # type: ignore[arg-type]
    assert caught.value.message.startswith(message)


# --- writing and finding


def test_effective_toml_of_density_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "effective.toml"
    density = load_scenario(DENSITY, overrides=["seed=5", "max_time=90 s", "settle=0.123", "vm.disk=9000001"])
    path.write_text(effective_toml(density))
    assert load_scenario(path) == density


_texts = st.text(max_size=20)


@given(
    title=_texts, image=st.text(min_size=1, max_size=20), env=st.dictionaries(_texts, _texts, max_size=3),
    command=st.lists(_texts, min_size=1, max_size=3), memory=st.integers(4 * MIB, 1 << 44),
    timeout=st.floats(0.001, 86_400), cpus=st.floats(0.01, 1024),
)  # fmt: skip
def test_effective_toml_round_trips(
    tmp_path_factory: pytest.TempPathFactory, title: str, image: str, env: dict[str, str], command: list[str],
    memory: int, timeout: float, cpus: float,
) -> None:  # fmt: skip
    scenario = msgspec.convert(
        {
            "schema": 1, "name": "x", "title": title, "image": image, "timeout": timeout,
            "drivers": ["process:default"], "limits": {"memory": memory, "cpus": cpus, "pids": 1},
            "payloads": {"web": {"command": command, "env": env, "ready": {"line": "x"}}},
        },
        Scenario,
    )  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_text(effective_toml(scenario), encoding="utf-8", newline="")
    assert load_scenario(path) == scenario


def test_find_by_name_here_first_then_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_scenario("density")
    assert load_scenario(shipped).name == "density"
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios/density.toml").write_text(LEAST)
    assert find_scenario("density") == Path("scenarios/density.toml")
    assert set(builtin_scenarios()) == {path.stem for path in DENSITY.parent.glob("*.toml")}


def test_shipped_scenarios_go_by_their_own_name_and_ask_their_own_question() -> None:
    shipped = {name: load_scenario(path) for name, path in builtin_scenarios().items()}
    assert {name: scenario.name for name, scenario in shipped.items()} == {name: name for name in shipped}
    assert {"density", "startup", "memory", "disk"} <= set(shipped)
    startup, memory, disk = (shipped[name] for name in ("startup", "memory", "disk"))
    assert {startup.count_for(driver) for driver in SETTINGS} == {1}, "launches alone on the host"
    assert startup.rounds >= 20
    assert startup.warmups >= 1, "the first launch after another driver's is not warm"
    assert memory.payload.name == disk.payload.name == "idle"
    assert memory.settle > shipped["density"].settle
    storages = {getattr(settings_for(disk, *target), "storage", None) for target in disk.targets()}
    assert storages == {None, "overlay", "copy", "qcow2-backing"}


def test_find_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    with pytest.raises(UsageError, match=r"no scenario file .*mine\.toml"):
        find_scenario(str(path))
    path.write_text(LEAST)
    assert find_scenario(str(path)) == path


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"no scenario 'densty', did you mean 'density'\? There is: .*density"):
        find_scenario("densty")


# --- units


@given(st.integers(0, 10**15))
def test_sizes_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.floats(0, 1e9))
def test_durations_round_trip(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("256 MiB", 256 * MIB), ("1.5 GiB", 3 * GIB // 2), ("10kB", 10_000), ("0 B", 0), (" 2  TiB ", 2 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "256", "MiB", "-1 MiB", "1 mib", "1,5 MiB", "0.3 B", "1e3 B", "9" * 99 + " B", "\u0663 B"]
)
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"not understood|not a whole number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60 s", 60.0), ("15 min", 900.0), ("500 ms", 0.5), ("1 h", 3600.0), ("0.1s", 0.1)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_formats_are_short() -> None:
    sizes = (0, 1000, 256 * MIB, 3 * GIB // 2)
    assert [format_size(size) for size in sizes] == ["0 B", "1000 B", "256 MiB", "1536 MiB"]
    assert [format_duration(value) for value in (0, 0.5, 60, 90.0, 1e-7)] == [
        "0 s", "500 ms", "1 min", "90 s", "0.0000001 s",
    ]  # fmt: skip
