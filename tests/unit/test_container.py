"""The runtime's decisions that need no kernel: groups, subnets, error texts, addresses."""

from __future__ import annotations

import errno
import ipaddress
import signal

import pytest

from bench.container.client import explain
from bench.container.groups import CgroupLayout
from bench.drivers.network import PREFIX, free_subnet
from bench.drivers.process import loopback_address, needs_root
from bench.errors import HostError, Interrupted
from bench.model import MIB, InstanceSpec, Limits, RunId
from bench.verbs.interrupts import Interrupts
from tests.unit import hosts

RUN = RunId("20261124-000000-test-abc123")
LIMITS = Limits(memory=64 * MIB, cpus=0.5, pids=32)


def test_groups_on_v1() -> None:
    layout = CgroupLayout({"memory": "/c/memory", "cpu": "/c/cpu", "cpuacct": "/c/cpu", "pids": "/c/pids"}, None)
    groups = layout.groups(RUN, "abc123-c1", LIMITS)
    assert layout.kind == "v1"
    assert groups.paths["memory"] == "/c/memory/bench-abc123/abc123-c1"
    assert dict(groups.settings["memory"]) == {"memory.limit_in_bytes": str(64 * MIB)}
    assert dict(groups.settings["cpu"])["cpu.cfs_quota_us"] == "50000"
    assert groups.settings["cpuacct"] == []
    assert groups.unified is None
    assert layout.parents(RUN) == ["/c/memory/bench-abc123", "/c/cpu/bench-abc123", "/c/pids/bench-abc123"]


def test_groups_on_v2() -> None:
    layout = CgroupLayout({}, "/sys/fs/cgroup")
    groups = layout.groups(RUN, "abc123-c1", LIMITS)
    assert layout.kind == "v2"
    assert groups.unified == "/sys/fs/cgroup/bench-abc123/abc123-c1"
    assert dict(groups.settings["unified"]) == {
        "memory.max": str(64 * MIB),
        "cpu.max": "50000 100000",
        "pids.max": "32",
    }


def test_a_host_with_both_keeps_its_controllers_on_v1() -> None:
    layout = CgroupLayout({"memory": "/c/memory"}, "/c/unified")
    assert layout.kind == "hybrid"
    assert list(layout.groups(RUN, "abc123-c1", LIMITS).paths) == ["memory"]


def test_no_hierarchy_is_said() -> None:
    with pytest.raises(HostError, match="no cgroup hierarchy"):
        CgroupLayout({}, None).groups(RUN, "abc123-c1", LIMITS)


def test_the_first_free_subnet_is_taken() -> None:
    used = [ipaddress.IPv4Network("198.18.0.0/24"), ipaddress.IPv4Network("10.0.0.0/8")]
    assert free_subnet(used) == ipaddress.IPv4Network(f"198.18.16.0/{PREFIX}")
    assert free_subnet([ipaddress.IPv4Network("198.16.0.0/12")]) is None


@pytest.mark.parametrize(
    ("step", "number", "said"),
    [
        ("exec /bin/nosuch", errno.ENOENT, "no such program"),
        ("veth bnabc123c1 on bnabc123br0", errno.EXFULL, "1,024 ports"),
        ("overlay on /x: lowerdir=", errno.EINVAL, "BENCH_STATE"),
    ],
)
def test_a_failing_step_is_named_with_what_its_errno_means_there(step: str, number: int, said: str) -> None:
    text = explain({"step": step, "errno": number, "error": "it"})
    assert text.startswith(step)
    assert said in text


def test_addresses_of_bare_processes_are_loopback_and_distinct() -> None:
    addresses = {loopback_address(RUN, number) for number in range(2000)}
    assert len(addresses) == 2000
    assert all(ipaddress.IPv4Address(one).is_loopback for one in addresses)
    assert not any(one.endswith((".0", ".255")) for one in addresses)


def test_interface_names_fit_the_kernel() -> None:
    spec = InstanceSpec(RUN, "container", "default", 999_999, None, None, LIMITS, None)  # type: ignore[arg-type]
    assert len(spec.netdev) <= 15
    assert spec.id == "abc123-c999999"


def test_what_a_driver_lacks_is_said_with_a_remedy() -> None:
    assert needs_root(hosts.facts(root=True), "x") is None
    for facts in (hosts.facts(root=False), hosts.facts(cgroup="none"), hosts.facts(cgroup_controllers=("cpu",))):
        answer = needs_root(facts, "x")
        assert answer is not None
        assert not answer.ok
        assert answer.reason
        assert answer.hint


# --- signals -------------------------------------------------------------------------------------------------------


def test_a_signal_unwinds_and_handlers_come_back() -> None:
    interrupts, former = Interrupts(), signal.getsignal(signal.SIGTERM)
    with interrupts.installed(), pytest.raises(Interrupted) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is former


def test_under_a_shield_a_signal_waits() -> None:
    interrupts, reached = Interrupts(), []

    def shielded() -> None:
        with interrupts.shield():
            with interrupts.shield():
                signal.raise_signal(signal.SIGINT)
            reached.append("after the inner shield")

    with interrupts.installed(), pytest.raises(Interrupted):
        shielded()
    assert reached == ["after the inner shield"]
