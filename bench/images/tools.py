"""Programs of the host that images need; a missing one is reported with the package that has it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from bench import process
from bench.errors import HostError
from bench.model import Completed

_PACKAGES = {
    "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs", "qemu-img": "qemu-utils",
    "cp": "coreutils", "mkfs.erofs": "erofs-utils",
}  # fmt: skip


def run_tool(argv: Sequence[str | Path], *, timeout: float, check: bool = True) -> Completed:
    """As process.run. Raises HostError with the package to install if the program is not there."""
    program = str(argv[0])
    if shutil.which(program, path=process.clean_env()["PATH"]) is None:
        raise HostError(f"{program} is not installed", hint=f"apt-get install -y {_PACKAGES.get(program, program)}")
    return process.run(argv, timeout=timeout, check=check)
