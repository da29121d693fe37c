"""A run that never was: records with known truths, for the rooms that read runs. Its host is called `fabricated`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from bench.model import GIB, MIB, HostFacts, HttpCheck, Image, Limits, Payload, Reading, Ready, RunId
from bench.records import LaunchRecord, Outcome, Record, RunInfo, StepRecord, TeardownRecord, TrialRecord
from bench.store import RunData

KIB = 1024
RUN = RunId("20200101-000000-density-fabric")
_START = 1_577_836_800.0
_MS = 1e6


@dataclass(frozen=True)
class Truth:
    """What the fabricated driver really costs, bytes and seconds."""

    driver: str
    profile: str
    count: int
    ready: float
    marginal: float
    pss: float
    kernel: float
    fixed: float
    disk: float
    shared: float
    phases: dict[str, float] = field(default_factory=dict)  # seconds before ready
    reply: float = 0.0008


TRUTHS = (
    Truth(
        "process",
        "default",
        64,
        0.0021,
        310 * KIB,
        120 * KIB,
        180 * KIB,
        2 * MIB,
        4 * KIB,
        2 * MIB,
        {"created": 0.0006, "started": 0.0011},
    ),
    Truth(
        "container",
        "default",
        64,
        0.0052,
        930 * KIB,
        140 * KIB,
        690 * KIB,
        5 * MIB,
        24 * KIB,
        2 * MIB,
        {"created": 0.0019, "started": 0.0036},
    ),
    Truth(
        "vm",
        "stock",
        8,
        2.61,
        161 * MIB,
        158 * MIB,
        1.5 * MIB,
        21 * MIB,
        33 * MIB,
        12 * MIB,
        {"created": 0.21, "started": 0.213, "kernel": 0.74, "init": 2.2},
        0.004,
    ),
)


def host(**changes: object) -> HostFacts:
    facts: dict[str, object] = dict(
        hostname="fabricated",
        kernel="6.1.0-fake",
        machine="x86_64",
        distribution="Debian GNU/Linux 12 (bookworm)",
        cpu_model="Imaginary CPU @ 2.00GHz",
        cpus=2,
        memory_total=24 * GIB,
        memory_available=22 * GIB,
        swap_total=0,
        cgroup="hybrid",
        cgroup_controllers=("cpu", "memory", "pids"),
        root=True,
        overlayfs=True,
        namespaces=("ipc", "mnt", "net", "pid", "uts"),
        pid_max=32768,
        nofile_hard=20000,
        virtualization=None,
        kvm_device=True,
        thp="madvise",
        ksm=False,
        governor="performance",
        clocksource="tsc",
        load1=0.12,
        qemu_version="7.2.0",
        libvirt_version="9.0.0",
        python="3.11.2",
        bench="0.1.0",
        empty_memcg_bytes=437 * KIB,
        empty_netns_bytes=None,
    )
    return HostFacts(**{**facts, **changes})  # type: ignore[arg-type]


def info(**changes: object) -> RunInfo:
    http = HttpCheck(port=8080)
    facts: dict[str, object] = dict(
        run=RUN,
        scenario="density",
        title="How many fit, and what does one more cost?",
        started=_START,
        ended=_START + 95,
        status="done",
        seed=7,
        command=("bench", "run", "density", "--seed", "7"),
        scenario_toml='title = "How many fit"\nrounds = 3\n',
        plan=("r1-process:default", "r1-vm:stock"),
        image=Image("bench/default", "sha256:" + "ab" * 32, ("sha256:" + "cd" * 32, "sha256:" + "ef" * 32), size=MIB),
        payload=Payload("httpd", ("/bin/httpd", "-f"), Ready(line="ready"), reply=http),
        limits=Limits(256 * MIB, 1.0, 64),
        drivers={
            "process:default": {"launcher": "fork and exec"},
            "container:default": {"storage": "overlay", "network": "bridge"},
            "vm:stock": {"machine": "q35", "xml": "<domain type='qemu'>\n  <name>k</name>\n</domain>"},
        },
        accelerator="tcg",
        versions={"bench": "0.1.0", "qemu": "7.2.0"},
    )
    return RunInfo(**{**facts, **changes})  # type: ignore[arg-type]


def run_data(rounds: int = 3, noise: float = 1.0, seed: int = 1, truths: tuple[Truth, ...] = TRUTHS) -> RunData:
    """A whole run; `noise` scales the scatter of everything (0: the truth to the byte)."""
    rng = np.random.default_rng(seed)
    records: list[Record] = []
    for number in range(1, rounds + 1):
        for place in rng.permutation(len(truths)):
            records += ramp(truths[place], number, rng, noise)
    return RunData(info(), host(), tuple(records))


def ramp(truth: Truth, number: int, rng: np.random.Generator, noise: float) -> list[Record]:
    labels = dict(
        trial=f"r{number}-{truth.driver}:{truth.profile}",
        driver=truth.driver,
        profile=truth.profile,
        payload="httpd",
        round=number,
        date=_START + number,
    )
    launches = list(_launches(truth, labels, rng, noise))
    steps = list(_steps(truth, labels, rng, noise))
    ends = list(_teardowns(truth, labels, rng, noise))
    launching = sum(max(r.phases.values()) for r in launches if not r.warmup)
    trial = TrialRecord(
        **labels,
        outcome=Outcome.SUCCEEDED,
        alive=truth.count,
        asked=truth.count,
        limiter="count",
        launching_ns=launching,
        accelerator="tcg" if truth.driver == "vm" else None,
    )
    return [*launches, *steps, *ends, trial]


def _launches(truth: Truth, labels: dict, rng: np.random.Generator, noise: float) -> Iterator[LaunchRecord]:
    level = 1 + 0.02 * noise * rng.standard_normal()  # what all launches of a ramp have in common
    for alive in (-1, *range(truth.count)):
        scale = level * (1 + 0.1 * noise * abs(rng.standard_normal())) * (1 + 0.002 * noise * max(alive, 0))
        stamps = {**truth.phases, "ready": truth.ready, "reply": truth.ready + truth.reply}
        yield LaunchRecord(
            **labels,
            instance=f"fabric-{truth.driver[0]}{alive}",
            alive=max(alive, 0),
            warmup=alive < 0,
            outcome=Outcome.SUCCEEDED,
            phases={phase: int(s * scale * 1e9) for phase, s in stamps.items()},
            readings=(Reading("launch.cpu", 0.7 * truth.ready * scale, "s"),),
        )


def _counts(count: int) -> list[int]:
    return sorted({0, count, *(2**k for k in range(20) if 2**k < count), count * 3 // 4})


def _steps(truth: Truth, labels: dict, rng: np.random.Generator, noise: float) -> Iterator[StepRecord]:
    base = 22 * GIB + 50 * MIB * noise * rng.standard_normal()  # the host is never twice the same
    slope = truth.marginal * (1 + 0.01 * noise * rng.standard_normal())
    for n in _counts(truth.count):
        harness = 40 * MIB + 30 * KIB * n
        used = (truth.fixed + slope * n) if n else 0.0
        stray = 0.02 * truth.marginal * truth.count * noise * rng.standard_normal() * 0.3
        listed = 200 * MIB * rng.random()  # pages freed elsewhere rest in lists that MemAvailable leaves out
        values = {
            "host.memory.available": base - used - stray - harness - listed,
            "host.memory.pcp": listed,
            "harness.memory.pss": harness,
            "instances.memory.pss": truth.pss * n,
            "instances.memory.uss": 0.9 * truth.pss * n,
            "instances.memory.cgroup": (truth.pss + truth.kernel) * n,
            "instances.memory.kernel": truth.kernel * n,
            "instances.disk.own": truth.disk * n,
            "instances.disk.shared": truth.shared if n else 0,
            "instances.disk.claimed": (truth.disk + truth.shared) * n,
        }
        yield StepRecord(**labels, n=n, readings=tuple(Reading(m, float(v), "bytes") for m, v in values.items()))


def _teardowns(truth: Truth, labels: dict, rng: np.random.Generator, noise: float) -> Iterator[TeardownRecord]:
    for number in range(truth.count):
        stop = 60_000_000_000
        took = (0.3 * truth.ready + 0.001) * (1 + 0.1 * noise * abs(rng.standard_normal())) * 1e9
        yield TeardownRecord(
            **labels,
            instance=f"fabric-{truth.driver[0]}{number}",
            warmup=False,
            phases={"stop": stop, "stopped": stop + int(took), "removed": stop + int(took * 1.5)},
        )
