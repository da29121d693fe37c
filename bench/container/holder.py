"""The process that holds a pool's network namespaces: one descriptor each, in its own table and not the harness's.

Its own program, like the launcher: only light modules. A request is a line of JSON, and so is its answer. When the
harness is gone, however it went, so is this, and the kernel removes the namespaces with all in them.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from bench.linux import netlink, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PEER = "eth0"
"""The interface's name inside."""


class Holder:
    """`link` speaks for the namespace this was started in, where the bridges are."""

    def __init__(self) -> None:
        self.link = netlink.Netlink()

    def make(self, wanted: dict[str, Any]) -> dict[str, object]:
        """A new namespace with its interface, address and route; answers its descriptor's number here."""
        # This process is in the new one from now on, and so is what it opens; the one before is held by its descriptor.
        syscalls.unshare(syscalls.CLONE_NEWNET)
        held = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            netlink.attach(self.link, wanted["device"], PEER, peer_pid=os.getpid(), master=wanted["index"])
            with netlink.Netlink() as inner:
                index = socket.if_nametoindex(PEER)
                netlink.configure(inner, index, wanted["address"], wanted["prefix"], wanted["gateway"])
        except OSError:
            os.close(held)
            raise
        return {"fd": held}

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        try:
            return self.make(request)
        except OSError as error:
            return {"failed": f"{error.filename or 'network namespace'}: {error.strerror}"}


def main(fd: int) -> None:
    """Serve on `fd` until the other side is gone."""
    holder = Holder()
    with socket.socket(fileno=fd) as link, link.makefile("rw") as lines:
        link.set_inheritable(False)
        for line in lines:
            lines.write(json.dumps(holder.answer(json.loads(line))) + "\n")
            lines.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
