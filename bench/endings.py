"""How a trial ends, whatever ends it: its last record is durable before the next trial begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.errors import BenchError, Interrupted
from bench.job import Job, Sink
from bench.plan import Trial
from bench.records import Outcome, TrialRecord


def conclude(job: Job, sink: Sink, record: TrialRecord) -> TrialRecord:
    """Write the end of a trial down, and tell."""
    sink.append(record)
    sink.sync()
    job.progress.ended(record)
    return record


def run_battery(job: Job, sink: Sink, trial: Trial, work: Callable[[], Sequence[str]]) -> TrialRecord:
    """A trial that is no ramp: do `work`, and write its end down in any case. Interrupted goes through.

    `work` gives what is different on this host afterwards: with anything the trial has failed.
    """
    job.progress.trial(trial)
    outcome, limiter, evidence, alive = Outcome.FAILED, "error", "", 0
    try:
        changed = work()
        outcome, limiter = (Outcome.FAILED, "host-changed") if changed else (Outcome.SUCCEEDED, "count")
        evidence, alive = "\n".join(changed), trial.most
    except Interrupted:
        outcome, limiter = Outcome.INTERRUPTED, "interrupted"
        raise
    except BenchError as error:
        limiter, evidence = "launch", error.message
    finally:
        ended = TrialRecord(
            trial=trial.id, driver=trial.driver, profile=trial.profile, payload=job.payload.name, round=trial.round,
            date=time.time(), outcome=outcome, alive=alive, asked=trial.most, limiter=limiter, evidence=evidence,
            launching_ns=0, battery=True, accelerator=job.accelerators(trial.driver),
        )  # fmt: skip
        with job.shield():
            conclude(job, sink, ended)
    return ended
