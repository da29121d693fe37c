"""Markers that need something of the host: skipped with the reason and the remedy, or, with --require, failed."""

from __future__ import annotations

import functools
import os
import shutil

import pytest
from hypothesis import settings

# A busy machine is no fault of the code: how long an example takes is not what these tests are about.
settings.register_profile("bench", deadline=None)
settings.load_profile("bench")

_REMEDY = {
    "root": "run the tests as root",
    "libvirt": "tools/setup.sh; .venv/bin/bench image build",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", default="", help="comma-separated markers whose absence fails instead of skips")


@functools.cache
def _missing(marker: str) -> str | None:
    if marker == "root" and os.geteuid() != 0:
        return "not root"
    if marker == "libvirt":
        try:
            import libvirt  # noqa: F401
        except ImportError:
            return "libvirt-python is not installed"
        if not shutil.which("qemu-system-x86_64"):
            return "no qemu-system-x86_64"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = set(item.config.getoption("--require").split(","))
    for marker in _REMEDY:
        if item.get_closest_marker(marker) and (reason := _missing(marker)):
            text = f"{reason}; remedy: {_REMEDY[marker]}"
            if marker in required:
                pytest.fail(f"required here: {text}", pytrace=False)
            pytest.skip(text)
