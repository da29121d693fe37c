"""How readiness is seen, the same for every driver: a marked line, an open port, an HTTP status."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.errors import LaunchError, ReadyTimeoutError
from bench.linux import endpoints
from bench.linux.lines import LineStream
from bench.model import Phase, PhaseLog, Ready


def wait_endpoint(ready: Ready, address: str | None, deadline: float, alive: Callable[[], bool]) -> int | None:
    """Monotonic ns at which the port or the HTTP status of `ready` was first seen; None if not by `deadline`
    (of time.monotonic) or because it died. Raises LaunchError without an address."""
    if address is None:
        raise LaunchError(
            "readiness by port or HTTP needs a network, and this instance has none",
            hint='set ready.line, or network = "bridge"',
        )
    if (check := ready.http) is not None:
        return endpoints.wait_until(lambda: endpoints.answers(check, address), deadline, alive)
    port = ready.port or 0
    return endpoints.wait_until(lambda: endpoints.connects(address, port), deadline, alive)


def marks(ready: Ready) -> tuple[str, ...]:
    """What to look for in the payload's output."""
    return (ready.line,) if ready.line is not None else ()


def wait_ready(
    instance: str,
    ready: Ready,
    output: LineStream,
    address: str | None,
    timeout: float,
    alive: Callable[[], bool],
    phases: PhaseLog,
) -> None:
    """Wait for `ready` and stamp it. Raises ReadyTimeoutError or LaunchError with the tail of the output."""
    deadline = time.monotonic() + timeout
    try:
        at = (
            output.wait(ready.line, timeout)
            if ready.line is not None
            else wait_endpoint(ready, address, deadline, alive)
        )
    except (TimeoutError, EOFError):
        at = None
    if at is None:
        said = output.tail().strip() or "(it said nothing)"
        if alive() and time.monotonic() >= deadline:
            raise ReadyTimeoutError(
                f"{instance} was not ready within {timeout:g} s; its output ended with:\n{said}",
                hint="raise timeout, or look at what payload.ready waits for",
            )
        raise LaunchError(f"{instance} ended before it was ready; its output ended with:\n{said}")
    phases.stamp(Phase.READY, at)
