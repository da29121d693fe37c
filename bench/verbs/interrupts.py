"""SIGINT, SIGTERM and SIGHUP: the first one unwinds the program in good order, the second ends it at once.

While a shield is up (teardown, a record being written) the first one waits for the shield to come down.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bench.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_HURRY = b"\nbench: ended at once; what is left of the run is removed by: bench clean\n"


class Interrupts:
    """Handler and its state; `installed` puts the former handlers back."""

    def __init__(self) -> None:
        self._seen = 0
        self._shields = 0
        self._pending: int | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        former = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """What runs inside is not cut short by a first signal; it is raised at the end of the outermost shield."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
            if not self._shields and (pending := self._pending) is not None:
                self._pending = None
                raise Interrupted(pending)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        if self._seen > 1:
            os.write(2, _HURRY)
            os._exit(128 + number)
        if self._shields:
            self._pending = number
        else:
            raise Interrupted(number)
