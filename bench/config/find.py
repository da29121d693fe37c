"""Scenarios by name: those of the folder one is in, and those that bench ships."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from bench.config.words import did_you_mean
from bench.errors import UsageError


def builtin_scenarios() -> dict[str, Path]:
    """Name -> file of every scenario that goes by a name: those in ./scenarios/, then those that bench ships."""
    shipped = Path(str(importlib.resources.files("bench") / "scenarios"))
    found: dict[str, Path] = {}
    for folder in (Path("scenarios"), shipped):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def find_scenario(name_or_path: str) -> Path:
    """The file of a scenario given by name or by path. Raises UsageError that lists what there is."""
    path = Path(name_or_path)
    if "/" in name_or_path or path.suffix == ".toml":
        if path.is_file():
            return path
        raise UsageError(f"there is no scenario file {name_or_path}", hint="bench list scenarios")
    known = builtin_scenarios()
    if name_or_path not in known:
        text = f"there is no scenario {name_or_path!r}{did_you_mean(name_or_path, known)}"
        raise UsageError(text, hint="bench list scenarios")
    return known[name_or_path]
