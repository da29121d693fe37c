"""The harness's side of the launcher: starts it, asks it, takes the descriptors it hands over."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

import bench
from bench import process
from bench.container import borrow
from bench.container.recipe import said
from bench.errors import CommandError, LaunchError
from bench.linux import messages
from bench.model import Completed

_HOME = Path(bench.__file__).resolve().parent.parent
_MEANINGS = {
    ("EPERM", "mount"): "mounting needs CAP_SYS_ADMIN, and a file system this kernel allows here",
    ("ENODEV", "overlay"): "this kernel has no overlayfs: modprobe overlay",
    (
        "EINVAL",
        "overlay",
    ): "the upper folder's file system can't be one (an overlay itself?): set BENCH_STATE to a folder on ext4 or xfs",
    ("ENOSPC", "clone"): "a limit on namespaces is reached: see /proc/sys/user/max_*_namespaces",
    ("EAGAIN", "clone"): "no more processes: see ulimit -u, /proc/sys/kernel/pid_max and the pids cgroup",
    ("EACCES", "clone"): "the container's cgroup is not below one that you may write and are in as well: on cgroup v2 "
    "give the command with systemd-run --user --scope --property=Delegate=yes, or where the container was started",
    ("EXFULL", "veth"): "the bridge is full: a Linux bridge holds 1,023 ports",
    ("ENOENT", "exec"): "the image has no such program, or not the interpreter it names",
    ("EACCES", "exec"): "the file is not executable",
    ("ENOEXEC", "exec"): "not a program of this architecture, or a script without #!",
}


def explain(report: dict[str, Any]) -> str:
    """What failed, with what the errno means at that step where its name misleads."""
    number, step = int(report["errno"]), said(report["step"])
    name = os.strerror(number)
    symbol = errno.errorcode.get(number, "")
    meaning = next(
        (says for (code, word), says in _MEANINGS.items() if code == symbol and word in step + str(report["error"])), ""
    )
    text = str(report["error"]) if name in str(report["error"]) else f"{name}: {report['error']}"
    return f"{step}: {text}" + (f" ({meaning})" if meaning else "")


def meant(report: Mapping[str, Any]) -> int | None:
    """The errno, unless it says of a disk what is true of a limit on namespaces or groups."""
    number = int(report["errno"])
    misleads = number == errno.ENOSPC and any(word in str(report["step"]) for word in ("clone", "group", "unshare"))
    return None if misleads else number or None


class Placed(Struct, frozen=True):
    """Where one instance goes: what is its own of a recipe that others share. See `init.Place`."""

    name: str
    folder: str = ""
    hostname: str = ""
    device: str = ""
    bridge: int = 0
    address: str = ""
    prefix: int = 0
    gateway: str = ""
    env: dict[str, str] = {}
    argv: tuple[str, ...] = ()
    bundle: str = ""
    root: str = ""
    network: str = ""


class LaunchedProcess:
    """A process the launcher started: its pid, a pidfd, the read end of its output, and the launcher's stamps.

    `output` is -1 if the client gave it descriptors of its own. `started` is None while the instance is held. `trace`:
    (step, monotonic ns at its end), if asked for.
    """

    def __init__(self, answer: Mapping[str, Any], pidfd: int, output: int) -> None:
        self.pid, self.pidfd, self.output = int(answer["pid"]), pidfd, output
        self.created: int = answer["created"]
        self.started: int | None = answer.get("started")
        self.trace: list[tuple[str, int]] = answer.get("trace", [])
        self.terminal: str | None = answer.get("terminal")

    def ended(self, timeout: float = 0) -> bool:
        """Whether it has exited, waiting up to `timeout` seconds for that."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(timeout * 1000))

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Launcher:
    """A running launcher; a context manager. Requests are answered one at a time, in order."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self._numbers = itertools.count(1)  # of recipes; counting is atomic
        self.pid = 0

    def __enter__(self) -> Launcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process; idempotent. -S: no site-packages are needed, and their .pth files cost memory."""
        if self._link is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (
            f"import sys; sys.path.insert(0, {str(_HOME)!r}); "
            f"from bench.container.launcher import main; main({theirs.fileno()})"
        )
        with theirs:
            child = self._stack.enter_context(
                process.spawn([sys.executable, "-I", "-S", "-c", code], pass_fds=(theirs.fileno(),))
            )
        self._stack.callback(ours.close)  # before the kill: the launcher ends by itself, taking its children along
        self._link, self.pid = ours, child.pid

    def close(self) -> None:
        if self._link is not None:
            self._link.shutdown(socket.SHUT_RDWR)
            _gone(self.pid, 5.0)
            self._stack.close()
            self._link = None

    def _ask(
        self, request: dict[str, Any], fds: int = 0, streams: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        message = messages.encode(request)
        if len(message) > messages.MAX_MESSAGE:
            raise LaunchError(
                f"the command and its environment take {len(message)} bytes; the launcher takes {messages.MAX_MESSAGE}",
                hint="shorten payload.command or payload.env",
            )
        with self._lock:
            if self._link is None:
                raise LaunchError("the launcher is not running", hint="this is a fault of bench; please report it")
            answer, got = _exchange(self._link, message, streams, fds)
        if answer is None:
            raise LaunchError("the launcher died", hint="look for its last words above, or for an OOM kill in dmesg")
        if "failed" in answer:
            raise LaunchError(explain(answer["failed"]), errno=meant(answer["failed"]))
        return answer, got

    def learn(self, fields: Mapping[str, Any]) -> int:
        """Make a recipe (the fields of `init.Recipe`) known. Returns its number, for launches."""
        number = next(self._numbers)
        self._ask({"do": "learn", "recipe": number, "fields": {"borrows": borrow.possible(fields), **fields}})
        return number

    def launch(
        self, recipe: int, place: Placed, *, streams: Sequence[int] = (), pidfd: bool = True, trace: bool = False
    ) -> LaunchedProcess:
        """Start an instance of a recipe. Raises LaunchError naming the step that failed.

        `streams`: three descriptors for its standard streams, instead of an output to read. Without `pidfd` nothing but
        that output is held open for it: 10,000 instances take 10,000 descriptors.
        """
        request = {"do": "launch", "recipe": recipe, "pidfd": pidfd, "trace": trace, **_fields(place)}
        answer, got = self._ask(request, 2, streams)
        _require(got, int(pidfd) + (not streams))
        return LaunchedProcess(answer, got.pop(0) if pidfd else -1, got.pop() if got else -1)

    def release(self, held: LaunchedProcess) -> None:
        """Let an instance of a recipe that holds go on to its payload. Raises LaunchError."""
        held.started = self._ask({"do": "start", "pid": held.pid})[0]["started"]

    def exec(self, recipe: int, place: Placed, target: int, timeout: float) -> Completed:
        """Run one more process (`place.argv`) in the instance whose first process is `target`, to its end."""
        answer, fds = self._ask({"do": "exec", "recipe": recipe, "target": target, **_fields(place)}, 3)
        _require(fds, 3)
        pidfd, *streams = fds
        try:
            output = _drain(streams, timeout, place.argv)
            status = self._ask({"do": "wait", "pid": answer["pid"]})[0]["status"]
        except CommandError:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            raise
        finally:
            for fd in fds:
                os.close(fd)
        return Completed(int(status), *(text.decode(errors="replace") for text in output))

    def attach(
        self, recipe: int, place: Placed, target: int, streams: Sequence[int], born: int | None = None
    ) -> tuple[int, int, int]:
        """Like `exec`, with the caller's own standard streams, and without waiting. Returns pid, pidfd and the master
        of its terminal, -1 without one.

        `born`: when the target started; another process of its number is not joined.
        """
        request = {"do": "exec", "recipe": recipe, "target": target, "born": born, **_fields(place)}
        answer, (pidfd, *master) = self._ask(request, 2, streams)
        return int(answer["pid"]), pidfd, master[0] if master else -1

    def wait(self, pid: int) -> int | None:
        """Exit status of a process that has ended; None if it was collected before."""
        status = self._ask({"do": "wait", "pid": pid})[0]["status"]
        return None if status is None else int(status)

    def end(self, pids: Sequence[int]) -> None:
        """Kill instances by their first processes; each is still to be destroyed, which takes less time then."""
        self._ask({"do": "end", "pids": list(pids)})

    def destroy(self, recipe: int, name: str, pid: int = 0) -> None:
        """Kill and reap the instance and all in its groups, then remove them. Idempotent.

        Raises LaunchError naming a group that stays busy.
        """
        self._ask({"do": "destroy", "recipe": recipe, "name": name, "pid": pid})


def _exchange(link: socket.socket, message: bytes, streams: Sequence[int], fds: int) -> tuple[Any, list[int]]:
    """The answer with up to `fds` descriptors; None if nobody is there any more."""
    try:
        messages.send(link, message, streams)
        return messages.receive(link, fds)
    except (BrokenPipeError, ConnectionResetError):
        return None, []


def _require(fds: Sequence[int], count: int) -> None:
    """The kernel drops descriptors that find no place in our table, and says nothing. Raises LaunchError."""
    if len(fds) < count:
        for fd in fds:
            os.close(fd)
        raise LaunchError(f"descriptors of a new process: {os.strerror(errno.EMFILE)}", errno=errno.EMFILE)


def _fields(place: Placed) -> dict[str, Any]:
    return {name: getattr(place, name) for name in place.__struct_fields__}


def _gone(pid: int, timeout: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll(timeout * 1000)
        os.close(fd)


def _drain(fds: Sequence[int], timeout: float, argv: Sequence[str]) -> list[bytes]:
    """All that comes from `fds` until each is closed. Raises CommandError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    found = {fd: b"" for fd in fds}
    left = set(fds)
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    while left:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise CommandError(f"still running inside after {timeout:g} s, killed: {' '.join(argv)}")
        for fd, _ in poller.poll(remaining * 1000):
            data = os.read(fd, 65536)
            found[fd] += data
            if not data:
                poller.unregister(fd)
                left.discard(fd)
    return [found[fd] for fd in fds]
