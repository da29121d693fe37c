"""The process that stays with a container: copies what it says, passes keys, window sizes and signals on.

Attached, that is the user's own command; detached, a fork of it in a session of its own. One thread, one poll.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from bench.errors import BenchError, HostError, LaunchError
from bench.linux import terminals

_PASSED_ON = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip
_CHUNK = 1 << 16


class Relay:
    """Between a container's descriptors and ours, until its first process ends. `passing`: what a signal to us does."""

    def __init__(self, pidfd: int, passing: Callable[[int], None]) -> None:
        self._pidfd, self._passing = pidfd, passing
        self._sinks: dict[int, list[int]] = {}
        self._keys = -1
        self._master = -1
        self._typed = b""
        self._poll = select.poll()
        self._poll.register(pidfd, select.POLLIN)

    def copy(self, source: int, *sinks: int) -> None:
        """What comes from `source` goes to each sink; one that nobody reads any more is left out."""
        os.set_blocking(source, False)
        self._sinks[source] = list(sinks)
        self._poll.register(source, select.POLLIN)

    def type(self, keys: int, master: int) -> None:
        """What comes from `keys` is typed on the terminal; a payload that does not read stops neither of us."""
        self._keys, self._master = keys, master
        self._poll.register(keys, select.POLLIN)

    def run(self, sizes: Callable[[], None] = lambda: None) -> None:
        """`sizes` is called when our window has changed."""
        with _signals() as wake:
            self._poll.register(wake, select.POLLIN)
            over = False
            while not over:
                for fd, events in self._poll.poll():
                    if fd == wake:
                        self._pass_on(os.read(wake, 64), sizes)
                    elif fd == self._pidfd:
                        over = True
                    elif fd == self._keys:
                        self._read_keys()
                    else:
                        self._serve(fd, events)
            self._poll.unregister(wake)
        for source in list(self._sinks):
            while self._read(source):
                pass

    def _pass_on(self, numbers: bytes, sizes: Callable[[], None]) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                sizes()
            else:
                self._passing(number)

    def _serve(self, fd: int, events: int) -> None:
        if events & select.POLLOUT:
            self._write_keys()
        if events & ~select.POLLOUT and fd in self._sinks:
            self._read(fd)

    def _read(self, source: int) -> bool:
        """Whether there may be more."""
        try:
            data = os.read(source, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if not data:
            self._poll.unregister(source)
            del self._sinks[source]
            return False
        for sink in list(self._sinks[source]):
            try:
                _write(sink, data)
            except OSError:  # EPIPE, or a disk that is full: the container goes on
                self._sinks[source].remove(sink)
        return True

    def _read_keys(self) -> None:
        data = os.read(self._keys, 1024)
        self._poll.unregister(self._keys)
        if data:
            self._typed += data
            self._write_keys()
        else:
            self._keys = -1

    def _write_keys(self) -> None:
        try:
            self._typed = self._typed[os.write(self._master, self._typed) :]
        except BlockingIOError:
            pass
        except OSError:
            self._typed = b""
        reading = select.POLLIN if self._master in self._sinks else 0
        if reading:
            self._poll.modify(self._master, reading | (select.POLLOUT if self._typed else 0))
        if not self._typed and self._keys >= 0:
            self._poll.register(self._keys, select.POLLIN)


def _write(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # our own stdout, if somebody made it so
            select.select([], [fd], [])


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that gives the number of each signal that comes."""
    wake, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    former = {number: signal.signal(number, _noted) for number in _PASSED_ON}
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    try:
        yield wake
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(told)


def _noted(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor has it."""


# --- terminals ---------------------------------------------------------------------------------------------------


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Keys go through as they are, Ctrl-C too; put back at the end. Without effect where `fd` is no terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def window(*fds: int) -> tuple[int, int]:
    """Rows and columns of the first of them that is a terminal; (0, 0) if none is."""
    for fd in fds:
        if os.isatty(fd):
            rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
            return rows, columns
    return 0, 0


def follow_window(master: int) -> None:
    """Make the container's terminal as large as ours."""
    rows, columns = window(0, 1, 2)
    if rows and columns:
        terminals.resize(master, rows, columns)


def hand_over(master: int, path: str, name: str) -> None:
    """Send the master of a terminal to who listens on the socket `path`, as OCI runtimes do. Raises HostError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        try:
            link.connect(path)
            socket.send_fds(link, [name.encode()], [master])
        except OSError as error:
            hint = "a Unix socket that somebody listens on, its path at most 107 bytes long"
            raise HostError(f"--console-socket {path}: {error.strerror or error}", hint=hint) from error


# --- detaching ---------------------------------------------------------------------------------------------------


class Parent:
    """The command that waits until a detached container runs, as its monitor sees it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def say(self, text: str) -> None:
        self._tell({"say": text})

    def ready(self, name: str) -> None:
        """All is well: the command may end."""
        self._tell({"ready": name})
        os.close(self._fd)

    def failed(self, error: BenchError) -> None:
        self._tell({"failed": error.message, "hint": error.hint})

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            os.write(self._fd, json.dumps(message).encode() + b"\n")


def detach(work: Callable[[Parent], object], say: Callable[[str], None]) -> str:
    """Run `work` in a process of its own session; returns what it says is ready. Raises LaunchError if it fails first.

    Before there are threads: it is a fork.
    """
    read, tell = os.pipe()
    if not os.fork():
        os.close(read)
        _become_monitor(work, Parent(tell))
    os.close(tell)
    with os.fdopen(read) as messages:
        for line in messages:
            message = json.loads(line)
            if "say" in message:
                say(message["say"])
            elif "ready" in message:
                return str(message["ready"])
            else:
                raise LaunchError(message["failed"], hint=message["hint"])
    raise LaunchError("the container's monitor died", hint="dmesg may say why; bench clean removes what it left")


def _become_monitor(work: Callable[[Parent], object], parent: Parent) -> None:
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        work(parent)
        status = 0
    except BenchError as error:
        parent.failed(error)
    except OSError as error:
        parent.failed(LaunchError(str(error)))
    finally:
        os._exit(status)
