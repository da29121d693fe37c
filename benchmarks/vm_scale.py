"""Many guests alive at a time: `python -m benchmarks.vm_scale --profile micro|clone --count N`.

When all are there each echoes a fresh random nonce at its own address within a second, and once more a minute later; in
between their CPU while idle is measured, all together, and in the end how long their removal takes. The host's reserve
is looked at before each launch. Exits 1 when a bound breaks.
"""

from __future__ import annotations

import argparse
import secrets
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from bench.drivers.vm import VmInstance
from bench.host import host_facts, reserve_bytes
from bench.model import GIB, MIB, Payload, Ready
from bench.samplers import cpu_seconds
from benchmarks.vm_stage import READY, Stage, memory_available, stage

ANSWER = 1.0  # seconds a guest may take to answer
CORES = 1.0  # of CPU, all idle ones together
TEARDOWN = 30.0  # seconds for 1,000; for fewer as well
_PORT = 7000
ECHO = Payload("echo", ("/bin/sh", "-c", f"echo {READY}; exec nc -ll -p {_PORT} -e cat"), Ready(line=READY))


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


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=("micro", "clone"), default="clone")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--wait", type=float, default=60.0, help="seconds between the two rounds of answers")
    options = parser.parse_args(argv)
    reserve = reserve_bytes(host_facts().memory_total, 2 * GIB, 0.10)
    with stage(ECHO) as field:
        with ExitStack() as stack:
            guests = launch_all(field, stack, options.profile, options.count, reserve)
            first = max(map(answer, guests))
            cores = idle_cores(guests, options.wait)
            second = max(map(answer, guests))
            began = time.monotonic()
        removal = time.monotonic() - began
    checks = (
        ("guests alive", float(-len(guests)), float(-options.count), ""),
        ("slowest answer when all are there", first, ANSWER, " s"),
        (f"slowest answer {options.wait:g} s later", second, ANSWER, " s"),
        ("CPU of all idle ones", cores, CORES, " cores"),
        ("removal of all", removal, TEARDOWN, " s"),
    )
    for what, value, bound, unit in checks:
        side = "at least" if bound < 0 else "at most"
        print(f"{'holds ' if value <= bound else 'BROKEN'}  {what}: {abs(value):.3g}{unit}, {side} {abs(bound):g}")
    return int(any(value > bound for _, value, bound, _ in checks))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
