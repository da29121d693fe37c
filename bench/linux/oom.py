"""Whom the kernel's OOM killer takes first: /proc/PID/oom_score_adj, from -1000 (never) to 1000 (before all others)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

INSTANCE, HARNESS = 500, -500
"""If the host runs out of memory the kernel shall take an instance, never the harness, which often can't go below 0."""

log = logging.getLogger(__name__)


def adjustment(pid: int | str = "self", root: Path = Path("/")) -> int:
    return int((root / f"proc/{pid}/oom_score_adj").read_text())


def adjust(pid: int | str, value: int, root: Path = Path("/")) -> bool:
    """Whether it could be set: lowering takes CAP_SYS_RESOURCE, and a process may be gone."""
    try:
        (root / f"proc/{pid}/oom_score_adj").write_text(str(value))
    except OSError as error:
        log.debug("oom_score_adj of %s stays: %s", pid, error)
        return False
    return True


@contextlib.contextmanager
def spared(value: int, root: Path = Path("/")) -> Iterator[int]:
    """Lower this process's own to `value` where that is allowed, and put it back; gives what it is meanwhile."""
    before = adjustment("self", root)
    if value < before and adjust("self", value, root):
        try:
            yield value
        finally:
            adjust("self", before, root)
    else:
        yield before
