"""`bench run` as a user runs it: as a program, to its end, interrupted, killed; and what is left of it each time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.model import RunId
from bench.records import LaunchRecord, TrialRecord
from bench.store import read_past, read_run
from tests.integration import packed
from tests.integration.traces import traces

BENCH = [sys.executable, "-m", "bench"]
SUDO_USER = 1234
QUICK = ["--count", "3", "--rounds", "1", "--set", "settle=0.1"]

pytestmark = pytest.mark.root


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def bench(*words: str, results: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BENCH, *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "BENCH_RESULTS": str(results)},
    )


def only_run(results: Path) -> Path:
    (path,) = [path for path in results.iterdir() if path.is_dir()]
    return path


def test_a_run_of_processes_and_containers(results: Path, tmp_path: Path) -> None:
    done = bench("run", "density", "--drivers", "process,container", *QUICK, results=results)
    assert done.returncode == 0, done.stderr
    run = done.stdout.splitlines()[-1]
    data = read_run(results / run)
    assert data.info.status == "done"
    assert not data.info.warnings
    assert {record.kind for record in _kinds(results / run)} == {"launch", "step", "teardown", "trial"}
    stats = subprocess.run(
        [sys.executable, "-m", "pyperf", "stats", str(results / run / "startup.pyperf.json")],
        capture_output=True,
        text=True,
    )
    assert stats.returncode == 0, stats.stderr
    assert "container:default" in stats.stdout
    shown = bench("show", run, "--json", results=results)
    metrics = {(row["driver"], row["metric"]): row for row in json.loads(shown.stdout)["summary"]}
    for driver in ("process", "container"):
        for metric in (
            "startup.ready",
            "startup.reply",
            "launch.rate",
            "density.alive",
            "memory.marginal",
            "memory.pss",
        ):
            assert (driver, metric) in metrics, metric
        assert metrics[driver, "density.alive"]["median"] == 3
    page = tmp_path / "page.html"
    assert bench("report", run, "-o", str(page), results=results).returncode == 0
    assert "<svg" in page.read_text()
    assert not traces(RunId(run))


@pytest.mark.parametrize(
    ("scenario", "words", "metric"),
    [
        ("startup", ["--drivers", "process,container", "--rounds", "3"], "startup.reply"),
        (
            "memory",
            ["--drivers", "process,container", "--rounds", "1", "--count", "4", "--set", "ksm=as-is"],
            "memory.marginal",
        ),
        ("disk", ["--drivers", "container,container:copy", "--rounds", "1", "--count", "2"], "disk.marginal"),
    ],
)
def test_a_scenario_answers_its_own_question(scenario: str, words: list[str], metric: str, results: Path) -> None:
    done = bench("run", scenario, *words, "--set", "settle=0.1", "--json", results=results)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    found = {f"{row['driver']}:{row['profile']}": row for row in said["summary"] if row["metric"] == metric}
    assert said["scenario"] == scenario
    assert len(found) == 2
    if scenario == "startup":
        assert {row["n"] for row in found.values()} == {3}, "each launch counts by itself"
    if scenario == "disk":
        assert found["container:copy"]["median"] > 2**20 > found["container:default"]["median"]
    assert not traces(RunId(said["run"]))


def _kinds(folder: Path) -> Iterator[object]:
    class Kind:
        def __init__(self, kind: str) -> None:
            self.kind = kind

    for line in (folder / "trials.jsonl").read_text().splitlines():
        yield Kind(json.loads(line)["kind"])


def test_json_is_all_that_is_on_stdout(results: Path) -> None:
    done = bench("run", "density", "--drivers", "container", *QUICK, "--json", results=results)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == only_run(results).name


@pytest.mark.libvirt
def test_an_image_that_is_not_ours_runs_in_a_container_and_in_a_guest(results: Path, tmp_path: Path) -> None:
    archive = packed.save_nginx(tmp_path / "nginx.tar")
    scenario = tmp_path / "nginx.toml"
    scenario.write_text(packed.SCENARIO.format(image=str(archive)))
    done = bench("run", str(scenario), results=results)
    assert done.returncode == 0, done.stderr
    run = done.stdout.splitlines()[-1]
    rows = json.loads(bench("show", run, "--json", results=results).stdout)["summary"]
    replied = {row["driver"] for row in rows if row["metric"] == "startup.reply"}
    assert replied == {"container", "vm"}
    assert not traces(RunId(run))


def test_files_belong_to_the_user_behind_sudo(results: Path) -> None:
    results.mkdir()
    os.chown(results, SUDO_USER, SUDO_USER)
    behind = {**os.environ, "BENCH_RESULTS": str(results), "SUDO_UID": str(SUDO_USER), "SUDO_GID": str(SUDO_USER)}
    done = subprocess.run(
        [*BENCH, "run", "density", "--drivers", "process,container", *QUICK], capture_output=True, text=True, env=behind
    )
    assert done.returncode == 0, done.stderr
    found = [only_run(results), *only_run(results).rglob("*")]
    assert len(found) > 5
    assert not [path for path in found if (path.stat().st_uid, path.stat().st_gid) != (SUDO_USER, SUDO_USER)]
    page = results / "page.html"
    subprocess.run([*BENCH, "report", only_run(results).name, "-o", str(page)], check=True, env=behind)
    assert page.stat().st_uid == SUDO_USER


# --- cut short -----------------------------------------------------------------------------------------------------


def start(results: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*BENCH, "run", "density", "--rounds", "1", "--set", "settle=0.1", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "BENCH_RESULTS": str(results)},
    )


def await_launches(results: Path, number: int, timeout: float = 120) -> RunId:
    """Wait until the run has recorded so many launches."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for trials in results.glob("*/trials.jsonl"):
            if trials.read_text().count('"kind":"launch"') >= number:
                return RunId(trials.parent.name)
        time.sleep(0.02)
    raise AssertionError(f"no {number} launches within {timeout} s")


CUT = [
    pytest.param("process,container", 20, id="containers"),
    pytest.param("container:pooled", 5, id="pooled"),
    pytest.param("vm", 2, id="guests", marks=pytest.mark.libvirt),
]


STOPS = [
    pytest.param("process,container", 20, signal.SIGINT, id="containers-INT"),
    pytest.param("process,container", 20, signal.SIGTERM, id="containers-TERM"),
    pytest.param("process,container", 20, signal.SIGHUP, id="containers-HUP"),
    pytest.param("vm", 2, signal.SIGINT, id="guests-INT", marks=pytest.mark.libvirt),
]


@pytest.mark.parametrize(("drivers", "launches", "number"), STOPS)
def test_a_signal_stops_in_good_order(drivers: str, launches: int, number: signal.Signals, results: Path) -> None:
    run = start(results, "--drivers", drivers, "--count", "200")
    name = await_launches(results, launches)
    assert traces(name)
    run.send_signal(number)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 128 + number, err
    assert "Traceback" not in err
    assert out.splitlines()[-1] == name
    data = read_run(results / name)
    assert data.info.status == "interrupted"
    assert len(data.records) >= launches, "what was measured is kept"
    assert not traces(name)


@pytest.mark.parametrize(("drivers", "launches"), CUT)
def test_after_kill_9_clean_removes_everything(drivers: str, launches: int, results: Path) -> None:
    run = start(results, "--drivers", drivers, "--count", "200")
    name = await_launches(results, launches)
    live = bench("clean", name, results=results)
    assert live.returncode == 3, "a live run is not touched"
    assert "is alive" in live.stderr
    run.kill()
    run.communicate()
    left = traces(name)
    kinds = {text.split()[0] for text in left}
    assert {"cgroup", "netdev", "file"} <= kinds, f"nothing to find is no test: {left}"
    cleaned = bench("clean", name, results=results)
    assert cleaned.returncode == 0, cleaned.stderr
    assert not traces(name)
    assert read_run(results / name).records, "what was measured is kept"
    again = bench("clean", name, results=results)
    assert again.returncode == 2
    assert "has left" in again.stderr


def test_a_second_interrupt_ends_at_once_and_clean_finishes_the_job(results: Path) -> None:
    run = start(results, "--drivers", "container", "--count", "500")
    name = await_launches(results, 150)
    run.send_signal(signal.SIGINT)
    time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "bench clean" in err
    assert bench("clean", results=results).returncode == 0
    assert not traces(name)


def test_after_kill_9_resume_does_what_is_missing(results: Path) -> None:
    run = start(results, "--drivers", "process", "--count", "4", "--rounds", "3")
    name = await_launches(results, 7)  # in the second of three ramps of five launches
    live = bench("run", "--resume", name, results=results)
    assert live.returncode == 2
    assert "is alive" in live.stderr
    run.kill()
    run.communicate()
    ended = read_past(results / name).done
    assert len(ended) < 3, "nothing is missing is no test"
    other = bench("run", "density", "--count", "5", "--resume", name, results=results)
    assert other.returncode == 2
    assert "is of another scenario" in other.stderr
    done = bench("run", "--resume", name, results=results)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == name
    data = read_run(results / name)
    assert data.info.status == "done"
    assert not data.warnings
    trials = [record for record in data.records if isinstance(record, TrialRecord)]
    assert [one.trial for one in trials] == list(data.info.plan)
    assert {one.alive for one in trials} == {4}
    assert trials[: len(ended)] == list(ended), "what had ended was not done again"
    launched = [record.instance for record in data.records if isinstance(record, LaunchRecord)]
    assert len(launched) == len(set(launched)) == 3 * 5
    assert not traces(name)
    again = bench("run", "--resume", name, results=results)
    assert (again.returncode, read_run(results / name)) == (0, data)
