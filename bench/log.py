"""Logging: stdlib loggers to stderr; data goes to stdout and is not this module's business."""

from __future__ import annotations

import logging
import sys


def setup(level: int = logging.WARNING) -> None:
    """Send our loggers' records to stderr, one plain line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bench: %(levelname)s: %(message)s"))
    root = logging.getLogger("bench")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
