"""Networks as they are written, handed out and put into rules: nothing here touches the kernel."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.container.firewall import Published, Rules, Zone, render
from bench.container.network import (
    Bridge,
    Endpoint,
    Network,
    NetworkRequest,
    Publication,
    parse_network,
    parse_publication,
    parse_subnet,
)
from bench.drivers.network import PREFIX, free_subnet
from bench.errors import HostError, UsageError
from bench.linux import netlink

END = Endpoint("10.9.0.2", 24, "10.9.0.1", "br0", 7)


def _bridge(name: str, subnet: str = "10.9.0.0/24", ports: int = 500) -> Bridge:
    return Bridge(name, ipaddress.IPv4Network(subnet), 7, ports)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8080:80", Publication(8080, 80)),
        ("127.0.0.1:8080:80/tcp", Publication(8080, 80, "tcp", "127.0.0.1")),
        ("0.0.0.0:53:5353/udp", Publication(53, 5353, "udp")),
    ],
)
def test_publications(text: str, wanted: Publication) -> None:
    assert parse_publication(text) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("80", "not understood"),
        ("0:80", "port 0 is not"),
        ("80:65536", "port 65536 is not"),
        ("80:99999999999999999999", "is not from 1 to 65535"),
        ("80:80/sctp", "sctp can't be published"),
        ("::1:80:80", "not understood"),
        ("localhost:80:80", "'localhost' is no IPv4 address"),
        (":80:80", "'' is no IPv4 address"),
        ("256.0.0.1:80:80", "no IPv4 address"),
        ("80:٨٠", "not understood"),
    ],
)
def test_bad_publications_are_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_publication(text)
    assert text in caught.value.message
    assert caught.value.hint


@given(
    st.builds(
        Publication,
        st.integers(1, 65535),
        st.integers(1, 65535),
        st.sampled_from(["tcp", "udp"]),
        st.ip_addresses(v=4).map(str),
    )
)
def test_a_publication_reads_as_it_is_written(wanted: Publication) -> None:
    assert parse_publication(str(wanted)) == wanted


@given(st.text(max_size=30), st.lists(st.text(alphabet="0123456789.:/tcpud", max_size=24), max_size=2))
def test_any_text_is_a_request_or_a_clear_error(text: str, publish: list[str]) -> None:
    try:
        request = parse_network(text, publish)
    except UsageError:  # nothing else: what is typed wrong is never a fault of the host
        return
    assert request.attached or not request.publish
    assert (request.mode == "named") == (request.name is not None)


def test_requests() -> None:
    assert parse_network("bridge") == NetworkRequest()
    assert parse_network("front", ["80:80"]) == NetworkRequest("named", "front", (Publication(80, 80),))
    assert [parse_network(text).own_namespace for text in ("none", "host", "bridge", "front")] == [
        True,
        False,
        True,
        True,
    ]
    assert [parse_network(text).attached for text in ("none", "host", "bridge", "front")] == [False, False, True, True]
    for text in ("none", "host"):
        with pytest.raises(UsageError, match="nothing can be published"):
            parse_network(text, ["80:80"])
    with pytest.raises(UsageError, match="no network"):
        parse_network("Front;drop")


@pytest.mark.parametrize(
    ("text", "count", "said"),
    [
        ("10.0.0.0/30", 2, "room for 1"),
        ("10.0.0.0/31", 1, "room for 0"),
        ("10.0.0.0/16", 501, "room for 500"),
        ("10.1.2.0/24", 1, r"overlaps 10\.1\.0\.0/16"),
        ("127.0.0.0/24", 1, "not for private use"),
        ("10.0.0.0/33", 1, "no IPv4 subnet"),
        ("fd00::/64", 1, "no IPv4 subnet"),
    ],
)
def test_subnets_that_will_not_do(text: str, count: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_subnet(text, [ipaddress.IPv4Network("10.1.0.0/16")], count)


def test_every_subnet_of_the_pool_counts_once() -> None:
    used: list[ipaddress.IPv4Network] = []
    while (subnet := free_subnet(used)) is not None:
        used.append(subnet)
    assert len(used) == 1 << (PREFIX - 15)
    assert len(set(used)) == len(used)


def test_addresses_are_used_again_last() -> None:
    bridge = _bridge("br0", "10.9.0.0/29")
    ends = [bridge.take() for _ in range(6)]
    assert [end and end.address for end in ends] == [*(f"10.9.0.{n}" for n in range(2, 7)), None]
    bridge.give("10.9.0.4")
    bridge.give("10.9.0.2")
    assert bridge.room == 2
    assert [end and end.address for end in (bridge.take(), bridge.take(), bridge.take())] == [
        "10.9.0.4",
        "10.9.0.2",
        None,
    ]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 6))
def test_no_address_is_given_twice_and_no_bridge_holds_more_than_its_ports(steps: list[bool], ports: int) -> None:
    bridge = _bridge("br0", "10.9.0.0/29", ports)
    alive: list[str] = []
    for take in steps:
        if take:
            end = bridge.take()
            assert (end is None) == (len(alive) == min(ports, 5))
            alive += [end.address] if end else []
        elif alive:
            bridge.give(alive.pop(0))
    assert len(set(alive)) == len(alive)
    assert bridge.room == min(ports, 5) - len(alive)


def test_a_network_grows_by_whole_bridges() -> None:
    made = iter(_bridge(f"br{n}", ports=3) for n in range(3))
    network = Network("bridge", lambda: next(made))
    assert network.take() is None
    assert network.ensure(4)
    assert [bridge.name for bridge in network.bridges] == ["br0", "br1"]
    assert not network.ensure(6)
    assert [end.bridge for _ in range(6) if (end := network.take())] == ["br0"] * 3 + ["br1"] * 3
    assert network.ensure(1)


def test_a_network_that_cannot_grow_says_so() -> None:
    def refuse() -> Bridge:
        raise HostError("full")

    with pytest.raises(HostError, match="full"):
        Network("bridge", refuse).ensure(1)


ONE, TWO = Zone(("br0",), ("10.9.0.0/24",)), Zone(("br1",), ("10.9.1.0/24",))


def test_one_bridge_needs_no_rules() -> None:
    assert not Rules({"bridge": ONE}).needed
    assert not Rules({"bridge": ONE}).forwarding("br0")
    assert Rules({"bridge": ONE, "two": TWO}).needed
    assert Rules({"bridge": Zone(("br0", "br2"), ("10.9.0.0/24", "10.9.2.0/24"))}).forwarding("br2")
    assert not Rules({"bridge": ONE, "two": TWO}).forwarding("br1")
    assert Rules({"bridge": ONE, "two": TWO}, frozenset({("bridge", "two")})).forwarding("br1")


def test_isolation_tracks_no_connections() -> None:
    """Tracking them costs every packet of the host: only what translates addresses may ask for it."""
    text = render(Rules({"bridge": ONE, "two": TWO}))
    assert "ct " not in text
    assert "nat" not in text
    assert 'iifname . oifname { "br0" . "br0", "br1" . "br1" } accept' in text
    assert text.index("accept\n  drop") > 0


def test_rules_of_a_published_port() -> None:
    everywhere, local = Publication(8080, 80), Publication(8081, 81, "udp", "127.0.0.1")
    text = render(Rules({"bridge": ONE}, published=(Published(everywhere, END), Published(local, END))))
    arriving = text[text.index("chain prerouting") : text.index("chain output")]
    leaving = text[text.index("chain output") : text.index("chain postrouting")]
    assert "ip daddr != 127.0.0.0/8 fib daddr type local tcp dport 8080 dnat to 10.9.0.2:80" in arriving
    assert "8081" not in arriving, "a port on loopback is not for the outside"
    assert "ip daddr 127.0.0.1 udp dport 8081 dnat to 10.9.0.2:81" in leaving
    assert "ip saddr 10.9.0.0/24 oifname" in text


def test_rules_of_an_uplink_of_ours() -> None:
    zone = Zone(("br0",), ("10.9.0.0/24",), "eth0")
    text = render(Rules({"bridge": zone}), ["eth0"])
    assert text.startswith('comment "bench forwards eth0"')
    assert 'iifname "eth0" oifname != "bn*" drop' in text
    assert 'ip saddr 10.9.0.0/24 oifname "eth0" masquerade' in text
    assert 'iifname "eth0" oifname' not in render(Rules({"bridge": zone})), "what forwarded before is left alone"


class _Wire:
    """Stands in for the kernel: keeps what was sent, answers as told."""

    def __init__(self, answers: list[tuple[int, int]]) -> None:
        self.sent = b""
        self._answers = iter(answers)

    def send(self, data: bytes) -> None:
        self.sent += data

    def recv(self, _: int) -> bytes:
        number, code = next(self._answers)
        return struct.pack("=IHHIIi", 20, netlink.NLMSG_ERROR, 0, number, 0, -code)


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_IPV6", True)


def _link(answers: list[tuple[int, int]]) -> tuple[netlink.Netlink, _Wire]:
    link, wire = netlink.Netlink.__new__(netlink.Netlink), _Wire(answers)
    link._socket, link._sequence = wire, 0  # type: ignore[assignment]
    return link, wire


def test_a_batch_is_one_message_with_one_answer() -> None:
    link, wire = _link([(5, 0)])
    netlink.configure(link, 2, "10.9.0.2", 24, "10.9.0.1")
    kinds, acknowledged, at = [], [], 0
    while at < len(wire.sent):
        length, kind, flags, _, _ = struct.unpack_from("=IHHII", wire.sent, at)
        kinds.append(kind)
        acknowledged.append(bool(flags & netlink.NLM_F_ACK))
        at += length + -length % 4
    assert kinds == [*[netlink.RTM_NEWLINK] * 3, netlink.RTM_NEWADDR, netlink.RTM_NEWROUTE]
    assert acknowledged == [False, False, False, False, True]


def test_a_kernel_without_ipv6_is_told_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_IPV6", False)
    assert list(netlink.no_ipv6(2)) == []


def test_the_first_failure_of_a_batch_is_the_one_named() -> None:
    link, wire = _link([(4, 17), (5, 101)])
    with pytest.raises(FileExistsError, match=r"address 10\.9\.0\.2/24"):
        netlink.configure(link, 2, "10.9.0.2", 24, "10.9.0.1")
    assert next(wire._answers, None) is None, "nothing of it is left to be taken for the next one's answer"
