"""rtnetlink for the launch path, packed by hand: through a library each request costs more than a launch may.

Message layout: netlink(7), rtnetlink(7), linux/if_link.h. One socket per network namespace it speaks for.
"""

from __future__ import annotations

import _socket as socket  # the module around it would double the heap that every launch copies
import ctypes
import errno
import os
import struct

RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 17, 20, 24
LOOPBACK = 1
"""Index of `lo` in every network namespace."""
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 1, 4, 0x200, 0x400
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_NET_NS_PID = 1, 3, 10, 18, 19
IFLA_GROUP = 27
IFLA_AF_SPEC, IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_NONE = 26, 8, 1
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_BR_FORWARD_DELAY, IFLA_BR_STP_STATE = 1, 5
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
RTA_GATEWAY = 5
RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 3, 0, 1
NLMSG_ERROR = 2
IFF_UP = 1
NLA_F_NESTED = 0x8000

_IPV6 = os.path.exists("/proc/net/if_inet6")
"""A kernel without IPv6 refuses to be told anything about it."""

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is not imported: see above
    from collections.abc import Iterator, Sequence

    Request = tuple[str, int, int, bytes]  # what (its name in an error), message type, flags, body

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
    """Both ends at once: `name` here as a port of the bridge `master`, `peer` in the namespace of `peer_pid`.

    The peer is set up by the kernel before the two are joined, when it can't be up yet (ENOTCONN): its side does that.
    """
    other = _IFINFO.pack(0, 0, 0, 0, 0) + _name(peer) + attribute(IFLA_NET_NS_PID, struct.pack("=I", peer_pid))
    info = attribute(IFLA_INFO_KIND, b"veth\0") + attribute(
        IFLA_INFO_DATA | NLA_F_NESTED, attribute(VETH_INFO_PEER | NLA_F_NESTED, other)
    )
    return (
        _IFINFO.pack(0, 0, 0, 0, 0)
        + _name(name)
        + attribute(IFLA_MASTER, struct.pack("=I", master))
        + attribute(IFLA_LINKINFO | NLA_F_NESTED, info)
    )


def bridge(name: str, mac: bytes) -> bytes:
    """A bridge that forwards at once: no spanning tree, no learning delay.

    Without a hardware address of its own it takes the lowest of its ports', and with a new port's another one: those
    who know the old one send to nobody then.
    """
    data = attribute(IFLA_BR_FORWARD_DELAY, struct.pack("=I", 0)) + attribute(IFLA_BR_STP_STATE, struct.pack("=I", 0))
    info = attribute(IFLA_INFO_KIND, b"bridge\0") + attribute(IFLA_INFO_DATA | NLA_F_NESTED, data)
    return (
        _IFINFO.pack(0, 0, 0, 0, 0)
        + _name(name)
        + attribute(IFLA_ADDRESS, mac)
        + attribute(IFLA_LINKINFO | NLA_F_NESTED, info)
    )


def no_ipv6(index: int, name: str = "") -> Iterator[Request]:
    """The interface makes no IPv6 address of its own when it comes up.

    Our networks are IPv4 only, and each such address is announced to every port of the bridge: on a full bridge that
    costs several times what all the rest of a new interface does.
    """
    if _IPV6:
        mode = attribute(IFLA_INET6_ADDR_GEN_MODE, struct.pack("=B", ADDR_GEN_NONE))
        family = attribute(IFLA_AF_SPEC | NLA_F_NESTED, attribute(socket.AF_INET6 | NLA_F_NESTED, mode))
        body = _IFINFO.pack(0, 0, index, 0, 0) + (_name(name) if name else b"") + family
        yield (f"no IPv6 address for {name or index}", RTM_NEWLINK, 0, body)


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


def pack(requests: Sequence[Request], first: int) -> bytes:
    """One message of them, numbered from `first`. Only the last asks for an answer; a failure is always told."""
    parts = []
    for number, (_, kind, flags, body) in enumerate(requests, first):
        flags |= NLM_F_REQUEST | (NLM_F_ACK if number == first + len(requests) - 1 else 0)
        parts += [_HEADER.pack(16 + len(body), kind, flags, number, 0), body, b"\0" * (-len(body) % 4)]
    return b"".join(parts)


class Netlink:
    """A request socket in the network namespace it was opened in; a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def batch(self, *requests: Request) -> None:
        """Send requests in one message: the kernel takes them in order, and answers once unless something fails.

        Raises OSError naming the first that failed; those after it were tried as well.
        """
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(pack(requests, first))
        failed: OSError | None = None
        number = 0
        while number != self._sequence:
            code, number = self._answer()
            if code and failed is None and first <= number:
                failed = OSError(code, os.strerror(code), requests[number - first][0])
        try:
            if failed is not None:
                raise failed
        finally:
            del failed  # else it and this frame would keep each other, where nothing collects them

    def _answer(self) -> tuple[int, int]:
        """Errno (0: done) and sequence number of one answer."""
        reply = self._socket.recv(65536)
        _, kind, _, number, _ = _HEADER.unpack_from(reply)
        return (-struct.unpack_from("=i", reply, 16)[0] if kind == NLMSG_ERROR else errno.EPROTO), number

    def request(self, kind: int, body: bytes, flags: int = 0, what: str = "netlink") -> None:
        """Send one request and wait for its acknowledgement. Raises OSError naming `what`."""
        self.batch((what, kind, flags, body))

    def create(self, kind: int, body: bytes, what: str) -> None:
        self.request(kind, body, NLM_F_CREATE | NLM_F_EXCL, what)


def lo_up() -> Request:
    """`lo` keeps its ::1."""
    return ("lo up", RTM_NEWLINK, 0, link_up(LOOPBACK))


def attach(link: Netlink, name: str, peer: str, *, peer_pid: int, master: int) -> None:
    """A veth pair in one exchange: `name` up here on the bridge of index `master`, `peer` in `peer_pid`'s namespace.

    Raises OSError naming the step; EXFULL: the bridge has no port left.
    """
    link.batch(
        (
            f"veth {name} on bridge {master}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL,
            veth(name, peer, peer_pid=peer_pid, master=master),
        ),
        *no_ipv6(0, name),
        (f"{name} up", RTM_NEWLINK, 0, _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _name(name)),
    )  # fmt: skip


def _inside(index: int, ip: str, prefix: int, gateway: str) -> list[Request]:
    """The inside of a new network namespace: lo and the interface up, address, default route."""
    new = NLM_F_CREATE | NLM_F_EXCL
    return [
        lo_up(),
        *no_ipv6(index),
        (f"interface {index} up", RTM_NEWLINK, 0, link_up(index)),
        (f"address {ip}/{prefix}", RTM_NEWADDR, new, address(index, ip, prefix)),
        (f"route {gateway}", RTM_NEWROUTE, new, default_route(gateway)),
    ]


def configure(link: Netlink, index: int, ip: str, prefix: int, gateway: str) -> None:
    """Set the inside up in one exchange; `link` must have been opened in it. Raises OSError naming the step."""
    link.batch(*_inside(index, ip, prefix, gateway))


_INDEX = 0x7FBE0001
"""Stands for an interface's index that is not known yet."""


def configuration(ip: str, prefix: int, gateway: str) -> bytes:
    """The same exchange packed beforehand, for `apply` where time is dear."""
    return pack(_inside(_INDEX, ip, prefix, gateway), 1)


_SYS_SOCKET, _SYS_SENDTO, _SYS_RECVFROM, _SYS_IOCTL, _SYS_CLOSE = 41, 44, 45, 16, 3  # x86-64
_SIOCGIFINDEX = 0x8933
_syscall = ctypes.PyDLL(None, use_errno=True).syscall


def _done(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)
    return result


def apply(packed: bytes, name: str) -> None:
    """Set the inside up, from a process in it, with interface `name`. Raises OSError naming the request by number.

    By system calls: the memory that a socket object takes would be copied for it.
    """
    fields = ctypes.create_string_buffer(name.encode(), 40)  # struct ifreq
    reply = ctypes.create_string_buffer(4096)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    link = _done(_syscall(_SYS_SOCKET, int(socket.AF_NETLINK), kind, socket.NETLINK_ROUTE), "netlink socket")
    _done(_syscall(_SYS_IOCTL, link, _SIOCGIFINDEX, fields), f"interface {name}")
    message = packed.replace(_INDEX.to_bytes(4, "little"), fields.raw[16:20])
    _done(_syscall(_SYS_SENDTO, link, message, len(message), 0, None, 0), "netlink request")
    _done(_syscall(_SYS_RECVFROM, link, reply, len(reply), 0, None, None), "netlink answer")
    _syscall(_SYS_CLOSE, link)
    if code := -int.from_bytes(reply.raw[16:20], "little", signed=True):
        number = int.from_bytes(reply.raw[8:12], "little")
        raise OSError(code, os.strerror(code), f"request {number} of: lo up, IPv6 off, {name} up, address, route")


def in_group(index: int, group: int) -> Request:
    """Put an interface into a group (a number that users may give too; 0 is everybody's)."""
    return (f"group of {index}", RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + _group(group))


def delete_group(group: int) -> Request:
    """All interfaces of a group in one go: the kernel waits for its readers once, not for each."""
    return (f"delete group {group}", RTM_DELLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + _group(group))


def _group(number: int) -> bytes:
    return attribute(IFLA_GROUP, struct.pack("=I", number))


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
