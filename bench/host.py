"""This machine: facts only. What a driver can do with them is the driver's answer, what to think of them the analysis'.

The roots of /proc, /sys and /etc are injectable. Whatever is missing is None; nothing missing is an error.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import resource
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from bench import __version__
from bench.errors import BenchError
from bench.linux import cgroups, procfs, syscalls
from bench.model import HostFacts, RunId, token_of
from bench.process import run

log = logging.getLogger(__name__)

CgroupMode = Literal["v1", "v2", "hybrid", "none"]

_CONTROLLERS = frozenset((
    "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "io", "pids", "hugetlb", "net_cls",
    "net_prio", "perf_event", "rdma", "misc",
))  # fmt: skip
_PID_MAX = 32_768  # the kernel's own default, where /proc/sys does not show it


def host_facts(root: Path = Path("/")) -> HostFacts:
    """Facts that can be read without changing anything; `measure_floor_costs` adds those that can't."""
    memory = procfs.meminfo(root)
    mode, controllers = cgroup_mode(root)
    return HostFacts(
        hostname=procfs.read(root / "proc/sys/kernel/hostname") or platform.node(),
        kernel=procfs.read(root / "proc/sys/kernel/osrelease") or platform.release(),
        machine=platform.machine(),
        distribution=_distribution(root),
        cpu_model=_cpuinfo(root, "model name") or "unknown",
        cpus=_cpus(root),
        memory_total=memory.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        memory_available=memory_available(root),
        swap_total=memory.get("SwapTotal", 0),
        cgroup=mode,
        cgroup_controllers=controllers,
        root=os.geteuid() == 0,
        overlayfs="overlay" in (procfs.read(root / "proc/filesystems") or "").split(),
        namespaces=_namespaces(root),
        pid_max=procfs.number(root / "proc/sys/kernel/pid_max") or _PID_MAX,
        nofile_hard=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        virtualization=virtualization(root),
        kvm_device=(root / "dev/kvm").exists(),
        thp=_bracketed(procfs.read(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        ksm=_ksm(root),
        governor=procfs.read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        turbo=_turbo(root),
        clocksource=procfs.read(root / "sys/devices/system/clocksource/clocksource0/current_clocksource"),
        load1=_load(root),
        qemu_version=_version("qemu-system-x86_64"),
        libvirt_version=_libvirt(),
        python=platform.python_version(),
        bench=__version__,
    )


def memory_available(root: Path = Path("/")) -> int:
    """MemAvailable in bytes: one cheap read, for the look before each launch."""
    values = procfs.meminfo(root)
    if "MemAvailable" in values:
        return values["MemAvailable"]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # what is free, at least


def reserve_bytes(total: int, memory: int, fraction: float) -> int:
    """What must stay available of `total` bytes: the larger of `memory` bytes and `fraction` of it."""
    return max(memory, int(total * fraction))


# --- cgroups --------------------------------------------------------------------------------------------------------


def cgroup_mode(root: Path = Path("/")) -> tuple[CgroupMode, tuple[str, ...]]:
    """How cgroups are mounted, and which controllers there are.

    hybrid: controllers on v1 hierarchies, and a cgroup2 mount beside them. A v1 hierarchy without controllers
    (systemd's own) does not make a host v1.
    """
    mountinfo = procfs.read(root / "proc/self/mountinfo") or ""
    old = _v1_controllers(mountinfo)
    unified = cgroups.v2_mount(mountinfo)
    new = _v2_controllers(root, unified) if unified else ()
    if not old and unified is None:
        return "none", ()
    mode: CgroupMode = "v2" if not old else "v1" if unified is None else "hybrid"
    return mode, tuple(sorted({*old, *new}))


def _v1_controllers(mountinfo: str) -> set[str]:
    found: set[str] = set()
    for line in mountinfo.splitlines():
        fields = line.partition(" - ")[2].split()
        if len(fields) == 3 and fields[0] == "cgroup":
            found.update(_CONTROLLERS.intersection(fields[2].split(",")))
    return found


def _v2_controllers(root: Path, mount: str) -> tuple[str, ...]:
    return tuple((procfs.read(root / mount.lstrip("/") / "cgroup.controllers") or "").split())


# --- single facts ---------------------------------------------------------------------------------------------------


def _distribution(root: Path) -> str:
    for line in (procfs.read(root / "etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip("\"'")
    return "unknown"


def _cpuinfo(root: Path, key: str) -> str | None:
    for line in (procfs.read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _cpus(root: Path) -> int:
    lines = (procfs.read(root / "proc/cpuinfo") or "").splitlines()
    return sum(line.startswith("processor") for line in lines) or os.cpu_count() or 1


def _namespaces(root: Path) -> tuple[str, ...]:
    try:
        names = os.listdir(root / "proc/self/ns")
    except OSError:
        return ()
    return tuple(sorted(name for name in names if not name.endswith("_for_children")))


def virtualization(root: Path = Path("/")) -> str | None:
    """Name of the hypervisor under this host; None on bare metal, or if the CPU does not tell."""
    if (kind := procfs.read(root / "sys/hypervisor/type")) is not None:
        return kind
    if "hypervisor" not in (_cpuinfo(root, "flags") or "").split():
        return None
    dmi = root / "sys/class/dmi/id"
    names = [name for key in ("sys_vendor", "product_name") if (name := procfs.read(dmi / key))]
    return " ".join(names) or "a hypervisor that does not give its name"


def _bracketed(text: str | None) -> str | None:
    """`always [madvise] never` -> madvise."""
    if text is None or "[" not in text:
        return None
    return text.partition("[")[2].partition("]")[0]


def _ksm(root: Path) -> bool | None:
    value = procfs.number(root / "sys/kernel/mm/ksm/run")
    return None if value is None else value == 1


def _turbo(root: Path) -> bool | None:
    """Whether the CPU may clock above its nominal frequency."""
    cpu = root / "sys/devices/system/cpu"
    if (refused := procfs.number(cpu / "intel_pstate/no_turbo")) is not None:
        return refused == 0
    boost = procfs.number(cpu / "cpufreq/boost")
    return None if boost is None else boost == 1


def _load(root: Path) -> float:
    words = (procfs.read(root / "proc/loadavg") or "").split()
    return float(words[0]) if words else os.getloadavg()[0]


def _version(program: str) -> str | None:
    """`NAME version 1.2.3 (...)` and the like -> 1.2.3; None if the program is not there or does not say."""
    if shutil.which(program) is None:
        return None
    try:
        words = run([program, "--version"], timeout=10).stdout.split()
    except BenchError as error:
        log.debug("no version from %s: %s", program, error)
        return None
    return next((word for word in words if word[:1].isdigit()), None)


def _libvirt() -> str | None:
    """The library's version, by its daemon, and that of the Python binding; without importing either."""
    library = _version("libvirtd") or _version("virsh")
    try:
        binding = f"libvirt-python {importlib.metadata.version('libvirt-python')}"
    except importlib.metadata.PackageNotFoundError:
        binding = None
    return f"{library} ({binding})" if library and binding else library or binding


# --- what an empty group and an empty namespace cost ----------------------------------------------------------------

_GROUPS = 256
_NETWORKS = 32


def measure_floor_costs(facts: HostFacts, run: RunId) -> HostFacts:
    """`facts` with the kernel memory of one empty memory cgroup and of one empty network namespace.

    Makes some of each for an instant and removes them again; the groups among those of `run`, where they are found if
    this process is killed meanwhile. As root only; what can't be measured stays None.
    """
    if not facts.root:
        return facts
    return msgspec.structs.replace(
        facts,
        empty_memcg_bytes=_cost(partial(_memory_groups, f"bench-{token_of(run)}"), _GROUPS),
        empty_netns_bytes=_cost(_network_namespaces, _NETWORKS),
    )


def _cost(hold: Callable[[int], AbstractContextManager[None]], count: int) -> int | None:
    """Bytes of kernel memory for each of `count` things that `hold` makes; None if it can't make them.

    As many are made before the count begins: they use up what is free in half-empty slabs, else few look cheap.
    """
    try:
        with hold(count):
            before = _kernel_memory()
            with hold(count):
                after = _kernel_memory()
    except OSError as error:
        log.info("the cost of empty groups or namespaces is not measured: %s", error)
        return None
    finally:
        _settle()
    if before is None or after is None or after <= before:
        return None
    return (after - before) // count


def _settle(longest: float = 1.5, step: float = 0.2) -> None:
    """Wait until kernel memory stops falling: groups and namespaces are freed some time after they are removed."""
    deadline = time.monotonic() + longest
    last = _kernel_memory() or 0
    while time.monotonic() < deadline:
        time.sleep(step)
        now = _kernel_memory() or 0
        if now >= last:
            return
        last = now


def _kernel_memory() -> int | None:
    values = procfs.meminfo()
    return values["Slab"] + values.get("Percpu", 0) if "Slab" in values else None


@contextmanager
def _memory_groups(top: str, count: int) -> Iterator[None]:
    """`count` empty groups below `top`, in a folder whose name nobody else has; `top` stays if others use it."""
    old, unified = cgroups.current_mounts()
    mount = old.get("memory") or unified
    if mount is None:
        raise FileNotFoundError("no memory cgroups here")
    parent = f"{mount}/{top}/floor-{secrets.token_hex(3)}"
    try:
        os.makedirs(parent)
        if "memory" not in old:  # v2: a group counts memory only if its parent hands the controller down
            cgroups.write(f"{mount}/{top}/cgroup.subtree_control", "+memory")
            cgroups.write(f"{parent}/cgroup.subtree_control", "+memory")
        for number in range(count):
            os.mkdir(f"{parent}/{number}")
        yield
    finally:
        cgroups.remove(parent)
        with suppress(OSError):  # others of the run are in it, or it never was
            os.rmdir(f"{mount}/{top}")


@contextmanager
def _network_namespaces(count: int) -> Iterator[None]:
    """`count` empty namespaces, made by a thread that changes only its own and ends; descriptors hold them."""
    held: list[int] = []
    failed: list[OSError] = []

    def make() -> None:
        try:
            for _ in range(count):
                syscalls.unshare(syscalls.CLONE_NEWNET)
                held.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            failed.append(error)

    maker = threading.Thread(target=make, name="netns")
    maker.start()
    maker.join()
    try:
        if failed:
            raise failed[0]
        yield
    finally:
        for fd in held:
            os.close(fd)
