"""Many guests alive at a time: `python -m benchmarks.vm_scale --profile micro|clone --count N`.

When all are there each echoes a fresh random nonce at its own address within a second, and once more a minute later; in
between their CPU while idle is measured, all together. The host's reserve is looked at before each launch. A process of
its own holds the guests; in the end it is killed with all of them alive, and `bench clean` is timed. Exits 1 when a
bound breaks.
"""

from __future__ import annotations

import argparse
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from bench.drivers.vm import VmInstance
from bench.host import host_facts, reserve_bytes
from bench.model import GIB, MIB, Payload, Ready, RunId
from bench.samplers import cpu_seconds
from bench.vm.reap import domain_prefix, hypervisors
from benchmarks.vm_stage import READY, Stage, memory_available, stage

ANSWER = 1.0  # seconds a guest may take to answer
CORES = 1.0  # of CPU, all idle ones together
TEARDOWN = 30.0  # seconds for 1,000; for fewer as well
_PORT = 7000
_HELD = "held: "
ECHO = Payload("echo", ("/bin/sh", "-c", f"echo {READY}; exec nc -ll -p {_PORT} -e cat"), Ready(line=READY))


class Check(NamedTuple):
    """One bound."""

    what: str
    value: float
    bound: float
    unit: str = ""
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def answer(guest: VmInstance) -> float:
    """Seconds until the guest has echoed a nonce."""
    assert guest.address is not None
    nonce, began, said = secrets.token_hex(16).encode(), time.monotonic(), b""
    with socket.create_connection((guest.address, _PORT), 30) as link:
        link.sendall(nonce)
        while len(said) < len(nonce) and (part := link.recv(64)):
            said += part
    if said != nonce:
        raise SystemExit(f"{guest.id} at {guest.address} answered {said!r} to {nonce!r}")
    return time.monotonic() - began


def idle_cores(guests: Sequence[VmInstance], seconds: float) -> float:
    """Cores that all of them use together while nobody asks."""
    before, began = _cpu(guests), time.monotonic()
    time.sleep(seconds)
    return (_cpu(guests) - before) / (time.monotonic() - began)


def _cpu(guests: Sequence[VmInstance]) -> float:
    return sum(cpu_seconds(guest.footprint()) or 0.0 for guest in guests)


def launch_all(field: Stage, stack: ExitStack, profile: str, count: int, reserve: int) -> list[VmInstance]:
    guests: list[VmInstance] = []
    times: list[float] = []
    before = memory_available()
    for number in range(1, count + 1):
        if memory_available() < reserve:
            print(f"stopped at {len(guests)}: the host's reserve of {reserve / MIB:.0f} MiB is reached", flush=True)
            break
        guest, seconds = stack.enter_context(field.guest(profile))
        guests.append(guest)
        times.append(seconds)
        if not number % 100 or number == count:
            last, each = statistics.median(times[-100:]), (before - memory_available()) / number / MIB
            print(f"  {number} alive; ready, median of the last 100: {last:.3f} s; {each:.1f} MiB each", flush=True)
    return guests


def hold(options: argparse.Namespace) -> int:
    """Launch, ask, and keep all alive until stdin ends; says the run's id when it has come to that."""
    reserve = reserve_bytes(host_facts().memory_total, 2 * GIB, 0.10)
    with stage(ECHO) as field, ExitStack() as stack:
        guests = launch_all(field, stack, options.profile, options.count, reserve)
        if not guests:  # said above
            return 1
        first = max(map(answer, guests))
        cores = idle_cores(guests, options.wait)
        second = max(map(answer, guests))
        checks = [
            Check("guests alive", len(guests), options.count, at_least=True),
            Check("slowest answer when all are there", first, ANSWER, " s"),
            Check(f"slowest answer {options.wait:g} s later", second, ANSWER, " s"),
            Check("CPU of all idle ones", cores, CORES, " cores"),
        ]
        broken = tell(checks)
        print(f"{_HELD}{field.context.run} {broken}", flush=True)
        sys.stdin.read()
    return broken


def tell(checks: Sequence[Check]) -> int:
    """Print them; 1 if one breaks."""
    for one in checks:
        side = "at least" if one.at_least else "at most"
        print(
            f"{'holds ' if one.holds else 'BROKEN'}  {one.what}: {one.value:.3g}{one.unit}, {side} {one.bound:g}",
            flush=True,
        )
    return int(not all(one.holds for one in checks))


def listen(lines: Iterable[str]) -> tuple[str, int] | None:
    """Pass on what the holder says, until it holds: (its run, whether a bound broke). None if it ended before."""
    for line in lines:
        if line.startswith(_HELD):
            run, broken = line.removeprefix(_HELD).split()
            return run, int(broken)
        print(line, end="", flush=True)
    return None


def check_clean(run: str) -> int:
    """Time `bench clean` after the holder's death, and look whether a guest is left."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "bench", "clean", run], stdout=subprocess.DEVNULL, check=True)
    removal = time.monotonic() - began
    left = len(list(hypervisors(domain_prefix(RunId(run)))))
    return tell([Check("bench clean of all", removal, TEARDOWN, " s"), Check("guests left by it", left, 0)])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=("micro", "clone"), default="clone")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--wait", type=float, default=60.0, help="seconds between the two rounds of answers")
    parser.add_argument("--hold", action="store_true", help="only hold the guests, until stdin ends")
    options = parser.parse_args(argv)
    if options.hold:
        return hold(options)
    holder = [sys.executable, "-m", "benchmarks.vm_scale", "--hold", *argv]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        held = listen(child.stdout)
        if held is not None:
            child.kill()
    if held is None:
        print("BROKEN  it ended before all was measured")
        return 1
    run, broken = held
    return check_clean(run) | broken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
