"""Real bridges, namespaces and packets, in the lab of netlab.py."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.container.netpool import NamespacePool, holder_name, reap_pool
from bench.container.network import Endpoint, parse_publication
from bench.drivers import network as run_network
from bench.drivers.network import RunNetwork, netdevs
from bench.errors import HostError, UsageError
from bench.linux import interfaces, netlink, nftables
from bench.model import Leftover, RunId
from tests.integration.netlab import (
    BACKLOG,
    OUTSIDE,
    REFUSED,
    UPLINK,
    UPLINK_ADDRESS,
    Ask,
    Lab,
    asked,
    asked_udp,
    ip,
    network_of,
    new_run,
    refused,
    within,
)  # fmt: skip
from tests.integration.traces import traces

pytestmark = pytest.mark.root


@pytest.fixture
def lab() -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        yield Lab(stack)


@pytest.fixture
def run() -> Iterator[RunId]:
    made = new_run()
    yield made
    assert not traces(made)


def test_host_and_containers_reach_each_other_on_one_bridge(lab: Lab, run: RunId) -> None:
    with network_of(run) as network:
        network.ensure(2)
        first, second = network.allocate(), network.allocate()
        one, other = (lab.instance(end, f"bn{run[-6:]}c{n}") for n, end in enumerate((first, second)))
        assert first.bridge == second.bridge
        assert asked(lab.host, one, (first.address, 80)) == first.gateway, "host to container"
        assert asked(one, lab.host, (first.gateway, 8080)) == first.address, "container to host"
        assert asked(one, other, (second.address, 80)) == first.address, "container to container"
        assert not nftables.tables("bench-"), "a single bridge needs no rules"
        assert interfaces.setting(first.bridge, "forwarding") == "0"
        assert set(netdevs(run)) == {f"bn{run[-6:]}c0", f"bn{run[-6:]}c1"}


def test_the_first_instance_of_a_bridge_waits_for_nothing(lab: Lab, run: RunId) -> None:
    """A bridge just made has its carrier: else the first packet is lost in one case of three, and repeated a second
    later. On a machine that is busy with other things one may be late for other reasons."""
    late = 0
    for _ in range(20):
        with network_of(run) as network:
            network.ensure()
            end = network.allocate()
            inside = lab.instance(end, f"bn{run[-6:]}c0")
            late += refused(lab.host, inside, (end.address, 80))
    assert late <= 2


def test_a_bridge_keeps_its_hardware_address_when_ports_come_and_go(lab: Lab, run: RunId) -> None:
    """Else those who know the old one send to nobody until they ask again."""
    with network_of(run) as network:
        network.ensure()
        ends = [network.allocate() for _ in range(2)]
        before = _hardware(ends[0].bridge)
        inside = [lab.instance(end, f"bn{run[-6:]}c{n}") for n, end in enumerate(ends)]
        ip("link", "set", f"bn{run[-6:]}c0", "address", "02:00:00:00:00:01")
        assert _hardware(ends[0].bridge) == before
        with within(inside[0]):
            addresses = subprocess.run(["ip", "-6", "addr", "show", "dev", "eth0"], capture_output=True, check=True)
        assert addresses.stdout == b"", "no address that would be announced to every port"


def _hardware(device: str) -> str:
    shown = subprocess.run(["ip", "-br", "link", "show", device], capture_output=True, check=True, text=True)
    return shown.stdout.split()[2]


def test_containers_reach_each_other_across_bridges(lab: Lab, run: RunId) -> None:
    with network_of(run, ports=1) as network:
        network.ensure(2)
        ends = [network.allocate() for _ in range(2)]
        assert len({end.bridge for end in ends}) == len({end.gateway for end in ends}) == 2
        one, other = (lab.instance(end, f"bn{run[-6:]}c{n}") for n, end in enumerate(ends))
        assert asked(one, other, (ends[1].address, 80)) == ends[0].address
        assert asked(other, one, (ends[0].address, 80)) == ends[1].address
        late = network.allocate()  # a third bridge, made when needed
        third = lab.instance(late, f"bn{run[-6:]}c2")
        assert asked(third, one, (ends[0].address, 80)) == late.address
        outside = lab.internet()
        assert refused(one, outside, (OUTSIDE, 80))
        assert interfaces.setting("all", "forwarding") == "0"


def test_nothing_leaves_several_bridges_unless_asked(lab: Lab, run: RunId) -> None:
    """Its bridges forward, and the outside knows the way back: only the rules are between them."""
    with network_of(run, ports=1) as network:
        network.ensure(2)
        end = network.allocate()
        inside, outside = lab.instance(end, f"bn{run[-6:]}c0"), lab.internet()
        with within(outside):
            ip("route", "add", "default", "via", UPLINK_ADDRESS)
        interfaces.change(UPLINK, "forwarding", "1")
        assert refused(inside, outside, (OUTSIDE, 80))
        nftables.delete(f"bench-{run[-6:]}")
        assert asked(inside, outside, (OUTSIDE, 80)) == end.address, "control: without the rules it is let out"
        interfaces.change(UPLINK, "forwarding", "0")


def test_custom_networks_are_kept_apart_unless_joined(lab: Lab, run: RunId) -> None:
    with network_of(run) as network:
        network.custom("front", "10.77.1.0/24")
        network.custom("back", "10.77.2.0/24")
        ends = [network.allocate("front"), network.allocate("back"), network.allocate("back")]
        front, back, twin = (lab.instance(end, f"bn{run[-6:]}c{n}") for n, end in enumerate(ends))
        there = (ends[1].address, 80)
        for end in ends:  # even where the host's admin has every interface forward
            interfaces.change(end.bridge, "forwarding", "1")
        assert ends[0].address == "10.77.1.2"
        assert refused(front, back, there)
        assert asked(twin, back, there) == ends[2].address, "control: the server answers"
        network.join("front", "back")
        assert asked(front, back, there) == ends[0].address
        assert asked(back, front, (ends[0].address, 80)) == ends[1].address


def test_custom_subnets_are_checked(lab: Lab, run: RunId) -> None:
    with network_of(run) as network:
        network.custom("one", "10.77.1.0/30", count=1)
        network.allocate("one")
        with pytest.raises(HostError, match=r"network one .* is full"):
            network.allocate("one")
        for text, count, said in (
            ("10.77.0.0/16", 1, "overlaps 10.77.1.0/30"),
            ("10.78.0.0/29", 6, "room for 5"),
            ("10.78.0.1/24", 1, "no IPv4 subnet"),
            ("8.8.8.0/24", 1, "not for private use"),
        ):
            with pytest.raises(UsageError, match=said):
                network.custom("two", text, count=count)
        with pytest.raises(UsageError, match="already"):
            network.custom("one", "10.78.0.0/24")
        with pytest.raises(UsageError, match="no network 'three'"):
            network.join("one", "three")


def test_a_network_is_translated_to_the_uplinks_address(lab: Lab, run: RunId) -> None:
    outside = lab.internet()
    with network_of(run) as network:
        network.ensure()
        end = network.allocate()
        inside = lab.instance(end, f"bn{run[-6:]}c0")
        network.custom("apart", "10.77.1.0/24")
        other = lab.instance(network.allocate("apart"), f"bn{run[-6:]}c1")
        assert refused(inside, outside, (OUTSIDE, 80))
        network.translate()
        assert asked(inside, outside, (OUTSIDE, 80)) == UPLINK_ADDRESS
        assert refused(other, outside, (OUTSIDE, 80)), "a network that was not asked for stays inside"
        assert interfaces.setting(UPLINK, "forwarding") == "1"
        assert interfaces.setting("all", "forwarding") == "0"
        with within(outside):
            ip("route", "add", f"{end.gateway}/32", "via", UPLINK_ADDRESS)
            ip("route", "add", f"{end.address}/32", "via", UPLINK_ADDRESS)
        assert refused(outside, inside, (end.address, 80)), "who knows the way in is refused nevertheless"


def test_an_uplink_that_forwards_for_us_forwards_for_nobody_else(lab: Lab, run: RunId) -> None:
    outside, third = lab.internet(), lab.namespace()
    ip("link", "add", "x0", "type", "veth", "peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{third}")
    ip("addr", "add", "192.0.2.1/24", "dev", "x0")
    ip("link", "set", "x0", "up")
    with within(third):
        ip("addr", "add", "192.0.2.2/24", "dev", "eth0")
        ip("link", "set", "eth0", "up")
        ip("route", "add", "default", "via", "192.0.2.1")
    with within(outside):
        ip("route", "add", "192.0.2.0/24", "via", UPLINK_ADDRESS)
    interfaces.change("x0", "forwarding", "1")
    with network_of(run) as network:
        network.ensure()
        network.translate()
        assert refused(outside, third, ("192.0.2.2", 80))
        nftables.delete(f"bench-{run[-6:]}")
        assert asked(outside, third, ("192.0.2.2", 80)) == OUTSIDE, "control"
        network.translate()  # the table is back, and with it the memory of what to restore
        interfaces.change(UPLINK, "forwarding", "0")


def test_two_runs_share_an_uplink_and_the_last_one_puts_it_back(lab: Lab, run: RunId) -> None:
    lab.internet()
    first, second = RunNetwork(run), RunNetwork(new_run())
    try:
        for network in (first, second):
            network.ensure()
            network.translate()
        assert Leftover("sysctl", f"net.ipv4.conf.{UPLINK}.forwarding") not in first.close()
        assert interfaces.setting(UPLINK, "forwarding") == "1"
        assert Leftover("sysctl", f"net.ipv4.conf.{UPLINK}.forwarding") in second.close()
        assert interfaces.setting(UPLINK, "forwarding") == "0"
    finally:
        first.close()
        second.close()


def test_an_uplink_that_forwarded_before_is_left_as_it_was(lab: Lab, run: RunId) -> None:
    lab.internet()
    interfaces.change(UPLINK, "forwarding", "1")
    network = RunNetwork(run)
    try:
        network.ensure()
        network.translate()
    finally:
        found = network.close()
    assert interfaces.setting(UPLINK, "forwarding") == "1"
    assert {one.kind for one in found} == {"table", "netdev"}


@pytest.mark.parametrize(("protocol", "ask"), [("tcp", asked), ("udp", asked_udp)])
def test_a_port_published_on_loopback(lab: Lab, run: RunId, protocol: str, ask: Ask) -> None:
    outside = lab.internet()
    with network_of(run) as network:
        network.ensure()
        end = network.allocate()
        inside = lab.instance(end, f"bn{run[-6:]}c0")
        network.publish(parse_publication(f"127.0.0.1:8080:80/{protocol}"), end)
        server = (end.address, 80)
        assert ask(lab.host, inside, ("127.0.0.1", 8080), server) == end.gateway
        assert refused(outside, inside, (UPLINK_ADDRESS, 8080), server, ask)
        assert refused(lab.host, inside, ("127.0.0.1", 8081), server, ask)
        network.release(end)
        assert refused(lab.host, inside, ("127.0.0.1", 8080), server, ask), "it ends with the endpoint"


@pytest.mark.parametrize(("protocol", "ask"), [("tcp", asked), ("udp", asked_udp)])
@pytest.mark.parametrize("bind", ["0.0.0.0", UPLINK_ADDRESS])
def test_a_port_published_to_the_outside(lab: Lab, run: RunId, protocol: str, ask: Ask, bind: str) -> None:
    outside = lab.internet()
    with network_of(run) as network:
        network.ensure(2)
        end, near = network.allocate(), network.allocate()
        inside, neighbour = (lab.instance(one, f"bn{run[-6:]}c{n}") for n, one in enumerate((end, near)))
        network.translate()
        network.publish(parse_publication(f"{bind}:8080:80/{protocol}"), end)
        server, published = (end.address, 80), (UPLINK_ADDRESS, 8080)
        assert ask(outside, inside, published, server) == OUTSIDE, "the container sees who asks"
        assert ask(lab.host, inside, published, server) == UPLINK_ADDRESS
        assert ask(neighbour, inside, published, server) is not None, "through the host to one's own bridge"
        if bind == "0.0.0.0":
            assert ask(lab.host, inside, ("127.0.0.1", 8080), server) == end.gateway
        else:
            assert refused(lab.host, inside, ("127.0.0.1", 8080), server, ask)


def test_a_published_port_is_reached_from_its_own_bridge_where_bridges_call_no_filter(lab: Lab, run: RunId) -> None:
    """Then only the rewritten source keeps the answer from going straight to the neighbour, who did not ask there."""
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("0")  # of the lab's own namespace
    with network_of(run) as network:
        network.ensure(2)
        end, near = network.allocate(), network.allocate()
        inside, neighbour = (lab.instance(one, f"bn{run[-6:]}c{n}") for n, one in enumerate((end, near)))
        network.publish(parse_publication("0.0.0.0:8080:80"), end)
        server, published = (end.address, 80), (end.gateway, 8080)
        assert asked(neighbour, inside, published, server) == end.gateway
        assert asked(inside, inside, published, server) == end.gateway, "and by itself"


def test_forged_packets_to_loopback_do_not_reach_what_is_published_there(lab: Lab, run: RunId) -> None:
    outside = lab.internet()
    with network_of(run) as network, contextlib.ExitStack() as stack:
        network.ensure()
        end = network.allocate()
        inside = lab.instance(end, f"bn{run[-6:]}c0")
        network.translate()
        network.publish(parse_publication("127.0.0.1:8080:80/udp"), end)
        network.publish(parse_publication(f"{UPLINK_ADDRESS}:8080:80/udp"), end)
        with within(inside):
            target = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            target.bind((end.address, 80))
            target.settimeout(REFUSED)
        with within(outside):
            _lead_loopback_to(UPLINK_ADDRESS)
            attacker = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            attacker.bind((OUTSIDE, 0))
        attacker.sendto(b"x", (UPLINK_ADDRESS, 8080))
        assert target.recv(9) == b"x", "control: the attacker reaches what is published to it"
        attacker.sendto(b"x", ("127.0.0.1", 8080))
        with pytest.raises(TimeoutError):
            target.recv(9)


def _lead_loopback_to(gateway: str) -> None:
    """In an attacker's namespace: 127.0.0.1 lies beyond the wire."""
    for device in ("all", "eth0"):
        interfaces.change(device, "route_localnet", "1")
    ip("addr", "del", "127.0.0.1/8", "dev", "lo")
    ip("route", "add", "127.0.0.1/32", "via", gateway)


def test_loopback_of_the_host_stays_out_of_reach(lab: Lab, run: RunId) -> None:
    """route_localnet, which publishing on loopback needs, would let a container in that sends to 127.0.0.1 by way of
    its gateway: the rules stop it, and without them it gets in."""
    with network_of(run) as network:
        network.ensure()
        end = network.allocate()
        inside = lab.instance(end, f"bn{run[-6:]}c0")
        network.publish(parse_publication("127.0.0.1:8080:80"), end)
        with within(inside):
            _lead_loopback_to(end.gateway)
        assert interfaces.setting(end.bridge, "route_localnet") == "1"
        assert refused(inside, lab.host, ("127.0.0.1", 9000), ask=asked_udp)
        _attack_control(run, inside, lab)


def _attack_control(run: RunId, inside: int, lab: Lab) -> None:
    """Only the datagram's arrival counts: the answer's way back is the attacker's problem."""
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        target.bind(("127.0.0.1", 9000))
        target.settimeout(REFUSED)
        with within(inside):
            attacker = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        attacker.sendto(b"x", ("127.0.0.1", 9000))
        with pytest.raises(TimeoutError):
            target.recv(9)
        nftables.delete(f"bench-{run[-6:]}")
        attacker.sendto(b"x", ("127.0.0.1", 9000))
        assert target.recv(9) == b"x", "control: the attack works where nothing stops it"


def test_a_port_that_is_taken_is_refused_and_changes_nothing(lab: Lab, run: RunId) -> None:
    with network_of(run) as network, socket.socket() as server:
        network.ensure()
        end = network.allocate()
        server.bind(("127.0.0.1", 8080))
        server.listen()
        with pytest.raises(HostError, match=r"127\.0\.0\.1:8080/tcp can't be published: Address already in use"):
            network.publish(parse_publication("127.0.0.1:8080:80"), end)
        with pytest.raises(HostError, match=r"Cannot assign requested address"):
            network.publish(parse_publication("192.0.2.77:8080:80"), end)
        assert not nftables.tables("bench-")
        network.publish(parse_publication("127.0.0.1:8081:80"), end)
        with pytest.raises(HostError, match="already in use"):
            network.publish(parse_publication("127.0.0.1:8081:81"), end)


def test_without_nft_publishing_is_refused_by_name(lab: Lab, run: RunId, monkeypatch: pytest.MonkeyPatch) -> None:
    with network_of(run) as network:
        network.ensure()
        end = network.allocate()
        with monkeypatch.context() as patched:
            patched.setattr(nftables, "NFT", "nft-that-is-not-there")
            with pytest.raises(HostError, match="not installed") as caught:
                network.publish(parse_publication("127.0.0.1:8080:80"), end)
        assert caught.value.hint == nftables.INSTALL
        network.publish(parse_publication("127.0.0.1:8080:80"), end)  # the port was given back


def test_rules_of_others_are_not_touched(lab: Lab, run: RunId) -> None:
    nftables.load("users", 'comment "bench forwards lo"')
    with network_of(run, ports=1) as network:
        network.ensure(2)
        assert nftables.tables("users") == {"users": "bench forwards lo"}
    assert nftables.tables("users") == {"users": "bench forwards lo"}


def test_what_a_dead_run_left_is_found_by_its_name(lab: Lab, run: RunId) -> None:
    """The process that made it is killed; another finds bridges, table and the changed setting."""
    lab.internet()
    code = (
        f"import os, signal; from bench.drivers.network import RunNetwork; n = RunNetwork({run!r}, 1)\n"
        "n.ensure(2); n.translate(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    token = run[-6:]
    assert interfaces.setting(UPLINK, "forwarding") == "1"
    found = {(one.kind, one.name) for one in RunNetwork(run).close()}
    assert found == {
        ("netdev", f"bn{token}br0"),
        ("netdev", f"bn{token}br1"),
        ("table", f"bench-{token}"),
        ("sysctl", f"net.ipv4.conf.{UPLINK}.forwarding"),
    }
    assert interfaces.setting(UPLINK, "forwarding") == "0"
    assert RunNetwork(run).close() == []


def test_runs_at_the_same_time_get_different_subnets(lab: Lab, run: RunId) -> None:
    with network_of(run) as network, network_of(new_run()) as other:
        network.ensure()
        other.ensure()
        assert network.allocate().gateway != other.allocate().gateway


def test_pooled_namespaces_are_ready_to_use(lab: Lab, run: RunId) -> None:
    with network_of(run) as network, NamespacePool(run, network) as pool:
        pool.fill(2)
        taken = [pool.take()]
        pool.fill(2)
        taken += [pool.take() for _ in range(2)]
        with pytest.raises(HostError, match="all 3 pooled"):
            pool.take()
        assert len({one.endpoint.address for one in taken}) == len({one.device for one in taken}) == 3
        assert set(netdevs(run)) == {one.device for one in taken}
        with _opened(taken[0].path) as first, _opened(taken[1].path) as second:
            there = (taken[1].endpoint.address, 80)
            assert asked(first, second, there) == taken[0].endpoint.address
            with within(first):
                assert [name for _, name in socket.if_nameindex()] == ["lo", "eth0"]
        pool.close()
        assert netdevs(run) == []
        assert not os.path.exists(taken[2].path)
        pool.fill(1)
        assert pool.take().path, "it can be filled again"


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_pool_that_cannot_be_made_leaves_nothing(lab: Lab, run: RunId) -> None:
    with network_of(run) as network:
        network.ensure()
        lab.instance(network.allocate(), f"bn{run[-6:]}n1")  # the name of the pool's second
        with NamespacePool(run, network) as pool, pytest.raises(HostError, match="File exists"):
            pool.fill(3)
        assert netdevs(run) == [], "it is the pool's name, so it went as well"


def test_a_pool_is_gone_when_its_owner_is_killed(lab: Lab, run: RunId) -> None:
    with _owner(run) as owner:
        owner.kill()
        owner.wait()
        deadline = time.monotonic() + 10
        while (netdevs(run) or _holders(run)) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not netdevs(run)
    assert not _holders(run)
    assert [one.kind for one in RunNetwork(run).close()] == ["netdev"]


def test_a_pool_that_hangs_is_found_and_removed(lab: Lab, run: RunId) -> None:
    with _owner(run) as owner:
        (holder,) = _holders(run)
        os.kill(holder, signal.SIGSTOP)
        owner.kill()
        owner.wait()
        found = reap_pool(run)
    assert found[0] == Leftover("process", f"pid {holder}")
    assert [one.kind for one in found[1:]] == ["netdev", "netdev"]
    assert not netdevs(run)
    assert reap_pool(run) == []
    RunNetwork(run).close()


@contextmanager
def _owner(run: RunId) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a pool of two."""
    code = (
        "import time; from bench.drivers.network import RunNetwork; from bench.container.netpool import NamespacePool\n"
        f"with NamespacePool({run!r}, RunNetwork({run!r})) as pool: pool.fill(2); print(1, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"1\n"
        try:
            yield owner
        finally:
            owner.kill()


def _holders(run: RunId) -> list[int]:
    word, found = holder_name(run).encode(), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and word in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def test_a_failing_request_of_a_batch_is_named(lab: Lab) -> None:
    ip("link", "add", "d0", "type", "bridge")
    index = socket.if_nametoindex("d0")
    with netlink.Netlink() as link:
        with pytest.raises(OSError, match=r"Network is unreachable: 'route 10\.9\.9\.9'"):
            netlink.configure(link, index, "10.88.0.2", 24, "10.9.9.9")
        with pytest.raises(OSError, match=r"File exists: 'address 10\.88\.0\.2/24'") as caught:
            netlink.configure(link, index, "10.88.0.2", 24, "10.88.0.1")
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(OSError, match=r"No such device: 'no IPv6 address for 999'"):
            netlink.configure(link, 999, "10.88.0.3", 24, "10.88.0.1")
        link.batch(netlink.lo_up())  # no stale answer is taken for this one's


@pytest.mark.slow
def test_more_instances_than_a_bridge_has_ports(lab: Lab, run: RunId) -> None:
    """1,030 interfaces over three bridges; the first and the last reach each other."""
    with network_of(run, interfaces.PORTS) as network, _crowded(lab, network, 1030) as (ends, first, last):
        bridges = [end.bridge for end in ends]
        assert [bridges.count(name) for name in sorted(set(bridges))] == [interfaces.PORTS, interfaces.PORTS, 30]
        assert asked(first, last, (ends[-1].address, 80)) == ends[0].address
        assert asked(last, first, (ends[0].address, 80)) == ends[-1].address


@pytest.mark.slow
@pytest.mark.skipif(BACKLOG != 1000, reason="net.core.netdev_max_backlog is not 1000, the kernel's own value")
def test_why_no_bridge_is_filled_up(lab: Lab, run: RunId, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full one the instances can't find their gateway; and the kernel refuses one port more."""
    monkeypatch.setattr(run_network, "PREFIX", 20)
    count = interfaces.PORTS_MOST
    with network_of(run, count) as network, _crowded(lab, network, count) as (ends, first, _):
        assert len({end.bridge for end in ends}) == 1
        assert refused(first, lab.host, (ends[0].gateway, 80))
        with pytest.raises(OSError, match="Exchange full"):
            lab.instance(ends[0], f"bn{run[-6:]}cx")


@contextmanager
def _crowded(lab: Lab, network: RunNetwork, count: int) -> Iterator[tuple[list[Endpoint], int, int]]:
    """`count` endpoints in use: the first and the last by instances, the others by interfaces of one namespace."""
    token, crowd = network.run[-6:], lab.namespace()
    network.ensure(count)
    ends = [network.allocate() for _ in range(count)]
    with netlink.Netlink() as link, within(crowd):
        for number, end in enumerate(ends[1:-1], 1):
            netlink.attach(link, f"bn{token}c{number}", f"e{number}", peer_pid=os.getpid(), master=end.index)
            _up(f"e{number}")
    yield ends, lab.instance(ends[0], f"bn{token}c0"), lab.instance(ends[-1], f"bn{token}c{count}")
    lab.end(crowd)
    deadline = time.monotonic() + 60
    while len(netdevs(network.run)) > 2 and time.monotonic() < deadline:
        time.sleep(0.05)


def _up(name: str) -> None:
    """As a container does. The kernel tells a bridge of carriers in the background, 100 a second of those it thinks
    can wait: a crowd of interfaces that never come up would keep the others waiting."""
    index = socket.if_nametoindex(name)
    with netlink.Netlink() as link:
        link.batch(*netlink.no_ipv6(index), (name, netlink.RTM_NEWLINK, 0, netlink.link_up(index)))
