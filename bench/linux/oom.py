"""Whom the kernel's OOM killer takes first: /proc/PID/oom_score_adj, from -1000 (never) to 1000 (before all others).

And whom it took: the kernel counts them by their own groups, whether a group's limit or the host had no memory left.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.linux import cgroups

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


def cause(groups: Mapping[str, str]) -> str | None:
    """`killed by the OOM killer`, where the kernel counted that of the groups (controller -> folder), else None."""
    path = groups.get("memory") or groups.get("unified")
    if not path or not cgroups.oom_kills(path):
        return None
    return "killed by the OOM killer" + (", at its memory limit" if cgroups.limit_met(path) else "")


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
