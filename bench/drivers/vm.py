"""Adapter to bench.vm: QEMU guests through libvirt, one domain an instance, the root made of the image's layers."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from bench import process
from bench.drivers.context import RunContext
from bench.drivers.network import netdevs
from bench.drivers.ready import marks, wait_endpoint
from bench.errors import BenchError, HostError, UsageError
from bench.images.build import find_busybox
from bench.linux.interfaces import delete_together
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
    condition_text,
    profile_name,
    token_of,
)
from bench.paths import cache_dir, run_state
from bench.vm import accel, connection, domain, groups, reap, supplies
from bench.vm.accel import Accel
from bench.vm.identity import SEED, Identity
from bench.vm.kernel import guest_kernel
from bench.vm.machine import Guest, Host, Order, boot, save_template
from bench.vm.supplies import Supplies

_PROGRAMS = {accel.QEMU: "qemu-system-x86", "qemu-img": "qemu-utils", "mkfs.ext4": "e2fsprogs", "depmod": "kmod"}
LOGS = ("console.log", "payload.log")
_TEMPLATE_TIMEOUT = 120.0  # seconds a template has to boot in
_CHOICES = {
    "domain": "as libvirt completed it, and QEMU's argv: logs/ID.xml, logs/ID.argv",
    "disk": "each guest's own, made within its launch, before `created`",
    "memory": "limits.memory is the guest's RAM; the hypervisor's own memory comes on top and is not limited",
    "cpus": "vCPUs are limits.cpus rounded up; a CPU quota for hypervisor and vCPUs together only if it is a fraction",
    "pids": "limits.pids is not applied: the guest's kernel has its own limit",
}  # fmt: skip


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

    def cause_of_death(self) -> str | None:
        return self._guest.cause_of_death()

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
        if _settings(self._spec).stop == "destroy":
            self._guest.kill()
        else:
            self._guest.stop(timeout)

    def kill(self) -> None:
        self._guest.kill()

    def footprint(self) -> Footprint:
        alive = self.alive()
        return Footprint(
            instance=self.id, pids=(self._guest.pid,) if alive else (), cgroups=self._guest.cgroups if alive else {},
            disk_own=self._own, disk_shared=self._shared, netdev=self._spec.netdev if self.address else None,
            ram=self._guest.ram if alive else None,
        )  # fmt: skip


class VmDriver:
    name = "vm"

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._cache = cache_dir()
        self._host: Host | None = None
        self._prepared: dict[bytes, tuple[InstanceSpec, Supplies]] = {}
        self._names: dict[str, bytes] = {}  # profile and condition -> key of what is prepared for it
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
        for name, key in self._names.items():
            spec, made = self._prepared[key]
            known |= {"accelerator": made.accel.name, "accelerator reason": made.accel.reason}
            known |= supplies.describe(name, made, _settings(spec))
        return known

    def prepare(self, spec: InstanceSpec) -> None:
        key, settings = _key(spec), _settings(spec)
        domain.check(settings)
        if settings.network == "bridge":
            self._context.network.ensure(spec.ramp)  # also where all else is there: this ramp may be a longer one
        if key not in self._prepared:
            self._prepared[key] = spec, self._supply(spec, settings)
        self._names[profile_name(spec.profile, condition_text(spec.condition))] = key

    def _supply(self, spec: InstanceSpec, settings: VmSettings) -> Supplies:
        made = supplies.supply(self._cache, self._context.images, spec, settings)
        host = self._open(settings.machine, made.accel)
        if not settings.thp and not host.connection.embedded:
            raise HostError(
                f"guests of {host.connection.uri} can't be kept from huge pages: they are not our children",
                hint="--set vm.thp=true, or leave --connect out",
            )
        return self._with_template(host, spec, made) if settings.start == "clone" else made

    def _with_template(self, host: Host, spec: InstanceSpec, made: Supplies) -> Supplies:
        """Boot the guest that clones start from, and save it."""
        size = domain.ram_of(spec, _settings(spec))
        memory = reap.memory_folder(spec.run) / secrets.token_hex(8)  # others can't list the folder, nor guess this
        memory.parent.mkdir(mode=0o711, exist_ok=True)
        memory.touch(0o600)
        memory.chmod(0o666)  # QEMU may run as another user
        state = _folder(self._context.state / "templates") / memory.name
        spec = msgspec.structs.replace(spec, logs=str(state.parent))  # the run has no folder for logs yet
        with ExitStack() as stack:
            order = self._order(spec, made, stack, domain.Memory(str(memory), size, shared=True))
            saved = save_template(host, order, memory, size, state, _TEMPLATE_TIMEOUT)
        return msgspec.structs.replace(made, saved=saved)

    def _open(self, machine: str, found: Accel) -> Host:
        """Connect, once, and have libvirt learn what it would otherwise learn within the first launch."""
        if self._host is None:
            opened = connection.connect(self._context.state, self._cache, self._context.connect)
            self._host = Host(opened, self._context.hub, Reaper())
        opened = self._host.connection
        opened.learn(machine, domain.domain_type(found.name))
        connection.keep_capabilities(opened, self._cache)
        become_subreaper()  # not before: libvirt waits for the QEMUs it asks to be reaped, see Reaper.sweep
        return self._host

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: PhaseLog) -> Iterator[VmInstance]:
        _, made = self._prepared.get(_key(spec), (spec, None))
        if made is None or self._host is None:
            raise UsageError(f"{spec.id} was not prepared")
        with ExitStack() as stack:
            order = self._order(spec, made, stack)
            guest = stack.enter_context(boot(self._host, order, phases))
            own = [*order.own, *(str(path) for path in map(order.log, LOGS) if path is not None)]
            yield VmInstance(spec, guest, order.address, own, supplies.shared_files(made, _settings(spec)))

    def sources(self, spec: InstanceSpec) -> Sequence[str]:
        """The disk guests have or are given a copy of, their kernel and initramfs, and QEMU's own program."""
        _, made = self._prepared[_key(spec)]
        qemu = shutil.which(accel.QEMU, path=process.clean_env()["PATH"])
        return (made.root, made.kernel.vmlinuz, made.initrd, *([qemu] if qemu else []))

    def _order(
        self, spec: InstanceSpec, made: Supplies, stack: ExitStack, template: domain.Memory | None = None
    ) -> Order:
        """One guest with what it gets from this host, which `stack` takes back; clones start from a `template`."""
        settings = _settings(spec)
        place = self._place(spec, stack)
        disk, own = stack.enter_context(supplies.root_disk(Path(place.disk), made, settings))
        place = dataclasses.replace(place, disk=disk, size=os.stat(disk).st_size)
        memory = template
        if made.saved:
            memory = domain.Memory(made.saved.memory, made.saved.size, shared=False)
        stack.callback(_drop_link, spec.netdev)  # after the guest: its tap goes with its hypervisor, if all is well
        return Order(
            id=spec.id,
            domain=domain.make_domain(
                spec, settings, made.accel.name, made.kernel, made.initrd, place, memory, made.words
            ),
            marks=marks(spec.payload.ready),
            logs=Path(spec.logs) if spec.logs else None,
            huge_pages=settings.thp,
            saved=made.saved,
            identity=_identity(spec, settings, place) if made.saved else None,
            own=own,
            address=place.address or None,
        )

    def _place(self, spec: InstanceSpec, stack: ExitStack) -> domain.Place:
        """Files, sockets and address of one guest; the address is given back by `stack`."""
        network, state = self._context.network, self._context.state
        socket = str(_folder(state / "sockets") / str(spec.number))
        disk = str(_folder(self._context.place / "disks") / f"{spec.id}.{domain.disk_format(_settings(spec))}")
        place = domain.Place(disk, f"{socket}c", f"{socket}p", f"{socket}a")
        if _settings(spec).network == "none":
            return place
        at = network.allocate()
        stack.callback(network.release, at)
        return dataclasses.replace(place, bridge=at.bridge, address=at.address, prefix=at.prefix, gateway=at.gateway)

    def reap(self, run: RunId) -> Sequence[Leftover]:
        state = self._context.state if run == self._context.run else run_state(run)
        letter = f"bn{token_of(run)}{DRIVER_LETTERS[self.name]}"
        taps = [name for name in netdevs(run) if name.startswith(letter)]
        links = [
            Leftover("netdev", name) for name in delete_together(taps)
        ]  # first: a QEMU that ends takes its own along
        return [*reap.reap_guests(run, state), *links]

    def close(self) -> None:
        if self._host is not None:
            self._host.connection.close()
            self._host.reaper.close()
            self._host = None
            groups.drop_empty_parents()
        for folder in (*(self._context.state / name for name in reap.FOLDERS), reap.memory_folder(self._context.run)):
            shutil.rmtree(folder, ignore_errors=True)
        self._names.clear()
        self._prepared.clear()


def _or_why(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except BenchError as error:
        return f"not known: {error.message}"


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _identity(spec: InstanceSpec, settings: VmSettings, place: domain.Place) -> Identity:
    return Identity(
        hostname=spec.id, seed=secrets.token_bytes(SEED) if settings.reseed else None,
        mac=domain.mac_of(place.address) if place.address else "",
        address=place.address, prefix=place.prefix, gateway=place.gateway,
    )  # fmt: skip


def _drop_link(name: str) -> None:
    if os.path.exists(f"/sys/class/net/{name}"):
        delete_link(name)


def _settings(spec: InstanceSpec) -> VmSettings:
    if not isinstance(spec.settings, VmSettings):
        raise TypeError(type(spec.settings))
    return spec.settings


def _key(spec: InstanceSpec) -> bytes:
    """What `prepare` depends on."""
    return msgspec.json.encode((spec.image.digest, spec.payload, spec.limits, spec.settings))
