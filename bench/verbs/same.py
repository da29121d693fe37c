"""What must not have changed when a run that was cut short goes on: else its numbers would be of two hosts."""

from __future__ import annotations

from collections.abc import Mapping

from bench.errors import UsageError
from bench.model import HostFacts

_SAME = (
    "hostname", "machine", "cpu_model", "cpus", "virtualization", "kernel", "distribution", "cgroup", "governor",
    "turbo", "thp", "ksm", "clocksource", "qemu_version", "libvirt_version", "python", "bench",
)  # fmt: skip
_SAME_MEMORY = 0.01  # of memory_total: what two boots of one machine may differ by


def require_same_host(was: HostFacts, now: HostFacts) -> None:
    """Raises UsageError if the rest of a run would be measured on another machine, or on one that was changed."""
    for fact in _SAME:
        require_same(fact, getattr(was, fact), getattr(now, fact))
    if abs(was.memory_total - now.memory_total) > _SAME_MEMORY * was.memory_total:
        require_same("memory_total", was.memory_total, now.memory_total)


def require_same(what: str, was: object, now: object) -> None:
    """Raises UsageError if a run can't go on because of it."""
    if was != now:
        raise UsageError(
            f"the run can't be resumed here: {what} was {was} and is {now}",
            hint="what was measured stands as it is; a new run measures all of it anew",
        )


def require_same_accelerators(was: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> None:
    for name, keys in now.items():
        if "accelerator" in keys:
            require_same(f"{name}'s accelerator", was.get(name, {}).get("accelerator"), keys["accelerator"])
