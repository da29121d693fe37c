"""A place for files that need not be on a disk: on one, thousands of them are what takes a test's time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHM = "/dev/shm"


@contextmanager
def folder() -> Iterator[Path]:
    """Removed at the end; among other temporary files where there is no such place."""
    place = _SHM if os.access(_SHM, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="bench-test-", dir=place) as path:
        yield Path(path)
