"""What one full sample costs with 1,000 containers alive, as a run takes it at every step: `make bench-sampling`.

Footprints of all instances, then every sampler of a run, several times; a sampler that disturbs what it measures would
be seen in the CPU of all later steps. None may take more than 3 s, nor the median one more CPU than that. Exits 1 when
a bound breaks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from msgspec import Struct

from bench.config.scenario import BUILTIN_PAYLOADS
from bench.drivers.base import Instance
from bench.drivers.container import ContainerDriver
from bench.drivers.context import RunContext
from bench.model import ContainerSettings, InstanceSpec, Limits, PhaseLog
from bench.samplers import default_samplers
from bench.samplers.base import Sampler
from bench.samplers.scratch import ScratchSampler
from benchmarks.own_run import own_run

COUNT, SAMPLES = 1_000, 7
BOUND = 3.0  # seconds


class Cost(Struct, frozen=True):
    """Of one sample: seconds by part (`footprints`, or a sampler's name), CPU seconds of all, readings taken."""

    parts: dict[str, float]
    cpu: float
    readings: int

    @property
    def whole(self) -> float:
        return sum(self.parts.values())


@contextmanager
def crowd(count: int) -> Iterator[tuple[RunContext, list[Instance]]]:
    """So many idle containers of the default profile."""
    with ExitStack() as stack:
        context, logs = stack.enter_context(own_run("sampling"))
        context.launcher.start()
        driver = ContainerDriver(context)
        stack.callback(driver.close)
        image = context.images.resolve("default")
        specs = [
            InstanceSpec(
                run=context.run, driver="container", profile="default", number=number, image=image,
                payload=BUILTIN_PAYLOADS["idle"], limits=Limits(), settings=ContainerSettings(), logs=str(logs),
                ramp=count,
            )
            for number in range(1, count + 1)
        ]  # fmt: skip
        driver.prepare(specs[0])
        found: list[Instance] = []
        for spec in specs:
            instance = stack.enter_context(driver.launch(spec, PhaseLog()))
            instance.wait_ready(60)
            found.append(instance)
        yield context, found


def sample(instances: Sequence[Instance], samplers: Sequence[Sampler]) -> Cost:
    """One, as the runner takes it."""
    cpu, began, readings = time.process_time(), time.monotonic(), 0
    footprints = [instance.footprint() for instance in instances]
    parts = {"footprints": time.monotonic() - began}
    for sampler in samplers:
        began = time.monotonic()
        readings += len(sampler.read(footprints))
        parts[sampler.name] = time.monotonic() - began
    return Cost(parts, time.process_time() - cpu, readings)


def verdict(costs: Sequence[Cost], count: int, bound: float = BOUND) -> int:
    """Print what was measured; 1 if a bound is broken. The first sample walks shared trees, and is judged as well."""
    for name in costs[0].parts:
        print(f"        {name:12} {1000 * statistics.median(cost.parts[name] for cost in costs):8.1f} ms")
    whole = statistics.median(cost.whole for cost in costs)
    checks = {
        f"a full sample at {count} instances, median of {len(costs)}": whole,
        "the slowest of them": max(cost.whole for cost in costs),
        "its CPU, median": statistics.median(cost.cpu for cost in costs),
    }
    for what, value in checks.items():
        print(f"{'holds ' if value <= bound else 'BROKEN'}  {what} = {value:.3g} s, at most {bound:g} s")
    return int(any(value > bound for value in checks.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    options = parser.parse_args()
    if os.geteuid():
        print("needs root")
        return 3
    with crowd(options.count) as (context, instances):
        samplers = (*default_samplers(lambda: [context.launcher.pid]), ScratchSampler(context.state))
        costs = [sample(instances, samplers) for _ in range(options.samples)]
    print(f"load {os.getloadavg()[0]:.2f}, {os.cpu_count()} CPUs, {costs[0].readings} readings a sample")
    return verdict(costs, options.count)


if __name__ == "__main__":
    sys.exit(main())
