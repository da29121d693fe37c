"""How a child becomes its payload, as seen from the launcher: the descriptors of one launch, and what went wrong.

Only light modules here: every launch copies this heap.
"""

from __future__ import annotations

import _socket
import os
import time

from bench.linux import messages, program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bench.container.init import Place, Recipe

_FORKNOEXEC, _EXITING = 0x40, 4  # of a process's flags: forked and not yet exec'd; on its way out
_EPERM, _SIGSYS = 1, 31
_FILTERED = ": its seccomp filter forbids a call that comes after it"


class Failed(Exception):
    """A launch that ended before exec; `report` names the step."""

    def __init__(self, report: dict[str, object]) -> None:
        super().__init__(str(report))
        self.report = report


class Ends:
    """Descriptors of one launch; whatever is still open is closed when the context ends."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(*self._open)

    def __getitem__(self, end: str) -> int:
        return self._open[end]

    def add(self, **ends: int) -> None:
        self._open.update(ends)

    def close(self, *ends: str) -> None:
        for end in tuple(ends):
            if (fd := self._open.pop(end, None)) is not None:
                os.close(fd)

    def take(self, *ends: str) -> tuple[int, ...]:
        """Hand those ends that are there to someone else, who closes them."""
        return tuple(self._open.pop(end) for end in ends if end in self._open)


def told(error: OSError, recipe: Recipe, place: Place, untied: str) -> Failed:
    """What went wrong in a child that had our memory, as one with its own would report it."""
    if untied:
        step: list[Any] = [untied]
    elif isinstance(error, program.StepError) and error.step < len(recipe.steps):
        step = recipe.steps[error.step]
    else:
        step = [error.filename] if error.filename else ["exec", (place.argv or recipe.argv)[0]]
    return Failed({"step": step, "errno": error.errno or 0, "error": str(error)})


def await_exec(ends: Ends, terminal: bool) -> dict[str, Any]:
    """What the child says on its way, and when exec closed its end: `started`. Raises Failed with a step's report."""
    said: dict[str, Any] = {}
    while True:
        report, fds = _receive(ends["status"]) if terminal else (messages.read(ends["status"]), ())
        at = time.monotonic_ns()
        if fds:
            ends.add(output=fds[0])
        if report is None:
            return {**said, "started": at}
        if "errno" in report:
            raise Failed(report)
        said.update(report)
        if "held" in report:
            return said


def check_became(pid: int, said: dict[str, Any]) -> None:
    """Raises Failed if exec did not close its status socket, but death by a signal: of its own filter, most often.

    A zombie still says so (field 9 of its stat), and what it died of (the last field).
    """
    if "started" not in said:
        return
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    flags, status = int(fields[6]), int(fields[-1])
    if flags & _FORKNOEXEC and flags & _EXITING and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        by = f"killed by signal {number} before it was the payload"
        raise Failed({"step": ["exec"], "errno": _EPERM, "error": by + _FILTERED * (number == _SIGSYS)})


def _receive(fd: int) -> tuple[Any, list[int]]:
    """A message with the descriptors beside it."""
    link = _socket.socket(fileno=os.dup(fd))
    try:
        return messages.receive(link, 1)
    finally:
        link.close()
