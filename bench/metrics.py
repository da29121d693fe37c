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
        "them, one after the other; with launch.concurrency from the first request to the last of them, wave by wave. "
        "Sampling is left out.",
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
        "density.useful",
        "instances",
        "Useful",
        "Largest step of a ramp at which the service level was held (`service`): every instance alive and, where its "
        "payload can be asked, answering, p99 and errors within their bounds; absent where nobody watched.",
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
        "memory.guest",
        "bytes",
        "Guest RAM of one more",
        "Slope over N of the part of `memory.pss` that is guests' RAM: the mapping that the hypervisor names as its "
        "guest's, in its smaps. Only for VMs, as the next two.",
    ),
    _summary(
        "memory.touched",
        "bytes",
        "Touched guest RAM of one more",
        "Slope over N of the resident size of the same mapping: RAM that the guest has touched, also where guests "
        "share it (`memory.guest` divides it among them).",
    ),
    _summary(
        "memory.overhead",
        "bytes",
        "Hypervisor's memory of one more",
        "`memory.pss` minus `memory.guest`: what the host's processes of a VM take beside its RAM.",
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
        "memory.merged",
        "bytes",
        "Merged memory of one more",
        "Slope over N of the memory that KSM spares, under the condition ksm=on, once merging is through.",
        "higher",
    ),
    _summary(
        "ksm.time",
        "s",
        "Time to merge",
        "What the waits for KSM before the samples of a ramp come to: until the pages shared stayed the same over two "
        "full scans. At our pace of scanning (20,000 pages every 10 ms), not the kernel's.",
    ),
    _summary("ksm.cpu", "s", "CPU of merging", "CPU seconds of ksmd, the kernel's thread, in these waits of a ramp."),
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
        "disk.used",
        "bytes",
        "Disk of one more, as its file system says",
        "Slope over N of the blocks in use (statvfs) on the file systems made for the run (`scratch.filesystem`, and "
        "those of the container storages btrfs and reflink); absent where none was made.",
    ),
    _summary(
        "disk.counted",
        "bytes",
        "Disk of one more, as counted there",
        "Slope over N of what `disk.marginal` and `disk.shared` count on the same file systems: what the slope of used "
        "blocks is a check of.",
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
        "cold.evicted",
        "bytes",
        "Evicted",
        "Of a launch under the condition cache=cold: what of the image's files, the guest's kernel and the "
        "hypervisor's program was in the page cache before they were evicted.",
    ),
    _raw("cold.resident", "bytes", "Resident", "The same after that, read before the launch; a launch with any fails."),
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
        "instances.memory.guest",
        "bytes",
        "Sum of guest RAM",
        "PSS of the guests' RAM in their hypervisors; absent where one does not tell which mapping that is.",
    ),
    _raw(
        "instances.memory.touched",
        "bytes",
        "Sum of touched guest RAM",
        "Rss of the same mappings.",
    ),
    _raw(
        "instances.memory.overhead",
        "bytes",
        "Sum of hypervisors' memory",
        "Sum of PSS less that of guest RAM.",
    ),
    _raw(
        "instances.cpu",
        "s",
        "Sum of CPU seconds",
        "CPU seconds charged to the instances' cgroups since each was created.",
    ),
    _raw("instances.processes", "count", "Host processes", "Host processes in the instances' cgroups."),
    _raw(
        "instances.disk.own",
        "bytes",
        "Own disk",
        "Allocated blocks (st_blocks x 512) of what only the instances own; extents that several files have in common "
        "(FIEMAP, on btrfs and xfs) once.",
    ),
    _raw(
        "instances.disk.shared",
        "bytes",
        "Shared disk",
        "Allocated blocks of shared files, each inode and each extent counted once.",
    ),
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
        "scratch.disk.used",
        "bytes",
        "Used blocks",
        "Blocks in use, from statvfs after syncfs, of the file systems made for the run; absent where none was.",
    ),
    _raw(
        "scratch.disk.counted",
        "bytes",
        "Counted blocks",
        "Allocated blocks of the instances' files on the same file systems, own and shared, each once.",
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
    _raw("host.ksm.settled", "s", "Merging", "Wait until KSM was through; absent if that took over 300 s."),
    _raw("host.ksm.cpu", "s", "CPU of merging", "CPU seconds of ksmd in that wait."),
    _raw("host.ksm.shared", "bytes", "Pages kept", "pages_shared: what is kept of merged pages, once for all."),
    _raw("host.ksm.sharing", "bytes", "Pages spared", "pages_sharing: what merging spares."),
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
    _raw("service.requests", "count", "Requests", "Requests made of the instances at this step; see `service`."),
    _raw("service.errors", "count", "Failed requests", "Those of them that were not answered as asked for, in time."),
    _raw("service.silent", "instances", "Silent instances", "Instances that answered none of their requests."),
    _raw(
        "service.p50",
        "s",
        "Answer, median",
        "Of the time from the moment a request was due until the status of its answer was read, over all requests; "
        "failed ones count as slower than any answer, and the reading is absent where it falls among them.",
    ),
    _raw("service.p99", "s", "Answer, 99th percentile", "Of the same times."),
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
