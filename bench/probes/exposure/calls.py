"""System calls reachable from inside: what the program's trials of every number say."""

from __future__ import annotations

import errno
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from bench.errors import CommandError
from bench.linux.calls import LAST, NAMES, call_name
from bench.model import Completed
from bench.records import Exposed, Exposure

WORKS, DENIED, KILLED, ABSENT, UNTRIED = "works", "denied", "killed", "not implemented", "not tried"
_DENIALS = frozenset({errno.EPERM, errno.EACCES})
_OWN_SIGNALS = {"rt_sigreturn": signal.SIGSEGV, "uretprobe": signal.SIGILL, "uprobe": signal.SIGILL}
"""Calls that answer a caller with no frame to return to by a signal of their own: that is their code at work."""


class Tried(Struct, frozen=True):
    """One call: how it ended (returned, exited, signal, blocked, unborn) and with what (errno, status, signal)."""

    number: int
    how: str
    value: int

    @property
    def found(self) -> str:
        """The class of it."""
        if self.how == "unborn":
            return UNTRIED
        if self.how == "signal":
            return WORKS if _OWN_SIGNALS.get(call_name(self.number)) == self.value else KILLED
        if self.how == "returned" and self.value == errno.ENOSYS:
            return ABSENT
        return DENIED if self.how == "returned" and self.value in _DENIALS else WORKS

    @property
    def said(self) -> str:
        if self.how == "returned":
            return errno.errorcode.get(self.value, f"errno {self.value}") if self.value else "done"
        if self.how == "signal":
            return signal.Signals(self.value).name if self.value in set(signal.Signals) else f"signal {self.value}"
        return "no process for it" if self.how == "unborn" else self.how


def parse(text: str) -> dict[int, Tried]:
    """`NUMBER HOW VALUE` lines. Raises CommandError for anything else, and for a number that is missing."""
    try:
        lines = [line.split() for line in text.splitlines()]
        found = {int(number): Tried(int(number), how, int(value)) for number, how, value in lines}
    except ValueError as error:
        raise CommandError(f"the trial of system calls said what is no answer: {error}") from error
    if missing := set(range(LAST + 1)) - found.keys():
        raise CommandError(f"the trial of system calls ended early: {min(missing)} was not tried")
    return found


def tried(run: Callable[[Sequence[str]], Completed]) -> dict[int, Tried]:
    """All numbers up to LAST by the program that `run` runs, inside or outside. Raises LaunchError, CommandError."""
    done = run(["calls", "0", str(LAST)])
    if done.status:
        raise CommandError(f"exit status {done.status} from the trial of system calls: {done.stderr.strip()[-200:]}")
    return parse(done.stdout)


def exposure(inside: Mapping[int, Tried], host: Mapping[int, Tried]) -> Exposure:
    """Both classed, number by number; those that no call has are listed, and in no count.

    `host` is what the same program met as a bare process.
    """
    named = {number: one for number, one in inside.items() if number in NAMES}
    items = tuple(
        Exposed(call_name(number), one.found, one.said, host[number].said if number in host else None)
        for number, one in sorted(inside.items())
    )
    counts = Counter(one.found for one in named.values())
    listed = {found: counts[found] for found in (WORKS, DENIED, KILLED, ABSENT)}
    answered = sum(
        one.found == ABSENT and number in host and host[number].found != ABSENT for number, one in named.items()
    )
    without = Counter(one.found for number, one in host.items() if number in NAMES)
    if counts[UNTRIED]:
        listed[UNTRIED] = counts[UNTRIED]
    return Exposure(
        "calls", items, {**listed, "missing inside, there on the host": answered, "works on the host": without[WORKS]}
    )
