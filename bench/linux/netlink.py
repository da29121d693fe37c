"""rtnetlink for the launch path, packed by hand: through a library each request costs more than a launch may.

Message layout: netlink(7), rtnetlink(7), linux/if_link.h. One socket per network namespace it speaks for.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 17, 20, 24
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 1, 4, 0x200, 0x400
IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_NET_NS_PID = 3, 10, 18, 19
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
RTA_GATEWAY = 5
RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 3, 0, 1
NLMSG_ERROR = 2
IFF_UP = 1
NLA_F_NESTED = 0x8000

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def _name(text: str) -> bytes:
    return attribute(IFLA_IFNAME, text.encode() + b"\0")


def veth(name: str, peer: str, *, peer_pid: int, master: int) -> bytes:
    """Both ends at once: `name` up here as a port of the bridge `master`, `peer` in the namespace of `peer_pid`.

    The peer is set up by the kernel before the two are joined, when it can't be up yet (ENOTCONN): its side does that.
    """
    other = _IFINFO.pack(0, 0, 0, 0, 0) + _name(peer) + attribute(IFLA_NET_NS_PID, struct.pack("=I", peer_pid))
    info = attribute(IFLA_INFO_KIND, b"veth\0") + attribute(
        IFLA_INFO_DATA | NLA_F_NESTED, attribute(VETH_INFO_PEER | NLA_F_NESTED, other)
    )
    return (
        _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP)
        + _name(name)
        + attribute(IFLA_MASTER, struct.pack("=I", master))
        + attribute(IFLA_LINKINFO | NLA_F_NESTED, info)
    )


def link_up(index: int) -> bytes:
    return _IFINFO.pack(0, 0, index, IFF_UP, IFF_UP)


def address(index: int, ip: str, prefix: int) -> bytes:
    raw = socket.inet_aton(ip)
    number = struct.unpack("!I", raw)[0] | (0xFFFFFFFF >> prefix)
    broadcast = struct.pack("!I", number)
    return (
        _IFADDR.pack(socket.AF_INET, prefix, 0, RT_SCOPE_UNIVERSE, index)
        + attribute(IFA_LOCAL, raw)
        + attribute(IFA_ADDRESS, raw)
        + attribute(IFA_BROADCAST, broadcast)
    )


def default_route(gateway: str) -> bytes:
    head = _RTMSG.pack(socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    return head + attribute(RTA_GATEWAY, socket.inet_aton(gateway))


class Netlink:
    """A request socket in the network namespace it was opened in; a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, kind: int, body: bytes, flags: int = 0, what: str = "netlink") -> None:
        """Send one request and wait for its acknowledgement. Raises OSError naming `what`."""
        self._sequence += 1
        head = _HEADER.pack(16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, self._sequence, 0)
        self._socket.send(head + body)
        reply = self._socket.recv(65536)
        _, answer, _, _, _ = _HEADER.unpack_from(reply)
        code = struct.unpack_from("=i", reply, 16)[0] if answer == NLMSG_ERROR else -errno.EPROTO
        if code:
            raise OSError(-code, os.strerror(-code), what)

    def create(self, kind: int, body: bytes, what: str) -> None:
        self.request(kind, body, NLM_F_CREATE | NLM_F_EXCL, what)


def delete_link(name: str) -> bool:
    """Delete an interface of this namespace; False if there is none of that name."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return False
    with Netlink() as netlink:
        try:
            netlink.request(RTM_DELLINK, _IFINFO.pack(0, 0, index, 0, 0), what=f"delete {name}")
        except OSError as error:
            if error.errno == errno.ENODEV:  # its namespace died first
                return False
            raise
    return True
