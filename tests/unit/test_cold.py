"""Cold launches: nothing of what is launched is in the page cache before it, or the launch fails."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench import cold
from bench.config.loader import load_scenario, parse_scenario
from bench.config.options import with_options
from bench.config.scenario import Scenario
from bench.errors import ConfigError, HostError, LaunchError
from bench.linux.pagecache import evict, files_of, resident
from bench.model import InstanceSpec, Reading
from bench.plan import make_plan
from bench.process import run as command
from bench.records import LaunchRecord
from bench.runner import Runner
from tests import fakes

SIZE = 64 * mmap.PAGESIZE
STARTUP = Path("scenarios/startup.toml")


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A file on a disk, all of it in the page cache."""
    (path := tmp_path / "image" / "file").parent.mkdir()
    path.write_bytes(b"x" * (SIZE - 1))
    if command(["stat", "-f", "-c", "%T", str(tmp_path)], timeout=10).stdout.strip() in ("tmpfs", "ramfs"):
        pytest.skip("the temporary folder is in memory, where nothing is evicted: pytest --basetemp on a disk")
    path.read_bytes()
    return path


# --- the page cache --------------------------------------------------------------------------------------------------


def test_a_file_is_seen_in_the_cache_and_out_of_it(cached: Path) -> None:
    assert resident(str(cached)) == SIZE
    evict(str(cached))
    assert resident(str(cached)) == 0
    assert resident(str(cached)) == 0, "to look brings nothing in"
    with cached.open("rb") as file:
        file.read(1)
    assert resident(str(cached)) > 0


def test_an_empty_file_has_no_pages(tmp_path: Path) -> None:
    (path := tmp_path / "empty").touch()
    assert resident(str(path)) == 0


def test_trees_are_walked_and_links_in_them_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/file").touch()
    (tmp_path / "outside").touch()
    (tmp_path / "tree/link").symlink_to(tmp_path / "outside")
    (tmp_path / "program").symlink_to(tmp_path / "outside")
    found = list(files_of([str(tmp_path / "tree"), str(tmp_path / "program"), str(tmp_path / "missing")]))
    assert found == [str(tmp_path / "tree/below/file"), str(tmp_path / "outside")], "but the program itself is one"


# --- one launch ------------------------------------------------------------------------------------------------------


def test_what_was_cached_is_out_and_the_readings_say_so(cached: Path, tmp_path: Path) -> None:
    found = cold.chill([str(cached.parent)], drop := tmp_path / "drop")
    assert found == (Reading("cold.evicted", SIZE, "bytes"), Reading("cold.resident", 0, "bytes"))
    assert drop.read_text() == "2", "last the inodes that looking brought back; before them the caches (3)"
    assert cold.chill([str(cached.parent)], drop)[0].value == 0


@pytest.fixture
def held(cached: Path) -> Iterator[Path]:
    with cached.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert sum(pages[:: mmap.PAGESIZE]) > 0  # touched: mapped pages can't be evicted
        yield cached


def test_a_launch_of_what_stays_in_the_cache_fails(held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold, "_PAUSE", 0.0)
    with pytest.raises(LaunchError, match=f"{SIZE} bytes of what is launched stay in the page cache.*{held}"):
        cold.chill([str(held)], tmp_path / "drop")


def test_where_caches_can_t_be_dropped_it_is_said_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="launches can't be cold here") as caught:
        cold.require(tmp_path / "missing")
    assert "--cold" in (caught.value.hint or "")


# --- the scenario and the plan ---------------------------------------------------------------------------------------


def startup(*overrides: str, cold: bool = False) -> Scenario:
    return with_options(load_scenario(STARTUP, overrides=["drivers=['container']", *overrides]), cold=cold)


def test_cold_is_a_condition_also_by_itself() -> None:
    plan = make_plan(startup("rounds=1", cold=True), 1)
    assert [(one.id, one.condition) for one in plan.trials] == [
        ("r1-container:default [cache=cold]", {"cache": "cold"})
    ]
    assert make_plan(startup("rounds=1"), 1).order == ("r1-container:default",)


def test_warm_and_cold_in_one_run_are_two() -> None:
    plan = make_plan(startup("rounds=1", "cache=warm,cold"), 1)
    assert sorted(plan.order) == ["r1-container:default [cache=cold]", "r1-container:default [cache=warm]"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["count.default=4", "cache=cold"], "cold launches are of one instance at a time"),
        (["cache=warm,cold", "warmups=0"], "without a warm-up r.*cache=warm. would find what cold launches left"),
        (["drivers=['vm:clone']", "cache=cold"], "clones start from memory"),
    ],
)
def test_what_would_be_neither_cold_nor_warm_is_refused(overrides: Sequence[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_plan(startup(*overrides), 1)


def test_the_option_does_not_go_with_a_varied_cache() -> None:
    with pytest.raises(ConfigError, match="--cold: cache is varied"):
        startup("cache=warm,cold", cold=True)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="cache"):
        parse_scenario('schema = 1\nname = "x"\ncache = "lukewarm"\n', "x.toml")


# --- the runner ------------------------------------------------------------------------------------------------------


class Sourced(fakes.FakeDriver):
    def sources(self, spec: InstanceSpec) -> Sequence[str]:
        return ("/image",)


def _run(driver: fakes.FakeDriver, tmp_path: Path, **changes: object) -> fakes.Recorder:
    recorder = fakes.Recorder(driver)
    Runner(fakes.job(driver, recorder, fakes.scenario(tmp_path, count__default=1, **changes))).run(recorder, [])
    return recorder


def test_each_launch_is_made_cold_before_it_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Sourced()

    def chill(paths: Sequence[str]) -> tuple[Reading, ...]:
        driver.events.append(f"evict {' '.join(paths)}")
        return (Reading("cold.resident", 0.0, "bytes"),)

    monkeypatch.setattr(cold, "chill", chill)
    recorder = _run(driver, tmp_path, cache="cold")
    launches = [place for place, event in enumerate(driver.events) if event.startswith("launch")]
    assert [driver.events[place - 1] for place in launches] == ["evict /image"] * 2, "the warm-up too"
    records = recorder.of(LaunchRecord)
    assert all(Reading("cold.resident", 0.0, "bytes") in one.readings for one in records)
    assert {one.condition["cache"] for one in records} == {"cold"}


def test_in_a_warm_trial_nothing_is_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evicted: list[Sequence[str]] = []
    monkeypatch.setattr(cold, "chill", lambda paths: evicted.append(paths) or ())  # type: ignore[func-returns-value]
    _run(Sourced(), tmp_path, cache="warm,cold")
    assert len(evicted) == 2, "of the cold trial alone"


@pytest.mark.parametrize("driver", [Sourced(), fakes.FakeDriver()])
def test_a_launch_that_can_t_be_cold_fails(
    driver: fakes.FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(paths: Sequence[str]) -> tuple[Reading, ...]:
        raise LaunchError("stay in the page cache")

    monkeypatch.setattr(cold, "chill", refuse)
    records = _run(driver, tmp_path, cache="cold").of(LaunchRecord)
    assert records[0].error
    assert "launch 1" not in driver.events
