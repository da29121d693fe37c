"""Guests of any profile for benchmarks, and a guest by hand: the same QEMU words without libvirt."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.config.profiles import PROFILES
from bench.config.scenario import BUILTIN_PAYLOADS
from bench.drivers.context import RunContext
from bench.drivers.vm import VmDriver, VmInstance
from bench.linux.hugepages import children_may_have
from bench.model import MIB, InstanceSpec, Limits, Payload, PhaseLog, VmSettings
from bench.vm.reap import domain_prefix
from bench.vm.sockets import Listener, detach
from benchmarks.own_run import own_run

PATIENCE = 120.0
READY = "bench-ready"


@dataclass
class Stage:
    """A run of its own, removed at the end."""

    context: RunContext
    driver: VmDriver
    logs: Path
    payload: Payload = BUILTIN_PAYLOADS["httpd"]
    number: int = 0
    prepared: set[str] = field(default_factory=set)

    @property
    def accelerator(self) -> str:
        return self.driver.describe()["accelerator"]

    def spec(self, profile: str) -> InstanceSpec:
        self.number += 1
        return InstanceSpec(
            run=self.context.run, driver="vm", profile=profile, number=self.number,
            image=self.context.images.resolve("default"), payload=self.payload,
            limits=Limits(256 * MIB, 1.0, 64),
            settings=msgspec.convert(PROFILES[f"vm:{profile}"], VmSettings), logs=str(self.logs),
        )  # fmt: skip

    @contextmanager
    def guest(self, profile: str) -> Iterator[tuple[VmInstance, float]]:
        """A guest that is ready, and after how many seconds it was."""
        spec = self.spec(profile)
        if profile not in self.prepared:
            self.driver.prepare(spec)
            self.prepared.add(profile)
        phases = PhaseLog()
        phases.begin()
        with self.driver.launch(spec, phases) as guest:
            guest.wait_ready(PATIENCE)
            yield guest, phases.freeze()["ready"] / 1e9


@contextmanager
def stage(payload: Payload = BUILTIN_PAYLOADS["httpd"]) -> Iterator[Stage]:
    """In a run of its own, gone at the end."""
    with own_run("vm") as (context, logs), closing(VmDriver(context)) as driver:
        yield Stage(context, driver, logs, payload)


def memory_available() -> int:
    """The host's MemAvailable, bytes."""
    return _kib(Path("/proc/meminfo").read_text(), "MemAvailable")


def uss(pid: int) -> int:
    """Memory that only this process has, bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return _kib(text, "Private_Clean") + _kib(text, "Private_Dirty")


def _kib(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found, name
    return int(found[1]) << 10


# --- by hand -----------------------------------------------------------------------------------------------------


def by_hand(field: Stage) -> float:
    """Seconds from starting a QEMU of micro's devices to the payload's line; its disk, kernel and memory are micro's.

    Its words are those that libvirt gave a guest of micro's, without monitor and tap: it has a user-mode network.
    """
    words = _words(field)
    with tempfile.TemporaryDirectory(dir=field.context.state) as scratch, ExitStack() as stack:
        listeners = [stack.enter_context(Listener(Path(scratch) / name)) for name in "cpa"]
        chardevs = [f"socket,id={name},path={one.path}" for name, one in zip("cpa", listeners, strict=True)]
        began = time.monotonic_ns()
        with children_may_have(False):
            child = subprocess.Popen(
                [*words, *(word for chardev in chardevs for word in ("-chardev", chardev))],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            ends = [one.accept(PATIENCE) for one in listeners]
            streams = [field.context.hub.watch(detach(end), marks=(READY,)) for end in ends]
            at = streams[1].wait(READY, PATIENCE)
        finally:
            child.kill()
            child.wait()
        for stream in streams:
            stream.close()
    return (at - began) / 1e9


def _words(field: Stage) -> Sequence[str]:
    """micro's command line from its own evidence, so that the two cannot drift apart."""
    path = next(field.logs.glob("micro.argv"), None)
    if path is None:
        with field.guest("micro") as (guest, _):
            argv = (field.logs / f"{guest.id}.argv").read_text()
        path = field.logs / "micro.argv"
        path.write_text(argv)
    words = path.read_text().splitlines()
    kept = [words[0], "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    for option in ("-machine", "-accel", "-m", "-smp", "-kernel", "-initrd"):
        kept += [option, words[words.index(option) + 1].replace(",memory-backend=pc.ram", "")]
    cmdline = words[words.index("-append") + 1]
    own = re.sub(r"bench\.(address|gateway)=\S+", "", cmdline)
    root = next(re.findall(r'"filename":"([^"]+)"', word)[0] for word in words if "erofs" in word)
    name = f"guest={domain_prefix(field.context.run)}hand"  # as libvirt would name it, for who looks for leftovers
    return [
        *kept, "-name", name, "-append", f"{own} bench.address=10.0.2.15/24 bench.gateway=10.0.2.2",
        "-device", "virtio-serial-pci,id=ports", "-drive", f"file={root},format=raw,readonly=on,if=none,id=root",
        "-device", "virtio-blk-pci,drive=root", "-netdev", "user,id=net",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-serial", "chardev:c", "-device", "virtserialport,chardev=p,name=bench.payload",
        "-device", "virtserialport,chardev=a,name=bench.agent",
    ]  # fmt: skip
