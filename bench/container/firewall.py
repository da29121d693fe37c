"""Who may reach whom, as one packet filter table a run: isolation, address translation, published ports.

The table is named after the run, and its comment says which interfaces the run has let forward: so both are found, and
put back, when the run has died. Rules of others are never touched. Nothing is made while no rule is needed.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from bench.container.network import Endpoint, Publication
from bench.errors import HostError
from bench.linux import interfaces, nftables
from bench.model import Leftover

log = logging.getLogger(__name__)

TABLES, OURS = "bench-", "bn"
"""How names of our tables and of our interfaces begin."""
_CLAIM = "bench forwards "
_LOOPBACK = "127.0.0.0/8"


class Zone(Struct, frozen=True):
    """One network as the packet filter sees it. `uplink`: where its packets leave, with the host's address on them."""

    bridges: tuple[str, ...]
    subnets: tuple[str, ...]
    uplink: str | None = None


class Published(Struct, frozen=True):
    """A publication and the instance it leads to."""

    publication: Publication
    endpoint: Endpoint


class Rules(Struct, frozen=True):
    """What is wanted. `joined`: pairs of zones that may reach each other."""

    zones: Mapping[str, Zone] = {}
    joined: frozenset[tuple[str, str]] = frozenset()
    published: tuple[Published, ...] = ()

    @property
    def needed(self) -> bool:
        """A single network on a single bridge needs no rules: nothing is forwarded for it."""
        bridges = sum(len(zone.bridges) for zone in self.zones.values())
        return bridges > 1 or bool(self.published) or bool(self.uplinks)

    @property
    def uplinks(self) -> set[str]:
        return {zone.uplink for zone in self.zones.values() if zone.uplink is not None}

    @property
    def translating(self) -> bool:
        """Whether the kernel must track connections for it."""
        return bool(self.published) or bool(self.uplinks)

    def pairs(self) -> list[tuple[str, str]]:
        """Bridges that may send to each other, both ways, each to itself included (a bridge may call the filter)."""
        found = [(one, other) for zone in self.zones.values() for one in zone.bridges for other in zone.bridges]
        for first, second in self.joined:
            for one in self.zones[first].bridges:
                for other in self.zones[second].bridges:
                    found += [(one, other), (other, one)]
        return sorted(set(found))

    def forwarding(self, bridge: str) -> bool:
        """Whether packets that come in on `bridge` may go anywhere but to the host and its own ports."""
        zone = next(zone for zone in self.zones.values() if bridge in zone.bridges)
        published = any(one.endpoint.bridge in zone.bridges for one in self.published)
        return zone.uplink is not None or published or any(one == bridge != other for one, other in self.pairs())


def render(rules: Rules, claimed: Iterable[str] = ()) -> str:
    """The table's body. `claimed`: interfaces that forward only because of us."""
    claims = sorted(claimed)
    inside = _set(bridge for zone in rules.zones.values() for bridge in zone.bridges)
    chains = [
        # Where route_localnet is on, an instance could otherwise reach what listens on the host's loopback only.
        _chain("loopback", "filter hook prerouting priority -300", [f"iifname {inside} ip daddr {_LOOPBACK} drop"]),
        _chain("ours", None, _ours(rules)),
        _chain(
            "forward", "filter hook forward priority 0",
            [
                f"iifname {inside} goto ours",
                f"oifname {inside} goto ours",
                *(f'iifname "{one}" oifname != "{OURS}*" drop' for one in claims),  # as if it did not forward
            ],
        ),
    ]  # fmt: skip
    if rules.published:
        chains.append(_chain("prerouting", "nat hook prerouting priority -100", _arriving(rules.published)))
        chains.append(_chain("output", "nat hook output priority -100", _leaving(rules.published)))
    if rules.translating:
        chains.append(_chain("postrouting", "nat hook postrouting priority 100", _source(rules)))
    head = [f'comment "{_CLAIM}{" ".join(claims)}"'] if claims else []
    return "\n".join([*head, *chains])


def _chain(name: str, hook: str | None, rules: Sequence[str]) -> str:
    lines = [*([f"type {hook}; policy accept;"] if hook else []), *rules]
    return f"chain {name} {{\n" + "".join(f"  {line}\n" for line in lines) + "}"


def _set(names: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in sorted(set(names))) + " }"


def _ours(rules: Rules) -> list[str]:
    """For all that comes from our bridges or goes to them; what none of these lines lets through is dropped."""
    pairs = ", ".join(f'"{one}" . "{other}"' for one, other in rules.pairs())
    lines = [f"iifname . oifname {{ {pairs} }} accept"]
    if rules.translating:
        lines += ["ct state established,related accept", "ct status dnat accept"]
    for zone in rules.zones.values():
        if zone.uplink is not None:
            subnets = ", ".join(zone.subnets)
            lines.append(f'iifname {_set(zone.bridges)} ip saddr {{ {subnets} }} oifname "{zone.uplink}" accept')
    return [*lines, "drop"]


def _arriving(published: Iterable[Published]) -> list[str]:
    """Loopback is left out: who sends such packets from outside has forged them."""
    to_any = f"ip daddr != {_LOOPBACK} fib daddr type local"
    return [_redirect(one, to_any) for one in published if not one.publication.local]


def _leaving(published: Iterable[Published]) -> list[str]:
    return [_redirect(one, "fib daddr type local") for one in published]


def _redirect(one: Published, to_any: str) -> str:
    wanted = one.publication
    match = to_any if wanted.bind == "0.0.0.0" else f"ip daddr {wanted.bind}"
    return f"{match} {wanted.protocol} dport {wanted.port} dnat to {one.endpoint.address}:{wanted.target}"


def _source(rules: Rules) -> list[str]:
    """Whose source address becomes ours, so that the answer comes back through here."""
    lines = []
    for zone in rules.zones.values():
        if zone.uplink is not None:
            lines += [f'ip saddr {subnet} oifname "{zone.uplink}" masquerade' for subnet in zone.subnets]
    for bridge in sorted({one.endpoint.bridge for one in rules.published}):
        subnet = _subnet(rules, bridge)
        lines.append(f'ip saddr {_LOOPBACK} oifname "{bridge}" masquerade')
        # From an instance to a port of the host that leads to its neighbour, who would answer it directly.
        lines.append(f'ct status dnat ip saddr {subnet} oifname "{bridge}" masquerade')
    return lines


def _subnet(rules: Rules, bridge: str) -> str:
    pairs = (pair for zone in rules.zones.values() for pair in zip(zone.bridges, zone.subnets, strict=True))
    return next(subnet for name, subnet in pairs if name == bridge)


class Firewall:
    """The rules in force for one run, and the ports of the host it has reserved. Building one acquires nothing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._reserved: dict[Publication, socket.socket] = {}
        self._made = False

    def apply(self, rules: Rules) -> None:
        """Put `rules` in force, all at once. Raises HostError."""
        with interfaces.alone():
            if rules.needed or self._made:
                claimed = self._claims(rules)
                nftables.load(self.name, render(rules, claimed))  # before anything forwards
                self._made = True
                for interface in claimed:
                    interfaces.change(interface, "forwarding", "1")
            self._bridges(rules)

    def _bridges(self, rules: Rules) -> None:
        """Settings of our own bridges, which end with them."""
        local = {one.endpoint.bridge for one in rules.published}
        for zone in rules.zones.values():
            for bridge in zone.bridges:
                interfaces.change(bridge, "forwarding", "01"[rules.forwarding(bridge)])
                interfaces.change(bridge, "route_localnet", "01"[bridge in local])

    def _claims(self, rules: Rules) -> set[str]:
        """Interfaces of the host that must forward and would not without a run of ours."""
        others = _claimed(except_of=self.name)
        own = set(_words(nftables.tables(self.name).get(self.name, "")))
        for uplink in rules.uplinks - own:
            now = interfaces.setting(uplink, "forwarding")
            if now is None:
                raise HostError(f"there is no interface {uplink}", hint="ip link")
            if now == "1" and uplink not in others:
                continue
            if now == "0" and interfaces.setting("all", "forwarding") == "1":
                raise HostError(
                    f"this host forwards, except what comes in on {uplink}; that is someone's choice",
                    hint=f"sysctl net.ipv4.conf.{uplink}.forwarding=1",
                )
            log.warning("net.ipv4.conf.%s.forwarding is 1 until the run ends", uplink)
            own.add(uplink)
        return own

    def reserve(self, wanted: Publication) -> None:
        """Hold the port, so that no server of this host loses its own. Raises HostError if one has it."""
        kind = socket.SOCK_STREAM if wanted.protocol == "tcp" else socket.SOCK_DGRAM
        holder = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
        try:
            if wanted.protocol == "tcp":  # connections that ended a moment ago don't count; servers do
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((wanted.bind, wanted.port))
            if wanted.protocol == "tcp":
                holder.listen(1)
        except OSError as error:
            holder.close()
            where = f"{wanted.bind}:{wanted.port}/{wanted.protocol}"
            raise HostError(
                f"{where} can't be published: {error.strerror}",
                hint=f"another port, or see who has it: ss -lp sport = {wanted.port}",
            ) from error
        self._reserved[wanted] = holder

    def free(self, wanted: Publication) -> None:
        """Give a reserved port back."""
        if (holder := self._reserved.pop(wanted, None)) is not None:
            holder.close()

    def close(self) -> list[Leftover]:
        """Remove the table if it is there (whoever made it), and put back what the host had."""
        for wanted in list(self._reserved):
            self.free(wanted)
        with interfaces.alone():
            comment = nftables.tables(self.name).get(self.name)
            self._made = False
            if comment is None:
                return []
            restored = [_restore(one) for one in set(_words(comment)) - _claimed(except_of=self.name)]
            nftables.delete(self.name)  # last: until then the comment says what is to be put back
        return [Leftover("table", self.name), *(one for one in restored if one is not None)]


def _restore(interface: str) -> Leftover | None:
    """If the whole host forwards by now, someone else wants that: leave it."""
    if interfaces.setting("all", "forwarding") == "1" or interfaces.setting(interface, "forwarding") != "1":
        return None
    interfaces.change(interface, "forwarding", "0")
    return Leftover("sysctl", f"net.ipv4.conf.{interface}.forwarding")


def _words(comment: str) -> list[str]:
    return comment.removeprefix(_CLAIM).split() if comment.startswith(_CLAIM) else []


def _claimed(except_of: str) -> set[str]:
    """Interfaces that other runs have let forward."""
    return {one for name, comment in nftables.tables(TABLES).items() if name != except_of for one in _words(comment)}
