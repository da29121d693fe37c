"""Host facts on small trees: `hybrid` was recorded on the reference machine, `unified` has a systemd host's form."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from bench import host
from bench.errors import CommandError
from bench.model import GIB, MIB, Completed, HostFacts, RunId

DATA = Path(__file__).parent / "data/host"
RUN = RunId("20261124-000000-test-abc123")


def test_hybrid() -> None:
    facts = host.host_facts(DATA / "hybrid")
    assert facts.cgroup == "hybrid"
    assert facts.cgroup_controllers == (
        "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "pids",
    )  # fmt: skip
    assert (facts.hostname, facts.kernel, facts.cpus, facts.cpu_model) == ("reference", "6.18.44", 2, "AMD EPYC")
    assert facts.distribution == "Debian GNU/Linux 12 (bookworm)"
    assert facts.overlayfs
    assert facts.kvm_device
    assert facts.namespaces == ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
    assert facts.virtualization == "a hypervisor that does not give its name"
    assert (facts.thp, facts.ksm, facts.clocksource, facts.governor) == ("madvise", False, "tsc", None)
    assert (facts.swap_total, facts.pid_max, facts.load1) == (0, 32_768, 0.06)
    assert (facts.empty_memcg_bytes, facts.empty_netns_bytes) == (None, None)


def test_unified() -> None:
    facts = host.host_facts(DATA / "unified")
    assert facts.cgroup == "v2"
    assert facts.cgroup_controllers == ("cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma")
    assert facts.virtualization is None, "a vendor's name alone is no hypervisor"
    assert not facts.overlayfs
    assert not facts.kvm_device
    assert (facts.thp, facts.ksm, facts.governor) == ("always", True, "powersave")
    assert facts.memory_available == 20_480_000 * 1024
    assert facts.pid_max == 4_194_304


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    facts = host.host_facts(tmp_path)
    assert (facts.cgroup, facts.cgroup_controllers, facts.namespaces) == ("none", (), ())
    absent = (facts.thp, facts.ksm, facts.governor, facts.clocksource, facts.virtualization)
    assert absent == (None,) * 5
    assert facts.memory_total > 0
    assert facts.memory_available > 0
    assert facts.cpus > 0
    msgspec.json.decode(msgspec.json.encode(facts), type=HostFacts)


def test_this_machine() -> None:
    facts = host.host_facts()
    assert facts.memory_total > facts.memory_available > 0
    assert facts.root == (os.geteuid() == 0)


@pytest.mark.parametrize(
    ("lines", "mode"),
    [
        (["cgroup cgroup rw,cpu,cpuacct", "cgroup cgroup rw,memory"], "v1"),
        (["cgroup systemd rw,xattr,name=systemd", "cgroup2 cgroup2 rw,nsdelegate"], "v2"),
        (["cgroup cgroup rw,name=systemd"], "none"),
        (["cgroup cgroup rw,memory", "cgroup2 cgroup2 rw"], "hybrid"),
        (["tmpfs tmpfs rw,memory", "ext4 /dev/cgroup2 rw"], "none"),
    ],
)
def test_cgroup_modes(tmp_path: Path, lines: list[str], mode: str) -> None:
    folder = tmp_path / "proc/self"
    folder.mkdir(parents=True)
    text = "".join(f"31 23 0:28 / /sys/fs/cgroup/x rw shared:9 - {line}\n" for line in lines)
    (folder / "mountinfo").write_text(text)
    assert host.cgroup_mode(tmp_path)[0] == mode


def test_virtualization_by_dmi_and_by_xen(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags : fpu hypervisor\n")
    dmi = tmp_path / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    (dmi / "sys_vendor").write_text("QEMU\n")
    (dmi / "product_name").write_text("Standard PC\n")
    assert host.virtualization(tmp_path) == "QEMU Standard PC"
    (tmp_path / "sys/hypervisor").mkdir()
    (tmp_path / "sys/hypervisor/type").write_text("xen\n")
    assert host.virtualization(tmp_path) == "xen"


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "qemu-system-x86_64": "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright",
        "libvirtd": "libvirtd (libvirt) 9.0.0\n",
    }
    monkeypatch.setattr("shutil.which", lambda name: name if name in said else None)
    monkeypatch.setattr(host, "run", lambda argv, timeout: Completed(0, said[argv[0]], ""))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "12.8.0")
    facts = host.host_facts(DATA / "hybrid")
    assert (facts.qemu_version, facts.libvirt_version) == ("7.2.22", "9.0.0 (libvirt-python 12.8.0)")


def test_versions_of_what_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise host.importlib.metadata.PackageNotFoundError(name)

    def broken(argv: list[str], timeout: float) -> Completed:
        raise CommandError("exit status 127")

    monkeypatch.setattr("shutil.which", lambda name: name if name.startswith("qemu") else None)
    monkeypatch.setattr(host, "run", broken)
    monkeypatch.setattr("importlib.metadata.version", missing)
    facts = host.host_facts(DATA / "hybrid")
    assert (facts.qemu_version, facts.libvirt_version) == (None, None)


def test_reserve_is_the_larger() -> None:
    assert host.reserve_bytes(8 * GIB, 2 * GIB, 0.10) == 2 * GIB
    assert host.reserve_bytes(100 * GIB, 2 * GIB, 0.10) == 10 * GIB
    assert host.reserve_bytes(100 * GIB, 2 * GIB, 0.0) == 2 * GIB


def test_memory_available_is_cheap() -> None:
    start = time.perf_counter()
    for _ in range(100):
        host.memory_available()
    assert time.perf_counter() - start < 1.0


# --- floor costs, with a fake kernel


@pytest.fixture
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_settle", lambda: None)


@pytest.mark.usefixtures("no_settling")
def test_cost_leaves_out_what_half_empty_slabs_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    @contextmanager
    def hold(count: int) -> Iterator[None]:
        nonlocal made
        made += count
        yield
        made -= count

    monkeypatch.setattr(host, "_kernel_memory", lambda: 50 * MIB + max(0, made - 3) * 1000)  # three come for nothing
    assert host._cost(hold, 10) == 1000
    assert made == 0


@pytest.mark.usefixtures("no_settling")
def test_cost_that_can_not_be_measured_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refused(count: int) -> Iterator[None]:
        raise PermissionError(count)
        yield

    @contextmanager
    def nothing(count: int) -> Iterator[None]:
        yield

    assert host._cost(refused, 10) is None
    monkeypatch.setattr(host, "_kernel_memory", lambda: MIB)
    assert host._cost(nothing, 10) is None, "no growth is no measurement, and never 0"


def test_floor_costs_are_left_alone_without_root() -> None:
    facts = msgspec.structs.replace(host.host_facts(DATA / "hybrid"), root=False)
    assert host.measure_floor_costs(facts, RUN) == facts
