"""Samplers: they read what a Footprint shows, and the host, and return readings. Names and units: bench/metrics.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.samplers.base import Sampler
from bench.samplers.cpu import CpuSampler, cpu_seconds
from bench.samplers.disk import DiskSampler
from bench.samplers.harness import HarnessSampler
from bench.samplers.host import HostSampler
from bench.samplers.memory import MemorySampler

__all__ = ["cpu_seconds", "default_samplers"]


def default_samplers(harness_pids: Callable[[], Sequence[int]]) -> tuple[Sampler, ...]:
    """Those of a density run; `harness_pids`: our helpers (the launcher), this process left out or not.

    The host comes first: reading the others costs memory itself.
    """
    return (HostSampler(), HarnessSampler(harness_pids), MemorySampler(), CpuSampler(), DiskSampler())
