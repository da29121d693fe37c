"""What any process may do with a running container that it knows by its record: signal, pause, measure, join."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from bench.container.groups import members
from bench.container.recipe import Kitchen, recipe
from bench.container.spec_records import Hooks, Process
from bench.container.state import NotRunning, Record, Records, Status
from bench.errors import HostError, UsageError
from bench.linux import cgroups
from bench.linux.births import born, open_process
from bench.linux.procfs import keyed, number, read

_FREEZE_TIMEOUT = 5.0  # s; a task in an uninterruptible sleep is frozen when it wakes


class Stats(Struct, frozen=True):
    """Bytes, seconds, processes and threads, of the container's own cgroups; absent where they do not count it."""

    memory: int | None
    cpu: float | None
    pids: int | None


# --- is it there -------------------------------------------------------------------------------------------------


def running(record: Record) -> bool:
    """Whether its first process lives."""
    try:
        os.close(open_process(record.pid, record.born))
    except (ProcessLookupError, ValueError, OSError):
        return False
    return True


def status(records: Records, record: Record) -> Status:
    if record.status == "exited":
        return "exited"
    if not records.attended(record):
        return "dead"
    return "paused" if paused(record) else record.status


def process_of(record: Record) -> int:
    """A pidfd of its first process. Raises NotRunning."""
    try:
        return open_process(record.pid, record.born)
    except (ProcessLookupError, ValueError) as error:
        raise NotRunning(f"container {record.name} does not run", hint="bench container ps") from error


def kill(record: Record, number: int) -> None:
    """Send a signal to its first process. Raises NotRunning."""
    fd = process_of(record)
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)
    if number == signal.SIGKILL and paused(record):
        resume(record)  # a frozen process dies when it thaws


def signal_number(text: str) -> int:
    """`TERM`, `SIGTERM`, `15`. Raises UsageError."""
    name = text.upper().removeprefix("SIG")
    try:
        return int(signal.Signals(int(text))) if text.isdecimal() else int(signal.Signals[f"SIG{name}"])
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"there is no signal {text!r}", hint="for example TERM, INT, HUP, USR1, KILL, or 15"
        ) from error


# --- freezing ----------------------------------------------------------------------------------------------------


def _freezer(record: Record) -> tuple[str, bool] | None:
    """Its group that can be frozen, and whether that is a v2 one."""
    groups = record.groups.of(record.id)
    if record.groups.unified:
        return groups["unified"], True
    return (groups["freezer"], False) if "freezer" in groups else None


def paused(record: Record) -> bool:
    if (found := _freezer(record)) is None:
        return False
    group, unified = found
    if unified:
        return keyed(read(f"{group}/cgroup.events") or "").get("frozen") == 1
    return read(f"{group}/freezer.state") == "FROZEN"


def pause(record: Record) -> None:
    """Stop every process in it where it is. Raises NotRunning, HostError where no group can do that."""
    os.close(process_of(record))
    _freeze(record, True)


def resume(record: Record) -> None:
    """Let them go on; one that was not paused stays as it is."""
    _freeze(record, False)


def _freeze(record: Record, frozen: bool) -> None:
    if (found := _freezer(record)) is None:
        raise HostError(
            f"container {record.name} can't be paused: it has no freezer cgroup",
            hint="start it where that one is delegated to you, or as root",
        )
    group, unified = found
    if unified:
        cgroups.write(f"{group}/cgroup.freeze", "1" if frozen else "0")
    else:
        cgroups.write(f"{group}/freezer.state", "FROZEN" if frozen else "THAWED")
    deadline = time.monotonic() + _FREEZE_TIMEOUT
    while paused(record) != frozen:
        if time.monotonic() > deadline:
            raise HostError(f"{group}: not {'frozen' if frozen else 'thawed'} after {_FREEZE_TIMEOUT:g} s")
        time.sleep(0.005)


@contextlib.contextmanager
def quiet(record: Record) -> Iterator[None]:
    """Paused for a moment, if it runs and can be: what is read of it meanwhile holds together."""
    stop = running(record) and _freezer(record) is not None and not paused(record)
    if stop:
        pause(record)
    try:
        yield
    finally:
        if stop:
            resume(record)


# --- looking -----------------------------------------------------------------------------------------------------


def stats(record: Record) -> Stats:
    """Raises NotRunning."""
    os.close(process_of(record))
    groups = record.groups.of(record.id)
    if record.groups.unified:
        return _stats_v2(Path(groups["unified"]))
    nanoseconds = number(f"{groups['cpuacct']}/cpuacct.usage") if "cpuacct" in groups else None
    return Stats(
        memory=number(f"{groups['memory']}/memory.usage_in_bytes") if "memory" in groups else None,
        cpu=None if nanoseconds is None else nanoseconds / 1e9,
        pids=number(f"{groups['pids']}/pids.current") if "pids" in groups else None,
    )


def _stats_v2(group: Path) -> Stats:
    microseconds = keyed(read(group / "cpu.stat") or "").get("usage_usec")
    return Stats(
        memory=number(group / "memory.current"),
        cpu=None if microseconds is None else microseconds / 1e6,
        pids=number(group / "pids.current"),
    )


def processes(record: Record) -> tuple[int, ...]:
    """Host pids of all that is in it; without cgroups of its first process only."""
    groups = list(record.groups.of(record.id).values())
    return members(groups) if groups else ((record.pid,) if running(record) else ())


# --- joining -----------------------------------------------------------------------------------------------------


def joined(record: Record) -> tuple[int, int]:
    """Host pid and start of the process whose namespaces a command joins. Raises NotRunning.

    Its first one; but a reaper is closed to an ordinary user's eyes, so there it is the payload.
    """
    if not record.init or os.geteuid() == 0:
        return record.pid, record.born
    children = (read(f"/proc/{record.pid}/task/{record.pid}/children") or "").split()
    start = born(int(children[0])) if children else None
    if start is None or not running(record):
        raise NotRunning(f"container {record.name} does not run", hint="bench container ps")
    return int(children[0]), start


def exec_recipe(record: Record, process: Process) -> dict[str, Any]:
    """What a launcher must learn to start `process` in it: in its namespaces and groups, under its filter."""
    spec = replace(record.spec, process=process, mounts=(), hooks=Hooks())
    kitchen = Kitchen(
        None, Path(record.bundle or "/"), record.groups, record.shared, record.filter, setgroups=record.setgroups
    )
    return {**recipe(spec, kitchen), "steps": []}


def exec_process(record: Record, argv: Sequence[str], **changes: Any) -> Process:
    """The container's own process with another command, and what else `changes`."""
    wanted = {"args": tuple(argv), "terminal": False, "console_size": None, **changes}
    return replace(record.spec.process, **wanted)
