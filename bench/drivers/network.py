"""One bridge and one subnet a run, shared by every driver that gives its instances an address.

The subnets come from 198.18.0.0/15, which RFC 2544 sets aside for benchmarks: no user's network is there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import threading
from collections.abc import Iterable, Iterator

from bench.errors import HostError
from bench.linux import netlink
from bench.model import Leftover, RunId, token_of

POOL = ipaddress.IPv4Network("198.18.0.0/15")
PREFIX = 20  # 4,093 instances; a bridge holds 1,024 ports anyway


def free_subnet(used: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network | None:
    """The first subnet of the pool that overlaps none of `used`."""
    taken = list(used)
    return next((net for net in POOL.subnets(new_prefix=PREFIX) if not any(net.overlaps(one) for one in taken)), None)


def _routes() -> Iterator[ipaddress.IPv4Network]:
    """Destinations of the host's IPv4 routes, the default route left out."""
    with open("/proc/net/route") as file:
        for line in list(file)[1:]:
            fields = line.split()
            target, mask = (int.from_bytes(bytes.fromhex(fields[i])[::-1], "big") for i in (1, 7))
            if mask:
                yield ipaddress.IPv4Network((target, bin(mask).count("1")), strict=False)


class RunNetwork:
    """Building one acquires nothing; `ensure` makes the bridge, once; `close` removes it."""

    def __init__(self, run: RunId) -> None:
        self.run = run
        self.bridge = f"bn{token_of(run)}br0"
        self._lock = threading.Lock()
        self._subnet: ipaddress.IPv4Network | None = None
        self._free: list[str] = []
        self._next = 2

    def ensure(self) -> None:
        """Make the bridge with its address, in a subnet that no route of the host overlaps. Idempotent."""
        with self._lock:
            if self._subnet is not None:
                return
            subnet = free_subnet(_routes())
            if subnet is None:
                raise HostError(f"every /{PREFIX} of {POOL} is in use here", hint="bench clean; ip route")
            _make_bridge(self.bridge, str(subnet[1]))
            self._subnet = subnet

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        """The run's subnet; `ensure` must have been called."""
        if self._subnet is None:
            raise HostError("the run's network is not up", hint="this is a fault of bench; please report it")
        return self._subnet

    @property
    def gateway(self) -> str:
        """The bridge's own address."""
        return str(self.subnet[1])

    def allocate(self) -> str:
        """A free address of the subnet, recently freed ones last. Raises HostError if none is left."""
        with self._lock:
            if self._next < self.subnet.num_addresses - 1:
                self._next += 1
                return str(self.subnet[self._next - 1])
            if not self._free:
                raise HostError(f"no address is left in {self.subnet}")
            return self._free.pop(0)

    def release(self, address: str) -> None:
        """Give `address` back."""
        with self._lock:
            self._free.append(address)

    def close(self) -> list[Leftover]:
        """Remove the bridge if it is there (whoever made it): also how a dead run's is found."""
        with self._lock:
            self._subnet = None
            return [Leftover("netdev", self.bridge)] if netlink.delete_link(self.bridge) else []


def _make_bridge(name: str, address: str) -> None:
    """pyroute2 is slow to import and to call, and here it does not matter: once a run, outside timed windows."""
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as route:
        try:
            route.link("add", ifname=name, kind="bridge", br_stp_state=0, br_forward_delay=0)
            index = route.link_lookup(ifname=name)[0]
            route.addr("add", index=index, address=address, prefixlen=PREFIX)
            route.link("set", index=index, state="up")
        except NetlinkError as error:
            with contextlib.suppress(NetlinkError):
                route.link("del", ifname=name)
            raise HostError(
                f"the bridge {name} can't be made: {error}", hint="needs root and the bridge module: modprobe bridge"
            ) from error


def netdevs(run: RunId) -> list[str]:
    """Interfaces of this namespace that carry the run's token, the bridge left out."""
    import socket

    prefix, bridge = f"bn{token_of(run)}", f"bn{token_of(run)}br0"
    return [name for _, name in socket.if_nameindex() if name.startswith(prefix) and name != bridge]
