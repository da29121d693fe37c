"""What is run, what is there, and one reading: values shared by all rooms.

Frozen; bytes, seconds, nanoseconds and counts inside, formatting at the edge. This module imports none of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Literal, NewType

import msgspec
from msgspec import Meta, Struct

MIB = 1 << 20
GIB = 1 << 30

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
    storage: Literal["copy", "qcow2-backing", "reflink", "shared-ro", "shared-dax"] = "copy"
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
    condition: Condition = {}  # its trial's

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


Condition = dict[str, str]
"""What was varied within a run: key path of the scenario -> value, as `--set` would write it. Readings of different
conditions are never pooled."""


def condition_text(condition: Condition) -> str:
    """`cache=cold,payload.touch_mib=16`: sorted, the same text for the same condition; empty for none."""
    return ",".join(f"{key}={value}" for key, value in sorted(condition.items())) if condition else ""


def target_name(driver: str, profile: str, condition: str = "") -> str:
    """`container:default`, or `container:default [cache=cold]`; `condition` as text."""
    return f"{driver}:{profile_name(profile, condition)}"


def profile_name(profile: str, condition: str = "") -> str:
    """The same without the driver."""
    return f"{profile} [{condition}]" if condition else profile


def to_json(value: object) -> bytes:
    """Any record as JSON, keys in field order."""
    return msgspec.json.encode(value)
