"""Sockets that QEMU connects to. We listen before QEMU starts, so nothing is polled for and no byte is lost."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from bench.errors import HostError, LaunchError

_LONGEST = 107  # bytes of a socket's path, sun_path of unix(7) less its final zero


class Listener:
    """One socket in the file system that takes one connection; a context manager that leaves no file behind."""

    def __init__(self, path: Path) -> None:
        if len(os.fsencode(path)) > _LONGEST:
            raise HostError(
                f"{path} is too long for a socket: at most {_LONGEST} bytes", hint="set BENCH_STATE to a short path"
            )
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        path.unlink(missing_ok=True)
        self._socket.bind(str(path))
        path.chmod(0o666)  # QEMU may run as another user; the folder is what keeps others out
        self._socket.listen(1)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def accept(self, timeout: float) -> socket.socket:
        """QEMU's connection. Raises LaunchError if it does not come within `timeout` seconds."""
        self._socket.settimeout(timeout)
        try:
            connection, _ = self._socket.accept()
        except TimeoutError as error:
            raise LaunchError(f"QEMU did not connect to {self.path}") from error
        return connection


def detach(connection: socket.socket) -> int:
    """The descriptor alone, for whoever closes it."""
    connection.settimeout(None)
    return connection.detach()
