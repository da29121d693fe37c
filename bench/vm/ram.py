"""Where QEMU has its guest's RAM: told by QEMU itself, because two mappings of one size look alike from outside."""

from __future__ import annotations

import logging
import re
from typing import Any

from bench.errors import LaunchError
from bench.model import GuestRam
from bench.vm.connection import monitor

log = logging.getLogger(__name__)

_ANSWER = re.compile(r"Host virtual address for 0x0 \(([^)]+)\) is (0x[0-9a-f]+)")
_QUESTION: dict[str, Any] = {"command-line": "gpa2hva 0x0"}


def guest_ram(domain: Any, pid: int) -> GuestRam | None:
    """The mapping of the memory backend that serves the guest's physical address 0; None, with a word in the log, where
    QEMU does not say. It is one mapping however the guest sees it: what lies above 4 GiB for it is the backend's rest.
    """
    try:
        said = str(monitor(domain, "human-monitor-command", **_QUESTION))
        backends: Any = monitor(domain, "query-memdev")
    except LaunchError as error:
        log.debug("RAM of pid %d is not told apart: %s", pid, error)
        return None
    found = located(said, {str(one.get("id")): int(one["size"]) for one in backends})
    if found is None:
        log.debug("RAM of pid %d is not told apart: QEMU says %r, and has %s", pid, said, backends)
        return None
    return GuestRam(pid, *found)


def located(said: str, sizes: dict[str, int]) -> tuple[int, int] | None:
    """Address and bytes of the backend that QEMU names in its answer to `gpa2hva 0x0`."""
    match = _ANSWER.search(said)
    if match is None or match[1] not in sizes:
        return None
    return int(match[2], 16), sizes[match[1]]
