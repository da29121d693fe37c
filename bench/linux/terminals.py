"""Pseudo-terminals: of a container's own devpts, for its payload."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430


def open_pair(ptmx: str, rows: int, columns: int) -> tuple[int, str]:
    """A new terminal: its master's descriptor and its slave's path in the same devpts. 0 rows: the kernel's default."""
    master = os.open(ptmx, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, struct.pack("i", 0)))
    if rows and columns:
        resize(master, rows, columns)
    return master, f"{os.path.dirname(ptmx)}/{number}"


def resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def take(path: str) -> None:
    """Make it this session's controlling terminal and its three standard streams."""
    slave = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for target in range(3):
        os.dup2(slave, target)
    os.close(slave)
