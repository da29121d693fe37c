"""The domain of one guest: from what a scenario asks for to the elements that libvirt reads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.errors import UsageError
from bench.model import MIB, InstanceSpec, VmSettings
from bench.vm.elements import (
    Address,
    Argument,
    Arguments,
    Balloon,
    Capabilities,
    Channel,
    Controller,
    CpuQuota,
    DirectBoot,
    Disk,
    DiskFormat,
    Domain,
    DomainType,
    Interface,
    MmioAddress,
    PciAddress,
    Run,
    Serial,
    Unused,
)
from bench.vm.kernel import GuestKernel

PAYLOAD_PORT = "bench.payload"
AGENT_PORT = "bench.agent"
QUOTA_PERIOD = 100_000  # microseconds; the container's CPU quota uses the same period
CMDLINE = ("console=ttyS0", "earlyprintk=ttyS0,115200", "panic=-1", "rdinit=/init")
"""earlyprintk, as in Debian's cloud images: the kernel speaks long before its console driver is up."""
BARE_CHIPSET = "sata=off,smbus=off,vmport=off"
"""q35 without its disk controller, its SMBus and a port for another hypervisor's tools."""
SLOW_CPU_QUERY = "cpu-unavailable-features"
"""With it libvirt asks QEMU for each of some 400 CPU features by itself; without, for the sets of them in two calls."""
SHARED = ("shared-ro", "shared-dax")
"""Storages with one root for all guests, which each of them only reads."""
DAX_BACKEND = "memory-backend-file,id=bench-root,share=on,readonly=on"
"""A root that is memory of the guest's: the host's page cache of the file, which QEMU itself can only read. libvirt 9
has words for an NVDIMM, but none for reading alone: its QEMU would open and map the file for writing."""
DAX_DEVICE = "nvdimm,memdev=bench-root,unarmed=on"
"""Nothing of it has to be saved with a template, and its flush is an instruction of the guest's: virtio-pmem's goes
through a queue whose state QEMU does not save, so that a clone's kernel would wait for it for ever. Unarmed: what a
guest writes would not last, so its kernel writes nothing."""
DAX_MACHINE = "nvdimm=on"
DAX_WORDS = ("swiotlb=noforce",)
"""Memory above 4 GiB, where such a root is, makes the guest's kernel set 64 MiB aside for devices that can't reach so
far; virtio's can."""
MICROVM = "microvm"
AccelName = Literal["kvm", "tcg"]


@dataclass(frozen=True)
class Place:
    """What one guest gets from this host: files, sockets, address."""

    disk: str
    console: str
    payload: str
    agent: str
    size: int = 0  # bytes of the disk's file; needed where it is memory of the guest's
    bridge: str | None = None  # None: no network
    address: str = ""
    prefix: int = 0
    gateway: str = ""


@dataclass(frozen=True)
class Memory:
    """Guest memory in a file of the host's: the template shares it and so writes it, clones only copy on write."""

    path: str
    size: int  # bytes
    shared: bool


def domain_name(instance: str) -> str:
    return f"bench-{instance}"


def make_domain(
    spec: InstanceSpec, settings: VmSettings, accel: AccelName, kernel: GuestKernel, initrd: str, place: Place,
    memory: Memory | None = None, words: Sequence[str] = (),
) -> Domain:  # fmt: skip
    """One guest. What its settings don't say is libvirt's default: that is what `vm:stock` stands for.

    With `memory` it is a template of clones (shared) or a clone, which waits for the template's state.
    """
    dax = settings.storage == "shared-dax"
    slots = _slots(settings)
    cache = settings.tb_cache if accel == "tcg" else None
    return Domain(
        type=domain_type(accel),
        name=domain_name(spec.id),
        run=Run(id=spec.run),
        memory=ram_of(spec, settings),
        apart=None if settings.ksm else True,
        vcpus=vcpus_of(spec.limits.cpus),
        quota=cpu_quota(spec.limits.cpus),
        boot=DirectBoot(
            machine=settings.machine,
            kernel=kernel.vmlinuz,
            initrd=initrd,
            cmdline=cmdline(spec.id, place, settings, words),
        ),
        acpi=None if settings.machine == MICROVM else True,
        tb_cache=None if cache is None else cache // MIB,
        tb_cache_unit=None if cache is None else "MiB",
        cpu="host-passthrough" if accel == "kvm" else None,
        controllers=_controllers(next(slots)) if slots else (),
        disk=None if dax else _disk(settings, place, next(slots) if slots else None),
        interface=_interface(spec, place, next(slots) if slots else None),
        console=Serial(path=place.console),
        channels=(Channel(path=place.payload, name=PAYLOAD_PORT), Channel(path=place.agent, name=AGENT_PORT)),
        balloon=_balloon(settings, next(slots) if slots else None),
        arguments=_arguments(settings, memory, _pmem(place, ram_of(spec, settings)) if dax else []),
        capabilities=None
        if settings.cpu_query == "each"
        else Capabilities(unused=(Unused(capability=SLOW_CPU_QUERY),)),
    )


def check(settings: VmSettings) -> None:
    """Raises UsageError for a machine that the kernel can't boot on, or that has no place for the root."""
    if (settings.machine, settings.storage) == (MICROVM, "shared-dax"):
        raise UsageError(
            'vm.machine = "microvm" takes no further memory, which vm.storage = "shared-dax" needs',
            hint="--set vm.machine=q35, or --set vm.storage=shared-ro",
        )
    if (settings.machine, settings.kernel) == (MICROVM, "distribution"):
        raise UsageError(
            'vm.machine = "microvm" has no PCI, which the distribution\'s kernel needs',
            hint="--set vm.kernel=micro, or take vm:micro or vm:clone",
        )


def vcpus_of(cpus: float) -> int:
    return math.ceil(cpus)


def domain_type(accel: AccelName) -> DomainType:
    return "kvm" if accel == "kvm" else "qemu"


def ram_of(spec: InstanceSpec, settings: VmSettings) -> int:
    """Bytes of the guest's RAM."""
    return spec.limits.memory if settings.memory is None else settings.memory


def disk_format(settings: VmSettings) -> DiskFormat:
    return "qcow2" if settings.storage == "qcow2-backing" else "raw"


def cpu_quota(cpus: float) -> CpuQuota | None:
    """A quota only where vCPUs can't say it: for a fraction of a CPU."""
    if float(cpus).is_integer():
        return None
    return CpuQuota(period=QUOTA_PERIOD, quota=round(cpus * QUOTA_PERIOD))


def cmdline(hostname: str, place: Place, settings: VmSettings, further: Sequence[str] = ()) -> str:
    """The kernel command line; what differs from guest to guest is in its bench.* words, read by vm/guest/init."""
    words = [*fixed_words(settings), *further]
    if settings.start == "clone":
        return " ".join(words)  # its identity comes later
    words.append(f"bench.hostname={hostname}")
    if place.bridge is not None:
        words += [f"bench.address={place.address}/{place.prefix}", f"bench.gateway={place.gateway}"]
    return " ".join(words)


def fixed_words(settings: VmSettings) -> tuple[str, ...]:
    """Those that all guests of a profile have."""
    root = (f"bench.root={settings.storage}",) if settings.storage in SHARED else ()
    start = ("bench.start=clone",) if settings.start == "clone" else ()
    off = ("reboot=t",) if settings.machine == MICROVM else ()  # it has neither ACPI nor a keyboard controller
    far = DAX_WORDS if settings.storage == "shared-dax" else ()
    return (*CMDLINE, *off, *far, *root, *start)


def mac_of(address: str) -> str:
    """A MAC that is unique while the address is: a locally administered prefix and the address's four bytes."""
    return "52:54:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def _slots(settings: VmSettings) -> Iterator[Address] | None:
    """Where the devices go; None leaves it to libvirt, which knows no place for them on microvm."""
    if settings.machine == MICROVM:
        return itertools.repeat(MmioAddress())
    if settings.devices == "minimal":
        return (PciAddress(slot=f"0x{slot:02x}") for slot in range(2, 32))
    return None


def _controllers(serial: Address) -> tuple[Controller, ...]:
    """No USB, and the ports' controller on the root bus."""
    return (
        Controller(type="usb", model="none"),
        Controller(type="virtio-serial", index=0, ports=4, address=serial),  # port 0 is the console's
    )


def _disk(settings: VmSettings, place: Place, address: Address | None) -> Disk:
    alone = settings.storage not in SHARED
    flags = (None, None) if alone else (True, True)
    return Disk(format=disk_format(settings), file=place.disk, readonly=flags[0], shared=flags[1], address=address)


def _interface(spec: InstanceSpec, place: Place, address: Address | None) -> Interface | None:
    if place.bridge is None:
        return None
    return Interface(mac=mac_of(place.address), bridge=place.bridge, target=spec.netdev, address=address)


def _balloon(settings: VmSettings, address: Address | None) -> Balloon | None:
    """None leaves it to libvirt, which adds one."""
    if settings.balloon == "none":
        return Balloon(model="none")
    if settings.balloon == "reporting":
        return Balloon(model="virtio", reporting="on", address=address)
    return Balloon(model="virtio", address=address) if address else None


def _pmem(place: Place, ram: int) -> list[str]:
    """The root as persistent memory, beside a guest's RAM (bytes)."""
    most = -(-ram // MIB) * MIB + place.size  # libvirt gives RAM in MiB
    return [
        "-machine", DAX_MACHINE,
        "-m", f"slots=1,maxmem={most}B",
        "-object", f"{DAX_BACKEND},mem-path={place.disk},size={place.size}",
        "-device", DAX_DEVICE,
    ]  # fmt: skip


def _arguments(settings: VmSettings, memory: Memory | None, root: Sequence[str]) -> Arguments | None:
    """What libvirt has no words for."""
    words = ["-machine", BARE_CHIPSET] if settings.chipset == "bare" and settings.machine != MICROVM else []
    if memory:
        share = "on" if memory.shared else "off"
        words += [
            "-object", f"memory-backend-file,id=bench-ram,mem-path={memory.path},size={memory.size},share={share}",
            "-machine", "memory-backend=bench-ram",
        ]  # fmt: skip
        words += [] if memory.shared else ["-incoming", "defer"]
    words += root
    return Arguments(words=tuple(Argument(value=word) for word in words)) if words else None
