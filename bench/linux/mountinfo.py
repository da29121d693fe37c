"""/proc/self/mountinfo: which file system a path lies on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """`kind`: "ext4". `device`: "major:minor", the same for all subvolumes of a file system (unlike st_dev)."""

    point: str
    device: str
    kind: str


def mounts(proc: Path = Path("/proc")) -> list[Mount]:
    """Of this process's namespace, in the order they were made."""
    found = []
    for line in (proc / "self/mountinfo").read_text().splitlines():
        own, _, rest = line.partition(" - ")
        words = own.split()
        found.append(Mount(unescaped(words[4]), words[2], rest.split()[0]))
    return found


def mount_of(path: str, found: Mapping[str, Mount]) -> Mount | None:
    """The mount that an absolute path without links in it lies on. `found`: by mount point, later ones over earlier."""
    while True:
        if path in found:
            return found[path]
        if path in ("/", ""):
            return None
        path = os.path.dirname(path)


def by_point(found: list[Mount]) -> dict[str, Mount]:
    """As `mount_of` takes them."""
    return {mount.point: mount for mount in found}


def unescaped(path: str) -> str:
    """A path as the kernel writes it, with blanks and backslashes in octal, as it is."""
    return _ESCAPE.sub(lambda code: chr(int(code[1], 8)), path)
