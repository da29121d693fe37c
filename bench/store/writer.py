"""Writes a run folder: run.json and host.json at once, trials.jsonl as it happens, startup.pyperf.json at the end."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Literal, Self

import msgspec

from bench.errors import ResultsError
from bench.model import HostFacts, to_json
from bench.records import SCHEMA, Precision, Record, RunInfo, TrialRecord
from bench.store.files import (
    draft_of,
    give_to_caller,
    give_tree_to_caller,
    make_folder,
    not_writable,
    sync_folder,
    write_atomic,
)
from bench.store.reader import HOST, RUN, TIMINGS, TRIALS, read_run
from bench.store.timings import write_timings

log = logging.getLogger(__name__)

Status = Literal["done", "failed", "interrupted"]


class RunWriter:
    """The folder of one run under way. Entering makes it, leaving closes it, with or without `finish`.

    Neither `append` nor `sync` belongs in a timed window: the runner calls both between launches.
    """

    def __init__(self, results: Path, info: RunInfo, host: HostFacts) -> None:
        self.path = results / info.run
        self.info = info
        self._host = host
        self._stack = ExitStack()
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        """Raises ResultsError if the folder is there already or can't be made."""
        self._begin()
        trials = self.path / TRIALS
        try:
            self._file = self._stack.enter_context(trials.open("ab", buffering=0))
        except OSError as error:
            raise not_writable(trials, error) from error
        give_to_caller(trials)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._file = None
        give_tree_to_caller(self.path)  # consoles and payload output were written by others

    @property
    def logs(self) -> Path:
        """Folder for consoles, payload output and evidence."""
        return self.path / "logs"

    def append(self, record: Record) -> None:
        """Write one line and hand it to the kernel: it outlives this process, though not yet the machine.

        Whole or not at all, so that a disk that is full for a while tears no line. Raises ResultsError.
        """
        file = self._open()
        before = os.fstat(file.fileno()).st_size
        try:
            _write_all(file, to_json(record) + b"\n")
        except OSError as error:
            with suppress(OSError):
                file.truncate(before)
            raise not_writable(self.path / TRIALS, error) from error

    def sync(self) -> None:
        """Make all appended records durable: at the end of a trial."""
        file = self._open()
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise not_writable(self.path / TRIALS, error) from error

    def finish(
        self,
        status: Status,
        ended: float,
        warnings: Sequence[str] = (),
        accelerator: str | None = None,
        precision: Precision | None = None,
    ) -> None:
        """Write how the run ended into run.json, and startup.pyperf.json from what trials.jsonl holds.

        Without `accelerator`, it is the one that run.json or a trial names.
        """
        self.sync()
        data = read_run(self.path)  # from disk, not from memory: records must not make the harness grow
        seen = (record.accelerator for record in data.records if isinstance(record, TrialRecord))
        self.info = msgspec.structs.replace(
            self.info,
            status=status,
            ended=ended,
            warnings=(*self.info.warnings, *warnings),
            accelerator=accelerator or self.info.accelerator or next(filter(None, seen), None),
            precision=precision,
        )
        write_atomic(self.path / RUN, pretty(self.info))
        write_timings(msgspec.structs.replace(data, info=self.info), self.path / TIMINGS)

    def _begin(self) -> None:
        """The folder has its name once all is in it: there is none, or it is whole, whenever this process is killed."""
        if self.path.exists():
            hint = "a run is written once: run again for a new id, or move that folder away"
            raise ResultsError(f"{self.path}: is there already", hint=hint)
        with ExitStack() as stack:
            draft = self._draft(stack)
            write_atomic(draft / TRIALS, b"")
            write_atomic(draft / HOST, pretty({**msgspec.to_builtins(self._host), "schema": SCHEMA}))
            write_atomic(draft / RUN, pretty(self.info))
            try:
                draft.rename(self.path)
                sync_folder(self.path.parent)
            except OSError as error:
                raise not_writable(self.path, error) from error

    def _draft(self, stack: ExitStack) -> Path:
        draft = draft_of(self.path)
        try:
            make_folder(draft.parent)
            draft.mkdir()
            stack.callback(shutil.rmtree, draft, ignore_errors=True)
            (logs := draft / self.logs.name).mkdir()
        except OSError as error:
            raise not_writable(self.path, error) from error
        give_to_caller(draft)
        give_to_caller(logs)
        return draft

    def _open(self) -> FileIO:
        if self._file is None:
            raise ValueError("RunWriter is used outside its context")
        return self._file


def _write_all(file: FileIO, data: bytes) -> None:
    """Where room runs out within `data` the kernel takes the part that fits, and refuses the next call only."""
    while data:
        data = data[file.write(data) :]


def pretty(value: object) -> bytes:
    """A file that people read too."""
    return msgspec.json.format(to_json(value), indent=2) + b"\n"
