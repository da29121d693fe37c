"""Which accelerator a guest really boots under. /dev/kvm existing proves nothing, so a probe guest is booted."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from bench import process
from bench.errors import CommandError, HostError
from bench.vm.domain import AccelName
from bench.vm.initramfs import probe_initramfs
from bench.vm.kernel import GuestKernel

log = logging.getLogger(__name__)

QEMU = "qemu-system-x86_64"
PROBE_MARK = "bench: probe"
_LIMITS: dict[AccelName, float] = {"kvm": 30.0, "tcg": 120.0}  # seconds; on a quiet host kvm takes one, tcg three
_DOUBT = 86400.0  # seconds after which a probe that proved nothing is made again
_PASSING = ("Cannot allocate memory", "Device or resource busy")  # what QEMU says when it fails for want of something
_KILLED = 137  # status of what SIGKILL ended: the kernel, when memory ran out
_AGAIN = "it is tried again after a day, or now with --set vm.accel=kvm"
_FORM = "2"  # of a cached answer; one of another form is not read


class Accel(Struct, frozen=True):
    """What guests run under, why, and how long the probe guest took to boot and power off (s)."""

    name: AccelName
    reason: str
    probe: float


class Answer(Struct, frozen=True):
    """What one probe showed. `proved`: another try would show the same; a guest that was only too slow proves nothing.

    `date`: seconds since the epoch.
    """

    boots: bool
    reason: str
    probe: float
    proved: bool = True
    date: float = 0.0


def qemu_version() -> str:
    """First line of `qemu-system-x86_64 --version`. Raises HostError if it is not installed."""
    return process.run([QEMU, "--version"], timeout=20).stdout.splitlines()[0]


def accelerator(cache: Path, kernel: GuestKernel, forced: Literal["auto", "kvm", "tcg"] = "auto") -> Accel:
    """kvm if a guest boots under it, else tcg; `forced` asks for one.

    Answers are cached by what they depend on: host kernel, QEMU, guest kernel, CPU. One that proves nothing is believed
    for a day, so that not every command waits for it, and not at all when its accelerator is forced. Raises HostError
    if no guest boots under what was asked for.
    """
    wanted: Sequence[AccelName] = ("kvm", "tcg") if forced == "auto" else (forced,)
    reasons = []
    for name in wanted:
        answer = _ask(cache, kernel, name, doubt=0.0 if forced != "auto" else _DOUBT)
        reasons.append(answer.reason if answer.proved else f"{answer.reason}, which is no proof: {_AGAIN}")
        if answer.boots:
            return Accel(name, "; ".join(reasons), answer.probe)
    raise HostError(f"no guest boots under {' or '.join(wanted)}: {'; '.join(reasons)}", hint=_hint(wanted))


def _hint(wanted: Sequence[AccelName]) -> str:
    if list(wanted) == ["kvm"]:
        return "use --set vm.accel=auto, or make KVM work: load kvm-intel or kvm-amd, or enable nested virtualization"
    return f"try by hand: {QEMU} -accel tcg -nographic"


def _ask(cache: Path, kernel: GuestKernel, name: AccelName, doubt: float) -> Answer:
    """The cached answer, or a new one; one that proved nothing is believed for `doubt` seconds.

    Never cached, for they may change: no /dev/kvm, no tcg.
    """
    if name == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Answer(False, "/dev/kvm is missing or not ours", 0.0)
    path = cache / "accel" / f"{name}-{_key(kernel)}.json"
    if (known := _cached(path)) is not None and (known.proved or 0 <= time.time() - known.date < doubt):
        return known
    answer = probe(name, kernel, probe_initramfs(cache, kernel))
    if answer.boots or name == "kvm":
        _keep(path, answer)
    return answer


def _cached(path: Path) -> Answer | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Answer)
    except (OSError, msgspec.DecodeError):
        return None


def _keep(path: Path, answer: Answer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_bytes(msgspec.json.encode(answer))
    scratch.rename(path)


def _key(kernel: GuestKernel) -> str:
    """What the answer depends on and a reboot does not change."""
    facts = (_FORM, platform.release(), platform.version(), qemu_version(), kernel.package, _cpu_model())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def probe(name: AccelName, kernel: GuestKernel, initrd: Path, limit: float | None = None) -> Answer:
    """Boot the probe guest under `name` and see whether its user space speaks."""
    log.info("booting a probe guest under %s", name)
    seconds = _LIMITS[name] if limit is None else limit
    date, started = time.time(), time.monotonic()
    try:
        done = process.run(probe_argv(name, kernel, initrd), timeout=seconds, check=False)
    except CommandError:
        reason = f"a probe guest under {name} did not boot within {seconds:g} s"
        return Answer(False, reason, time.monotonic() - started, proved=False, date=date)
    took = time.monotonic() - started
    if PROBE_MARK in done.stdout:
        return Answer(True, f"a probe guest booted under {name}", took, date=date)
    said = ["it said nothing", *(done.stderr.strip() or done.stdout.strip()).splitlines()][-1].strip()
    reason = f"a probe guest under {name} ended early (status {done.status}): {said}"
    passing = done.status == _KILLED or any(text in done.stderr for text in _PASSING)
    return Answer(False, reason, took, proved=not passing, date=date)


def probe_argv(name: AccelName, kernel: GuestKernel, initrd: Path) -> list[str]:
    return [
        QEMU, "-accel", name, "-cpu", "host" if name == "kvm" else "qemu64", "-machine", "q35", "-m", "128",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", kernel.vmlinuz, "-initrd", str(initrd), "-append", "console=ttyS0 panic=-1 rdinit=/init",
    ]  # fmt: skip
