"""What a person sees while a run goes on, on stderr: a bar with an ETA in a terminal, else one plain line a trial."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.config.scenario import Scenario
from bench.job import Progress
from bench.plan import Plan, Trial, trial_seconds
from bench.records import LaunchRecord, Outcome, TrialRecord
from bench.variants import Variants


@contextmanager
def shown(plan: Plan, scenario: Scenario) -> Iterator[Progress]:
    """The progress display that fits where stderr goes."""
    if sys.stderr.isatty():
        with _Bar(plan, scenario) as bar:
            yield bar
    else:
        yield _Lines(len(plan.trials))


def _outcome(record: TrialRecord) -> str:
    reached = f"{record.outcome}, {record.alive} of {'at most ' if record.to_limit else ''}{record.asked} alive"
    if record.useful is not None:
        reached += f", {record.useful} useful"
    if record.limiter == "interrupted" or (record.limiter == "count" and not record.to_limit):
        return reached
    first = next(iter(record.evidence.splitlines()), "no evidence")
    return f"{reached}, limited by {record.limiter}: {first}"


class _Lines:
    """One line when a trial begins and one when it ends: for logs and CI."""

    def __init__(self, trials: int) -> None:
        self._trials = trials
        self._number = 0
        self._began = time.monotonic()
        self._last = ""

    def _say(self, text: str) -> None:
        print(f"bench: {time.monotonic() - self._began:6.1f} s  {text}", file=sys.stderr, flush=True)

    def trial(self, trial: Trial) -> None:
        self._number += 1
        goal = "" if trial.kind != "ramp" else f" to {'the limit, at most ' * trial.to_limit}N={trial.count}"
        self._say(f"[{self._number}/{self._trials}] {trial.id}{goal}")

    def doing(self, text: str) -> None:
        if not self._number:
            self._say(text)

    def launched(self, trial: Trial, record: LaunchRecord) -> None:
        if record.outcome is not Outcome.SUCCEEDED:
            self._say(f"{record.instance}: {record.error}")

    def ended(self, record: TrialRecord) -> None:
        self._say(f"{record.trial}: {_outcome(record)}")


class _Bar:
    """One bar for the run, weighted by what each trial is expected to take; what is running now stands beside it."""

    def __init__(self, plan: Plan, scenario: Scenario) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        variants = Variants(scenario)
        self._weights = {one.id: trial_seconds(one, variants.of(one.condition)) for one in plan.trials}
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("begin", total=sum(self._weights.values()))
        self._done = 0.0
        self._trial = ""

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def trial(self, trial: Trial) -> None:
        self._trial = trial.id

    def doing(self, text: str) -> None:
        self._progress.update(self._task, description=f"{self._trial}  {text}"[:52].ljust(52))

    def launched(self, trial: Trial, record: LaunchRecord) -> None:
        share = self._weights[trial.id] / trial.launches
        self._progress.advance(self._task, share)
        if record.outcome is not Outcome.SUCCEEDED:
            self._console.print(f"{record.instance}: {record.error}", style="red", markup=False)

    def ended(self, record: TrialRecord) -> None:
        self._done += self._weights[record.trial]
        self._progress.update(self._task, completed=self._done)
        ready = record.launching_ns / 1e9
        self._console.print(
            f"{record.trial}: {_outcome(record)}; {ready:.2f} s spent launching", markup=False, highlight=False
        )
