"""KSM as a condition: the kernel merges equal pages of guests ("on"), or it does not ("off"); "as-is" leaves it alone.

Merging takes its time and CPU, and what memory costs is known only when it is through: before each sample the pages
shared are watched from full scan to full scan until they no longer change. What the host had set is noted in the run's
state folder before anything is changed, and put back from there: at the end, or by `bench clean`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from bench.errors import HostError
from bench.linux import procfs
from bench.model import Leftover, Reading

log = logging.getLogger(__name__)

Mode = Literal["as-is", "off", "on"]
FOLDER = Path("/sys/kernel/mm/ksm")
NOTE = "ksm.json"
"""In a run's state folder: what the host had set before the run changed it."""
# The kernel's own pace (100 pages every 20 ms) takes a minute and a half for one scan of a few guests.
PACE = {"pages_to_scan": "20000", "sleep_millisecs": "10"}
_RUN, _UNMERGE = "1", "2"
_PATIENCE = 300.0  # seconds
_LOOK = 0.05
_QUIET = 2  # full scans without a change: a page is merged at its second scan at the earliest
_SAME, _FEW = 0.01, 16  # share of the pages, and pages, by which guests that run always change
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Ksm:
    """This host's KSM for the length of a run. `note`: see NOTE; `put_back` undoes all of it."""

    def __init__(
        self,
        note: Path,
        folder: Path = FOLDER,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._note, self._folder, self._proc = note, folder, proc
        self._clock, self._sleep = clock, sleep
        self._mode: Mode = "as-is"

    def switch(self, mode: Mode) -> None:
        """Before a ramp, while no instance lives. Raises HostError where it can't be done, or must not."""
        if mode == "as-is":
            put_back(self._note, self._folder)
        else:
            self._take()
            _write(self._folder, {"run": _UNMERGE})
            if mode == "on":
                _write(self._folder, {**PACE, "run": _RUN})
        self._mode = mode

    def settle(self) -> tuple[Reading, ...]:
        """Wait until merging is through, if it is on: how long it took, ksmd's CPU meanwhile, what is merged now.

        Without `host.ksm.settled` if it was not through in time.
        """
        if self._mode != "on":
            return ()
        began, cpu = self._clock(), self._daemon_cpu()
        through = self._watch(began + _PATIENCE)
        after, pages = self._daemon_cpu(), self._pages()
        readings = [Reading("host.ksm.settled", self._clock() - began, "s")] if through else []
        if cpu is not None and after is not None:
            readings.append(Reading("host.ksm.cpu", after - cpu, "s"))
        readings += [
            Reading(f"host.ksm.{name}", float(count * _PAGE), "bytes")
            for name, count in zip(("shared", "sharing"), pages, strict=True)
        ]
        return tuple(readings)

    def _watch(self, deadline: float) -> bool:
        """Whether the pages stayed the same over so many full scans before the deadline."""
        scans, last, quiet = self._scans(), self._pages(), -1  # the first scan is one that was under way
        while quiet < _QUIET:
            if self._clock() > deadline:
                log.warning("KSM still merges after %g s: %d pages", _PATIENCE, last[1])
                return False
            self._sleep(_LOOK)
            if (now := self._scans()) == scans:
                continue
            scans, pages = now, self._pages()
            same = all(abs(a - b) <= max(_FEW, _SAME * b) for a, b in zip(pages, last, strict=True))
            last, quiet = pages, quiet + 1 if same else 0
        return True

    def _take(self) -> None:
        """Note what is set, once. Others' pages must not be unmerged: that takes memory nobody has put aside."""
        if self._note.exists():
            return
        if others := [path for path in self._note.parent.parent.glob(f"*/{NOTE}") if path != self._note]:
            raise HostError(
                f"the run {others[0].parent.name} has switched KSM on this host",
                hint="wait for its end; if it is dead, bench clean",
            )
        require_free(self._folder)
        found = {name: procfs.read(self._folder / name) or "" for name in ("run", *PACE)}
        scratch = self._note.with_suffix(".new")
        with scratch.open("wb") as file:
            file.write(msgspec.json.encode(found))
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(self._note)

    def _scans(self) -> int:
        return procfs.number(self._folder / "full_scans") or 0

    def _pages(self) -> tuple[int, int]:
        """Pages kept for all that equal them, and mappings that were spared one of their own."""
        shared, sharing = (procfs.number(self._folder / name) or 0 for name in ("pages_shared", "pages_sharing"))
        return shared, sharing

    def _daemon_cpu(self) -> float | None:
        """CPU seconds of ksmd, the kernel's thread that merges."""
        for path in self._proc.glob("[0-9]*/comm"):
            if procfs.read(path) == "ksmd":
                return procfs.process_cpu(int(path.parent.name), self._proc.parent)
        return None


def require_free(folder: Path = FOLDER) -> None:
    """Raises HostError where KSM can't be switched, or others would lose what was merged for them."""
    if (merged := procfs.number(folder / "pages_sharing")) is None:
        raise HostError(f"KSM can't be switched: this kernel has no {folder}", hint="leave it alone: --set ksm=as-is")
    if merged:
        raise HostError(
            f"KSM can't be switched: {merged} pages of other programs are merged on this host",
            hint="leave it alone (--set ksm=as-is), or end those programs first",
        )


def put_back(note: Path, folder: Path = FOLDER) -> list[Leftover]:
    """What the host had set is set again, and what the run had merged is unmerged; idempotent. Raises HostError."""
    try:
        found = msgspec.json.decode(note.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return []
    run = found.pop("run")
    _write(folder, {"run": _UNMERGE, **found})
    _write(folder, {"run": run})
    note.unlink()
    return [Leftover("sysctl", f"{folder}/run put back to {run}")]


def _write(folder: Path, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        try:
            (folder / name).write_text(value)
        except OSError as error:
            raise HostError(
                f"{folder / name} can't be set to {value}: {error.strerror}",
                hint="run as root, where /sys is not read-only; or leave KSM alone: --set ksm=as-is",
            ) from error
