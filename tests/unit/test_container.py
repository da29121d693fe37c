"""The runtime's decisions that need no kernel: groups, subnets, error texts, addresses."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
from pathlib import Path

import pytest

from bench.container.client import explain
from bench.container.groups import CgroupLayout
from bench.container.limits import cpu_weight
from bench.container.spec import resources_of
from bench.container.spec_records import BlockIO, Cpu, Memory, Resources
from bench.drivers.network import PREFIX, free_subnet
from bench.drivers.process import loopback_address, needs_root
from bench.errors import HostError, Interrupted
from bench.linux import cgroups
from bench.model import MIB, InstanceSpec, Limits, RunId
from bench.verbs.interrupts import Interrupts
from tests.unit import hosts

RUN = RunId("20261124-000000-test-abc123")
V1 = "/nowhere/cgroup"
LIMITS_OF_CPU = Limits(memory=64 * MIB, cpus=0.5, pids=0)
LIMITS = Limits(memory=64 * MIB, cpus=0.5, pids=32)


def test_groups_on_v1() -> None:
    layout = CgroupLayout({name: f"{V1}/{name}" for name in ("memory", "cpu", "cpuacct", "pids")}, None)
    groups = layout.groups("bench-abc123", resources_of(LIMITS))
    assert layout.kind == "v1"
    assert groups.of("abc123-c1")["memory"] == f"{V1}/memory/bench-abc123/abc123-c1"
    assert dict(groups.settings["memory"]) == {"memory.limit_in_bytes": str(64 * MIB)}
    assert dict(groups.settings["cpu"])["cpu.cfs_quota_us"] == "50000"
    assert groups.settings["cpuacct"] == []
    assert not groups.unified
    assert layout.parents(RUN)[:2] == [f"{V1}/memory/bench-abc123", f"{V1}/cpu/bench-abc123"]


def test_controllers_in_one_hierarchy_share_a_group() -> None:
    shared = dict.fromkeys(("cpu", "cpuacct"), f"{V1}/cpu")
    groups = CgroupLayout({"memory": f"{V1}/memory", **shared}, None).groups("p", resources_of(LIMITS_OF_CPU))
    assert [parent for parent, _ in groups.recipe()] == [f"{V1}/memory/p", f"{V1}/cpu/p"]
    assert len(dict(groups.recipe())[f"{V1}/cpu/p"]) == 2


def test_groups_on_v2() -> None:
    layout = CgroupLayout({}, "/sys/fs/cgroup")
    groups = layout.groups("bench-abc123", resources_of(LIMITS))
    assert layout.kind == "v2"
    assert groups.unified
    assert groups.of("abc123-c1") == {"unified": "/sys/fs/cgroup/bench-abc123/abc123-c1"}
    assert dict(groups.settings["unified"]) == {
        "memory.max": str(64 * MIB),
        "cpu.max": "50000 100000",
        "pids.max": "32",
    }


def test_a_host_with_both_keeps_its_controllers_on_v1() -> None:
    layout = CgroupLayout({"memory": f"{V1}/memory", "cpu": f"{V1}/cpu", "pids": f"{V1}/pids"}, "/c/unified")
    assert layout.kind == "hybrid"
    assert "unified" not in layout.groups("p", resources_of(LIMITS)).parents


def test_no_hierarchy_is_said() -> None:
    with pytest.raises(HostError, match="no cgroup hierarchy"):
        CgroupLayout({}, None).groups("p", resources_of(LIMITS))


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (Resources(block_io=BlockIO(weight=100)), "blkio"),
        (Resources(cpu=Cpu(cpus="0")), "cpuset"),
    ],
)
def test_a_limit_without_its_controller_is_refused(resources: Resources, said: str) -> None:
    with pytest.raises(HostError, match=said):
        CgroupLayout({"memory": f"{V1}/memory"}, None).groups("p", resources)


def test_a_limit_whose_controller_v2_s_root_has_not_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    layout = CgroupLayout({}, str(tmp_path))
    assert layout.groups("p", resources_of(LIMITS)).unified
    with pytest.raises(HostError, match=r"no cpuset controller .* so cpuset\.cpus can't be set"):
        layout.groups("p", Resources(cpu=Cpu(cpus="0")))


def test_v2_groups_on_the_way_hand_their_controllers_down(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "bench-abc123"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpu memory pids rdma\n")
        (folder / "cgroup.subtree_control").touch()
    CgroupLayout({}, str(tmp_path)).prepare("bench-abc123")
    for folder in (tmp_path, tmp_path / "bench-abc123"):
        assert "+pids" in (folder / "cgroup.subtree_control").read_text()


def test_v2_s_root_with_processes_in_it_is_no_place_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(path: str, value: str) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), f"{path} <- {value}")

    monkeypatch.setattr(cgroups, "write", busy)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    with pytest.raises(HostError, match="can't hand the memory controller down: processes are in it"):
        CgroupLayout({}, str(tmp_path)).prepare("bench-abc123")


def test_swappiness_of_a_group_is_refused_on_v2() -> None:
    with pytest.raises(HostError, match="swappiness"):
        CgroupLayout({}, "/sys/fs/cgroup").groups("p", Resources(memory=Memory(swappiness=10)))


def test_shares_become_weights() -> None:
    assert [cpu_weight(shares) for shares in (2, 1024, 262_144)] == [1, 39, 10_000]


def test_the_first_free_subnet_is_taken() -> None:
    used = [ipaddress.IPv4Network("198.18.0.0/24"), ipaddress.IPv4Network("10.0.0.0/8")]
    assert free_subnet(used) == ipaddress.IPv4Network(f"198.18.2.0/{PREFIX}")
    assert free_subnet([ipaddress.IPv4Network("198.16.0.0/12")]) is None


@pytest.mark.parametrize(
    ("step", "number", "said"),
    [
        (["exec", "/bin/nosuch"], errno.ENOENT, "no such program"),
        (["veth bnabc123c1 on bridge 7"], errno.EXFULL, "1,023 ports"),
        (["overlay_root", "/l2:/l1", ""], errno.EINVAL, "BENCH_STATE"),
    ],
)
def test_a_failing_step_is_named_with_what_its_errno_means_there(step: list[str], number: int, said: str) -> None:
    text = explain({"step": step, "errno": number, "error": "it"})
    assert text.startswith(step[0].replace("_", " "))
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
