"""The one door to subprocess: argv lists only, a scrubbed environment, failures that can be pasted into a shell."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.errors import CommandError, HostError
from bench.model import Completed

log = logging.getLogger(__name__)

_KEEP = ("PATH", "HOME", "TMPDIR", "LANG", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE")
_TAIL = 2000  # characters of a failed command's stderr that are worth showing


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment commands run in: a few variables of ours, C locale so that output can be parsed."""
    env = {key: os.environ[key] for key in _KEEP if key in os.environ}
    path = env.get("PATH", "/usr/bin:/bin")
    if "/usr/sbin" not in path.split(":"):  # mkfs and friends, for users whose PATH leaves them out
        path = f"{path}:/usr/sbin:/sbin"
    return {**env, "PATH": path, "LC_ALL": "C", **(extra or {})}


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    check: bool = True,
    input: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run `argv` to its end and return what it said.

    Raises HostError if the program is not there, CommandError if it takes longer than `timeout` seconds or,
    with `check`, exits with another status than 0.
    """
    words = [str(word) for word in argv]
    line = shlex.join(words)
    log.debug("run: %s", line)
    try:
        done = subprocess.run(
            words,
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            cwd=cwd,
            env=clean_env(env),
            check=False,
        )
    except FileNotFoundError as error:
        raise HostError(f"{words[0]} is not installed", hint=f"install it; it was needed for: {line}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"still running after {timeout:g} s, killed: {line}") from error
    stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode
    if check and status:
        said = (stderr.strip() or stdout.strip())[-_TAIL:]
        raise CommandError(f"exit status {status} from: {line}\n{said}")
    return Completed(status, stdout, stderr)


@contextmanager
def spawn(
    argv: Sequence[str | Path],
    *,
    pass_fds: Sequence[int] = (),
    stdout: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a helper that lives as long as the context; it is killed and reaped at the end if it has not ended."""
    words = [str(word) for word in argv]
    log.debug("spawn: %s", shlex.join(words))
    child = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        pass_fds=tuple(pass_fds),
        env=clean_env(env),
        start_new_session=True,  # the terminal's Ctrl-C is for us; helpers end when we tell them
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
