"""Namespaces that play host, instances and internet, and questions asked between them.

The "host" is itself a namespace made here, so nothing of the real one changes; plain sockets opened in a namespace stay
in it, so no process is needed to be there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.container.network import Endpoint
from bench.drivers.network import RunNetwork, netdevs
from bench.linux import interfaces, netlink, nftables, procfs, syscalls
from bench.model import RunId

WAIT = 5.0  # s for what shall get through
REFUSED = 0.4  # s for what shall not: between namespaces of one machine that is long
OUTSIDE = "203.0.113.9"  # of the "internet"; RFC 5737 sets it aside for examples
UPLINK, UPLINK_ADDRESS = "up0", "203.0.113.1"

BACKLOG = procfs.number("/proc/sys/net/core/netdev_max_backlog")  # of the real host: no other namespace shows it
Ask = Callable[..., str | None]

_numbers = itertools.count(os.getpid() % 90_000)


def new_run() -> RunId:
    return RunId(f"20261124-000000-test-n{next(_numbers) % 100_000:05d}")


def current_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def within(namespace: int) -> Iterator[None]:
    before = current_namespace()
    syscalls.setns(namespace, syscalls.CLONE_NEWNET)
    try:
        yield
    finally:
        syscalls.setns(before, syscalls.CLONE_NEWNET)
        os.close(before)


class Lab:
    """The namespaces of one test; we are in `host`, whose lo is up and which forwards nothing."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._namespaces: set[int] = set()
        stack.callback(lambda: [self.end(one) for one in tuple(self._namespaces)])
        self.host = self.namespace()
        stack.enter_context(within(self.host))
        with netlink.Netlink() as link:
            link.batch(netlink.lo_up())
        for one in ("all", "default"):
            interfaces.change(one, "forwarding", "0")

    def namespace(self) -> int:
        before = current_namespace()
        syscalls.unshare(syscalls.CLONE_NEWNET)
        made = current_namespace()
        syscalls.setns(before, syscalls.CLONE_NEWNET)
        os.close(before)
        self._namespaces.add(made)
        return made

    def end(self, namespace: int) -> None:
        """Close it: with nobody in it the kernel removes it and all its interfaces."""
        self._namespaces.remove(namespace)
        os.close(namespace)

    def instance(self, endpoint: Endpoint, name: str) -> int:
        """A namespace attached as a container is."""
        with netlink.Netlink() as link:
            inside = self.namespace()
            with within(inside):
                netlink.attach(link, name, "eth0", peer_pid=os.getpid(), master=endpoint.index)
                with netlink.Netlink() as inner:
                    index = socket.if_nametoindex("eth0")
                    netlink.configure(inner, index, endpoint.address, endpoint.prefix, endpoint.gateway)
        return inside

    def internet(self) -> int:
        """A namespace beyond the host's uplink; it has no route to any subnet of ours."""
        outside = self.namespace()
        ip("link", "add", UPLINK, "type", "veth", "peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{outside}")
        ip("addr", "add", f"{UPLINK_ADDRESS}/24", "dev", UPLINK)
        ip("link", "set", UPLINK, "up")
        with within(outside):
            ip("addr", "add", f"{OUTSIDE}/24", "dev", "eth0")
            ip("link", "set", "eth0", "up")
            ip("link", "set", "lo", "up")
        ip("route", "add", "default", "via", OUTSIDE)
        return outside


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network_of(run: RunId, ports: int = interfaces.PORTS) -> Iterator[RunNetwork]:
    """Afterwards nothing of the run is left: no interface, no table, and the uplink as it was."""
    made = RunNetwork(run, ports)
    try:
        yield made
    finally:
        for device in netdevs(run):  # of the instances: their drivers' business
            netlink.delete_link(device)
        made.close()
    assert not nftables.tables(f"bench-{run[-6:]}")
    assert not interfaces.names(f"bn{run[-6:]}")
    assert interfaces.setting(UPLINK, "forwarding") in (None, "0")


def refused(
    client: int, server: int, to: tuple[str, int], at: tuple[str, int] | None = None, ask: Ask | None = None
) -> bool:
    return (ask or asked)(client, server, to, at, REFUSED) is None


def asked(
    client: int, server: int, to: tuple[str, int], at: tuple[str, int] | None = None, wait: float = WAIT
) -> str | None:
    """The address a server (at `at`; default: `to`) sees when the client connects to `to`; None if it can't."""
    with contextlib.ExitStack() as stack:
        with within(server):
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(at or to)
            listener.listen()
        with within(client):
            caller = stack.enter_context(socket.socket())
        caller.settimeout(wait)
        listener.settimeout(wait)
        try:
            caller.connect(to)
            peer, (seen, _) = listener.accept()
            peer.sendall(b"hello")
            peer.close()
            assert caller.recv(9) == b"hello"
        except OSError:
            return None
        return str(seen)


def asked_udp(
    client: int, server: int, to: tuple[str, int], at: tuple[str, int] | None = None, wait: float = WAIT
) -> str | None:
    with contextlib.ExitStack() as stack:
        with within(server):
            answering = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            answering.bind(at or to)
        with within(client):
            caller = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        answering.settimeout(wait)
        caller.settimeout(wait)
        try:
            caller.connect(to)
            caller.send(b"ping")
            data, source = answering.recvfrom(9)
            answering.sendto(data, source)
            assert caller.recv(9) == b"ping"
        except OSError:
            return None
        return str(source[0])
