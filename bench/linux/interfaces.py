"""Bridges, routes and per-interface settings of the network namespace we are in. Not for the launch path."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.linux import netlink

PORTS_MOST = 1022
"""Instances a bridge can hold: of the kernel's 1,024 port numbers it never gives out 0, and one is for the carrier."""

PORTS = 500
"""Instances we put on one. A broadcast is copied to all ports in one go, and the queue of a CPU takes 1,000 packets
(net.core.netdev_max_backlog): on a fuller bridge the answer to an instance's ARP request is dropped, every time."""

CARRIER = ("a", "b")
"""What the names of a bridge's carrier pair end with, after the bridge's own name."""

_SIOCGIFFLAGS, _IFF_RUNNING = 0x8913, 0x40
_ACTIVE = 5.0  # s

_RTF_UP, _RTF_REJECT = 0x1, 0x200


def _routes() -> Iterator[tuple[str, ipaddress.IPv4Network, int]]:
    """(device, destination, flags) of the IPv4 routes; of this thread, as only a thread has a network namespace."""
    with open("/proc/thread-self/net/route") as file:
        for line in list(file)[1:]:
            fields = line.split()
            target, mask = (int.from_bytes(bytes.fromhex(fields[i])[::-1], "big") for i in (1, 7))
            network = ipaddress.IPv4Network((target, mask.bit_count()), strict=False)
            yield fields[0], network, int(fields[3], 16)


def routed() -> list[ipaddress.IPv4Network]:
    """Where the host's IPv4 routes lead, the default route left out."""
    return [network for _, network, _ in _routes() if network.prefixlen]


def default_device() -> str | None:
    """The interface of the default route; None if there is none."""
    for device, network, flags in _routes():
        if not network.prefixlen and flags & _RTF_UP and not flags & _RTF_REJECT:
            return device
    return None


def names(prefix: str) -> list[str]:
    """Interfaces whose names begin with `prefix`."""
    return [name for _, name in socket.if_nameindex() if name.startswith(prefix)]


def make_bridge(name: str, gateway: str, prefix: int) -> int:
    """A bridge that is up with its address; its index. Raises OSError naming the step, and leaves nothing then."""
    with netlink.Netlink() as link:
        mac = b"\x02\xbe" + socket.inet_aton(gateway)  # 02: administered locally
        link.create(netlink.RTM_NEWLINK, netlink.bridge(name, mac), f"bridge {name}")
        try:
            index = socket.if_nametoindex(name)
            link.batch(
                (f"address {gateway}/{prefix}", netlink.RTM_NEWADDR, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL,
                 netlink.address(index, gateway, prefix)),
                (f"{name} up", netlink.RTM_NEWLINK, 0, netlink.link_up(index)),
            )  # fmt: skip
            _keep_carrier(link, name, index)
        except OSError:
            delete_bridge(name)
            raise
    return index


def _keep_carrier(link: netlink.Netlink, name: str, index: int) -> None:
    """A pair of ours on the bridge. Without a port it has no carrier, and what the first instance sends or is sent is
    lost until the kernel has noticed that it has one now: that instance would wait a second for a repetition."""
    port, end = (name + letter for letter in CARRIER)
    netlink.attach(link, port, end, peer_pid=threading.get_native_id(), master=index)
    other = socket.if_nametoindex(end)
    link.batch(*netlink.no_ipv6(other), (f"{end} up", netlink.RTM_NEWLINK, 0, netlink.link_up(other)))
    deadline = time.monotonic() + _ACTIVE
    while not _running(name):
        if time.monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, "no carrier", f"bridge {name}")
        time.sleep(0.001)


def _running(name: str) -> bool:
    """Whether the kernel has noticed that the interface has its carrier."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sh22x", name.encode(), 0))
    return bool(struct.unpack_from("=h", answer, 16)[0] & _IFF_RUNNING)


def delete_together(doomed: Sequence[str]) -> list[str]:
    """Delete interfaces, many at once: one by one each takes 20 ms. Returns those that were there. Raises OSError."""
    indexes = {name: index for index, name in socket.if_nameindex() if name in set(doomed)}
    if not indexes:
        return []
    group = _unused_group()
    with netlink.Netlink() as link:
        for request in (*(netlink.in_group(index, group) for index in indexes.values()), netlink.delete_group(group)):
            try:
                link.batch(request)
            except OSError as error:
                if error.errno != errno.ENODEV:  # it went by itself meanwhile
                    raise
    return list(indexes)


def _unused_group() -> int:
    """A group of interfaces that nobody has."""
    used = set()
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError), open(f"/sys/class/net/{name}/netdev_group") as file:
            used.add(int(file.read()))
    while (group := 1 + int.from_bytes(os.urandom(4), "little") % (2**31 - 1)) in used:
        pass
    return group


def delete_bridge(name: str) -> bool:
    """With its carrier pair; False if there is none of that name."""
    netlink.delete_link(name + CARRIER[0])
    return netlink.delete_link(name)


def _path(interface: str, key: str) -> str:
    return f"/proc/sys/net/ipv4/conf/{interface}/{key}"


def setting(interface: str, key: str) -> str | None:
    """One of the interface's own IPv4 settings (`forwarding`, `route_localnet`); None if it is not there."""
    try:
        with open(_path(interface, key)) as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def change(interface: str, key: str, value: str) -> None:
    """Set it. Raises OSError."""
    with open(_path(interface, key), "w") as file:
        file.write(value)


@contextmanager
def alone() -> Iterator[None]:
    """Keeps other programs of ours out while one looks at the host's networks and then changes them.

    The lock is on a folder that is there anyway, so nothing is left when its holder dies.
    """
    fd = os.open("/sys/class/net", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
