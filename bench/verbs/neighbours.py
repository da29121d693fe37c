"""Other runs on this host: what a run says of them. They are kept apart by their tokens; its numbers are not."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from bench.records import DISTURBED, NoteRecord, Record
from bench.store.writer import RunWriter
from bench.verbs.registry import beside

log = logging.getLogger(__name__)


class Neighbours:
    """A run's sink that notes every other run once. It looks whenever records are made durable: in no timed window."""

    def __init__(self, writer: RunWriter, state: Path) -> None:
        self._writer, self._state = writer, state
        self.said: list[str] = []

    def append(self, record: Record) -> None:
        self._writer.append(record)

    def sync(self) -> None:
        self.look()
        self._writer.sync()

    def look(self) -> None:
        """Note those that came since the last look."""
        for run in beside(self._state):
            if (text := DISTURBED + run) not in self.said:
                self.said.append(text)
                log.warning("%s", text)
                self._writer.append(NoteRecord(date=time.time(), level="warning", text=text))
