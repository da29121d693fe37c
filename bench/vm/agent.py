"""The host's side of the agent in the guest (vm/guest/agent): lines over a virtio-serial port."""

from __future__ import annotations

import base64
import binascii
import contextlib
import math
import shlex
import socket
import threading
import time
from collections.abc import Sequence

from bench.errors import CommandError, LaunchError
from bench.model import Completed

_GRACE = 5.0  # seconds beyond a command's own limit: the guest kills it, and its answer takes a moment under tcg
_LONGEST_REPLY = 64 << 20


class Agent:
    """One request at a time; takes over `connection`."""

    def __init__(self, connection: socket.socket, guest: str) -> None:
        self._connection = connection
        self._guest = guest
        self._lock = threading.Lock()
        self._last = 0
        self._rest = b""

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
            self._send(f"stop {max(1, round(grace))}\n".encode())

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
            line = self._line(deadline, argv)
            with contextlib.suppress(ValueError):
                number, done = parse_reply(line)
                if number == self._last:  # an older one answers a command that we gave up
                    return done

    def _line(self, deadline: float, argv: Sequence[str]) -> bytes:
        chunks = [self._rest]
        while b"\n" not in chunks[-1]:
            chunks.append(self._receive(deadline, argv))
            if sum(map(len, chunks)) > _LONGEST_REPLY:
                raise CommandError(f"{shlex.join(argv)} in {self._guest} said more than {_LONGEST_REPLY} bytes")
        line, _, self._rest = b"".join(chunks).partition(b"\n")
        return line

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
    """`ID SECONDS BASE64` of the shell-quoted argv; the guest's clock counts whole seconds."""
    body = base64.b64encode(shlex.join(argv).encode()).decode()
    return f"{number} {max(1, math.ceil(timeout))} {body}\n".encode()


def parse_reply(line: bytes) -> tuple[int, Completed]:
    """`ID STATUS STDOUT. STDERR.`, both in base64. Raises ValueError if it is not that."""
    try:
        number, status, stdout, stderr = line.split()
        texts = [
            base64.b64decode(field.removesuffix(b"."), validate=True).decode(errors="replace")
            for field in (stdout, stderr)
        ]
    except binascii.Error as error:
        raise ValueError(line) from error
    return int(number), Completed(int(status), *texts)


def _too_long(argv: Sequence[str], guest: str, timeout: float | None) -> CommandError:
    after = f" after {timeout:g} s, killed" if timeout is not None else ", and the guest's agent does not answer"
    return CommandError(f"still running{after}: {shlex.join(argv)} in {guest}")
