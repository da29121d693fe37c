"""A run for a benchmark to launch instances in."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.drivers.context import RunContext
from bench.drivers.network import RunNetwork
from bench.images.store import ImageStore
from bench.linux.lines import LineHub
from bench.paths import cache_dir
from bench.verbs.registry import Entry, registered
from bench.verbs.session import new_run_id


@contextmanager
def own_run(name: str) -> Iterator[tuple[RunContext, Path]]:
    """What a driver needs, and the folder of its logs; gone at the end.

    Registered as a run is: if this process is killed, `bench clean` finds and removes what it made.
    """
    run = new_run_id(name, time.time(), random.SystemRandom())
    network, images = RunNetwork(run), ImageStore(cache_dir() / "images")
    with ExitStack() as stack:
        state = stack.enter_context(registered(Entry(run, os.getpid(), "", None)))
        logs = state / "logs"
        logs.mkdir()
        hub = stack.enter_context(LineHub())
        context = RunContext(run=run, state=state, images=images, hub=hub, network=network)
        stack.callback(context.launcher.close)
        stack.callback(network.close)
        yield context, logs
