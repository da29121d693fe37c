"""`bench doctor`: what this host is, what can run on it, and what to do about each no."""

from __future__ import annotations

import click
import msgspec
from msgspec import Struct

from bench.config.find import find_scenario
from bench.config.loader import load_scenario
from bench.config.scenario import Scenario
from bench.drivers.registry import driver_names
from bench.host import host_facts, reserve_bytes
from bench.model import HostFacts, Support
from bench.verbs import session
from bench.verbs.out import emit_json, table


class Answer(Struct, frozen=True):
    """One driver's: can it run, and what it says of itself."""

    ok: bool
    reason: str
    hint: str
    describe: dict[str, str]


class Examination(Struct, frozen=True):
    """What `bench doctor --json` prints. `ready`: the default density scenario can run here."""

    ready: bool
    host: HostFacts
    drivers: dict[str, Answer]
    accelerator: str | None
    memory: Support


def examine(as_json: bool, connect: str | None) -> int:
    """Exit status: 0 if the default density scenario can run here, else 3."""
    host = host_facts()
    answers = {
        name: Answer(support.ok, support.reason, support.hint, described)
        for name, (support, described) in session.supports(host, driver_names(), connect).items()
    }
    scenario = load_scenario(find_scenario("density"))
    memory = _memory(host, scenario)
    ready = memory.ok and all(answers[name].ok for name, _ in scenario.targets())
    accelerator = answers["vm"].describe.get("accelerator") if "vm" in answers else None
    found = Examination(ready, host, answers, accelerator, memory)
    if as_json:
        emit_json(found)
    else:
        _print(found)
    return 0 if ready else 3


def _memory(host: HostFacts, scenario: Scenario) -> Support:
    """Whether the largest declared ramp, the guests', fits above the reserve."""
    reserve = reserve_bytes(host.memory_total, scenario.reserve.memory, scenario.reserve.fraction)
    needed = reserve + scenario.limits.memory * (scenario.count_for("vm") if "vm" in dict(scenario.targets()) else 1)
    if host.memory_available >= needed:
        return Support(True)
    return Support(
        False,
        f"{host.memory_available >> 20} MiB available; the density scenario may need {needed >> 20}, reserve included",
        "free memory, or: bench run density --count 2",
    )


def _print(found: Examination) -> None:
    facts = msgspec.to_builtins(found.host)
    rows = [[name.replace("_", " "), _text(name, value)] for name, value in facts.items() if value is not None]
    table(["host", ""], rows)
    click.echo()
    table(
        ["check", "answer", "why", "what to do"],
        [*(_row(name, one) for name, one in found.drivers.items()), _row("memory", found.memory)],
    )
    if (vm := found.drivers.get("vm")) and vm.ok:
        click.echo()
        table(["vm", ""], [[key, value] for key, value in vm.describe.items()])
    click.echo(f"\nthe default density scenario {'can' if found.ready else 'cannot'} run here")


def _row(name: str, answer: Answer | Support) -> list[str]:
    return [name, "yes" if answer.ok else "no", answer.reason, answer.hint]


def _text(name: str, value: object) -> str:
    if name.startswith(("memory_", "swap_")) and isinstance(value, int):
        return f"{value >> 20} MiB"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
