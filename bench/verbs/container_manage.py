"""`bench container ps|logs|kill|pause|resume|stats|rm|commit`: what is done with containers that are there."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

import click
from msgspec import Struct

from bench.container import control
from bench.container import runtime as library
from bench.container.control import Stats
from bench.container.state import NotRunning, Record, Records, StillRunning
from bench.drivers.network import RunNetwork
from bench.errors import StopError
from bench.model import MIB, Leftover
from bench.paths import state_dir
from bench.verbs.container_run import images
from bench.verbs.out import emit_json, table

_END_TIMEOUT = 20.0  # s for a monitor to give back all its container had
_LOOK = 0.05  # s between looks at a log that is followed


class Row(Struct, frozen=True):
    """One container, as `ps --json` prints it."""

    name: str
    id: str
    image: str
    bundle: str
    status: str
    exit_status: int | None
    pid: int | None
    created: float
    address: str
    published: tuple[str, ...]
    command: tuple[str, ...]


class Measured(Struct, frozen=True):
    """One container, as `stats --json` prints it."""

    name: str
    stats: Stats


def _records() -> Records:
    return Records(state_dir())


def show(as_json: bool) -> int:
    records = _records()
    rows = [_row(record, control.status(records, record)) for record in records.all()]
    if as_json:
        emit_json(rows)
        return 0
    cells = [
        [row.name, row.image or row.bundle, _status(row), str(row.pid or "-"), _date(row.created), row.address or "-",
         shlex.join(row.command)]
        for row in rows
    ]  # fmt: skip
    table(("NAME", "FROM", "STATUS", "PID", "CREATED", "ADDRESS", "COMMAND"), cells)
    return 0


def _row(record: Record, status: str) -> Row:
    return Row(
        name=record.name, id=record.id, image=record.image, bundle="" if record.image else record.bundle, status=status,
        exit_status=record.exit_status, pid=record.pid if status in ("created", "running", "paused") else None,
        created=record.created, address=record.address, published=record.published, command=record.spec.process.args,
    )  # fmt: skip


def _status(row: Row) -> str:
    return f"exited ({row.exit_status})" if row.status == "exited" else row.status


def _date(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def logs(name: str, follow: bool) -> int:
    """What it said, to stdout; until it ends with `follow`."""
    records = _records()
    record = records.find(name)
    path = records.log(record)
    with suppress(FileNotFoundError), path.open("rb") as file:
        while True:
            over = not follow or _ended(records, record)  # asked first: what came before the end is still read
            while data := file.read(1 << 16):
                sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            if over:
                break
            time.sleep(_LOOK)
    return 0


def _ended(records: Records, record: Record) -> bool:
    return not control.running(record) and (
        not records.attended(record) or all(one.status == "exited" for one in records.all() if one.id == record.id)
    )


def kill(names: Sequence[str], text: str) -> int:
    number = control.signal_number(text)
    for name in names:
        control.kill(_records().find(name), number)
    return 0


def pause(names: Sequence[str]) -> int:
    for name in names:
        control.pause(_records().find(name))
    return 0


def resume(names: Sequence[str]) -> int:
    for name in names:
        record = _records().find(name)
        os.close(control.process_of(record))
        control.resume(record)
    return 0


def stats(names: Sequence[str], as_json: bool) -> int:
    records = _records()
    chosen = [records.find(name) for name in names] or [one for one in records.all() if control.running(one)]
    found = [Measured(record.name, control.stats(record)) for record in chosen]
    if as_json:
        emit_json(found)
        return 0
    cells = [
        [one.name, _text(one.stats.memory, MIB, ".1f"), _text(one.stats.cpu, 1, ".2f"), _text(one.stats.pids, 1, ".0f")]
        for one in found
    ]
    table(("NAME", "MEMORY MiB", "CPU s", "PIDS"), cells, right=(1, 2, 3))
    return 0


def _text(value: float | None, unit: int, form: str) -> str:
    return "-" if value is None else format(value / unit, form)


def remove(names: Sequence[str], force: bool) -> int:
    for name in names:
        records = _records()
        for leftover in _removed(records, records.find(name), force):
            click.echo(f"{name}: removed {leftover.kind} {leftover.name}", err=True)
    return 0


def _removed(records: Records, record: Record, force: bool) -> list[Leftover]:
    """What a monitor that was killed had left; a live one gives all back itself."""
    found: list[Leftover] = []
    status = control.status(records, record)
    if status in ("created", "running", "paused"):
        if not force:
            raise StillRunning(f"container {record.name} is {status}", hint=f"bench container rm -f {record.name}")
        with suppress(NotRunning):
            control.kill(record, signal.SIGKILL)
        if not records.wait_alone(record, _END_TIMEOUT):
            raise StopError(
                f"container {record.name}: process {record.monitor}, which runs it, has not let go of it",
                hint=f"kill {record.monitor}, then once more",
            )
    elif status == "dead":
        found = library.reap(records.top, record.run, RunNetwork(record.run) if os.geteuid() == 0 else None)
    library.drop(records, record)
    return found


def commit(name: str, image: str) -> int:
    """Print the digest of the image made."""
    records = _records()
    click.echo(library.commit(records, images(), records.find(name), image).digest)
    return 0
