"""Domain XML from small declarative classes: one per element, each field saying where in the element it goes.

A field's annotation holds its place: `@type` is an attribute of the element itself, `source/@file` one of a child,
`name` a child's text, `.` a child element (or several) with fields of its own. None leaves a field out, True writes an
empty child.
"""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_type_hints

from bench.model import InstanceSpec, VmSettings
from bench.vm.kernel import GuestKernel

NAMESPACE = "urn:tenancy-bench"
PAYLOAD_PORT = "bench.payload"
AGENT_PORT = "bench.agent"
QUOTA_PERIOD = 100_000  # microseconds; the container's CPU quota uses the same period
CMDLINE = ("console=ttyS0", "earlyprintk=ttyS0,115200", "panic=-1", "rdinit=/init")
"""earlyprintk, as in Debian's cloud images: the kernel speaks long before its console driver is up."""
DomainType = Literal["kvm", "qemu"]
AccelName = Literal["kvm", "tcg"]
DiskFormat = Literal["raw", "qcow2"]
ET.register_namespace("bench", NAMESPACE)


@dataclass(frozen=True, kw_only=True)
class Element:
    """Base of all: knows its tag, and how to write itself."""

    TAG: ClassVar[str]

    def xml(self) -> ET.Element:
        node = ET.Element(self.TAG)
        for name, path in places(type(self)).items():
            _put(node, path, getattr(self, name))
        return node


def places(kind: type[Element]) -> dict[str, str]:
    """Field -> where it is written."""
    if (found := _PLACES.get(kind.__name__)) is None:
        hints = get_type_hints(kind, include_extras=True)
        found = {field.name: hints[field.name].__metadata__[0] for field in dataclasses.fields(kind)}
        _PLACES[kind.__name__] = found  # resolving annotations takes a millisecond, and launching is timed
    return found


_PLACES: dict[str, dict[str, str]] = {}


def _put(node: ET.Element, path: str, value: object) -> None:
    if value is None or value == ():
        return
    *parents, last = path.split("/")
    for name in parents:
        node = _child(node, name)
    if last == ".":
        node.extend(element.xml() for element in _elements(value))
    elif last.startswith("@"):
        node.set(last[1:], str(value))
    else:
        _child(node, last).text = None if value is True else str(value)


def _child(node: ET.Element, name: str) -> ET.Element:
    found = node.find(name)
    return ET.SubElement(node, name) if found is None else found


def _elements(value: object) -> Iterator[Element]:
    for item in value if isinstance(value, tuple) else (value,):
        assert isinstance(item, Element), item
        yield item


@dataclass(frozen=True, kw_only=True)
class Run(Element):
    """Whose domain this is, for whoever finds it."""

    TAG = f"{{{NAMESPACE}}}run"
    id: Annotated[str, "@id"]


@dataclass(frozen=True, kw_only=True)
class DirectBoot(Element):
    """Kernel and initramfs handed over by QEMU: no boot loader, no disk read before the kernel runs."""

    TAG = "os"
    type: Annotated[str, "type"] = "hvm"
    arch: Annotated[str, "type/@arch"] = "x86_64"
    machine: Annotated[str, "type/@machine"]
    kernel: Annotated[str, "kernel"]
    initrd: Annotated[str, "initrd"]
    cmdline: Annotated[str, "cmdline"]


@dataclass(frozen=True, kw_only=True)
class CpuQuota(Element):
    """Microseconds of CPU in each period, for the whole domain: libvirt counts hypervisor and vCPUs together."""

    TAG = "cputune"
    period: Annotated[int, "global_period"]
    quota: Annotated[int, "global_quota"]


@dataclass(frozen=True, kw_only=True)
class Disk(Element):
    TAG = "disk"
    type: Annotated[str, "@type"] = "file"
    device: Annotated[str, "@device"] = "disk"
    driver: Annotated[str, "driver/@name"] = "qemu"
    format: Annotated[DiskFormat, "driver/@type"]
    file: Annotated[str, "source/@file"]
    target: Annotated[str, "target/@dev"] = "vda"
    bus: Annotated[str, "target/@bus"] = "virtio"


@dataclass(frozen=True, kw_only=True)
class Interface(Element):
    """A tap on `bridge`, named `target` on the host."""

    TAG = "interface"
    type: Annotated[str, "@type"] = "bridge"
    mac: Annotated[str, "mac/@address"]
    bridge: Annotated[str, "source/@bridge"]
    target: Annotated[str, "target/@dev"]
    model: Annotated[str, "model/@type"] = "virtio"


@dataclass(frozen=True, kw_only=True)
class Serial(Element):
    """The console. QEMU connects to a socket that we listen on already, so that no byte is lost."""

    TAG = "serial"
    type: Annotated[str, "@type"] = "unix"
    mode: Annotated[str, "source/@mode"] = "connect"
    path: Annotated[str, "source/@path"]
    port: Annotated[int, "target/@port"] = 0


@dataclass(frozen=True, kw_only=True)
class Channel(Element):
    """A virtio-serial port, seen in the guest under `name`."""

    TAG = "channel"
    type: Annotated[str, "@type"] = "unix"
    mode: Annotated[str, "source/@mode"] = "connect"
    path: Annotated[str, "source/@path"]
    bus: Annotated[str, "target/@type"] = "virtio"
    name: Annotated[str, "target/@name"]


@dataclass(frozen=True, kw_only=True)
class Domain(Element):
    """What is not said here is libvirt's default: that is what `vm:stock` stands for."""

    TAG = "domain"
    type: Annotated[DomainType, "@type"]
    name: Annotated[str, "name"]
    run: Annotated[Run, "metadata/."]
    memory: Annotated[int, "memory"]
    memory_unit: Annotated[str, "memory/@unit"] = "bytes"
    vcpus: Annotated[int, "vcpu"]
    quota: Annotated[CpuQuota | None, "."] = None
    boot: Annotated[DirectBoot, "."]
    acpi: Annotated[bool | None, "features/acpi"] = True  # without it a guest can't power itself off
    apic: Annotated[bool | None, "features/apic"] = True
    cpu: Annotated[str | None, "cpu/@mode"] = None
    on_poweroff: Annotated[str, "on_poweroff"] = "destroy"
    on_reboot: Annotated[str, "on_reboot"] = "destroy"  # with panic=-1: the end of a guest that panics is seen at once
    on_crash: Annotated[str, "on_crash"] = "destroy"
    disk: Annotated[Disk | None, "devices/."] = None
    interface: Annotated[Interface | None, "devices/."] = None
    console: Annotated[Serial, "devices/."]
    channels: Annotated[tuple[Channel, ...], "devices/."] = ()

    def text(self) -> str:
        node = self.xml()
        ET.indent(node)
        return ET.tostring(node, encoding="unicode") + "\n"


# --- from what a scenario asks for -------------------------------------------------------------------------------


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


def domain_name(instance: str) -> str:
    return f"bench-{instance}"


def stock_domain(
    spec: InstanceSpec, settings: VmSettings, accel: AccelName, kernel: GuestKernel, initrd: str, place: Place
) -> Domain:
    """`vm:stock`: declared memory and CPUs become RAM and vCPUs, all else is libvirt's default."""
    boot = DirectBoot(machine=settings.machine, kernel=kernel.vmlinuz, initrd=initrd, cmdline=cmdline(spec.id, place))
    return Domain(
        type=domain_type(accel),
        name=domain_name(spec.id),
        run=Run(id=spec.run),
        memory=spec.limits.memory,
        vcpus=math.ceil(spec.limits.cpus),
        quota=cpu_quota(spec.limits.cpus),
        boot=boot,
        cpu="host-passthrough" if accel == "kvm" else None,
        disk=Disk(format=disk_format(settings), file=place.disk),
        interface=_interface(spec, place),
        console=Serial(path=place.console),
        channels=(Channel(path=place.payload, name=PAYLOAD_PORT), Channel(path=place.agent, name=AGENT_PORT)),
    )


def domain_type(accel: AccelName) -> DomainType:
    return "kvm" if accel == "kvm" else "qemu"


def disk_format(settings: VmSettings) -> DiskFormat:
    return "raw" if settings.storage == "copy" else "qcow2"


def cpu_quota(cpus: float) -> CpuQuota | None:
    """A quota only where vCPUs can't say it: for a fraction of a CPU."""
    if float(cpus).is_integer():
        return None
    return CpuQuota(period=QUOTA_PERIOD, quota=round(cpus * QUOTA_PERIOD))


def cmdline(hostname: str, place: Place) -> str:
    """The kernel command line; what differs from guest to guest is in its bench.* words, read by vm/guest/init."""
    words = [*CMDLINE, f"bench.hostname={hostname}"]
    if place.bridge is not None:
        words += [f"bench.address={place.address}/{place.prefix}", f"bench.gateway={place.gateway}"]
    return " ".join(words)


def mac_of(address: str) -> str:
    """A MAC that is unique while the address is: a locally administered prefix and the address's four bytes."""
    return "52:54:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def _interface(spec: InstanceSpec, place: Place) -> Interface | None:
    if place.bridge is None:
        return None
    return Interface(mac=mac_of(place.address), bridge=place.bridge, target=spec.netdev)
