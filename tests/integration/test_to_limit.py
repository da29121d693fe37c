"""Ramps to the limit of this host, with the limit brought near: each ends where it should, says why, and gives it back.

Each first runs without what is to stop it: the same ramp must then reach its bound.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.headroom import HostHeadroom, Kept
from bench.host import memory_available
from bench.model import MIB, RunId
from bench.records import TrialRecord
from bench.store import read_run
from bench.store.reader import RunData
from tests.integration.traces import traces

pytestmark = pytest.mark.root

BENCH = [sys.executable, "-m", "bench"]
FREE = ["reserve.memory=0", "reserve.fraction=0", "reserve.pressure=1"]
SLACK = 600 * MIB  # what others may do to the host's memory meanwhile


def to_limit(
    results: Path, count: int, *settings: str, drivers: str = "process", scenario: str = "density"
) -> tuple[RunData, TrialRecord]:
    """One ramp of at most `count` and three minutes; it has left nothing."""
    words = ["--drivers", drivers, "--rounds", "1", "--count", str(count)]
    sets = [word for one in ("settle=0.05", "to_limit.time=180", *FREE, *settings) for word in ("--set", one)]
    done = subprocess.run(
        [*BENCH, "run", scenario, "--to-limit", *words, *sets],
        capture_output=True, text=True, timeout=240, env={**os.environ, "BENCH_RESULTS": str(results)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = read_run(results / done.stdout.splitlines()[-1])
    assert not traces(RunId(data.info.run))
    (trial,) = [record for record in data.records if isinstance(record, TrialRecord)]
    assert trial.to_limit
    return data, trial


def settled_memory(least: int, timeout: float = 30) -> int:
    """MemAvailable, once it is at least that, or after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (now := memory_available()) < least and time.monotonic() < deadline:
        time.sleep(0.2)
    return now


@pytest.mark.slow
def test_the_memory_reserve_ends_a_ramp_and_the_memory_comes_back(tmp_path: Path) -> None:
    touched = ["payload=touch", "payload.touch_mib=32", "limits.memory=64 MiB"]
    _, trial = to_limit(tmp_path, 40, *touched, drivers="container")
    assert (trial.alive, trial.limiter) == (40, "count"), "with room enough it comes to its bound"
    before = settled_memory(0)
    reserve = before - 64 * MIB - SLACK
    _, trial = to_limit(tmp_path, 80, *touched, f"reserve.memory={reserve}", drivers="container")
    assert trial.limiter == "memory"
    assert trial.useful == trial.alive
    assert 0 < trial.alive < 80
    assert f"the reserve is {reserve}" in trial.evidence
    assert "read then: MemAvailable" in trial.evidence
    assert settled_memory(before - SLACK // 2) > before - SLACK // 2


@pytest.mark.slow
def test_the_reserve_of_process_ids_ends_a_ramp(tmp_path: Path) -> None:
    _, trial = to_limit(tmp_path, 150, "payload=idle")
    assert (trial.alive, trial.limiter) == (150, "count")
    levels = HostHeadroom(Kept(), [], list).levels()
    assert levels.pids is not None
    reserve = levels.pids.left - 64 - 100  # for a hundred more
    _, trial = to_limit(tmp_path, 1000, "payload=idle", f"reserve.pids={reserve}")
    assert trial.limiter == "pids"
    assert trial.alive < 1000
    assert f"of {levels.pids.most} process ids are in use" in trial.evidence


SLOW = """
schema = 1
name = "slow"
drivers = ["container"]
payload = "PAYLOAD"
[payloads.slow]
command = ["/bin/sh", "-c", '''
case $BENCH_ADDRESS in *.[0-9]) exec /bin/payload-httpd;; esac
printf '#!/bin/sh\\nread line; sleep 0.4; printf "HTTP/1.0 200 OK\\\\r\\\\n\\\\r\\\\n"\\n' > /tmp/answer
chmod +x /tmp/answer
echo bench-ready
exec nc -ll -p 8080 -e /tmp/answer''']
ready = { line = "bench-ready" }
reply = { port = 8080 }
[service]
duration = "0.5 s"
"""


def test_a_service_level_that_is_lost_leaves_fewer_useful_than_alive(tmp_path: Path) -> None:
    """The first addresses end in 2 to 9 and the warm-up has one of them: from the eighth instance on they are slow."""
    for payload, alive, useful, limiter in (("httpd", 8, 8, "count"), ("slow", 8, 4, "service")):
        scenario = tmp_path / f"{payload}.toml"
        scenario.write_text(SLOW.replace("PAYLOAD", payload))
        data, trial = to_limit(tmp_path, 8, "stop_timeout=0.3", drivers="container", scenario=str(scenario))
        assert (trial.alive, trial.useful, trial.limiter) == (alive, useful, limiter), trial.evidence
    assert "at N=8: p99 must be at most 0.25 s, and it is 0.4" in trial.evidence
    shown = subprocess.run(
        [*BENCH, "show", data.info.run, "--json", "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {row["metric"]: row["median"] for row in json.loads(shown.stdout)["summary"]}
    assert (found["density.alive"], found["density.useful"]) == (8, 4)
    page = tmp_path / "page.html"
    subprocess.run([*BENCH, "report", data.info.run, "-o", str(page), "--results", str(tmp_path)], check=True)
    assert "container:default got to 8 instances alive, 4 useful, limited by service in 1 ramp" in page.read_text()


def test_free_disk_that_is_reserved_stops_a_ramp_before_it_begins(tmp_path: Path) -> None:
    _, trial = to_limit(tmp_path, 2, "payload=idle", "reserve.disk=0")
    assert trial.limiter == "count"
    done = subprocess.run(
        [*BENCH, "run", "density", "--to-limit", "--drivers", "process", "--rounds", "1", "--count", "2", "--set",
         "reserve.disk=15 TiB", "--set", "payload=idle", "--set", "warmups=0", "--results", str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "limited by disk" in done.stderr
