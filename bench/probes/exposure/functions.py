"""Functions of the host's kernel that an instance makes it run: not counted, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench import process
from bench.errors import BenchError
from bench.model import Completed
from bench.records import Exposure

# In a mount namespace of its own, so that the host gets no tracefs where it had none.
_SCRIPT = (
    "cd /sys/kernel/tracing && mount -t tracefs bench . && head -c 1 /sys/kernel/tracing/available_filter_functions"
)


def _look() -> Completed:
    return process.run(["unshare", "--mount", "sh", "-c", _SCRIPT], timeout=10, check=False)


def exposure(look: Callable[[], Completed] = _look) -> Exposure:
    """Never measured: with the reason that holds on this host."""
    try:
        done = look()
    except BenchError as error:
        return Exposure("functions", missing=error.message)
    if done.status == 0:
        why = (
            "function tracing is allowed here, but bench does not switch it on: it slows down every program of the host"
        )
    else:
        why = f"function tracing is refused by this host: {_last(done.stderr.splitlines())}"
    return Exposure("functions", missing=why)


def _last(lines: Sequence[str]) -> str:
    return lines[-1].strip() if lines else "it gives no reason"
