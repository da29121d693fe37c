"""The networks of one run, shared by every driver that gives its instances an address.

Its own network spreads over as many bridges as needed: one gets 64 instances. A question for an address (ARP) goes to
every port of a bridge, and wakes every guest there: with 500 clones on each of two bridges, emulated, one question cost
3 s of two processors. The subnets come from 198.18.0.0/15, which RFC 2544 sets aside for benchmarks: no user's network
is there. Networks with a subnet of the user's choice come
beside it; one network does not reach another unless told to.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import threading
from collections.abc import Iterable

from bench.container.firewall import OURS, TABLES, Firewall, Published, Rules, Zone
from bench.container.network import Bridge, Endpoint, Network, Publication, network_name, parse_subnet
from bench.errors import AddressesError, HostError, UsageError
from bench.linux import interfaces, procfs
from bench.model import Leftover, RunId, token_of

log = logging.getLogger(__name__)

POOL = ipaddress.IPv4Network("198.18.0.0/15")
PORTS = 64
"""Instances on one bridge of the run's own network."""
PREFIX = 23  # eight times a bridge's ports: an address freed is not used again soon
OWN = "bridge"
"""Name of the run's own network."""
_NEIGHBOURS = "/proc/sys/net/ipv4/neigh/default/gc_thresh3"


def free_subnet(used: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network | None:
    """The first subnet of the pool that overlaps none of `used`."""
    taken = set(used)  # most are of the pool, and found without looking at all others
    free = (net for net in POOL.subnets(new_prefix=PREFIX) if net not in taken)
    return next((net for net in free if not any(net.overlaps(one) for one in taken)), None)


class RunNetwork:
    """Building one acquires nothing; `close` removes all that was made, whoever made it."""

    def __init__(self, run: RunId, ports: int = PORTS) -> None:
        self.run = run
        self._ports = ports
        self._prefix = f"{OURS}{token_of(run)}br"
        self._firewall = Firewall(f"{TABLES}{token_of(run)}")
        self._lock = threading.RLock()
        self._networks = {OWN: Network(OWN, self._grow)}
        self._joined: frozenset[tuple[str, str]] = frozenset()
        self._published: dict[Publication, Endpoint] = {}
        self._made = 0

    # --- addresses -------------------------------------------------------------------------------------------------

    def ensure(self, count: int = 1, name: str = OWN) -> None:
        """Make the bridges that `count` more instances need. Idempotent. Raises HostError."""
        with self._lock:
            network = self.network(name)
            if network.ensure(count):
                self._apply()
        _warn_of_neighbours(count)

    def network(self, name: str) -> Network:
        """Raises UsageError if the run has no network of that name."""
        if name not in self._networks:
            raise UsageError(f"no network {name!r} here; there are: {', '.join(self._networks)}")
        return self._networks[name]

    def allocate(self, name: str = OWN) -> Endpoint:
        """A free endpoint; a bridge more is made if all are full. Raises HostError if none can be."""
        with self._lock:
            network = self._networks[name]
            while (endpoint := network.take()) is None:
                self.ensure(1, name)
            return endpoint

    def release(self, endpoint: Endpoint) -> None:
        """Give it back; what was published for it ends. After `close` there is nothing to give back to."""
        with self._lock:
            if gone := [one for one, to in self._published.items() if to == endpoint]:
                self._withdraw(gone)
            if (bridge := self._bridge(endpoint)) is not None:
                bridge.give(endpoint.address)

    def room(self) -> int | None:
        """How many more instances its own network takes at least: what its bridges have, or, where those are full, one
        more of them would. None before the first: nobody has asked for a network."""
        with self._lock:
            bridges = self.network(OWN).bridges
            there = sum(bridge.room for bridge in bridges)
            if there or not bridges:
                return there or None
            return self._ports if free_subnet(interfaces.routed()) else 0

    def _bridge(self, endpoint: Endpoint) -> Bridge | None:
        every = (bridge for network in self._networks.values() for bridge in network.bridges)
        return next((bridge for bridge in every if bridge.name == endpoint.bridge), None)

    def _grow(self) -> Bridge:
        """One bridge more for the run's own network."""
        with interfaces.alone():  # another run may be choosing at this moment
            subnet = free_subnet(interfaces.routed())
            if subnet is None:
                raise AddressesError(f"every /{PREFIX} of {POOL} is in use here", hint="bench clean; ip route")
            return self._make(subnet, self._ports)

    def _make(self, subnet: ipaddress.IPv4Network, ports: int) -> Bridge:
        name = f"{self._prefix}{self._made}"
        try:
            index = interfaces.make_bridge(name, str(subnet[1]), subnet.prefixlen)
        except OSError as error:
            raise HostError(
                f"{error.filename}: {error.strerror}", hint="needs root and the bridge module: modprobe bridge"
            ) from error
        self._made += 1
        return Bridge(name, subnet, index, ports)

    # --- networks of the user's choice -----------------------------------------------------------------------------

    def custom(self, name: str, subnet: str, *, count: int = 1) -> Network:
        """A network of its own for `count` instances in `subnet` (CIDR). Raises UsageError, HostError."""
        with self._lock:
            if network_name(name) in self._networks:
                raise UsageError(f"there is a network {name!r} already")
            with interfaces.alone():
                bridge = self._make(parse_subnet(subnet, interfaces.routed(), count), interfaces.PORTS)
            made = Network(name, lambda: _refuse(name, bridge))
            made.bridges.append(bridge)
            self._networks[name] = made
            self._apply()
            return made

    def join(self, first: str, second: str) -> None:
        """Let two networks reach each other."""
        with self._lock:
            self._joined |= {(self.network(first).name, self.network(second).name)}
            self._apply()

    def translate(self, name: str = OWN, uplink: str | None = None) -> None:
        """Let a network out through `uplink` (the default route's interface) with the host's address on its packets.

        The interface must forward for the answers; it is made to until `close`, if it does not. Raises HostError.
        """
        device = uplink or interfaces.default_device()
        if device is None:
            raise HostError("this host has no default route", hint="name the interface that leads out")
        with self._lock:
            self.network(name).uplink = device
            self._apply()

    # --- published ports -------------------------------------------------------------------------------------------

    def publish(self, wanted: Publication, endpoint: Endpoint) -> None:
        """Lead a port of the host to the instance at `endpoint`, until it is released. Raises HostError.

        From outside the host it is reached through interfaces that forward: see `translate`.
        """
        with self._lock:
            if self._bridge(endpoint) is None:
                raise HostError(f"{endpoint.address} is of no network here", hint="publish while the instance lives")
            self._firewall.reserve(wanted)
            self._published[wanted] = endpoint
            try:
                self._apply()
            except HostError:
                self._withdraw([wanted])
                raise

    def _withdraw(self, gone: Iterable[Publication]) -> None:
        for one in gone:
            del self._published[one]
        self._apply()
        for one in gone:
            self._firewall.free(one)

    def _apply(self) -> None:
        zones = {
            name: Zone(
                tuple(bridge.name for bridge in network.bridges),
                tuple(str(bridge.subnet) for bridge in network.bridges),
                network.uplink,
            )
            for name, network in self._networks.items()
            if network.bridges
        }
        published = tuple(Published(*pair) for pair in self._published.items())
        self._firewall.apply(Rules(zones, self._joined, published))

    def close(self) -> list[Leftover]:
        """Remove what is there of the run's networks: also how a dead run's are found."""
        with self._lock:
            self._networks = {OWN: Network(OWN, self._grow)}
            self._joined, self._published = frozenset(), {}
            found = self._firewall.close()
            bridges = [name for name in interfaces.names(self._prefix) if name[-1].isdigit()]
            for name in bridges:
                interfaces.delete_bridge(name)
            return [*(Leftover("netdev", name) for name in bridges), *found]


def _refuse(name: str, bridge: Bridge) -> Bridge:
    raise HostError(f"network {name} ({bridge.subnet}) is full", hint="a bigger subnet, or one network more")


def _warn_of_neighbours(count: int) -> None:
    """The host keeps one entry for each instance it talks to, and each instance one for its gateway, in one table."""
    most = procfs.number(_NEIGHBOURS)
    if most is not None and 2 * count > most:
        log.warning(
            "%d instances may not all be reachable at once: net.ipv4.neigh.default.gc_thresh3 is %d", count, most
        )


def netdevs(run: RunId) -> list[str]:
    """Interfaces of this namespace that carry the run's token, its bridges with what is theirs left out."""
    bridge = re.compile(rf"{OURS}{token_of(run)}br[0-9]+[{''.join(interfaces.CARRIER)}]?")
    return [name for name in interfaces.names(f"{OURS}{token_of(run)}") if not bridge.fullmatch(name)]
