"""Inside the rig: whether what bench says of this machine, and what it measured, is what the rig is there to prove.

Exits 1 and says what is wrong. Usage: judge.py doctor FILE | judge.py run RESULTS DRIVERS COUNT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.model import HostFacts
from bench.records import LaunchRecord, NoteRecord, Outcome, TrialRecord
from bench.store import read_run
from bench.store.reader import RunData, list_runs

NAME = "nested rig"


def doctor(file: str) -> Iterator[str]:
    """What is wrong with the answers of `bench doctor --json`."""
    said: dict[str, Any] = json.loads(Path(file).read_text())
    if said["host"]["cgroup"] != "v2":
        yield f"cgroup is {said['host']['cgroup']}, not v2"
    if said["accelerator"] != "kvm":
        yield f"the accelerator is {said['accelerator']}, not kvm: {said['drivers']['vm']}"
    if NAME not in str(said["host"]["virtualization"]):
        yield f"the host facts do not say {NAME!r}: {said['host']['virtualization']}"
    for name, answer in said["drivers"].items():
        if name in ("process", "container", "vm") and not answer["ok"]:
            yield f"{name} can't run: {answer['reason']}"


def run(results: str, drivers: str, count: str) -> Iterator[str]:
    """What is wrong with the newest run."""
    folder = list_runs(Path(results))[-1]
    data = read_run(folder)
    yield from _host(data.host)
    if data.info.status != "done" or data.info.accelerator != "kvm":
        yield f"the run is {data.info.status}, its accelerator {data.info.accelerator}"
    yield from _records(data, int(count))
    wanted = {name if ":" in name else f"{name}:" for name in drivers.split(",")}
    for name in wanted:
        if not any(one.startswith(name) for one in data.info.drivers):
            yield f"{name} did not run"
    domains = [path for path in folder.rglob("*.xml") if 'type="kvm"' in path.read_text().replace("'", '"')]
    if not domains:
        yield "no domain of type kvm is among the logs"


def _host(host: HostFacts) -> Iterator[str]:
    if host.cgroup != "v2" or NAME not in str(host.virtualization):
        yield f"host.json says cgroup {host.cgroup}, virtualization {host.virtualization}"


def _records(data: RunData, count: int) -> Iterator[str]:
    trials = [record for record in data.records if isinstance(record, TrialRecord)]
    for trial in trials:
        if trial.outcome != Outcome.SUCCEEDED or trial.alive < count:
            yield f"{trial.trial}: {trial.outcome}, {trial.alive} alive, {trial.limiter}: {trial.evidence}"
    if len(trials) != len(data.info.plan):
        yield f"{len(trials)} trials of {len(data.info.plan)}"
    for record in data.records:
        if isinstance(record, LaunchRecord) and record.outcome != Outcome.SUCCEEDED:
            yield f"{record.instance}: {record.outcome}: {record.error}"
        if isinstance(record, NoteRecord) and record.level == "error":
            yield record.text


if __name__ == "__main__":
    wrong = list(doctor(sys.argv[2]) if sys.argv[1] == "doctor" else run(*sys.argv[2:]))
    sys.exit("\n".join(f"judge: {one}" for one in wrong) or None)
