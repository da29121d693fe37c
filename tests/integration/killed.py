"""`bench` as a program that is killed at a stated instant: `python -m tests.integration.killed WORDS OF BENCH`.

KILLED_TRACE names a file that gets one line whenever the program goes on to another stage: prepare, launch, sampling,
teardown, write (within one of the others, to which it goes back). The last line therefore says where it died. Stages
come from what the program tells its user (`Progress.doing`) and from the calls that write a record.

KILLED_AT says when: `launch:3:1500` is 1,500 microseconds after the third launch began, by a timer of the kernel's that
sends SIGKILL, whatever the program does then. `write:7:0:0.4` is within the seventh record, of which the kernel has
taken four tenths.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from bench.config.scenario import Scenario
from bench.job import Progress
from bench.model import to_json
from bench.plan import Plan, Trial
from bench.records import LaunchRecord, Record, TrialRecord
from bench.store.writer import RunWriter
from bench.verbs import progress, run

STAGES = {"warm": "launch", "launch": "launch", "sample": "sampling", "end": "teardown"}
_MONOTONIC, _SIGEV_SIGNAL = 1, 0


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("pad", ctypes.c_int * 12),
    )


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))


class Trace:
    """Where the program is, written down; and the end of it."""

    def __init__(self, path: str, when: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        stage, number, delay, *share = when.split(":")
        self._when = stage, int(number)
        self._delay = int(delay)
        self._share = float(share[0]) if share else None
        self._seen: Counter[str] = Counter()
        self.stage = ""

    def begin(self, stage: str) -> bool:
        """Whether it is to end within this one."""
        self._seen[stage] += 1
        self.back(stage)
        here = (stage, self._seen[stage]) == self._when
        if here and self._share is None:
            kill_in(self._delay)
        return here

    def back(self, stage: str) -> None:
        self.stage = stage
        os.write(self._fd, f"{stage}\n".encode())

    def within(self, line: bytes) -> bytes | None:
        """The part of `line` that is still written; None without a part."""
        return None if self._share is None else line[: int(self._share * len(line))]


def kill_in(microseconds: int) -> None:
    """SIGKILL from the kernel, after so long."""
    libc = ctypes.CDLL(None, use_errno=True)
    event, timer = _SigEvent(signo=signal.SIGKILL, notify=_SIGEV_SIGNAL), ctypes.c_void_p()
    spec = _TimerSpec(value=(microseconds // 1_000_000, microseconds % 1_000_000 * 1000 + 1))
    if libc.timer_create(_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
        raise OSError(ctypes.get_errno(), "timer_create")
    if libc.timer_settime(timer, 0, ctypes.byref(spec), None):
        raise OSError(ctypes.get_errno(), "timer_settime")


class Watching:
    """A progress that notes the stages and passes all on."""

    def __init__(self, trace: Trace, inner: Progress) -> None:
        self._trace, self._inner = trace, inner

    def trial(self, trial: Trial) -> None:
        self._inner.trial(trial)

    def doing(self, text: str) -> None:
        self._trace.begin(STAGES.get(text.split()[0], "prepare"))
        self._inner.doing(text)

    def launched(self, trial: Trial, record: LaunchRecord) -> None:
        self._inner.launched(trial, record)

    def ended(self, record: TrialRecord) -> None:
        self._trace.begin("teardown")
        self._inner.ended(record)


def install(trace: Trace) -> None:
    """Put the trace between the program and its progress, and around its writes."""
    shown, append, sync = progress.shown, RunWriter.append, RunWriter.sync

    @contextmanager
    def watched(plan: Plan, scenario: Scenario) -> Iterator[Progress]:
        with shown(plan, scenario) as inner:
            yield Watching(trace, inner)

    def appended(self: RunWriter, record: Record) -> None:
        before = trace.stage
        if trace.begin("write") and (part := trace.within(to_json(record) + b"\n")) is not None:
            with (self.path / "trials.jsonl").open("ab", buffering=0) as file:
                file.write(part)
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, record)
        trace.back(before)

    def synced(self: RunWriter) -> None:
        before = trace.stage
        trace.back("write")
        sync(self)
        trace.back(before)

    setattr(run, "shown", watched)  # noqa: B010 - not a name that the module exports
    RunWriter.append, RunWriter.sync = appended, synced  # type: ignore[method-assign]


def main() -> NoReturn:
    from bench.__main__ import main as bench

    install(Trace(os.environ.pop("KILLED_TRACE"), os.environ.pop("KILLED_AT")))
    sys.argv[0] = "bench"
    bench()


if __name__ == "__main__":
    main()
