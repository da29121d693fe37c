"""Why a guest did not come up or is not there any more, as far as its console and the kernel's counters tell."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.linux import oom

_MORE = "raise limits.memory"
_CAUSES = (
    (r"bench: failed: (.*)", r"\1"),
    (r"bench: payload exited with status (\d+)", r"its payload exited with status \1"),
    (
        r"Out of memory|oom-kill|Cannot allocate memory|System is deadlocked on memory",
        "it ran out of memory; raise limits.memory",
    ),
    (
        r"Initramfs unpacking failed|write error|No working init found",
        "its initramfs did not fit in its memory; raise limits.memory",
    ),
    (r"Kernel panic - not syncing: (.*)", r"its kernel panicked: \1"),
)
_FEW = 200  # characters; firmware and boot stub say less
_LINES = 12


class LastLook:
    """At the groups of a hypervisor that has ended: what they counted goes with them, and libvirt removes them.

    They are the domain's alone, so whom they counted is its hypervisor.
    """

    def __init__(self, groups: Mapping[str, str]) -> None:
        self._groups = groups
        self.cause: str | None = None

    def take(self) -> None:
        """Before its corpse is reaped, for which libvirt waits. Where that is another's to do we may come too late:
        then there is no cause."""
        if found := oom.cause(self._groups):
            self.cause = f"its hypervisor was {found}"


def likely_cause(console: str) -> str | None:
    """What the console's text points at; the first of the known causes that it shows."""
    if not console.strip():
        return "its console said nothing: the kernel did not start, or too slowly"
    for pattern, text in _CAUSES:
        if match := re.search(pattern, console):
            return match.expand(text).strip()
    if len(console) < _FEW and "bench:" not in console and "Linux version" not in console:
        return f"its kernel stopped before it gave its version: too little memory ({_MORE}) or the wrong CPU"
    return None


def last_words(console: str, output: str) -> str:
    """The end of the payload's output and of the console, for an error message."""
    parts = [f"{name}:\n{_tail(text)}" for name, text in (("payload", output), ("console", console)) if text.strip()]
    return "\n".join(parts) or "nothing was said on console or output"


def _tail(text: str) -> str:
    lines = [line.rstrip() for line in text.replace("\r", "").splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-_LINES:])
