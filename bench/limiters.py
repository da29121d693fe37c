"""What can stop a ramp: one word each, the same in records, tables and reports, and the word for an error."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import NamedTuple

from bench.errors import AddressesError, BenchError, LaunchError, ReadyTimeoutError

LIMITERS: Mapping[str, str] = {
    "count": "nothing stopped it: all asked for were reached, or, to the limit, the most that the scenario allows",
    "max-time": "the time the scenario allows, for the ramp or for the run",
    "memory": "MemAvailable: one more could have taken the host's reserve",
    "pressure": "the share of time in which tasks waited for memory (PSI)",
    "disk": "free space where instances write",
    "pids": "process ids",
    "descriptors": "open files, of the harness or of the host",
    "ports": "bridge ports, or addresses of the run's networks",
    "timeout": "an instance was not ready, or did not answer, in time",
    "launch": "a launch failed for another reason, which the evidence tells",
    "pool": "what instances take from could not be made beforehand",
    "died": "an instance ended by itself",
    "service": "the service level was lost",
    "interrupted": "a signal",
    "error": "a fault outside of launches, which ended the run",
}
"""Word -> what stopped the ramp."""

_ERRNO = {
    errno.EAGAIN: "pids",
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
    errno.ENOMEM: "memory",
    errno.ENOSPC: "disk",
    errno.EDQUOT: "disk",
    errno.EXFULL: "ports",
}


class Stop(NamedTuple):
    """Why a ramp ends: one of LIMITERS, what shows it, and whether something failed (else it was kept from failing)."""

    limiter: str
    evidence: str
    fault: bool = False


def limiter_of(error: LaunchError) -> str:
    """The word for a launch that failed."""
    if isinstance(error, ReadyTimeoutError):
        return "timeout"
    return "launch" if error.errno is None else _ERRNO.get(error.errno, "launch")


def as_launch_error(instance: str, error: BenchError | OSError) -> LaunchError:
    """Any error of a launch as one of its own: whoever says so, one instance has failed."""
    if isinstance(error, LaunchError):
        return error
    if isinstance(error, OSError):
        return LaunchError(f"{instance}: {error}", errno=error.errno)
    number = errno.EXFULL if isinstance(error, AddressesError) else None
    return LaunchError(f"{instance}: {error.message}", hint=error.hint, errno=number)
