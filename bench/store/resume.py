"""A run that was cut short goes on in its own folder: trials that ended stay, what was under way is set aside."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from bench.model import HostFacts, token_of
from bench.records import ExposureRecord, FindingRecord, LaunchRecord, NoteRecord, Outcome, Record, RunInfo, TrialRecord
from bench.store.files import not_writable, write_atomic
from bench.store.reader import RUN, TRIALS, RunData, read_run
from bench.store.writer import RunWriter, pretty

log = logging.getLogger(__name__)

REDONE = "redone.jsonl"


class Past(Struct, frozen=True):
    """What a run that was cut short has: `done` need not run again."""

    path: Path
    info: RunInfo
    host: HostFacts
    done: tuple[TrialRecord, ...]


def read_past(path: Path) -> Past:
    """The run folder `path` as one to go on with. Raises ResultsError as `read_run` does."""
    data = read_run(path)
    return Past(path, data.info, data.host, finished(data.records))


def finished(records: Iterable[Record]) -> tuple[TrialRecord, ...]:
    """Trials that came to their own end: not one that was interrupted, or broke on an error outside its launches."""
    trials = (record for record in records if isinstance(record, TrialRecord))
    return tuple(one for one in trials if one.outcome is not Outcome.INTERRUPTED and one.limiter != "error")


class ResumedWriter(RunWriter):
    """The folder of a run that goes on. Only for whoever holds the run's lock: it rewrites trials.jsonl.

    Lines of trials that did not end are moved to redone.jsonl, and their instances' logs to logs/redone, so that no
    launch counts twice and none is lost.
    """

    def __init__(self, past: Past) -> None:
        super().__init__(past.path.parent, past.info, past.host)
        self.path = past.path

    def _begin(self) -> None:
        """Raises ResultsError if the folder can't be read or written."""
        data = read_run(self.path)
        for draft in self.path.glob(".*.tmp"):  # of a file that was being replaced
            draft.unlink()
        said = _set_aside(self.path, data)
        warnings = (*self.info.warnings, *said)
        self.info = msgspec.structs.replace(self.info, status="running", ended=None, warnings=warnings)
        write_atomic(self.path / RUN, pretty(self.info))

    def __enter__(self) -> Self:
        before = len(self.info.warnings)
        super().__enter__()
        for text in self.info.warnings[before:]:
            log.warning("%s", text)
            self.append(NoteRecord(date=time.time(), level="warning", text=text))
        self.sync()
        return self


def _set_aside(path: Path, data: RunData) -> list[str]:
    """Leave the lines of finished trials, and the notes, in trials.jsonl; what a reader should know of it."""
    done = finished(data.records)
    ended = {one.trial for one in done}
    kept: list[bytes] = []
    redone: list[bytes] = []
    names: dict[str, None] = {}
    lines = (path / TRIALS).read_bytes().split(b"\n")  # the reader refuses an empty one: one record a line
    for record, line in zip(data.records, lines, strict=False):
        if isinstance(record, NoteRecord) or record.trial in ended:
            kept.append(line)
        else:
            redone.append(line)
            names[record.trial] = None
    if redone:
        before = (path / REDONE).read_bytes() if (path / REDONE).exists() else b""
        write_atomic(path / REDONE, before + _joined(redone))  # first: a crash in between loses nothing
    write_atomic(path / TRIALS, _joined(kept))
    stay = {
        one.instance
        for one in data.records
        if isinstance(one, LaunchRecord | FindingRecord | ExposureRecord) and one.trial in ended
    }
    _set_logs_aside(path / "logs", token_of(data.info.run), stay)
    text = f"resumed: {len(done)} of {len(data.info.plan)} trials had ended"
    if redone:
        text += f"; {', '.join(names)} had not, and what it had measured is in {REDONE}"
    return [*data.warnings, text]


def _set_logs_aside(logs: Path, token: str, stay: Collection[str]) -> None:
    """What instances but those of `stay` wrote: others will have their names, and a log is part of what one takes."""
    aside = logs / "redone"
    try:
        for file in [one for one in logs.glob(f"{token}-*") if one.name.partition(".")[0] not in stay]:
            aside.mkdir(exist_ok=True)
            file.replace(aside / file.name)
    except OSError as error:
        raise not_writable(aside, error) from error


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
