"""Made-up hosts."""

from __future__ import annotations

import msgspec

from bench.model import GIB, HostFacts

_FACTS = HostFacts(
    hostname="test", kernel="6.1.0", machine="x86_64", distribution="Debian 12", cpu_model="Test CPU", cpus=2,
    memory_total=24 * GIB, memory_available=20 * GIB, swap_total=0, cgroup="v1",
    cgroup_controllers=("memory", "cpu", "cpuacct", "pids"), root=True, overlayfs=True,
    namespaces=("mnt", "uts", "ipc", "pid", "net", "cgroup"), pid_max=32768, nofile_hard=20000, virtualization=None,
    kvm_device=False, thp="madvise", ksm=False, governor=None, clocksource="tsc", load1=0.1, qemu_version=None,
    libvirt_version=None, python="3.11.2", bench="0.1.0",
)  # fmt: skip


def facts(**changes: object) -> HostFacts:
    return msgspec.structs.replace(_FACTS, **changes)
