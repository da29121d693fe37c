"""Probes that look at the world before and after, or need more than one process."""

from __future__ import annotations

import secrets
import socket
import time

from bench.probes.base import Answer, Scene
from bench.probes.judges import by_kernel, by_secret
from bench.probes.program import attack, describe
from bench.records import Containment, Finding

_HOST_NAME = "/proc/sys/kernel/hostname"
_SIGNAL_TAKES = 0.1  # seconds until the canary has written what it got
_WATCH = 1500  # milliseconds
_JOINS = 8


def _contained(answer: Answer, why: str = "") -> Finding:
    return Finding(Containment.CONTAINED, describe(answer) + (f"; {why}" if why else ""))


def signals(scene: Scene) -> Finding:
    held = scene.world.held
    answer = attack(scene, "signal", str(held.pid))
    time.sleep(_SIGNAL_TAKES)
    if scene.world.read(held.signalled):
        return Finding(Containment.ESCAPED, f"{describe(answer)}; the host's process got it")
    return _contained(answer, "the host's process got none" if answer.done else "")


def joins(scene: Scene) -> Finding:
    """Into the canary's namespace; by its inode, because a pid inside may be another process."""
    held = scene.world.held
    answer = attack(scene, "join", str(held.pid))
    inode = _inode(f"/proc/{held.pid}/ns/uts")
    if answer.done and answer.said == f"inode {inode}":
        return Finding(Containment.ESCAPED, f"{describe(answer)}, which is the canary's namespace")
    return _contained(answer)


def _inode(path: str) -> int:
    import os

    return os.stat(path).st_ino


def inherits(scene: Scene) -> Finding:
    return _leak(scene, attack(scene, "descriptors", scene.world.held.secret))


def inherits_bare(scene: Scene) -> Finding:
    return _leak(scene, scene.world.leaking(("descriptors", scene.world.held.secret)))


def _leak(scene: Scene, answer: Answer) -> Finding:
    if answer.done and scene.world.held.secret not in answer.said:
        return Finding(Containment.DEGRADED, describe(answer))
    return by_secret(scene, answer)


def watches_joiners(scene: Scene) -> Finding:
    """While the host runs commands in the instance: is their program the host's, for a moment, and can it be opened?"""
    began = time.monotonic()
    name = f"attack-watch-{secrets.token_hex(4)}"  # bare processes of two runs share a folder
    answer = attack(scene, "watch", str(_WATCH), name)
    if not answer.done:
        return _contained(answer)
    for _ in range(_JOINS):
        attack(scene, "where")
    time.sleep(max(0.0, began + _WATCH / 1000 + 0.5 - time.monotonic()))
    answer = attack(scene, "watched", name)
    return Finding(Containment.ESCAPED, describe(answer)) if answer.done else _contained(answer)


def appends(scene: Scene) -> Finding:
    held, mark = scene.world.held, secrets.token_hex(8)
    answer = attack(scene, "append", held.file, mark)
    if mark in (scene.world.read(held.file) or ""):
        scene.world.write(held.file, held.secret)
        return Finding(Containment.ESCAPED, f"{describe(answer)}; the host's file had changed, and was put back")
    return _contained(answer, "the host's file is as it was" if answer.done else "")


def reads_neighbours_file(scene: Scene) -> Finding:
    """A file the neighbour writes where the attacker has its own of that name."""
    neighbour, secret = _beside(scene), secrets.token_hex(8)
    name = f"attack-{secret[:8]}"
    attack(neighbour, "put", name, secret)
    try:
        answer = attack(scene, "take", name)
    finally:
        attack(neighbour, "drop", name)
    if secret in answer.said:
        return Finding(Containment.ESCAPED, f"{answer.step}: its secret was read")
    return _contained(answer)


def reaches_neighbours_process(scene: Scene) -> Finding:
    """A process of the neighbour's, found by its command line; signal 0 asks whether it could be killed."""
    return _of_neighbour(scene, "see", "signal")


def reads_neighbours_memory(scene: Scene) -> Finding:
    return _of_neighbour(scene, "steal")


def _of_neighbour(scene: Scene, verb: str, *words: str) -> Finding:
    mark = f"canary-{secrets.token_hex(4)}"
    attack(_beside(scene), "linger", "4", mark)
    answer = attack(scene, verb, mark, *words)
    return Finding(Containment.ESCAPED, describe(answer)) if answer.done else _contained(answer)


def asks_neighbour(scene: Scene) -> Finding:
    neighbour, mark = _beside(scene), secrets.token_hex(8)
    address, port = neighbour.instance.address, _free_port()
    if address is None:
        return Finding(Containment.CONTAINED, "the neighbour has no network")
    served = attack(neighbour, "serve", port, mark, address)
    if not served.done:
        return Finding(Containment.ERROR, f"the neighbour could not serve: {describe(served)}")
    answer = attack(scene, "tcp", port, address)
    if mark in answer.said:
        return Finding(Containment.ESCAPED, f"{answer.step}: its secret was read")
    return _contained(answer)


def _free_port() -> str:
    """Of this host's loopback, now; elsewhere most likely too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _beside(scene: Scene) -> Scene:
    """The same scene from the neighbour's side."""
    if scene.neighbour is None:
        raise LookupError("this probe needs a neighbour")
    return Scene(
        scene.neighbour, scene.instance, scene.world, scene.program, scene.limits, scene.same_kernel, scene.bare,
        scene.timeout,
    )  # fmt: skip


def serves(scene: Scene) -> Finding:
    """Listen on a port of the host's loopback, which the host then connects to."""
    mark, port = secrets.token_hex(8), _free_port()
    answer = attack(scene, "serve", port, mark, "127.0.0.1")
    if mark in scene.world.greeting(int(port)):
        return Finding(Containment.ESCAPED, f"{describe(answer)}; a client of the host was answered")
    return _contained(answer, "no client of the host gets there" if answer.done else "")


def renames_host(scene: Scene) -> Finding:
    before, name = scene.world.read(_HOST_NAME), f"attacked-{secrets.token_hex(4)}"
    answer = attack(scene, "host-name", name)
    if name in (scene.world.read(_HOST_NAME) or ""):
        scene.world.write(_HOST_NAME, (before or "").strip())
        return Finding(Containment.ESCAPED, f"{describe(answer)}; it was the host's, and was put back")
    return _contained(answer, "the host's name is as it was")


def opens_disk(scene: Scene) -> Finding:
    """The world's first disk, by a device node of one's own."""
    numbers = _first_disk(scene.world.read("/proc/partitions") or "")
    if numbers is None:
        return Finding(Containment.UNAVAILABLE, "the host lists no disk in /proc/partitions")
    return by_kernel(scene, attack(scene, "device", "b", *numbers, "read"), Containment.ESCAPED)


def _first_disk(partitions: str) -> tuple[str, str] | None:
    for line in partitions.splitlines():
        words = line.split()
        if len(words) == 4 and words[0].isdecimal() and not words[3].startswith(("ram", "loop", "zram")):
            return words[0], words[1]
    return None


def raises_limits(scene: Scene) -> Finding:
    """Its own cgroups' limits, at their paths on the host and where instances see theirs."""
    files = ("pids.max", "memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us")
    groups = dict.fromkeys(scene.instance.footprint().cgroups.values())
    paths = [f"{group}/{file}" for group in groups for file in files]
    kinds = ("", "pids/", "memory/", "cpu/", "cpu,cpuacct/")
    paths += [f"/sys/fs/cgroup/{kind}{file}" for kind in kinds for file in files]
    return by_kernel(scene, attack(scene, "rewrite-any", *paths), Containment.ESCAPED)


def remounts(scene: Scene) -> Finding:
    return by_kernel(scene, attack(scene, "remount"), Containment.DEGRADED)


def remounts_own(scene: Scene) -> Finding:
    return by_kernel(scene, attack(scene, "remount-own"), Containment.DEGRADED)


def tells_uptime(scene: Scene) -> Finding:
    text = scene.world.read("/proc/uptime")
    answer = attack(scene, "uptime")
    if text is None or not answer.done:
        return _contained(answer)
    apart = abs(float(text.split()[0]) - float(answer.said))
    if apart < 5:
        return Finding(Containment.DEGRADED, f"uptime {answer.said} s, the host's own")
    return _contained(answer, f"{apart:.0f} s from the host's")
