"""Messages between two ends of a SOCK_SEQPACKET pair, descriptors beside them: plain values, as marshal has them.

Both ends are one program of one Python: no format is stabler than it needs to be, and none is cheaper to load. The
modules behind `socket` and `json` would double the heap that every launch copies, hence `_socket` and `marshal`.
"""

from __future__ import annotations

import _socket
import marshal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

MAX_MESSAGE = 1 << 17
_MAX_READ = 1 << 16  # below the size from which on memory is mapped for it, and unmapped again
_INT = 4  # bytes of a descriptor


def pair() -> tuple[int, int]:
    """Two connected descriptors, closed on exec."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return ours.detach(), theirs.detach()


def encode(value: Any) -> bytes:
    """Dicts, lists, texts, bytes, numbers, booleans, None."""
    return marshal.dumps(value)


def send(link: _socket.socket, message: bytes, fds: Sequence[int] = ()) -> None:
    packed = b"".join(fd.to_bytes(_INT, "little") for fd in fds)
    link.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if fds else [])


def receive(link: _socket.socket, fds: int) -> tuple[Any, list[int]]:
    """A message and up to `fds` descriptors, closed on exec; None as message: the other end is gone."""
    space = _socket.CMSG_LEN(fds * _INT) if fds else 0
    size = link.recv_into(bytearray(1), 1, _socket.MSG_PEEK | _socket.MSG_TRUNC)  # all would be mapped anew each time
    data, ancillary, _, _ = link.recvmsg(size, space, _socket.MSG_CMSG_CLOEXEC)
    got = [
        int.from_bytes(packed[at : at + _INT], "little")
        for _, _, packed in ancillary
        for at in range(0, len(packed) // _INT * _INT, _INT)
    ]
    return (marshal.loads(data) if data else None), got


def read(fd: int) -> Any:
    """The next message, of at most 64 KiB, of a descriptor that carries nothing beside; None: the other end is gone."""
    data = os.read(fd, _MAX_READ)
    return marshal.loads(data) if data else None
