"""`bench selftest`: the statistics are put to the test, on made-up runs whose truth is known, or on a real driver."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from msgspec import Struct

from bench.analysis.comparison import ALPHA, Row
from bench.analysis.frames import frames
from bench.analysis.resampling import Floats
from bench.analysis.selfcheck import COVERAGE, POWER, Check, Count, compared, count_covered, count_verdicts, ramps_of
from bench.drivers.synthetic import Costs
from bench.errors import HostError, Interrupted
from bench.store.reader import read_run
from bench.verbs import synthetic as made
from bench.verbs.out import emit_json, table

ROUNDS, LAUNCHES = 6, 4
COVERED_ROUNDS = (3, 6, 10)  # few and some (Student's t), many (bootstrap)
SLOWER = 1.2  # the difference that has to be found
REAL_ROUNDS, REAL_COUNT = 8, 4


class Result(Struct, frozen=True):
    """What `bench selftest --json` prints. `synthetic`: no instance ran."""

    synthetic: bool
    driver: str
    holds: bool
    checks: Sequence[Check]
    runs: Sequence[str] = ()


def synthetic(runs: int, seed: int, as_json: bool) -> int:
    """`runs` runs of the synthetic driver against itself, and a share of them for coverage and power."""
    checks = [*false_positives(runs, seed), *coverage(max(20, runs // 5), seed), *power(max(20, runs // 20), seed)]
    return _report(Result(True, "synthetic", all(one.holds for one in checks), checks), as_json)


def false_positives(runs: int, seed: int) -> list[Check]:
    """Two profiles of the same cost, in shuffled rounds of one run: whatever is found is false."""
    count = Count()
    for number in _seeds(runs, seed):
        count_verdicts(_pair(Costs(), number), count)
    return count.checks("false positives", ALPHA)


def power(runs: int, seed: int) -> list[Check]:
    """The second profile costs more: it has to be found."""
    base, count = Costs(), Count()
    slow = Costs(ready=base.ready * SLOWER, removed=base.removed * SLOWER, marginal=base.marginal * SLOWER)
    for number in _seeds(runs, seed):
        for row in _pair(slow, number):
            if row.metric in ("startup.ready", "memory.marginal"):
                count.add(f"{row.metric} {SLOWER:g} times as much", row.verdict == "worse")
    return count.checks("power", POWER)


def _pair(second: Costs, seed: int) -> list[Row]:
    design = made.Design(costs={"a": Costs(), "b": second}, rounds=ROUNDS, count=LAUNCHES, seed=seed)
    tables = frames(made.measured(design))
    one, other = sorted(tables.series, key=lambda series: series.profile)
    return compared(ramps_of(tables, one), ramps_of(tables, other), seed)


def coverage(runs: int, seed: int) -> list[Check]:
    """Intervals against known costs."""
    costs, count = Costs(), Count()
    truths = {
        "startup.ready": costs.ready,
        "teardown.removed": costs.removed,
        "memory.marginal": costs.marginal,
        "memory.fixed": costs.fixed,
    }
    for rounds in COVERED_ROUNDS:
        for number in _seeds(runs, seed + rounds):
            design = made.Design(costs={"a": costs}, rounds=rounds, count=2 * LAUNCHES, seed=number)
            tables = frames(made.measured(design))
            count_covered(tables, truths, number, f"{rounds} ramps", count)
    return count.checks("coverage", COVERAGE)


def _seeds(runs: int, seed: int) -> Iterator[int]:
    dice = random.Random(seed)
    return (dice.randrange(2**31) for _ in range(runs))


# --- for real ------------------------------------------------------------------------------------------------------


def real(driver: str, repeat: int, seed: int, results: Path, as_json: bool) -> int:
    """`repeat` runs of `driver`, whose ramps are divided in two by lot, one of each pair of rounds to either side."""
    count, runs = Count(), []
    for number in _seeds(repeat, seed):
        data = read_run(_measure(driver, number, results))
        tables = frames(data)
        runs.append(data.info.run)
        if len(tables.series) != 1 or len(ramps := ramps_of(tables, tables.series[0])) == 0:
            raise HostError(f"{data.info.run}: nothing was measured", hint=f"bench show {data.info.run}")
        count_verdicts(compared(*_halves(ramps, number), number), count)
    checks = count.checks("false positives", ALPHA)
    return _report(Result(False, driver, all(one.holds for one in checks), checks, runs), as_json)


def _halves(ramps: Mapping[str, Floats], seed: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Ramps stand in the order they ran in: of two that follow one another each side gets one."""
    dice = random.Random(seed)
    count = max(map(len, ramps.values()))
    first = [place for pair in range(0, count, 2) for place in [pair + dice.randrange(2)]]
    sides: list[dict[str, Floats]] = []
    for chosen in (set(first), set(range(count)) - set(first)):
        places = {
            metric: [place for place in sorted(chosen) if place < len(values)] for metric, values in ramps.items()
        }
        sides.append({metric: ramps[metric][wanted] for metric, wanted in places.items() if wanted})
    return sides[0], sides[1]


def _measure(driver: str, seed: int, results: Path) -> Path:
    from bench.verbs import run as running
    from bench.verbs import session
    from bench.verbs.interrupts import Interrupts
    from bench.verbs.progress import shown

    options = running.Options(
        drivers=driver, count=REAL_COUNT, rounds=REAL_ROUNDS, seed=seed, image=None, max_time=None, overrides=()
    )
    request = running.request("density", options, results, None)
    interrupts = Interrupts()
    with interrupts.installed(), shown(request.plan, request.scenario) as progress:
        outcomes = session.run(request, progress, interrupts)
    if outcomes.interrupted:
        raise Interrupted(outcomes.interrupted)
    return outcomes.path


def _report(result: Result, as_json: bool) -> int:
    """Exit status: 1 if a count broke its bound."""
    if as_json:
        emit_json(result)
        return int(not result.holds)
    title = (
        "synthetic: no instance ran" if result.synthetic else f"{result.driver} against itself, {len(result.runs)} runs"
    )
    rows = [
        [one.kind, one.what, f"{one.stated:.1%}", f"{one.observed:.1%}", _bound(one), str(one.n), _word(one)]
        for one in result.checks
    ]
    table(["count", "of", "stated", "observed", "bound", "n", ""], rows, right=(2, 3, 4, 5), title=title)
    for run in result.runs:
        click.echo(run)
    return int(not result.holds)


def _bound(one: Check) -> str:
    return f"{'at most' if one.kind == 'false positives' else 'at least'} {one.bound:.1%}"


def _word(one: Check) -> str:
    return "holds" if one.holds else "BROKEN"
