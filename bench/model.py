"""Records shared by all rooms. Frozen; bytes, seconds, nanoseconds and counts inside, formatting at the edge.

This module imports none of ours. A record that is written to a run folder is described in docs/result-format.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Literal, NewType

import msgspec
from msgspec import Meta, Struct

MIB = 1 << 20
GIB = 1 << 30
SCHEMA = 2
"""Version of the records in a run folder. 1: first version (0.1.0). 2: records have a condition."""

RunId = NewType("RunId", str)
"""`20261124-033012-density-k3x9ab`: date, time (UTC), scenario, and a six-character token that names resources."""

TOKEN_LENGTH = 6
DRIVER_LETTERS: Mapping[str, str] = {"process": "p", "container": "c", "vm": "v"}
"""One letter a driver, so that an interface name holds prefix, token, letter and number in 15 characters."""


def token_of(run: RunId) -> str:
    """The six characters that every resource of `run` carries in its name."""
    return run[-TOKEN_LENGTH:]


class Phase(StrEnum):
    """Stamped steps of one instance's life; the same words for every driver, absent where a driver cannot show one.

    Zero is the moment the harness asks the driver to launch. `stop` is the moment it asks to stop.
    """

    CREATED = "created"  # the instance exists: clone returned, domain object returned
    STARTED = "started"  # first instruction of the instance's own code: payload exec'd, guest CPU runs
    KERNEL = "kernel"  # guest kernel's first sign of life
    INIT = "init"  # pid 1 inside
    READY = "ready"  # the payload's own line reaches the host
    REPLY = "reply"  # first useful answer, for servers
    STOP = "stop"
    STOPPED = "stopped"
    REMOVED = "removed"


class PhaseLog:
    """Collects stamps of one instance, in nanoseconds of the host's CLOCK_MONOTONIC since `zero`.

    Mutable state of one launch; `freeze` makes the record's value. Other processes on this host may stamp too
    (the clock is one for all of them): pass their reading as `at`.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self.zero = clock()
        self._stamps: dict[str, int] = {}

    def begin(self) -> None:
        """Set zero to now: called by the runner just before it asks the driver to launch."""
        self.zero = self._clock()

    def stamp(self, phase: Phase, at: int | None = None) -> None:
        """Record `phase` at `at` (absolute monotonic ns; now if absent). The first stamp of a phase stands."""
        self._stamps.setdefault(phase.value, (self._clock() if at is None else at) - self.zero)

    def get(self, phase: Phase) -> int | None:
        return self._stamps.get(phase.value)

    def freeze(self) -> dict[str, int]:
        return dict(self._stamps)


# --- what to run -----------------------------------------------------------------------------------------------

Network = Literal["bridge", "none"]


class ProcessSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of the `process` driver: none yet; it shares the host's network (127.x.y.z) and all else."""


class ContainerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of the `container` driver (the built-in runtime)."""

    storage: Literal["overlay", "fuse-overlayfs", "copy", "reflink", "btrfs"] = "overlay"
    network: Network = "bridge"
    security: Literal["none", "default", "strict"] = "default"


class VmSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of the `vm` driver; docs/vm.md explains each. Sizes in bytes; `disk` is the guest's root file system's."""

    machine: Literal["q35", "microvm"] = "q35"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    kernel: Literal["distribution", "micro"] = "distribution"
    start: Literal["boot", "clone"] = "boot"
    storage: Literal["copy", "qcow2-backing", "reflink", "shared-ro"] = "copy"
    network: Network = "bridge"
    disk: int = 128 * MIB
    memory: int | None = None  # RAM; None: limits.memory
    devices: Literal["default", "minimal"] = "default"
    chipset: Literal["full", "bare"] = "full"  # bare: without q35's own disk controller and SMBus
    balloon: Literal["default", "none", "reporting"] = "default"
    tb_cache: int | None = None  # QEMU's buffer for translated code, under tcg; None: QEMU's own size
    thp: bool = True  # the host may back guests with huge pages
    ksm: bool = True  # the host may merge guests' equal pages
    cpu_query: Literal["each", "sets"] = "each"  # how libvirt asks QEMU for a guest's CPU features
    calibrate: bool = True  # under tcg the guest measures its clocks itself; False: it is told
    reseed: bool = True  # clones get fresh randomness
    stop: Literal["agent", "destroy"] = "agent"  # how a guest is stopped: asked to power off, or its QEMU ended


Settings = ProcessSettings | ContainerSettings | VmSettings


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Declared size of one instance, the same for every driver; a guest's RAM and vCPUs follow from it."""

    memory: int = 256 * MIB  # bytes
    cpus: float = 1.0
    pids: int = 64


class HttpCheck(Struct, frozen=True, forbid_unknown_fields=True):
    """GET http://ADDRESS:port/path answers `status`."""

    port: Annotated[int, Meta(ge=1, le=65535)]
    path: str = "/"
    status: int = 200


class Ready(Struct, frozen=True, forbid_unknown_fields=True):
    """How readiness is seen: exactly one of a text in a line of stdout, an open TCP port, an HTTP status."""

    line: str | None = None
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    http: HttpCheck | None = None


class Payload(Struct, frozen=True, forbid_unknown_fields=True):
    """What runs inside. `$BENCH_ADDRESS` in its environment is the instance's own address (empty without network)."""

    name: str
    command: tuple[str, ...]
    ready: Ready
    env: dict[str, str] = {}
    reply: HttpCheck | None = None


class Image(Struct, frozen=True):
    """An OCI image in our store. `layers` are diff ids (sha256 of the uncompressed tar), lowest first."""

    name: str
    digest: str  # of the manifest, "sha256:..."
    layers: tuple[str, ...]
    env: tuple[str, ...] = ()  # K=V, from the image's config
    command: tuple[str, ...] = ()  # entrypoint + cmd, from the image's config
    workdir: str = "/"
    size: int = 0  # bytes of all layers as uncompressed tar


class InstanceSpec(Struct, frozen=True):
    """Everything a driver needs to launch one instance."""

    run: RunId
    driver: str
    profile: str
    number: int  # unique within the run
    image: Image
    payload: Payload
    limits: Limits
    settings: Settings
    logs: str = ""  # folder of the run for consoles and payload output
    ramp: int = 1  # how many of its kind are to be alive at once

    @property
    def id(self) -> str:
        """`k3x9ab-c12`: run token, driver letter, number. Also the hostname inside."""
        return f"{token_of(self.run)}-{DRIVER_LETTERS.get(self.driver, 'x')}{self.number}"

    @property
    def netdev(self) -> str:
        """Name of the host side's network interface, at most 15 characters: `bnk3x9abc12`."""
        return f"bn{token_of(self.run)}{DRIVER_LETTERS.get(self.driver, 'x')}{self.number}"


# --- what is there ---------------------------------------------------------------------------------------------


class Completed(Struct, frozen=True):
    """A finished command, of ours or inside an instance."""

    status: int  # exit status; 128 + signal if killed
    stdout: str
    stderr: str


class GuestRam(Struct, frozen=True):
    """Where a hypervisor maps its guest's RAM, as it says itself: its host pid, an address in it, bytes."""

    pid: int
    start: int
    size: int


class Footprint(Struct, frozen=True):
    """All a sampler may see of an instance."""

    instance: str
    pids: tuple[int, ...] = ()  # host pids, shims, helpers and hypervisor included
    cgroups: dict[str, str] = {}  # controller ("memory", "cpuacct", "pids", or "unified") -> absolute path
    disk_own: tuple[str, ...] = ()  # files or trees that only this instance owns
    disk_shared: tuple[str, ...] = ()  # files or trees shared with others; counted once over all instances
    netdev: str | None = None
    ram: GuestRam | None = None  # of a guest whose hypervisor tells


class Support(Struct, frozen=True):
    """Whether a driver can run here; a no comes with the reason and a command that fixes it (or says none does)."""

    ok: bool
    reason: str = ""
    hint: str = ""


class Leftover(Struct, frozen=True):
    """Something of a run that was found after it ended. `kind`: process, cgroup, mount, netdev, domain, file,
    table (of nftables), sysctl (put back)."""

    kind: str
    name: str


class HostFacts(Struct, frozen=True):
    """This machine. Absent facts are None, never 0. Bytes and counts."""

    hostname: str
    kernel: str  # uname -r
    machine: str  # uname -m
    distribution: str
    cpu_model: str
    cpus: int
    memory_total: int
    memory_available: int
    swap_total: int
    cgroup: Literal["v1", "v2", "hybrid", "none"]
    cgroup_controllers: tuple[str, ...]
    root: bool
    overlayfs: bool
    namespaces: tuple[str, ...]
    pid_max: int
    nofile_hard: int
    virtualization: str | None  # hypervisor this host itself runs on, None on bare metal or if it can't be told
    kvm_device: bool  # /dev/kvm exists; proves nothing, see vm's accelerator probe
    thp: str | None
    ksm: bool | None
    governor: str | None
    clocksource: str | None
    load1: float
    qemu_version: str | None
    libvirt_version: str | None
    python: str
    bench: str
    empty_memcg_bytes: int | None = None  # slab of one empty memory cgroup, measured; None if not measured
    empty_netns_bytes: int | None = None  # slab of one empty network namespace, measured
    turbo: bool | None = None  # clocks above the nominal one are allowed


# --- what was measured -----------------------------------------------------------------------------------------


class Reading(Struct, frozen=True, omit_defaults=True):
    """One value. The labels of its record (driver, profile, payload, round, n) apply to it as well."""

    metric: str
    value: float
    unit: str
    labels: dict[str, str] = {}


class Outcome(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"


Condition = dict[str, str]
"""What was varied within a run: key path of the scenario -> value, as `--set` would write it. Readings of different
conditions are never pooled."""


def condition_text(condition: Condition) -> str:
    """`cache=cold,payload.touch_mib=16`: sorted, the same text for the same condition; empty for none."""
    return ",".join(f"{key}={value}" for key, value in sorted(condition.items())) if condition else ""


def target_name(driver: str, profile: str, condition: str = "") -> str:
    """`container:default`, or `container:default [cache=cold]`; `condition` as text."""
    return f"{driver}:{profile} [{condition}]" if condition else f"{driver}:{profile}"


class Labels(Struct, frozen=True, kw_only=True):
    """What every record says of itself."""

    trial: str  # "r1-container:default", "r1-container:default [cache=cold]"
    driver: str
    profile: str
    payload: str
    round: int  # from 1
    date: float  # seconds since the epoch; only dates things
    condition: Condition = {}
    schema: int = SCHEMA


class LaunchRecord(Labels, frozen=True, kw_only=True, tag="launch", tag_field="kind"):
    """One launch. `phases`: ns since the harness asked; `alive`: instances of the ramp alive before it."""

    instance: str
    alive: int
    warmup: bool
    outcome: Outcome
    phases: dict[str, int]
    readings: tuple[Reading, ...] = ()
    error: str | None = None


class StepRecord(Labels, frozen=True, kw_only=True, tag="step", tag_field="kind"):
    """Readings with `n` instances of one ramp alive (n = 0: before the first)."""

    n: int
    readings: tuple[Reading, ...]


class TeardownRecord(Labels, frozen=True, kw_only=True, tag="teardown", tag_field="kind"):
    """The end of one instance: phases stop, stopped, removed, in ns since its launch was asked for."""

    instance: str
    warmup: bool
    phases: dict[str, int]
    error: str | None = None


class TrialRecord(Labels, frozen=True, kw_only=True, tag="trial", tag_field="kind"):
    """The end of a trial: its outcome, how many instances were alive, and what limited it."""

    outcome: Outcome
    alive: int  # most instances alive and ready at once
    asked: int
    limiter: str  # one of limiters.LIMITERS; "count" when the N asked for was reached
    launching_ns: int  # time spent launching, samples and settling left out
    evidence: str = ""
    accelerator: str | None = None
    readings: tuple[Reading, ...] = ()  # of the ramp as a whole: pool.*
    to_limit: bool = False  # it went on until something stopped it; `asked` was a bound
    useful: int | None = None  # largest step at which the service level was held; None if nobody watched
    battery: bool = False  # of probes or neighbours, no ramp: `alive` and `asked` are the instances that takes


class Containment(StrEnum):
    """What one probe found. Weaker is worse: see docs/isolation.md."""

    CONTAINED = "contained"  # what the attack went for was not reached
    DEGRADED = "degraded"  # nothing outside was reached, but the boundary is thinner than claimed
    ESCAPED = "escaped"  # something outside was reached: a secret read, an object changed, the host's kernel asked
    UNAVAILABLE = "unavailable"  # this host's kernel has not what the attack is about
    ERROR = "error"  # the probe itself failed


class Finding(Struct, frozen=True):
    """The result of one probe, with what shows it."""

    outcome: Containment
    evidence: str

    @property
    def through(self) -> bool:
        """Whether the attack got something: what a control has to."""
        return self.outcome in (Containment.ESCAPED, Containment.DEGRADED)


Severity = Literal["low", "medium", "high", "critical"]


class FindingRecord(Labels, frozen=True, kw_only=True, tag="probe", tag_field="kind"):
    """One probe of one instance, and the same attack without the boundary (`control`; absent if it could not be made).

    `place`: where the control ran, as a bare process of this host or of a disposable guest.
    """

    instance: str
    probe: str  # "process.signal"
    claim: str  # what a good boundary guarantees
    severity: Severity  # of an escape
    finding: Finding
    place: Literal["process", "guest"]
    control: Finding | None = None
    seconds: float = 0.0

    @property
    def counts(self) -> bool:
        """A probe whose control did not get through proves nothing."""
        return self.control is not None and self.control.through


class Exposed(Struct, frozen=True, omit_defaults=True):
    """One thing looked at: a call, a fact, a part of the set-up. Texts are what was said inside and on the host."""

    name: str
    found: str  # the class it is counted in
    inside: str | None = None
    host: str | None = None
    per_second: float | None = None  # of host calls: under load, the idle background taken off


Axis = Literal["calls", "host-calls", "functions", "facts", "setup"]


class Exposure(Struct, frozen=True, omit_defaults=True):
    """One axis of what is open to an instance. `missing`: why it was not measured. `counts` is in the table's order."""

    axis: Axis
    items: tuple[Exposed, ...] = ()
    counts: dict[str, int] = {}
    missing: str | None = None


class ExposureRecord(Labels, frozen=True, kw_only=True, tag="exposure", tag_field="kind"):
    """One axis of one instance; docs/exposure.md explains each. `kernel`: whose kernel answers inside."""

    instance: str
    kernel: Literal["host", "own"]
    exposure: Exposure
    seconds: float = 0.0  # it took


Victim = Literal["httpd", "cpu", "disk", "memory"]
Aggressor = Literal["cpu", "memory", "fork", "disk", "send", "receive"]
Beside = Literal["none", "polite", Aggressor]
"""What is next to a victim: nothing that does anything, its own work once more, or an aggressor."""
LimitsOf = Literal["declared", "raised"]


class Times(Struct, frozen=True, omit_defaults=True):
    """How long a victim's units of work, or requests to it, took. `quantiles`: share -> seconds, failed ones slower
    than any and absent where it falls among them; `values`: all that did not fail, where they are few."""

    n: int  # failed ones included
    failed: int = 0
    quantiles: dict[str, float] = {}
    values: tuple[float, ...] = ()


class Use(Struct, frozen=True):
    """What a neighbour's groups were charged, as read every moment of an experiment, beside the limit in force."""

    limit: Literal["cpus", "memory", "pids"]
    declared: float  # CPUs, bytes, count
    mean: float
    most: float
    values: tuple[float, ...]


class Press(Struct, frozen=True, omit_defaults=True):
    """An aggressor's own word on its load; `refused`: processes it was refused, or that were killed for their memory.

    `beside`: the share of the victim's window in which it was at work.
    """

    amount: float
    unit: str
    refused: int = 0
    beside: float = 0.0


class NeighbourRecord(Labels, frozen=True, kw_only=True, tag="neighbour", tag_field="kind"):
    """One victim beside one neighbour for a short time. `limits`: the neighbour's; the victim's are declared.

    `missing`: why there is no result.
    """

    victim: Victim
    aggressor: Beside
    limits: LimitsOf
    window: float  # seconds asked for
    times: Times | None = None
    press: Press | None = None
    uses: tuple[Use, ...] = ()
    missing: str | None = None


class NoteRecord(Struct, frozen=True, kw_only=True, tag="note", tag_field="kind"):
    """A message that belongs to the run (a warning, a leftover found, an interruption)."""

    date: float
    level: Literal["info", "warning", "error"]
    text: str
    schema: int = SCHEMA


DISTURBED = "another run was alive on this host meanwhile: "
"""How a note begins that says so; the other's id follows."""

Record = (
    LaunchRecord
    | StepRecord
    | TeardownRecord
    | TrialRecord
    | FindingRecord
    | ExposureRecord
    | NeighbourRecord
    | NoteRecord
)


class Precision(Struct, frozen=True):
    """How a run ended that went on until it was precise. `wanted`: width of a start-up interval over its median;
    `widths`: what it was at the end, by driver, profile and condition; None where there was no interval."""

    wanted: float
    reached: bool
    why: Literal["precise", "rounds", "time"]  # what ended it
    rounds: int
    widths: dict[str, float | None]


class RunInfo(Struct, frozen=True, kw_only=True):
    """`run.json`: what was asked, planned and used. `drivers`: "vm:stock" -> versions and choices; `settings`: the same
    -> its effective keys, which a record's driver and profile lead to, save for those that a condition holds."""

    run: RunId
    scenario: str
    title: str
    started: float
    ended: float | None
    status: Literal["running", "done", "failed", "interrupted"]
    seed: int
    command: tuple[str, ...]
    scenario_toml: str  # effective, after --set
    plan: tuple[str, ...]  # trials in the order they run
    conditions: tuple[Condition, ...] = ()  # of its trials, in the order of the sweep; empty where nothing is varied
    image: Image
    payload: Payload
    limits: Limits
    drivers: dict[str, dict[str, str]]
    settings: dict[str, dict[str, str | int | float | bool | None]] = {}
    accelerator: str | None  # "kvm" or "tcg"; None if no VM ran
    versions: dict[str, str]
    oom_score_adj: int | None = None  # of the harness while it ran; every instance's is higher
    warnings: tuple[str, ...] = ()
    precision: Precision | None = None  # of a run that was to go on until it is precise, once it has ended
    schema: int = SCHEMA


class SummaryRow(Struct, frozen=True):
    """One row of `bench show`. `median`, `low`, `high` in `unit`; the interval is at 95 %, absent if n is too small.

    `method` says what it rests on: "t" on ramps, "bootstrap" of ramps, or the "launches" of a single ramp.
    """

    driver: str
    profile: str
    payload: str
    metric: str
    unit: str
    n: int
    median: float
    low: float | None
    high: float | None
    method: Literal["t", "bootstrap", "launches"] | None = None
    condition: str = ""  # see condition_text


class Summary(Struct, frozen=True):
    """What `bench show RUN --json` prints."""

    run: RunId
    scenario: str
    host: HostFacts
    accelerator: str | None
    summary: Sequence[SummaryRow]


def to_json(value: object) -> bytes:
    """Any record as JSON, keys in field order."""
    return msgspec.json.encode(value)
