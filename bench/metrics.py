"""The one glossary of metrics: docs, `bench list metrics` and the report all read it.

Two kinds: what samplers write at every step (`raw`), and what the analysis derives for `bench show` (`summary`).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Unit = Literal["s", "1/s", "bytes", "instances", "count"]


class Metric(Struct, frozen=True):
    """`better`: the direction a reader wants; None where neither is better by itself."""

    name: str
    unit: Unit
    title: str
    definition: str
    kind: Literal["summary", "raw"]
    better: Literal["lower", "higher"] | None = "lower"


def _summary(
    name: str, unit: Unit, title: str, definition: str, better: Literal["lower", "higher"] | None = "lower"
) -> Metric:
    return Metric(name, unit, title, definition, "summary", better)


def _raw(name: str, unit: Unit, title: str, definition: str) -> Metric:
    return Metric(name, unit, title, definition, "raw", None)


_ALL = (
    _summary(
        "startup.created",
        "s",
        "Created",
        "From the request to launch until the instance exists: clone returned, domain object returned.",
    ),
    _summary(
        "startup.started",
        "s",
        "Started",
        "From the request until its own code runs: the payload is exec'd, the guest's CPU runs.",
    ),
    _summary(
        "startup.kernel",
        "s",
        "Kernel",
        "From the request until the guest kernel's first byte on the console; only for VMs.",
    ),
    _summary("startup.init", "s", "Init", "From the request until pid 1 inside speaks; only for VMs."),
    _summary(
        "startup.ready",
        "s",
        "Ready",
        "From the request until the payload's own readiness reaches the host. Median over all launches of all "
        "ramps, warm-ups left out.",
    ),
    _summary(
        "startup.reply",
        "s",
        "First reply",
        "From the request until the first useful answer (an HTTP 200 from the host); polled at most 1 ms "
        "apart from `ready` on.",
    ),
    _summary(
        "startup.ready.p95",
        "s",
        "Ready, 95th percentile",
        "95th percentile of the same times; absent with fewer than 60 launches.",
    ),
    _summary(
        "startup.reply.p95",
        "s",
        "First reply, 95th percentile",
        "95th percentile of the same times; absent with fewer than 60 launches.",
    ),
    _summary(
        "launch.rate",
        "1/s",
        "Launch rate",
        "Instances launched to `ready` (and `reply`, for servers) in one ramp over the time spent launching "
        "them, one after the other; sampling left out.",
        "higher",
    ),
    _summary(
        "launch.cpu",
        "s",
        "CPU per launch",
        "CPU seconds charged to the instance's own cgroup (hypervisor included) until it was ready; the "
        "harness's work is not in it.",
    ),
    _summary(
        "density.alive",
        "instances",
        "Alive",
        "Most instances alive and ready at once in a ramp; see its limiter.",
        "higher",
    ),
    _summary(
        "memory.marginal",
        "bytes",
        "Memory of one more",
        "Minus the slope over N of the host's free memory (MemAvailable and what the kernel's per-CPU page lists "
        "hold), less the harness's own growth; its interval rests on whole ramps; the median field holds the slope.",
    ),
    _summary(
        "memory.fixed",
        "bytes",
        "Fixed memory",
        "Intercept of the same line: what the first instance costs beyond one more (daemons, caches that "
        "can't be reclaimed).",
    ),
    _summary(
        "memory.pss",
        "bytes",
        "PSS of one more",
        "Slope over N of the sum of PSS over all host processes of the instances.",
    ),
    _summary(
        "memory.uss",
        "bytes",
        "USS of one more",
        "Slope over N of the sum of private memory over all host processes of the instances.",
    ),
    _summary(
        "memory.cgroup",
        "bytes",
        "cgroup memory of one more",
        "Slope over N of the memory charged to the instances' cgroups, page cache and kernel part included.",
    ),
    _summary(
        "memory.kernel",
        "bytes",
        "Kernel memory of one more",
        "Slope over N of the kernel part of the memory charged to the instances' cgroups.",
    ),
    _summary(
        "memory.residual",
        "bytes",
        "Unexplained memory",
        "memory.marginal minus memory.pss minus memory.kernel: what the per-instance views do not explain "
        "(network namespaces, cgroups, mounts; noise).",
        None,
    ),
    _summary(
        "disk.marginal",
        "bytes",
        "Disk of one more",
        "Slope over N of allocated blocks of what only the instances own (upper directories, disks, logs).",
    ),
    _summary(
        "disk.shared",
        "bytes",
        "Shared disk",
        "Allocated blocks of what instances share (layers, backing files, kernel), counted once.",
    ),
    _summary(
        "disk.claimed",
        "bytes",
        "Disk of one more, as du claims",
        "Slope over N of what `du` over each instance's files claims when shared files are counted for every instance.",
    ),
    _summary(
        "pool.size",
        "instances",
        "Size of the pool",
        "Launches that the pool of a ramp was filled for, warm-ups included; only of pooled profiles, as all of these.",
        None,
    ),
    _summary(
        "pool.fill",
        "s",
        "Filling the pool, per instance",
        "Time to make what one instance of a pooled profile finds ready (a connected network namespace, groups with "
        "their limits), before the ramp: no launch time holds it.",
    ),
    _summary(
        "pool.memory",
        "bytes",
        "Memory of the pool, per instance",
        "What the host's free memory lost while the pool was filled, less the harness's own growth, over its size: "
        "`memory.marginal` of a pooled profile does not hold it.",
    ),
    _summary("teardown.stopped", "s", "Stopped", "From the request to stop until nothing of the instance runs."),
    _summary("teardown.removed", "s", "Removed", "From the request to stop until nothing of the instance is left."),
    _raw(
        "instances.memory.pss",
        "bytes",
        "Sum of PSS",
        "Proportional set size over all host processes of the instances, from smaps_rollup.",
    ),
    _raw(
        "instances.memory.uss",
        "bytes",
        "Sum of USS",
        "Private_Clean + Private_Dirty over all host processes of the instances, from smaps_rollup.",
    ),
    _raw(
        "instances.memory.cgroup",
        "bytes",
        "Sum of cgroup memory",
        "memory.usage_in_bytes (v1) or memory.current (v2) of the instances' cgroups.",
    ),
    _raw(
        "instances.memory.kernel",
        "bytes",
        "Sum of cgroup kernel memory",
        "memory.kmem.usage_in_bytes (v1) or `kernel` of memory.stat (v2).",
    ),
    _raw(
        "instances.cpu",
        "s",
        "Sum of CPU seconds",
        "CPU seconds charged to the instances' cgroups since each was created.",
    ),
    _raw("instances.processes", "count", "Host processes", "Host processes in the instances' cgroups."),
    _raw(
        "instances.disk.own", "bytes", "Own disk", "Allocated blocks (st_blocks x 512) of what only the instances own."
    ),
    _raw("instances.disk.shared", "bytes", "Shared disk", "Allocated blocks of shared files, each inode counted once."),
    _raw(
        "instances.disk.claimed",
        "bytes",
        "Disk as du claims",
        "Allocated blocks with shared files counted for every instance.",
    ),
    _raw(
        "instances.disk.apparent",
        "bytes",
        "Disk as ls claims",
        "Apparent sizes with shared files counted for every instance.",
    ),
    _raw(
        "host.memory.available",
        "bytes",
        "MemAvailable",
        "From /proc/meminfo, at the moment whose free memory is the median of nine, 50 ms apart.",
    ),
    _raw(
        "host.memory.pcp",
        "bytes",
        "Free in per-CPU lists",
        "Free pages in the kernel's per-CPU lists, from /proc/zoneinfo; MemAvailable leaves them out.",
    ),
    _raw("host.memory.slab", "bytes", "Slab", "From /proc/meminfo."),
    _raw("host.memory.pagetables", "bytes", "PageTables", "From /proc/meminfo."),
    _raw("host.memory.kernelstack", "bytes", "KernelStack", "From /proc/meminfo."),
    _raw("host.memory.percpu", "bytes", "Percpu", "From /proc/meminfo."),
    _raw(
        "host.pressure.memory",
        "s",
        "Memory pressure",
        "Total stall time `some` of /proc/pressure/memory since boot; absent where the kernel has no PSI.",
    ),
    _raw(
        "host.cpu.steal",
        "s",
        "Stolen CPU time",
        "CPU seconds since boot that a hypervisor below this host gave to others, over all CPUs, from /proc/stat.",
    ),
    _raw(
        "host.cpu.total",
        "s",
        "CPU time",
        "CPU seconds since boot, idle ones included, over all CPUs, from /proc/stat.",
    ),
    _raw("harness.memory.pss", "bytes", "Harness memory", "PSS of our own processes: the harness and its launcher."),
    _raw("harness.cpu", "s", "Harness CPU", "User and system CPU seconds of our own processes since the run began."),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""By name, in the order tables show them."""


def summary_metrics() -> tuple[Metric, ...]:
    return tuple(metric for metric in _ALL if metric.kind == "summary")


def markdown_table() -> str:
    """The glossary as docs/result-format.md holds it."""
    rows = [f"| `{m.name}` | {m.unit} | {m.kind} | {m.definition} |" for m in _ALL]
    return "\n".join(["| metric | unit | kind | definition |", "| --- | --- | --- | --- |", *rows])
