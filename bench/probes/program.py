"""Running the attack program (images/attacks) and reading its one line."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from bench.errors import CommandError
from bench.model import Completed
from bench.probes.base import Answer, Scene

_ANSWER = msgspec.json.Decoder(Answer)


def attack(scene: Scene, *words: str) -> Answer:
    """One attack from inside the scene's instance. Raises LaunchError, CommandError."""
    argv = [scene.program, *words]
    return parse(argv, scene.instance.exec(argv, timeout=scene.timeout))


def parse(argv: Sequence[str], done: Completed) -> Answer:
    """Raises CommandError if it said nothing of the sort: killed, or not there."""
    line = next(iter(reversed(done.stdout.splitlines())), "")
    try:
        return _ANSWER.decode(line)
    except msgspec.DecodeError as error:
        said = (done.stderr.strip() or done.stdout.strip())[-200:]
        raise CommandError(
            f"exit status {done.status} from {' '.join(argv[:2])}: {said or 'it said nothing'}"
        ) from error


def describe(answer: Answer) -> str:
    """`open /proc/7/mem: EACCES`."""
    if answer.done:
        return f"{answer.step}: {answer.said}"
    return f"{answer.step}: {errno_name(answer.errno)}"


def errno_name(number: int) -> str:
    import errno

    return errno.errorcode.get(number, os.strerror(number))
