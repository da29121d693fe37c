"""What a container's network can be: requests as they are written, addresses, and bridges that share a subnet's ports.

Addresses are handed out within a launch, so that is arithmetic on integers; making bridges is not.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from msgspec import Struct

from bench.errors import UsageError
from bench.linux.interfaces import PORTS

Mode = Literal["none", "host", "bridge", "named"]
Protocol = Literal["tcp", "udp"]

_MODES: dict[str, Mode] = {"none": "none", "host": "host", "bridge": "bridge"}
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp"}
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PUBLISH = re.compile(r"(?:(?P<bind>[^:]*):)?(?P<port>[0-9]+):(?P<target>[0-9]+)(?:/(?P<protocol>[a-z]+))?")
_FORM = "written [ADDRESS:]PORT:PORT[/tcp|/udp], for example 127.0.0.1:8080:80/tcp"


class Endpoint(Struct, frozen=True):
    """Where an instance is attached. `prefix` in bits; `index` is the bridge's interface index."""

    address: str
    prefix: int
    gateway: str
    bridge: str
    index: int


class Publication(Struct, frozen=True):
    """Port `port` of the host's address `bind` (0.0.0.0: all of them) leads to the instance's port `target`."""

    port: int
    target: int
    protocol: Protocol = "tcp"
    bind: str = "0.0.0.0"

    @property
    def local(self) -> bool:
        """Reachable from this host only."""
        return self.bind.startswith("127.")

    def __str__(self) -> str:
        return f"{self.bind}:{self.port}:{self.target}/{self.protocol}"


class NetworkRequest(Struct, frozen=True):
    """none: a network namespace with lo only; host: the host's; bridge: the run's network; named: network `name`."""

    mode: Mode = "bridge"
    name: str | None = None
    publish: tuple[Publication, ...] = ()

    @property
    def own_namespace(self) -> bool:
        return self.mode != "host"

    @property
    def attached(self) -> bool:
        """Whether the instance gets an endpoint."""
        return self.mode in ("bridge", "named")


def parse_network(text: str, publish: Sequence[str] = ()) -> NetworkRequest:
    """`--network none|host|bridge|NAME` with its `--publish`ed ports. Raises UsageError."""
    published = tuple(parse_publication(one) for one in publish)
    if published and text in ("none", "host"):
        raise UsageError(
            f"--publish {publish[0]}: nothing can be published with --network {text}",
            hint="publish needs --network bridge or a named network; with host the ports are the host's already",
        )
    if (mode := _MODES.get(text)) is not None:
        return NetworkRequest(mode=mode, publish=published)
    return NetworkRequest(mode="named", name=network_name(text), publish=published)


def network_name(text: str) -> str:
    """A name that a network may have. Raises UsageError."""
    if not _NAME.fullmatch(text) or text in _MODES:
        raise UsageError(
            f"{text!r} is no network", hint="none, host, bridge, or a name: small letters, digits, _ and -, at most 32"
        )
    return text


def parse_publication(text: str) -> Publication:
    """`[ADDRESS:]PORT:PORT[/tcp|/udp]`, the host's side first. Raises UsageError."""
    if (found := _PUBLISH.fullmatch(text)) is None:
        raise UsageError(f"--publish {text}: not understood", hint=_FORM)
    if (protocol := _PROTOCOLS.get(found["protocol"] or "tcp")) is None:
        raise UsageError(f"--publish {text}: protocol {found['protocol']} can't be published", hint="tcp or udp")
    bind = "0.0.0.0" if found["bind"] is None else found["bind"]
    try:
        address = ipaddress.IPv4Address(bind)
    except ValueError as error:
        raise UsageError(f"--publish {text}: {bind!r} is no IPv4 address", hint=_FORM) from error
    port, target = (_port(text, found[side]) for side in ("port", "target"))
    return Publication(port, target, protocol, str(address))


def _port(text: str, digits: str) -> int:
    if len(digits) > 5 or not 1 <= int(digits) <= 65535:
        raise UsageError(f"--publish {text}: port {digits[:20]} is not from 1 to 65535", hint=_FORM)
    return int(digits)


def parse_subnet(text: str, used: Iterable[ipaddress.IPv4Network], count: int) -> ipaddress.IPv4Network:
    """A subnet for `count` instances that overlaps none of `used`. Raises UsageError."""
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no IPv4 subnet: {error}", hint="for example 10.20.0.0/24") from error
    if not subnet.is_private or subnet.is_loopback or subnet.is_link_local or subnet.is_multicast:
        raise UsageError(f"{subnet} is not for private use", hint="10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16")
    room = min(subnet.num_addresses - 3, PORTS)
    if count > room:
        raise UsageError(
            f"{subnet} has room for {max(room, 0)} instances, not {count}",
            hint=f"a bigger subnet; at most {PORTS} instances go on the bridge of one",
        )
    if (other := next((one for one in used if one.overlaps(subnet)), None)) is not None:
        raise UsageError(f"{subnet} overlaps {other}, which this host has a route to", hint="another subnet: ip route")
    return subnet


class Bridge:
    """One bridge with its subnet: the addresses and ports that are taken. Not locked: its Network is."""

    def __init__(self, name: str, subnet: ipaddress.IPv4Network, index: int, ports: int = PORTS) -> None:
        self.name, self.subnet, self.index = name, subnet, index
        self.gateway = str(subnet[1])
        self._next = int(subnet.network_address) + 2
        self._end = int(subnet.broadcast_address)
        self._given: deque[str] = deque()
        self._ports = ports

    def take(self) -> Endpoint | None:
        """A free address, recently freed ones last; None if no address or no port is left."""
        if not self._ports:
            return None
        if self._next < self._end:
            address = socket.inet_ntoa(self._next.to_bytes(4, "big"))
            self._next += 1
        elif self._given:
            address = self._given.popleft()
        else:
            return None
        self._ports -= 1
        return Endpoint(address, self.subnet.prefixlen, self.gateway, self.name, self.index)

    def give(self, address: str) -> None:
        self._given.append(address)
        self._ports += 1

    @property
    def room(self) -> int:
        """How many more instances fit."""
        return min(self._ports, self._end - self._next + len(self._given))


class Network:
    """Bridges whose instances reach each other. `grow` makes one more of them, or raises."""

    def __init__(self, name: str, grow: Callable[[], Bridge]) -> None:
        self.name = name
        self.uplink: str | None = None
        self.bridges: list[Bridge] = []
        self._grow = grow

    def ensure(self, count: int) -> bool:
        """Make bridges until `count` more instances fit; whether any had to be made."""
        before = len(self.bridges)
        while sum(bridge.room for bridge in self.bridges) < count:
            self.bridges.append(self._grow())
        return len(self.bridges) > before

    def take(self) -> Endpoint | None:
        """An endpoint on the first bridge with room; None if all are full."""
        return next((taken for bridge in self.bridges if (taken := bridge.take()) is not None), None)
