"""Several real launches in flight at once, through `bench run`: all come up, each is its own, nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.model import Phase, token_of
from bench.records import LaunchRecord, Outcome, StepRecord, TrialRecord
from bench.store import RunData, read_run
from tests.integration.traces import traces

pytestmark = pytest.mark.root


def flown(results: Path, driver: str, at_once: int, count: int) -> RunData:
    words = [
        "run", "density", "--drivers", driver, "--count", str(count), "--rounds", "1", "--set", "settle=0.1",
        "--set", f"launch.concurrency={at_once}",
    ]  # fmt: skip
    env = {**os.environ, "BENCH_RESULTS": str(results)}
    done = subprocess.run([sys.executable, "-m", "bench", *words], capture_output=True, text=True, timeout=280, env=env)
    assert done.returncode == 0, done.stderr
    data = read_run(results / done.stdout.splitlines()[-1])
    assert not [text for text in data.info.warnings if "left behind" in text]
    assert not traces(data.info.run)
    return data


def overlapping(data: RunData) -> bool:
    """Whether one was asked for before the one before it was ready: launched one by one, each finds one more alive."""
    alive = [one.alive for one in data.records if isinstance(one, LaunchRecord) and not one.warmup]
    return alive != list(range(len(alive)))


def check(data: RunData, at_once: int, count: int) -> None:
    (trial,) = [one for one in data.records if isinstance(one, TrialRecord)]
    assert (trial.outcome, trial.alive, trial.limiter) == (Outcome.SUCCEEDED, count, "count")
    assert trial.condition == {"launch.concurrency": str(at_once)}
    launches = [one for one in data.records if isinstance(one, LaunchRecord) and not one.warmup]
    assert len({one.instance for one in launches}) == count
    assert all(one.instance.startswith(token_of(data.info.run)) for one in launches)
    assert overlapping(data)
    for one in launches:
        stamps = [one.phases[phase] for phase in (Phase.CREATED, Phase.STARTED, Phase.READY, Phase.REPLY)]
        assert stamps == sorted(stamps)
    longest = max(one.phases[Phase.REPLY] for one in launches)
    assert longest <= trial.launching_ns < sum(one.phases[Phase.REPLY] for one in launches), "by the clock, not summed"
    steps = [one for one in data.records if isinstance(one, StepRecord)]
    (processes,) = [one.value for one in steps[-1].readings if one.metric == "instances.processes"]
    assert processes >= count


@pytest.mark.parametrize("driver", ["process", "container", "container:pooled"])
def test_sixteen_at_once(driver: str, tmp_path: Path) -> None:
    check(flown(tmp_path, driver, 16, 48), 16, 48)


@pytest.mark.libvirt
@pytest.mark.slow
def test_guests_at_once(tmp_path: Path) -> None:
    check(flown(tmp_path, "vm:lean", 3, 6), 3, 6)
