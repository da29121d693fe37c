"""kill -9 at any instant: what had ended is readable, a resumed run does what is missing, `bench clean` leaves nothing.

Where an instant fell is read from a trace that the killed program kept (`killed.py`), never taken from where it was
aimed at; each stage must have been hit at least three times.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.model import RunId
from bench.records import LaunchRecord, TrialRecord
from bench.store import RunData, list_runs, read_past, read_run
from tests.integration.traces import traces, untold

PROGRAM = [sys.executable, "-m", "tests.integration.killed"]
BENCH = [sys.executable, "-m", "bench"]
BUSY = ["--set", "reserve.disk=0", "--set", "reserve.pressure=1", "--set", "settle=0.01"]
"""A ramp that ends early because the host has other work is not what is tested."""
SMALL = ["run", "density", "--drivers", "process,container", "--rounds", "2", "--count", "3", *BUSY]
GUESTS = ["run", "density", "--drivers", "vm", "--rounds", "1", "--count", "1", *BUSY]

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Aim:
    """How a stage is aimed at: how often it begins in a run of SMALL, and how long it lasts, in microseconds."""

    times: int
    lasts: int


AIMS = {
    "prepare": Aim(4, 100_000),
    "launch": Aim(14, 6_000),
    "sampling": Aim(12, 12_000),
    "write": Aim(40, 0),
    "teardown": Aim(16, 5_000),
}


def aimed(stage: str, dice: random.Random) -> str:
    """A seeded instant in `stage`, as killed.py takes it; a write is cut anywhere, at its ends too."""
    aim = AIMS[stage]
    number = dice.randint(1, aim.times)
    if stage == "write":
        return f"write:{number}:0:{dice.choice((0.0, dice.random(), 0.999, 1.0))}"
    return f"{stage}:{number}:{dice.randint(0, aim.lasts)}"


def bench(*words: str, results: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "BENCH_RESULTS": str(results)}
    return subprocess.run([*BENCH, *words], capture_output=True, text=True, timeout=120, env=env)


def kill(when: str, results: Path, words: list[str]) -> str:
    """Run `words` until SIGKILL; the stage it died in."""
    trace = results.parent / f"{results.name}.trace"
    (temporary := results.parent / "tmp").mkdir()
    own = {"BENCH_RESULTS": str(results), "TMPDIR": str(temporary)}
    env = {**os.environ, **own, "KILLED_TRACE": str(trace), "KILLED_AT": when}
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == -signal.SIGKILL, f"{when} was never reached: {done.stderr}"
    assert "Traceback" not in done.stderr
    return trace.read_text().split()[-1]


def check(when: str, place: Path, own_state: Path, words: list[str], *, clean_first: bool) -> str:
    """All that is promised of a run killed at `when`. Returns the stage it died in."""
    results = place / "results"
    stage = kill(when, results, words)
    found = list_runs(results)
    tokens = [path.name for path in own_state.iterdir()]
    if not found:
        assert bench("clean", results=results).returncode == 0
        assert stage == "prepare", f"{when}: a run that measured has a folder"
        assert not results.exists() or not list(results.iterdir()), f"{when}: what is there is no run's"
    else:
        (path,) = found
        whole = read_run(path)
        readable(path, whole)
        if clean_first:
            assert bench("clean", results=results).returncode == 0
            assert not traces(RunId(path.name)), when
        completed(path, whole, results)
    for token in (*tokens, *(path.name for path in found)):
        assert not traces(RunId(token)), when
    assert not list(own_state.iterdir()), when
    assert not untold(place / "tmp"), "what carries no run's token is found by nobody"
    return stage


def readable(path: Path, data: RunData) -> None:
    """Every line but a torn last one is a record, and a torn one is told of."""
    lines = (path / "trials.jsonl").read_bytes().split(b"\n")
    whole = len(lines) - 1  # the last is what follows the last newline: nothing, or a torn line
    assert len(data.records) in (whole, whole + 1)
    torn = bool(lines[-1]) and len(data.records) == whole
    assert bool(data.warnings) == torn
    assert all("torn" in text for text in data.warnings)
    ended = sum(b'"kind":"trial"' in line for line in lines[:whole])
    assert len([one for one in data.records if isinstance(one, TrialRecord)]) >= ended


def completed(path: Path, was: RunData, results: Path) -> None:
    """`--resume` does what is missing and nothing else."""
    ended = read_past(path).done
    done = bench("run", "--resume", path.name, results=results)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    data = read_run(path)
    trials = [one for one in data.records if isinstance(one, TrialRecord)]
    assert data.info.status == "done"
    assert sorted(one.trial for one in trials) == sorted(data.info.plan)
    assert {one.limiter for one in trials} == {"count"}
    assert trials[: len(ended)] == list(ended), "what had ended was not done again"
    launched = [one.instance for one in data.records if isinstance(one, LaunchRecord)]
    assert len(launched) == len(set(launched))
    told = any("torn" in text for text in data.info.warnings)
    assert told == bool(was.warnings), "a line that was dropped is told of"
    assert not list(path.glob(".*")), "no draft is left"


@pytest.mark.parametrize("stage", AIMS)
def test_killed_once_in_each_stage(stage: str, tmp_path: Path, own_state: Path) -> None:
    dice = random.Random(f"once {stage}")
    check(aimed(stage, dice), tmp_path, own_state, SMALL, clean_first=dice.random() < 0.5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", AIMS)
def test_killed_at_ten_seeded_instants_of_each_stage(stage: str, tmp_path: Path, own_state: Path) -> None:
    dice, hit = random.Random(f"ten {stage}"), Counter[str]()
    for number in range(10):
        place = tmp_path / str(number)
        place.mkdir()
        hit[check(aimed(stage, dice), place, own_state, SMALL, clean_first=bool(number % 2))] += 1
    assert hit[stage] >= 3, f"aimed at {stage}, died in {dict(hit)}"
    assert hit.total() == 10


@pytest.mark.slow
@pytest.mark.libvirt
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "when", ["prepare:3:200000", "launch:1:900000", "sampling:2:5000", "write:3:0:0.5", "teardown:1:20000"]
)
def test_killed_with_guests(when: str, tmp_path: Path, own_state: Path) -> None:
    assert check(when, tmp_path, own_state, GUESTS, clean_first=True) == when.partition(":")[0]
