"""Domain XML from small declarative classes: one per element, each field saying where in the element it goes.

A field's annotation holds its place: `@type` is an attribute of the element itself, `source/@file` one of a child,
`name` a child's text, `.` a child element (or several) with fields of its own. None leaves a field out, True writes an
empty child.
"""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_type_hints

NAMESPACE = "urn:tenancy-bench"
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
DomainType = Literal["kvm", "qemu"]
DiskFormat = Literal["raw", "qcow2"]
ET.register_namespace("bench", NAMESPACE)
ET.register_namespace("qemu", QEMU_NAMESPACE)


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
class PciAddress(Element):
    """A place on the root bus itself; without it libvirt adds a PCI bridge for each device, for hot plugging."""

    TAG = "address"
    type: Annotated[str, "@type"] = "pci"
    bus: Annotated[str, "@bus"] = "0x00"
    slot: Annotated[str, "@slot"]


@dataclass(frozen=True, kw_only=True)
class MmioAddress(Element):
    """On a machine without PCI: the next of its virtio-mmio transports. libvirt has to be told, it looks for PCI."""

    TAG = "address"
    type: Annotated[str, "@type"] = "virtio-mmio"


Address = PciAddress | MmioAddress


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
    readonly: Annotated[bool | None, "readonly"] = None
    shared: Annotated[bool | None, "shareable"] = None
    address: Annotated[Address | None, "."] = None


@dataclass(frozen=True, kw_only=True)
class Interface(Element):
    """A tap on `bridge`, named `target` on the host."""

    TAG = "interface"
    type: Annotated[str, "@type"] = "bridge"
    mac: Annotated[str, "mac/@address"]
    bridge: Annotated[str, "source/@bridge"]
    target: Annotated[str, "target/@dev"]
    model: Annotated[str, "model/@type"] = "virtio"
    address: Annotated[Address | None, "."] = None


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
class Controller(Element):
    """Said only to have less than libvirt would add, or elsewhere."""

    TAG = "controller"
    type: Annotated[str, "@type"]
    model: Annotated[str | None, "@model"] = None
    index: Annotated[int | None, "@index"] = None
    ports: Annotated[int | None, "@ports"] = None
    address: Annotated[Address | None, "."] = None


@dataclass(frozen=True, kw_only=True)
class Balloon(Element):
    TAG = "memballoon"
    model: Annotated[str, "@model"]
    reporting: Annotated[str | None, "@freePageReporting"] = None
    address: Annotated[Address | None, "."] = None


@dataclass(frozen=True, kw_only=True)
class Argument(Element):
    """One word of QEMU's command line that libvirt's XML has no place for."""

    TAG = f"{{{QEMU_NAMESPACE}}}arg"
    value: Annotated[str, "@value"]


@dataclass(frozen=True, kw_only=True)
class Arguments(Element):
    TAG = f"{{{QEMU_NAMESPACE}}}commandline"
    words: Annotated[tuple[Argument, ...], "."]


@dataclass(frozen=True, kw_only=True)
class Unused(Element):
    """A capability of this QEMU that libvirt is told not to use for this domain."""

    TAG = f"{{{QEMU_NAMESPACE}}}del"
    capability: Annotated[str, "@capability"]


@dataclass(frozen=True, kw_only=True)
class Capabilities(Element):
    TAG = f"{{{QEMU_NAMESPACE}}}capabilities"
    unused: Annotated[tuple[Unused, ...], "."]


@dataclass(frozen=True, kw_only=True)
class Domain(Element):
    """What is not said here is libvirt's default: that is what `vm:stock` stands for."""

    TAG = "domain"
    type: Annotated[DomainType, "@type"]
    name: Annotated[str, "name"]
    run: Annotated[Run, "metadata/."]
    memory: Annotated[int, "memory"]
    memory_unit: Annotated[str, "memory/@unit"] = "bytes"
    apart: Annotated[bool | None, "memoryBacking/nosharepages"] = None
    vcpus: Annotated[int, "vcpu"]
    quota: Annotated[CpuQuota | None, "."] = None
    boot: Annotated[DirectBoot, "."]
    acpi: Annotated[bool | None, "features/acpi"] = True  # without it a guest can't power itself off
    apic: Annotated[bool | None, "features/apic"] = True
    tb_cache: Annotated[int | None, "features/tcg/tb-cache"] = None
    tb_cache_unit: Annotated[str | None, "features/tcg/tb-cache/@unit"] = None
    cpu: Annotated[str | None, "cpu/@mode"] = None
    on_poweroff: Annotated[str, "on_poweroff"] = "destroy"
    on_reboot: Annotated[str, "on_reboot"] = "destroy"  # with panic=-1: the end of a guest that panics is seen at once
    on_crash: Annotated[str, "on_crash"] = "destroy"
    controllers: Annotated[tuple[Controller, ...], "devices/."] = ()
    disk: Annotated[Disk | None, "devices/."] = None
    interface: Annotated[Interface | None, "devices/."] = None
    console: Annotated[Serial, "devices/."]
    channels: Annotated[tuple[Channel, ...], "devices/."] = ()
    balloon: Annotated[Balloon | None, "devices/."] = None
    arguments: Annotated[Arguments | None, "."] = None
    capabilities: Annotated[Capabilities | None, "."] = None

    def text(self) -> str:
        node = self.xml()
        ET.indent(node)
        return ET.tostring(node, encoding="unicode") + "\n"
