"""Transparent huge pages for programs that this process starts: a flag of its memory that exec'd children inherit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from bench.linux.syscalls import prctl

_SET, _GET = 41, 42  # PR_SET_THP_DISABLE, PR_GET_THP_DISABLE


class _Gate:
    """Threads that want the flag the same way go together; those that want it otherwise wait until they are through."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wanted = True
        self._inside = self._before = 0

    @contextlib.contextmanager
    def through(self, allowed: bool) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._inside == 0 or self._wanted == allowed)
            self._wanted = allowed
            self._inside += 1
            if self._inside == 1:
                self._before = prctl(_GET)
                prctl(_SET, self._before or int(not allowed))
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if self._inside == 0:
                    prctl(_SET, self._before)
                self._changed.notify_all()


_gate = _Gate()


def children_may_have(allowed: bool) -> contextlib.AbstractContextManager[None]:
    """Whether programs started within may be backed with huge pages; put back at the end. Raises OSError."""
    return _gate.through(allowed)


def allowed_here() -> bool:
    """Whether this process may have them."""
    return prctl(_GET) == 0
