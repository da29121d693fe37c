"""Records of containers started by hand: what another process must know to find, join, look at or remove one.

STATE/TOKEN/lock           held as long as the process that runs it lives
STATE/TOKEN/run.json       while it does: what `bench clean` goes by if that process was killed
STATE/TOKEN/c1/record.json the record; beside it `log`, and what the container wrote
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from bench.container.groups import Groups
from bench.container.recipe import Filter
from bench.container.spec_records import Spec
from bench.errors import HostError, UsageError
from bench.model import TOKEN_LENGTH, RunId, token_of

Status = Literal["created", "running", "paused", "exited", "dead"]
"""`dead`: the process that ran it was killed, so nobody knows how it ended, and what it left is still there."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_LOCK, _ALIVE, _RECORD = "lock", "run.json", "record.json"


class UnknownContainer(UsageError):
    """No container of that name."""


class NameTaken(UsageError):
    """Another container has that name."""


class StillRunning(UsageError):
    """What was asked needs a container that has ended."""


class NotRunning(UsageError):
    """What was asked needs a container that runs."""


class Record(Struct, frozen=True, kw_only=True):
    """One container. `created`, `ended`: seconds since the epoch; `born`: clock ticks since boot."""

    run: RunId
    number: int
    name: str
    created: float
    monitor: int  # pid of the process that runs it
    spec: Spec
    groups: Groups
    shared: tuple[str, ...] = ()
    filter: Filter | None = None
    setgroups: bool = True
    init: bool = False  # its first process is our reaper, the payload that one's child
    image: str = ""
    digest: str = ""
    bundle: str = ""
    storage: str = ""
    changed: str = ""  # where its changes are: an overlay's upper folder, or its root
    base: str = ""  # the tree that `changed` is to be compared with; empty for an upper folder
    address: str = ""
    published: tuple[str, ...] = ()
    pid: int = 0
    born: int = 0
    status: Literal["created", "running", "exited"] = "created"
    exit_status: int | None = None  # 128 + signal if it was killed
    ended: float | None = None

    @property
    def id(self) -> str:
        """`k3x9ab-c1`: name of its cgroups, and its host name unless it has another."""
        return f"{token_of(self.run)}-c{self.number}"


class _Alive(Struct, frozen=True):
    """What `bench clean` reads, as other runs write it."""

    run: RunId
    pid: int
    results: str = ""
    connect: str | None = None


def check_name(text: str) -> str:
    """A name that a container may have. Raises UsageError."""
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"{text!r} can't be a container's name",
            hint="letters, digits, '_', '.' and '-', a letter or digit first, at most 63",
        )
    return text


def new_run(now: float) -> RunId:
    """See model.RunId."""
    token = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(TOKEN_LENGTH))
    return RunId(f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-container-{token}")


@contextmanager
def registered(top: Path, run: RunId) -> Iterator[Path]:
    """The run's folder below `top`, locked. At the end it stays only if records are in it, and is no run any more."""
    folder = top / token_of(run)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        hint = "set BENCH_STATE to a folder you may write to"
        raise HostError(f"{folder}: cannot be made: {error.strerror}", hint=hint) from error
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        (folder / _ALIVE).write_bytes(msgspec.json.encode(_Alive(run, os.getpid())))
        yield folder
    finally:
        (folder / _ALIVE).unlink(missing_ok=True)
        if not any(folder.glob(f"*/{_RECORD}")):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


class Records:
    """All records below one state folder."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def folder(self, record: Record) -> Path:
        return self.top / token_of(record.run) / f"c{record.number}"

    def log(self, record: Record) -> Path:
        return self.folder(record) / "log"

    def all(self) -> list[Record]:
        """Oldest first; one that was torn by a crash is left to `bench clean`."""
        found = []
        for path in self.top.glob(f"*/*/{_RECORD}"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append(msgspec.json.decode(path.read_bytes(), type=Record))
        return sorted(found, key=lambda record: record.created)

    def find(self, name: str) -> Record:
        """By name or id. Raises UnknownContainer."""
        every = self.all()
        for record in every:
            if name in (record.name, record.id, token_of(record.run)):
                return record
        there = ", ".join(record.name for record in every) or "none"
        raise UnknownContainer(f"no container {name!r}; there are: {there}", hint="bench container ps")

    def write(self, record: Record) -> Record:
        """Whole or not at all: others read at any moment."""
        path = self.folder(record) / _RECORD
        half = path.with_suffix(".half")
        half.write_bytes(msgspec.json.encode(record))
        half.rename(path)
        return record

    @contextmanager
    def naming(self, name: str) -> Iterator[None]:
        """While a record of that name is made: two may not get it at once. Raises NameTaken."""
        self.top.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if any(record.name == name for record in self.all()):
                raise NameTaken(f"there is a container {name!r} already", hint=f"bench container rm {name}")
            yield
        finally:
            os.close(fd)

    def attended(self, record: Record) -> bool:
        """Whether the process that runs it lives; the kernel frees its lock when it dies, however it dies."""
        return self.wait_alone(record, 0) is False

    def wait_alone(self, record: Record, timeout: float) -> bool:
        """Wait until the process that runs it is gone. False if it still lives after `timeout` seconds."""
        try:
            fd = os.open(self.folder(record).parent / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        deadline = time.monotonic() + timeout
        try:
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return True
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.01)
        finally:
            os.close(fd)

    def drop(self, record: Record) -> None:
        """Remove its folder with all in it, and the run's when it was the last."""
        folder = self.folder(record)
        shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.parent.glob(f"*/{_RECORD}")) and not self.attended(record):
            shutil.rmtree(folder.parent, ignore_errors=True)
