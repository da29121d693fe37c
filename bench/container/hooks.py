"""Hooks of the OCI runtime spec: a program, told on its standard input of which container, that must end well."""

from __future__ import annotations

import json
import os
import select
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OCI_VERSION = "1.1.0"


def state(name: str, status: str, pid: int, bundle: str) -> bytes:
    """The container's state as the spec wants it on a hook's standard input."""
    return json.dumps({"ociVersion": OCI_VERSION, "id": name, "status": status, "pid": pid, "bundle": bundle}).encode()


def run_hook(hook: dict[str, Any], told: bytes, streams: tuple[int, int] = (1, 2)) -> None:
    """Run one hook (path, args, env, timeout in seconds or None) to its end; `streams`: what it says goes there.

    Raises OSError naming it if it can't be started, exits with a status, or takes longer than its timeout.
    """
    path, argv = hook["path"], hook["args"] or [hook["path"]]
    stdin, tell = os.pipe()
    environment = dict(entry.split("=", 1) for entry in hook["env"])
    placed = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate((stdin, *streams))]
    pid = os.posix_spawn(path, argv, environment, file_actions=placed)
    os.close(stdin)
    try:
        os.write(tell, told)
    except BrokenPipeError:  # it does not care
        pass
    finally:
        os.close(tell)
    _wait(pid, path, hook["timeout"])


def _wait(pid: int, path: str, timeout: float | None) -> None:
    fd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    in_time = bool(poller.poll(None if timeout is None else timeout * 1000))
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    os.close(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not in_time:
        raise TimeoutError(110, f"took longer than {timeout:g} s, killed", f"hook {path}")
    if code:
        raise OSError(71, f"ended with status {code}", f"hook {path}")
