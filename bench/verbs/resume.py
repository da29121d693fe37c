"""`bench run --resume RUN`: what must be the same, and what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from bench.config.find import find_scenario
from bench.config.loader import load_scenario, parse_scenario
from bench.config.scenario import Scenario, payload_for
from bench.config.written import effective_toml
from bench.errors import UsageError
from bench.plan import make_plan
from bench.records import RunInfo
from bench.store import find_run, read_past
from bench.store.reader import RUN
from bench.verbs import session
from bench.verbs.registry import alive, entries
from bench.verbs.run import Options, execute, with_given
from bench.verbs.same import require_same


def request(text: str, name: str | None, options: Options, results: Path, connect: str | None) -> session.Request:
    """What is missing in the run that `text` means. A scenario and options are allowed if they say what the run's say.

    Raises UsageError if they say otherwise, if this bench would plan otherwise, or while the run is alive.
    """
    past = read_past(find_run(results, text))
    info = past.info
    if entry := alive(info.run):
        raise UsageError(f"{info.run} is alive (pid {entry.pid})", hint="it goes on by itself: wait for its end")
    source = str(past.path / RUN)
    stored = parse_scenario(info.scenario_toml, source)
    if name is None:
        wanted = parse_scenario(info.scenario_toml, source, overrides=options.overrides)
    else:
        wanted = load_scenario(find_scenario(name), overrides=options.overrides)
    _require_same_scenario(info, stored, with_given(wanted, options))
    plan = make_plan(stored, info.seed)
    require_same("the plan", info.plan, plan.order)
    require_same("the payload", info.payload, payload_for(stored))
    left = plan.without({one.trial for one in past.done})
    if info.precision:  # it had ended, and did not need the others
        left = plan.up_to(0)
    connect = connect or next((one.connect for one in entries() if one.run == info.run), None)
    return session.Request(stored, left, past.path.parent, connect, ("bench", *sys.argv[1:]), past)


def resume(request: session.Request, as_json: bool) -> int:
    """Do it, and print the summary of the whole run."""
    past = request.past
    if past and not request.plan.trials and past.info.status in ("done", "failed"):
        click.echo(f"bench: {past.info.run}: nothing is missing", err=True)
        return int(past.info.status == "failed")
    return execute(request, as_json)


def _require_same_scenario(info: RunInfo, stored: Scenario, wanted: Scenario) -> None:
    if wanted.seed == info.seed:  # said now, drawn then
        wanted = msgspec.structs.replace(wanted, seed=stored.seed)
    if wanted == stored:
        return
    had = effective_toml(stored).splitlines()
    new = [line for line in effective_toml(wanted).splitlines() if line not in had]
    raise UsageError(
        f"{info.run} is of another scenario, without {'; '.join(new) or 'some of its keys'}",
        hint="leave the scenario and its options out: a run is resumed with its own",
    )
