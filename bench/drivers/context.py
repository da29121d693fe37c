"""What every driver is given: where it may write, and what it shares with the other drivers of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.container.client import Launcher
from bench.drivers.network import RunNetwork
from bench.images.store import ImageStore
from bench.linux.lines import LineHub
from bench.model import RunId


@dataclass(frozen=True)
class RunContext:
    """Intent and shared handles of one run; building one acquires nothing."""

    run: RunId
    state: Path  # bench.paths.run_state(run): sockets, registry, writable parts of instances
    images: ImageStore
    hub: LineHub
    network: RunNetwork
    connect: str | None = None  # libvirt URI; None: the driver's default
    launcher: Launcher = field(default_factory=Launcher)  # start it before threads and heavy imports
    scratch: Path | None = None  # where a file system was made for the run, if one was

    @property
    def place(self) -> Path:
        """Where instances' own files go: what they write is measured there."""
        return self.scratch or self.state
