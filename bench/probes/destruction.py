"""Using up what is shared, each bounded so that no host of this program's size is harmed even where nothing holds it.

Afterwards the neighbour and the host are asked whether they still answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.errors import BenchError
from bench.model import MIB, Limits
from bench.probes.base import Answer, Scene
from bench.probes.judges import by_kernel
from bench.probes.program import attack, describe, parse
from bench.records import Containment, Finding

DISK = 200  # MiB
FILES = 2_000
OPEN = 8_000
_SPIN = 1_500  # milliseconds
_ALLOWED = 1.25  # of the declared CPUs: accounting is by ticks
_LONG = 120.0  # seconds a bomb may take


def processes(limits: Limits) -> str:
    return str(2 * limits.pids + 64)


def memory(limits: Limits) -> str:
    return str(limits.memory // MIB + 64)


def bomb(name: str, size: Callable[[Limits], str]) -> Callable[[Scene], Finding]:
    """From inside: does it get more than it was declared, of the host's?"""

    def run(scene: Scene) -> Finding:
        answer = _inside(scene, name, size(scene.limits))
        finding = by_kernel(scene, answer, Containment.ESCAPED)
        return Finding(finding.outcome, f"{finding.evidence}; {_around(scene)}")

    return run


def without_limits(name: str, size: Callable[[Limits], str]) -> Callable[[Scene], Finding]:
    """The same as a process of the world outside any cgroup of ours."""

    def run(scene: Scene) -> Finding:
        answer = scene.world.bare((name, size(scene.limits)), _LONG)
        return by_kernel(scene, answer, Containment.ESCAPED)

    return run


def fixed(size: int) -> Callable[[Limits], str]:
    return lambda limits: str(size)


def spins(scene: Scene) -> Finding:
    return _share(scene, _inside(scene, "processor", str(_SPIN)))


def spins_bare(scene: Scene) -> Finding:
    return _share(scene, scene.world.bare(("processor", str(_SPIN)), _LONG))


def _share(scene: Scene, answer: Answer) -> Finding:
    if not answer.done:
        return Finding(Containment.CONTAINED, describe(answer))
    said = f"busy loops got {answer.said} CPUs of {scene.limits.cpus:g} declared"
    over = float(answer.said) > scene.limits.cpus * _ALLOWED
    return Finding(Containment.ESCAPED if over else Containment.CONTAINED, said)


def panics(scene: Scene) -> Finding:
    """Where the kernel is the host's, only whether the file could be opened is asked."""
    if scene.same_kernel:
        answer = attack(scene, "open-only", "/proc/sysrq-trigger")
        return by_kernel(scene, answer, Containment.ESCAPED, "/proc/sysrq-trigger")
    said = _ended_by_panic(scene)
    return Finding(Containment.CONTAINED, f"{said}; {_around(scene)}")


def panics_guest(scene: Scene) -> Finding:
    """The control: the kernel under a bare process ends."""
    said = _ended_by_panic(scene)
    ended = not said.startswith("still")
    return Finding(Containment.ESCAPED if ended else Containment.CONTAINED, said)


def _ended_by_panic(scene: Scene) -> str:
    try:
        return f"still running: {describe(attack(scene, 'panic'))}"
    except BenchError as error:
        deadline = time.monotonic() + 10
        while scene.instance.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        state = "still running" if scene.instance.alive() else "its kernel panicked and it ended"
        return f"{state}: {error.message.splitlines()[0]}"


def _inside(scene: Scene, name: str, size: str) -> Answer:
    argv = [scene.program, name, size]
    return parse(argv, scene.instance.exec(argv, timeout=_LONG))


def _around(scene: Scene) -> str:
    """Whether the neighbour and the host still do what they are asked."""
    if scene.neighbour is None:
        return "no neighbour to ask"
    began = time.monotonic()
    scene.neighbour.exec([scene.program, "where"], timeout=scene.timeout)
    return f"the neighbour answered in {time.monotonic() - began:.2f} s"
