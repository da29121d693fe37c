"""startup.pyperf.json: the run's start-up and teardown times in pyperf's own format.

`python -m pyperf stats|hist|check|dump` read it. Do not take verdicts from its `compare_to`: it calls two sets of
unequal length significant without testing them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.model import Phase, condition_text, target_name
from bench.records import LaunchRecord, Outcome, TeardownRecord
from bench.store.files import write_atomic
from bench.store.reader import RunData

if TYPE_CHECKING:
    import pyperf

_STARTUP = (Phase.CREATED, Phase.STARTED, Phase.KERNEL, Phase.INIT, Phase.READY, Phase.REPLY)
_TEARDOWN = (Phase.STOPPED, Phase.REMOVED)


class _Timing(msgspec.Struct, frozen=True):
    name: str  # "container:default httpd ready"
    trial: str
    date: float
    warmup: bool
    seconds: float


def write_timings(data: RunData, target: Path) -> None:
    """Write `target` from the succeeded launches and teardowns in `data`; no file if there are none."""
    import pyperf  # imports half of the standard library; only the end of a run needs it

    series: dict[str, dict[str, list[_Timing]]] = {}
    for timing in _timings(data):
        series.setdefault(timing.name, {}).setdefault(timing.trial, []).append(timing)
    benchmarks = [
        pyperf.Benchmark(runs) for trials in series.values() if (runs := list(_runs(trials, _metadata(data, trials))))
    ]
    if benchmarks:
        write_atomic(target, _dumped(pyperf.BenchmarkSuite(benchmarks)))


def _timings(data: RunData) -> Iterator[_Timing]:
    for record in data.records:
        if isinstance(record, LaunchRecord) and record.outcome is Outcome.SUCCEEDED:
            yield from _phases(record, _STARTUP, 0)
        elif isinstance(record, TeardownRecord) and record.error is None and Phase.STOP in record.phases:
            yield from _phases(record, _TEARDOWN, record.phases[Phase.STOP])


def _phases(record: LaunchRecord | TeardownRecord, phases: tuple[Phase, ...], zero: int) -> Iterator[_Timing]:
    """Phases of `record` that came after `zero`; pyperf refuses values that are not positive."""
    series = f"{target_name(record.driver, record.profile, condition_text(record.condition))} {record.payload}"
    for phase in phases:
        elapsed = record.phases.get(phase, zero) - zero
        if elapsed > 0:
            yield _Timing(f"{series} {phase}", record.trial, record.date, record.warmup, elapsed / 1e9)


def _runs(trials: dict[str, list[_Timing]], metadata: dict[str, Any]) -> Iterator[pyperf.Run]:
    """One pyperf run a trial. Warm-ups of a trial without values go to the next one: pyperf wants values in a run."""
    import pyperf

    warmups: list[tuple[int, float]] = []
    for trial, timings in trials.items():
        warmups += [(1, timing.seconds) for timing in timings if timing.warmup]
        values = [timing.seconds for timing in timings if not timing.warmup]
        if values:
            date = datetime.fromtimestamp(timings[0].date).isoformat(" ")
            labels = {**metadata, "trial": trial, "date": date, "duration": sum(values)}
            yield pyperf.Run(values, warmups=warmups, metadata=labels, collect_metadata=False)
            warmups = []


def _metadata(data: RunData, trials: dict[str, list[_Timing]]) -> dict[str, Any]:
    """pyperf's own names where it has one, so that its `metadata` and `compare_to` know them."""
    name = next(iter(trials.values()))[0].name
    host, info = data.host, data.info
    facts: dict[str, Any] = {
        "name": name,
        "unit": "second",
        "loops": 1,
        "run": info.run,
        "scenario": info.scenario,
        "seed": info.seed,
        "hostname": host.hostname,
        "cpu_model_name": host.cpu_model,
        "cpu_count": host.cpus,
        "platform": f"{host.distribution}, Linux {host.kernel}, {host.machine}",
        "python_version": host.python,
        "image": info.image.digest,
    }
    if name.startswith("vm:") and info.accelerator:
        facts["accelerator"] = info.accelerator
    return {key: value for key, value in facts.items() if value != ""}


def _dumped(suite: pyperf.BenchmarkSuite) -> bytes:
    import io

    text = io.StringIO()
    suite.dump(text, compact=False)
    return text.getvalue().encode()
