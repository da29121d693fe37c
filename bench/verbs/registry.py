"""State folders of runs: one a run, locked while it lives, so that a dead run is found and a live one left alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.errors import HostError
from bench.model import RunId
from bench.paths import run_state, state_dir

_LOCK, _ENTRY = "lock", "run.json"


class Entry(Struct, frozen=True):
    """What `bench clean` must know of a run that died."""

    run: RunId
    pid: int
    results: str
    connect: str | None


@contextmanager
def registered(entry: Entry) -> Iterator[Path]:
    """Make and lock the run's state folder; it is removed on the way out, when all drivers have let go."""
    state = run_state(entry.run)
    try:
        state.mkdir(parents=True)
    except OSError as error:
        raise HostError(
            f"{state}: cannot be made: {error.strerror}", hint="set BENCH_STATE to a folder you may write to"
        ) from error
    with _locked(state) as held:
        if not held:
            raise HostError(f"{state} is locked by another run")
        (state / _ENTRY).write_bytes(msgspec.json.encode(entry))
        try:
            yield state
        finally:
            shutil.rmtree(state, ignore_errors=True)


@contextmanager
def _locked(state: Path) -> Iterator[bool]:
    """Hold the folder's lock if it is free. The kernel frees it when its holder dies, however it dies."""
    fd = os.open(state / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def entries() -> list[Entry]:
    """All runs with a state folder, alive or dead, oldest first."""
    found = []
    for path in sorted(state_dir().glob(f"*/{_ENTRY}")) if state_dir().is_dir() else []:
        with contextlib.suppress(msgspec.MsgspecError, OSError):  # torn by a crash while it was being written
            found.append(msgspec.json.decode(path.read_bytes(), type=Entry))
    return sorted(found, key=lambda entry: entry.run)


def alive(run: RunId) -> Entry | None:
    """The entry of `run` if a process has it under way."""
    for entry in entries():
        if entry.run == run:
            with claimed(entry) as state:
                return entry if state is None else None
    return None


@contextmanager
def claimed(entry: Entry) -> Iterator[Path | None]:
    """The state folder of a dead run, locked against others that clean; None while the run lives."""
    state = run_state(entry.run)
    with _locked(state) as held:
        yield state if held else None
