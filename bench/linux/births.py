"""A process is its number and its start: the number alone may mean another one by now."""

from __future__ import annotations

import errno
import os


def born(pid: int) -> int | None:
    """When it started, in clock ticks since boot; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def open_process(pid: int, start: int) -> int:
    """A pidfd of the process that started at `start`. Raises ProcessLookupError if it is gone, whoever has its number.

    The descriptor comes first: what is looked at after it is the same process, or its end.
    """
    fd = os.pidfd_open(pid)
    if born(pid) != start:
        os.close(fd)
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"pid {pid}")
    return fd
