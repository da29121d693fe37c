"""State folders of runs: one a run, locked while it lives, so that a dead run is found and a live one left alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.errors import HostError, StopError
from bench.model import TOKEN_LENGTH, RunId
from bench.paths import run_state, state_dir

_LOCK, _ENTRY, _BESIDE = "lock", "run.json", "beside"
_TOKEN = re.compile(f"[a-z0-9]{{{TOKEN_LENGTH}}}")


class Entry(Struct, frozen=True):
    """What `bench clean` must know of a run that died."""

    run: RunId
    pid: int
    results: str
    connect: str | None


@contextmanager
def registered(entry: Entry) -> Iterator[Path]:
    """Make and lock the run's state folder; it is removed on the way out, when all drivers have let go.

    It stays after a StopError: something of the run is left, which `bench clean` must find.
    """
    state = run_state(entry.run)
    with contextlib.ExitStack() as stack:
        try:
            state.mkdir(parents=True)
            stack.enter_context(_locked(state, wait=True))  # for another run that looks who is alive
            stack.push(_removing(state))
            _write(state, entry)
        except OSError as error:
            hint = "set BENCH_STATE to a folder you may write to, with room"
            raise HostError(f"{state}: cannot be made: {error.strerror}", hint=hint) from error
        _meet(state, entry)
        yield state


def _removing(state: Path) -> Callable[[type[BaseException] | None, object, object], None]:
    def leave(kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        if kind is None or not issubclass(kind, StopError):
            shutil.rmtree(state, ignore_errors=True)

    return leave


def beside(state: Path) -> list[RunId]:
    """Other runs that have been alive on this host at the same time as the run with this state folder so far."""
    folder = state / _BESIDE
    return sorted(RunId(path.name) for path in folder.iterdir()) if folder.is_dir() else []


def _meet(state: Path, entry: Entry) -> None:
    """Leave word with all runs that are alive, and here of them. Both have their entry before they look, so that of two
    that begin together one sees the other."""
    for other in entries():
        with contextlib.suppress(OSError), claimed(other) as dead:  # it may end as we look
            if dead is None and other.run != entry.run:
                _note(run_state(other.run), entry.run)
                _note(state, other.run)


def _note(state: Path, other: RunId) -> None:
    (state / _BESIDE).mkdir(exist_ok=True)
    (state / _BESIDE / other).touch()


def _write(state: Path, entry: Entry) -> None:
    """The whole entry or none: whoever reads it may be killed at no worse a time than whoever writes it."""
    draft = state / f".{_ENTRY}"
    draft.write_bytes(msgspec.json.encode(entry))
    draft.replace(state / _ENTRY)


@contextmanager
def _locked(state: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the folder's lock if it is free. The kernel frees it when its holder dies, however it dies."""
    fd = os.open(state / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def entries() -> list[Entry]:
    """All runs with a state folder, alive or dead, oldest first.

    One that was killed before it had said who it is has its token for an id: that is what its resources carry.
    """
    folders = list(state_dir().iterdir()) if state_dir().is_dir() else []
    return sorted((_entry(path) for path in folders if _of_a_run(path)), key=lambda entry: entry.run)


def _of_a_run(state: Path) -> bool:
    """Not the records of containers that ended, which `bench container rm` removes."""
    if not _TOKEN.fullmatch(state.name) or not state.is_dir():
        return False
    return (state / _ENTRY).exists() or not any(state.glob("*/record.json"))


def _entry(state: Path) -> Entry:
    try:
        return msgspec.json.decode((state / _ENTRY).read_bytes(), type=Entry)
    except (OSError, msgspec.MsgspecError):
        return Entry(RunId(state.name), 0, "", None)


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
