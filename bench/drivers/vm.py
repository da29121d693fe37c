"""Adapter to bench.vm: QEMU guests through libvirt, one domain an instance, the root made of the image's layers."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from bench import process
from bench.drivers.context import RunContext
from bench.drivers.network import netdevs
from bench.drivers.ready import marks, wait_endpoint
from bench.errors import BenchError, HostError, UsageError
from bench.images import disks
from bench.images.build import find_busybox
from bench.linux.netlink import delete_link
from bench.linux.subreaper import Reaper, become_subreaper
from bench.model import (
    DRIVER_LETTERS,
    Completed,
    Footprint,
    HostFacts,
    InstanceSpec,
    Leftover,
    PhaseLog,
    RunId,
    Support,
    VmSettings,
    token_of,
)  # fmt: skip
from bench.paths import cache_dir, run_state
from bench.vm import accel, connection, domain, groups, initramfs, reap
from bench.vm.accel import Accel
from bench.vm.kernel import GuestKernel, fetch_kernel, guest_kernel
from bench.vm.machine import Guest, Host, Order, boot

_PROGRAMS = {accel.QEMU: "qemu-system-x86", "qemu-img": "qemu-utils", "mkfs.ext4": "e2fsprogs", "depmod": "kmod"}
LOGS = ("console.log", "payload.log")
_PER_GUEST = "bench.hostname=ID bench.address=IP/PREFIX bench.gateway=IP"
_CHOICES = {
    "domain": "as libvirt completed it, and QEMU's argv: logs/ID.xml, logs/ID.argv",
    "disk": "each guest's own, made within its launch, before `created`",
    "memory": "limits.memory is the guest's RAM; the hypervisor's own memory comes on top and is not limited",
    "cpus": "vCPUs are limits.cpus rounded up; a CPU quota for hypervisor and vCPUs together only if it is a fraction",
    "pids": "limits.pids is not applied: the guest's kernel has its own limit",
}  # fmt: skip


class Prepared(Struct, frozen=True):
    """What all guests of one image, payload and profile share."""

    kernel: GuestKernel
    initrd: str
    template: str
    accel: Accel


class VmInstance:
    """One guest, as the contract wants it."""

    def __init__(
        self, spec: InstanceSpec, guest: Guest, address: str | None, own: Sequence[str], shared: Sequence[str]
    ) -> None:
        self._spec, self._guest, self._own, self._shared = spec, guest, tuple(own), tuple(shared)
        self.address = address

    @property
    def id(self) -> str:
        return self._spec.id

    @property
    def pid(self) -> int:
        """Host pid of its QEMU."""
        return self._guest.pid

    def alive(self) -> bool:
        return self._guest.alive()

    def wait_ready(self, timeout: float) -> None:
        ready = self._spec.payload.ready
        if ready.line is not None:
            self._guest.wait_line(ready.line, timeout)
            return
        at = wait_endpoint(ready, self.address, time.monotonic() + timeout, self.alive)
        if at is None:
            raise self._guest.not_ready(timeout) if self.alive() else self._guest.ended()
        self._guest.ready_at(at)

    def exec(self, argv: Sequence[str], *, timeout: float) -> Completed:
        return self._guest.exec(argv, timeout)

    def stop(self, timeout: float) -> None:
        self._guest.stop(timeout)

    def kill(self) -> None:
        self._guest.kill()

    def footprint(self) -> Footprint:
        alive = self.alive()
        return Footprint(
            instance=self.id, pids=(self._guest.pid,) if alive else (), cgroups=self._guest.cgroups if alive else {},
            disk_own=self._own, disk_shared=self._shared, netdev=self._spec.netdev if self.address else None,
        )  # fmt: skip


class VmDriver:
    name = "vm"

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._cache = cache_dir()
        self._host: Host | None = None
        self._prepared: dict[bytes, Prepared] = {}
        self._found: Accel | None = None  # what a guest boots under when nothing is forced

    def support(self, host: HostFacts) -> Support:
        try:
            return self._check(host)
        except BenchError as error:
            return Support(False, error.message, error.hint or "see the log")
        except OSError as error:
            return Support(False, str(error), "free space in the cache folder, or set BENCH_CACHE to another")

    def _check(self, host: HostFacts) -> Support:
        if not host.root:
            return Support(False, "needs root (taps, cgroups, libvirt's QEMU driver)", "run it with sudo")
        for program, package in _PROGRAMS.items():
            if shutil.which(program, path=process.clean_env()["PATH"]) is None:
                return Support(False, f"{program} is not installed", f"apt-get install {package}")
        if importlib.util.find_spec("libvirt") is None:
            return Support(False, "libvirt-python is not installed", connection.INSTALL)
        kernel = guest_kernel(self._cache)
        find_busybox()
        if self._context.connect is None:
            connection.check_embed()
        found = accel.accelerator(self._cache, kernel)
        self._found = found
        return Support(True, f"guests run under {found.name}: {found.reason}")

    def describe(self) -> Mapping[str, str]:
        known = {"qemu": _or_why(accel.qemu_version), **_CHOICES}
        if self._found is not None:
            known |= {"accelerator": self._found.name, "accelerator reason": self._found.reason}
        if self._host is not None:
            opened = self._host.connection
            known |= {"libvirt": opened.version(), "uri": opened.uri, "qemu user": opened.user}
        for prepared in self._prepared.values():
            known |= {
                "guest kernel": prepared.kernel.package, "accelerator": prepared.accel.name,
                "accelerator reason": prepared.accel.reason, "initramfs": prepared.initrd,
                "disk template": prepared.template, "kernel command line": " ".join((*domain.CMDLINE, _PER_GUEST)),
            }  # fmt: skip
        return known

    def prepare(self, spec: InstanceSpec) -> None:
        key = _key(spec)
        if key in self._prepared:
            return
        settings = _settings(spec)
        kernel = fetch_kernel(self._cache) if not _has_kernel(self._cache) else guest_kernel(self._cache)
        prepared = Prepared(
            kernel=kernel,
            initrd=str(initramfs.payload_initramfs(self._cache, kernel, spec.image, spec.payload)),
            template=str(disks.ext4_template(self._context.images, spec.image, settings.disk)),
            accel=accel.accelerator(self._cache, kernel, settings.accel),
        )
        if settings.network == "bridge":
            self._context.network.ensure()
        self._open(settings.machine, prepared.accel)
        self._prepared[key] = prepared

    def _open(self, machine: str, found: Accel) -> None:
        """Connect, once, and have libvirt learn what it would otherwise learn within the first launch."""
        if self._host is None:
            opened = connection.connect(self._context.state, self._cache, self._context.connect)
            self._host = Host(opened, self._context.hub, Reaper())
        opened = self._host.connection
        opened.learn(machine, domain.domain_type(found.name))
        connection.keep_capabilities(opened, self._cache)
        become_subreaper()  # not before: libvirt waits for the QEMUs it asks to be reaped, see Reaper.sweep

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> Iterator[VmInstance]:
        prepared, host = self._prepared.get(_key(spec)), self._host
        if prepared is None or host is None:
            raise UsageError(f"{spec.id} was not prepared")
        with ExitStack() as stack:
            place = self._place(spec, stack)
            disk = stack.enter_context(_own_disk(Path(place.disk), Path(prepared.template), _settings(spec)))
            xml = domain.stock_domain(
                spec, _settings(spec), prepared.accel.name, prepared.kernel, prepared.initrd, place
            )
            order = Order(spec.id, xml, marks(spec.payload.ready), Path(spec.logs) if spec.logs else None)
            stack.callback(_drop_link, spec.netdev)  # after the guest: its tap goes with its hypervisor, if all is well
            guest = stack.enter_context(boot(host, order, phases))
            own = [str(disk), *(str(path) for path in map(order.log, LOGS) if path is not None)]
            yield VmInstance(spec, guest, place.address or None, own, _shared(prepared, _settings(spec)))

    def _place(self, spec: InstanceSpec, stack: ExitStack) -> domain.Place:
        """Files, sockets and address of one guest; the address is given back by `stack`."""
        network, state = self._context.network, self._context.state
        socket = str(_folder(state / "sockets") / str(spec.number))
        disk = str(_folder(state / "disks") / f"{spec.id}.{domain.disk_format(_settings(spec))}")
        place = domain.Place(disk, f"{socket}c", f"{socket}p", f"{socket}a")
        if _settings(spec).network == "none":
            return place
        at = network.allocate()
        stack.callback(network.release, at)
        return dataclasses.replace(place, bridge=at.bridge, address=at.address, prefix=at.prefix, gateway=at.gateway)

    def reap(self, run: RunId) -> Sequence[Leftover]:
        state = self._context.state if run == self._context.run else run_state(run)
        found = reap.reap_guests(run, state)
        letter = f"bn{token_of(run)}{DRIVER_LETTERS[self.name]}"
        found += [Leftover("netdev", name) for name in netdevs(run) if name.startswith(letter) and delete_link(name)]
        return found

    def close(self) -> None:
        if self._host is not None:
            self._host.connection.close()
            self._host.reaper.close()
            self._host = None
            groups.drop_empty_parents()
        for folder in reap.FOLDERS:
            shutil.rmtree(self._context.state / folder, ignore_errors=True)
        self._prepared.clear()


def _or_why(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except BenchError as error:
        return f"not known: {error.message}"


def _has_kernel(cache: Path) -> bool:
    try:
        guest_kernel(cache)
    except HostError:
        return False
    return True


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _own_disk(path: Path, template: Path, settings: VmSettings) -> Iterator[Path]:
    """The guest's own disk, removed at the end."""
    try:
        if settings.storage == "copy":
            disks.copy_disk(template, path)
        else:
            disks.qcow2_overlay(template, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _drop_link(name: str) -> None:
    if os.path.exists(f"/sys/class/net/{name}"):
        delete_link(name)


def _shared(prepared: Prepared, settings: VmSettings) -> list[str]:
    backing = [prepared.template] if settings.storage == "qcow2-backing" else []
    return [*backing, prepared.kernel.vmlinuz, prepared.initrd]


def _settings(spec: InstanceSpec) -> VmSettings:
    if not isinstance(spec.settings, VmSettings):
        raise TypeError(type(spec.settings))
    return spec.settings


def _key(spec: InstanceSpec) -> bytes:
    """What `prepare` depends on."""
    return msgspec.json.encode((spec.image.digest, spec.payload, spec.settings))
