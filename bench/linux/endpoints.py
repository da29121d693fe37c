"""Whether an instance answers: a TCP connection, an HTTP status. Polled at most 1 ms apart, by the host's clock."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from bench.model import HttpCheck

INTERVAL = 0.001  # s between two attempts
_ATTEMPT = 2.0  # s one attempt may take; a guest whose SYN got lost answers the kernel's own retry within it


def connects(address: str, port: int, timeout: float = _ATTEMPT) -> bool:
    """Whether a TCP connection is accepted."""
    try:
        socket.create_connection((address, port), timeout).close()
    except OSError:
        return False
    return True


def answers(check: HttpCheck, address: str, timeout: float = _ATTEMPT) -> bool:
    """Whether GET of the path gives the status asked for. HTTP/1.0, so that the server closes when it is done."""
    try:
        with socket.create_connection((address, check.port), timeout) as link:
            link.sendall(request_for(check, address))
            head = link.recv(4096)
    except OSError:
        return False
    return answered(head, check)


def request_for(check: HttpCheck, address: str) -> bytes:
    return f"GET {check.path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode()


def answered(head: bytes, check: HttpCheck) -> bool:
    """Whether an answer that begins so has the status asked for."""
    words = head.split(None, 2)
    return len(words) > 1 and words[0].startswith(b"HTTP/") and words[1] == str(check.status).encode()


def wait_until(attempt: Callable[[], bool], deadline: float, alive: Callable[[], bool]) -> int | None:
    """Monotonic ns at which `attempt` first held; None after `deadline` (of time.monotonic) or once not `alive`."""
    while not attempt():
        if time.monotonic() > deadline or not alive():
            return None
        time.sleep(INTERVAL)
    return time.monotonic_ns()
