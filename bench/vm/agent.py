"""The host's side of the agent in the guest (vm/guest/agent.c), over a virtio-serial port."""

from __future__ import annotations

import contextlib
import math
import shlex
import socket
import threading
import time
from collections.abc import Sequence

from bench.errors import CommandError, LaunchError, UsageError
from bench.model import Completed

_GRACE = 5.0  # seconds beyond a command's own limit: the guest kills it, and its answer takes a moment under tcg
_LONGEST_REPLY = 64 << 20
_LONGEST_HEAD = 128
_LONGEST_REQUEST = 1 << 17  # vm/guest/agent.c takes no more
_MOST_ARGUMENTS = 1000


class Agent:
    """One request at a time; takes over `connection`."""

    def __init__(self, connection: socket.socket, guest: str) -> None:
        self._connection = connection
        self._guest = guest
        self._lock = threading.Lock()
        self._last = 0
        self._rest = bytearray()

    def exec(self, argv: Sequence[str], timeout: float) -> Completed:
        """Run `argv` in the guest's root.

        Raises CommandError after `timeout` seconds, LaunchError if the guest is gone.
        """
        with self._lock:
            self._last += 1
            started = time.monotonic()
            self._send(request(self._last, argv, timeout))
            done = self._reply(started + timeout + _GRACE, argv)
        if done.status == 137 and time.monotonic() - started >= timeout:  # the guest's own clock killed it
            raise _too_long(argv, self._guest, timeout)
        return done

    def awaken(self, identity: bytes) -> None:
        """Give a clone the identity it waits for. Raises LaunchError."""
        self._send(identity)

    def ask_to_stop(self, grace: float) -> None:
        """Have the payload ended, killed after `grace` seconds, and the guest powered off; does not wait for it."""
        with contextlib.suppress(LaunchError):  # powered off already
            self._send(f"stop {math.ceil(grace * 1000)}\n".encode())

    def close(self) -> None:
        self._connection.close()

    def _send(self, line: bytes) -> None:
        try:
            self._connection.settimeout(10)
            self._connection.sendall(line)
        except OSError as error:
            raise LaunchError(f"{self._guest} does not run any more") from error

    def _reply(self, deadline: float, argv: Sequence[str]) -> Completed:
        while True:
            number, done = self._whole(deadline, argv)
            if number == self._last:  # an older one answers a command that we gave up
                return done

    def _whole(self, deadline: float, argv: Sequence[str]) -> tuple[int, Completed]:
        """The next answer, taken from what was received only when all of it is there: a wait for it may be given up."""
        while b"\n" not in self._rest:
            if len(self._rest) > _LONGEST_HEAD:
                raise LaunchError(f"the agent of {self._guest} says what is no answer: {bytes(self._rest[:80])!r}")
            self._rest += self._receive(deadline, argv)
        start = self._rest.index(b"\n") + 1
        number, status, out, err = parse_head(bytes(self._rest[: start - 1]))
        if out + err > _LONGEST_REPLY:
            self.close()
            raise CommandError(
                f"{shlex.join(argv)} in {self._guest} said {out + err} bytes, more than {_LONGEST_REPLY}: no further "
                "command is possible there"
            )
        end = start + out + err
        while len(self._rest) < end:
            self._rest += self._receive(deadline, argv)
        said, erred = (
            bytes(self._rest[at:to]).decode(errors="replace") for at, to in ((start, end - err), (end - err, end))
        )
        del self._rest[:end]
        return number, Completed(status, said, erred)

    def _receive(self, deadline: float, argv: Sequence[str]) -> bytes:
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            data = self._connection.recv(1 << 16)
        except TimeoutError:
            raise _too_long(argv, self._guest, None) from None
        except OSError:
            data = b""
        if not data:
            raise LaunchError(f"{self._guest} ended while it ran {shlex.join(argv)}")
        return data


def request(number: int, argv: Sequence[str], timeout: float) -> bytes:
    """`run NUMBER MILLISECONDS SIZE` and the arguments, each ended by a zero.

    Raises UsageError for what can't be sent.
    """
    if any("\0" in word for word in argv):
        raise UsageError("an argument of a command holds a zero byte")
    body = b"".join(word.encode(errors="surrogateescape") + b"\0" for word in argv)
    if len(body) > _LONGEST_REQUEST or len(argv) > _MOST_ARGUMENTS:
        raise UsageError(
            f"a command for a guest has {len(argv)} arguments, {len(body)} bytes",
            hint=f"at most {_MOST_ARGUMENTS} and {_LONGEST_REQUEST} bytes; write a script into the image instead",
        )
    return f"run {number} {max(1, math.ceil(timeout * 1000))} {len(body)}\n".encode() + body


def parse_head(line: bytes) -> tuple[int, int, int, int]:
    """`NUMBER STATUS OUT ERR`: which request, exit status, bytes of stdout and of stderr. Raises LaunchError."""
    words = line.split()
    if len(words) != 4 or not all(word.isdigit() for word in words):
        raise LaunchError(f"a guest's agent says what is no answer: {line[:80]!r}")
    number, status, out, err = map(int, words)
    return number, status, out, err


def _too_long(argv: Sequence[str], guest: str, timeout: float | None) -> CommandError:
    after = f" after {timeout:g} s, killed" if timeout is not None else ", and the guest's agent does not answer"
    return CommandError(f"still running{after}: {shlex.join(argv)} in {guest}")
