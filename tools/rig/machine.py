"""The outer guest: QEMU's command line, and waiting until its job has ended."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

from msgspec import Struct

from bench.errors import CommandError
from bench.process import spawn
from tools.rig.parts import Parts

# Without five-level page tables, which KVM's nested paging can't have under this emulation. Time comes from the TSC, or
# the kernel takes HPET. What the kernel does against faults of real processors only costs time here.
_CPU = "max,+svm,-la57"
_APPEND = (
    "console=ttyS0 quiet loglevel=4 mitigations=off nokaslr tsc=reliable clocksource=tsc random.trust_cpu=on panic=-1 "
    "systemd.unit=rig.target systemd.show_status=0 systemd.unified_cgroup_hierarchy=1"
)
_POWER_OFF = 30.0  # s from the job's end until QEMU is killed


class Outcome(Struct, frozen=True):
    """`status` of the job; None if it did not end within the limit, or the guest ended without it."""

    status: int | None
    seconds: float


def argv(parts: Parts, results: Path, memory: int) -> list[str]:
    """QEMU's command line; `memory` in MiB.

    The firmware's tables name the machine: everything that asks inside what it runs on is told so, host facts as well.
    """
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
        "-accel", "tcg,thread=multi", "-cpu", _CPU, "-smp", "2", "-m", str(memory),
        "-smbios", "type=1,manufacturer=QEMU,product=nested rig (emulated)",
        "-kernel", str(parts.vmlinuz), "-initrd", str(parts.initrd), "-append", _APPEND,
        "-chardev", f"file,id=console,path={results}/console.log", "-serial", "chardev:console",
        *_drive(parts.root, "snapshot=on,cache=unsafe,format=raw"),
        *_drive(parts.venv, "readonly=on,format=raw"),
        *_drive(parts.cache, "snapshot=on,cache=unsafe,format=raw"),
        *_drive(parts.job, "readonly=on,format=raw"),
        "-device", "virtio-serial-pci", *_port(results, "log"), *_port(results, "out"), *_port(results, "status"),
        "-device", "virtio-rng-pci",
    ]  # fmt: skip


def _drive(path: Path, options: str) -> list[str]:
    return ["-drive", f"file={path},if=virtio,{options}"]


def _port(results: Path, name: str) -> list[str]:
    path = results / f"rig.{name}"
    return ["-chardev", f"file,id={name},path={path}", "-device", f"virtserialport,chardev={name},name=rig.{name}"]


def run_job(parts: Parts, results: Path, memory: int, limit: float) -> Outcome:
    """Boot, and wait at most `limit` seconds for the job's status. Results are files `rig.*` in `results`."""
    started = time.monotonic()
    status = results / "rig.status"
    with spawn(["nice", "-n", "5", *argv(parts, results, memory)]) as qemu:
        while time.monotonic() - started < limit:
            if (said := _read(status)) or qemu.poll() is not None:
                break
            time.sleep(0.5)
        took = time.monotonic() - started
        if said:
            _await_power_off(qemu)
    return Outcome(_number(_read(status)), took)


def _await_power_off(qemu: subprocess.Popen[bytes]) -> None:
    """So that what it says last is on the console; whether it manages is not what the rig is about."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        qemu.wait(_POWER_OFF)


def _read(path: Path) -> str:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ""
    return text if text.endswith("\n") else ""


def _number(text: str) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise CommandError(f"the rig's status is not a number: {text!r}") from error
