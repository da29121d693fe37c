"""How wide a run's start-up intervals are so far: what `bench show` says of its folder, asked of another process.

Another process, as the analysis' libraries would make the harness larger while it measures.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bench import process
from bench.config.scenario import Scenario
from bench.errors import BenchError
from bench.model import condition_text, target_name
from bench.precision import Judge
from bench.summary import Summary, SummaryRow
from bench.sweep import conditions

log = logging.getLogger(__name__)

_TIMEOUT = 300.0
STARTUP = ("startup.reply", "startup.ready")
"""The headline: the first of these that a series has."""


def widths(found: Summary, names: Sequence[str]) -> dict[str, float | None]:
    """Width of the start-up interval of each of `names`, as a share of its median."""
    rows = {(target_name(row.driver, row.profile, row.condition), row.metric): row for row in found.summary}
    result: dict[str, float | None] = {}
    for name in names:
        row = next((rows[name, metric] for metric in STARTUP if (name, metric) in rows), None)
        result[name] = None if row is None else _width(row)
    return result


def _width(row: SummaryRow) -> float | None:
    if row.low is None or row.high is None or row.median <= 0:
        return None
    return (row.high - row.low) / row.median


def judge(scenario: Scenario, path: Path, deadline: float | None) -> Judge:
    """For the run in the folder `path`; `deadline` as of time.monotonic()."""
    names = [
        target_name(driver, profile, condition_text(condition))
        for driver, profile in scenario.targets()
        for condition in conditions(scenario, driver)
    ]
    return Judge(
        scenario.precise,
        scenario.precise.least(scenario.rounds),
        lambda: _measured(path, names),
        lambda: deadline is not None and time.monotonic() > deadline,
    )


def _measured(path: Path, names: Sequence[str]) -> Mapping[str, float | None]:
    """Nothing is lost where it can't be told: then the run just goes on."""
    argv = [sys.executable, "-m", "bench", "show", str(path.absolute()), "--json"]
    try:
        said = process.run(argv, timeout=_TIMEOUT).stdout
        return widths(msgspec.json.decode(said, type=Summary), names)
    except (BenchError, msgspec.MsgspecError) as error:
        log.warning("precision can't be told: %s", error)
        return dict.fromkeys(names)
