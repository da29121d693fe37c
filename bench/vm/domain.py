"""The domain of one guest: from what a scenario asks for to the elements that libvirt reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bench.model import MIB, InstanceSpec, VmSettings
from bench.vm.elements import (
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
SLOW_CPU_QUERY = "cpu-unavailable-features"
"""With it libvirt asks QEMU for each of some 400 CPU features by itself; without, for the sets of them in two calls."""
AccelName = Literal["kvm", "tcg"]


@dataclass(frozen=True)
class Place:
    """What one guest gets from this host: files, sockets, address."""

    disk: str
    console: str
    payload: str
    agent: str
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
    memory: Memory | None = None,
) -> Domain:  # fmt: skip
    """One guest. What its settings don't say is libvirt's default: that is what `vm:stock` stands for.

    With `memory` it is a template of clones (shared) or a clone, which waits for the template's state.
    """
    minimal = settings.devices == "minimal"
    slots = (PciAddress(slot=f"0x{slot:02x}") for slot in range(2, 32)) if minimal else None
    cache = settings.tb_cache if accel == "tcg" else None
    return Domain(
        type=domain_type(accel),
        name=domain_name(spec.id),
        run=Run(id=spec.run),
        memory=ram_of(spec, settings),
        apart=None if settings.ksm else True,
        vcpus=math.ceil(spec.limits.cpus),
        quota=cpu_quota(spec.limits.cpus),
        boot=DirectBoot(
            machine=settings.machine, kernel=kernel.vmlinuz, initrd=initrd, cmdline=cmdline(spec.id, place, settings)
        ),
        tb_cache=None if cache is None else cache // MIB,
        tb_cache_unit=None if cache is None else "MiB",
        cpu="host-passthrough" if accel == "kvm" else None,
        controllers=_controllers(next(slots)) if slots else (),
        disk=_disk(settings, place, next(slots) if slots else None),
        interface=_interface(spec, place, next(slots) if slots else None),
        console=Serial(path=place.console),
        channels=(Channel(path=place.payload, name=PAYLOAD_PORT), Channel(path=place.agent, name=AGENT_PORT)),
        balloon=_balloon(settings, next(slots) if slots else None),
        arguments=_arguments(memory) if memory else None,
        capabilities=None
        if settings.cpu_query == "each"
        else Capabilities(unused=(Unused(capability=SLOW_CPU_QUERY),)),
    )


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


def cmdline(hostname: str, place: Place, settings: VmSettings) -> str:
    """The kernel command line; what differs from guest to guest is in its bench.* words, read by vm/guest/init."""
    words = list(fixed_words(settings))
    if settings.start == "clone":
        return " ".join(words)  # its identity comes later
    words.append(f"bench.hostname={hostname}")
    if place.bridge is not None:
        words += [f"bench.address={place.address}/{place.prefix}", f"bench.gateway={place.gateway}"]
    return " ".join(words)


def fixed_words(settings: VmSettings) -> tuple[str, ...]:
    """Those that all guests of a profile have."""
    root = ("bench.root=shared-ro",) if settings.storage == "shared-ro" else ()
    start = ("bench.start=clone",) if settings.start == "clone" else ()
    return (*CMDLINE, *root, *start)


def mac_of(address: str) -> str:
    """A MAC that is unique while the address is: a locally administered prefix and the address's four bytes."""
    return "52:54:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def _controllers(serial: PciAddress) -> tuple[Controller, ...]:
    """No USB, and the ports' controller on the root bus."""
    return (
        Controller(type="usb", model="none"),
        Controller(type="virtio-serial", index=0, ports=4, address=serial),  # port 0 is the console's
    )


def _disk(settings: VmSettings, place: Place, address: PciAddress | None) -> Disk:
    alone = settings.storage != "shared-ro"
    flags = (None, None) if alone else (True, True)
    return Disk(format=disk_format(settings), file=place.disk, readonly=flags[0], shared=flags[1], address=address)


def _interface(spec: InstanceSpec, place: Place, address: PciAddress | None) -> Interface | None:
    if place.bridge is None:
        return None
    return Interface(mac=mac_of(place.address), bridge=place.bridge, target=spec.netdev, address=address)


def _balloon(settings: VmSettings, address: PciAddress | None) -> Balloon | None:
    """None leaves it to libvirt, which adds one."""
    if settings.balloon == "none":
        return Balloon(model="none")
    if settings.balloon == "reporting":
        return Balloon(model="virtio", reporting="on", address=address)
    return Balloon(model="virtio", address=address) if address else None


def _arguments(memory: Memory) -> Arguments:
    share = "on" if memory.shared else "off"
    words = [
        "-object", f"memory-backend-file,id=bench-ram,mem-path={memory.path},size={memory.size},share={share}",
        "-machine", "memory-backend=bench-ram",
    ]  # fmt: skip
    if not memory.shared:
        words += ["-incoming", "defer"]
    return Arguments(words=tuple(Argument(value=word) for word in words))
