"""`bench run`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import click
from msgspec import Struct

from bench.config import Scenario, effective_toml, find_scenario, load_scenario, with_options
from bench.host import memory_available
from bench.model import RunId
from bench.plan import estimate, make_plan
from bench.verbs import session
from bench.verbs.interrupts import Interrupts
from bench.verbs.out import emit_json, table
from bench.verbs.progress import shown


class Options(Struct, frozen=True):
    """Command-line options that change a scenario; None where not given."""

    drivers: str | None
    count: int | None
    rounds: int | None
    seed: int | None
    image: str | None
    max_time: str | None
    overrides: tuple[str, ...]


def request(name: str, options: Options, results: Path, connect: str | None) -> session.Request:
    """The validated request. Raises UsageError or ConfigError."""
    scenario = with_given(load_scenario(find_scenario(name), overrides=options.overrides), options)
    seed = scenario.seed if scenario.seed is not None else random.SystemRandom().randrange(2**31)
    plan = make_plan(scenario, seed)
    return session.Request(scenario, plan, results, connect, ("bench", *sys.argv[1:]))


def with_given(scenario: Scenario, options: Options) -> Scenario:
    """`scenario` with all options but `--set` over it."""
    return with_options(
        scenario,
        drivers=[options.drivers] if options.drivers is not None else None,
        count=options.count,
        rounds=options.rounds,
        seed=options.seed,
        image=options.image,
        max_time=options.max_time,
    )


def show_plan(request: session.Request, as_json: bool) -> int:
    """`--dry-run`: what would happen, in which order, and roughly what it takes."""
    cost = estimate(request.plan, request.scenario)
    if as_json:
        emit_json(
            {
                "scenario": request.scenario.name,
                "seed": request.plan.seed,
                "trials": request.plan.trials,
                "estimate": cost,
                "effective": effective_toml(request.scenario),
            }
        )
        return 0
    click.echo(effective_toml(request.scenario).rstrip() + "\n")
    rows = [[trial.id, str(trial.warmups), " ".join(map(str, trial.steps))] for trial in request.plan.trials]
    table(["trial, in this order", "warm-ups", "sampled at N ="], rows)
    click.echo(
        f"\nseed {request.plan.seed}, {request.plan.launches} launches; estimated, not measured (guests under tcg): "
        f"{cost.seconds / 60:.1f} min, {cost.memory / 2**30:.1f} GiB of memory at once "
        f"({memory_available() / 2**30:.1f} GiB available), {cost.disk / 2**30:.1f} GiB of disk"
    )
    return 0


def execute(request: session.Request, as_json: bool) -> int:
    """Do it, then print the summary; the run id comes last on stdout."""
    interrupts = Interrupts()
    with interrupts.installed():
        with shown(request.plan, request.scenario) as progress:
            outcomes = session.run(request, progress, interrupts)
        _print(outcomes, as_json)
    return outcomes.exit_code


def _print(outcomes: session.Outcomes, as_json: bool) -> None:
    from bench.verbs.show import print_summary, summary_of

    if as_json:
        emit_json(summary_of(outcomes.path))
        return
    print_summary(outcomes.path)
    click.echo(RunId(outcomes.run))
