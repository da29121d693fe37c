"""Which numbers are allowed: key path of a scenario -> how it is written, its least and its most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from bench.config.units import format_duration, format_size, parse_duration, parse_size
from bench.levels import MOST_TOUCHED
from bench.model import MIB


class Number(Struct, frozen=True):
    """A key with bounds, both included. `kind` says how it may be written and how the bounds are shown."""

    kind: Literal["count", "number", "size", "duration"]
    low: float
    high: float

    def parse(self, text: str) -> float:
        return parse_size(text) if self.kind == "size" else parse_duration(text)

    def show(self, value: float) -> str:
        if self.kind == "size":
            return format_size(int(value))
        if self.kind == "duration":
            return format_duration(float(value))
        return f"{value:,}"


_INSTANCES = Number("count", 1, 100_000)
_DAY = 86_400.0
NUMBERS: Mapping[str, Number] = {
    "rounds": Number("count", 1, 1_000),
    "warmups": Number("count", 0, 1_000),
    "seed": Number("count", 0, 2**63 - 1),
    "timeout": Number("duration", 0.001, _DAY),
    "stop_timeout": Number("duration", 0.001, _DAY),
    "settle": Number("duration", 0.0, 3600.0),
    "max_time": Number("duration", 1.0, 30 * _DAY),
    "count.default": _INSTANCES,
    "count.process": _INSTANCES,
    "count.container": _INSTANCES,
    "count.vm": _INSTANCES,
    "limits.memory": Number("size", 4 * MIB, 16 << 40),
    "limits.cpus": Number("number", 0.01, 1024.0),
    "limits.pids": Number("count", 1, 1 << 22),
    "raised.memory": Number("size", 4 * MIB, 16 << 40),
    "raised.cpus": Number("number", 0.01, 1024.0),
    "raised.pids": Number("count", 1, 1 << 22),
    "neighbours.window": Number("duration", 0.1, 20.0),
    "neighbours.lead": Number("duration", 0.0, 20.0),
    "neighbours.rate": Number("number", 0.1, 10_000.0),
    "reserve.memory": Number("size", 0, 16 << 40),
    "reserve.fraction": Number("number", 0.0, 0.95),
    "reserve.pressure": Number("number", 0.0, 1.0),
    "reserve.disk": Number("size", 0, 16 << 40),
    "reserve.pids": Number("count", 0, 1 << 22),
    "reserve.descriptors": Number("count", 0, 1 << 30),
    "to_limit.count": _INSTANCES,
    "to_limit.time": Number("duration", 1.0, 30 * _DAY),
    "service.p99": Number("duration", 0.001, 3600.0),
    "service.errors": Number("number", 0.0, 1.0),
    "service.rate": Number("number", 0.1, 10_000.0),
    "service.per_instance": Number("number", 0.1, 10_000.0),
    "service.duration": Number("duration", 0.001, 3600.0),
    "service.timeout": Number("duration", 0.001, 60.0),
    "payload.touch_mib": Number("count", 0, MOST_TOUCHED),
    "payload.touch_per_second": Number("number", 0.001, 1000.0),
    "launch.concurrency": Number("count", 1, 1024),
    "precise.width": Number("number", 0.0, 1.0),
    "precise.rounds": Number("count", 1, 1_000),
    "scratch.size": Number("size", 320 * MIB, 16 << 40),
    "vm.disk": Number("size", 8 * MIB, 16 << 40),
    "vm.memory": Number("size", 16 * MIB, 16 << 40),
    "vm.tb_cache": Number("size", MIB, 2047 * MIB),
}
