"""`bench run`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import click
from msgspec import Struct

from bench.config.find import find_scenario
from bench.config.loader import load_scenario
from bench.config.options import with_options
from bench.config.scenario import Scenario
from bench.config.units import format_duration
from bench.config.written import effective_toml
from bench.host import memory_available
from bench.images.ballast import size_of
from bench.model import RunId
from bench.plan import estimate, least_rounds, make_plan, most_rounds
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
    to_limit: bool = False
    cold: bool = False
    until_precise: str | None = None
    max_rounds: int | None = None


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
        to_limit=options.to_limit,
        cold=options.cold,
        until_precise=options.until_precise,
        max_rounds=options.max_rounds,
    )


def show_plan(request: session.Request, as_json: bool) -> int:
    """`--dry-run`: what would happen, in which order, and roughly what it takes."""
    least = least_rounds(request.scenario)
    plan = request.plan.up_to(least)
    cost = estimate(plan, request.scenario, image=size_of(request.scenario.image) or 0)
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
    rows = [[trial.id, str(trial.warmups), " ".join(map(str, trial.steps))] for trial in plan.trials]
    table(["trial, in this order", "warm-ups", "sampled at N ="], rows)
    if request.scenario.precise.width:
        click.echo(
            f"\nthen round after round until each start-up interval is at most {request.scenario.precise.width:.2%} of "
            f"its median wide, {most_rounds(request.scenario)} rounds at most: the estimate is of {least}"
        )
    bounds = request.scenario.to_limit
    if bounds.on:
        click.echo(
            f"\nseed {request.plan.seed}, {len(plan.trials)} ramps to the limit, each of at most {bounds.count} "
            f"instances and {format_duration(bounds.time)}, teardown left out; they take what the reserve leaves "
            f"({memory_available() / 2**30:.1f} GiB of memory are available now)"
        )
        return 0
    click.echo(
        f"\nseed {request.plan.seed}, {plan.launches} launches; estimated, not measured (guests under tcg): "
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
