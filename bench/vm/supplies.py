"""What all guests of one image, payload and profile share, and the disk that each has of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.errors import HostError
from bench.images import disks
from bench.images.store import ImageStore
from bench.model import InstanceSpec, VmSettings
from bench.vm import accel, clocks, domain, initramfs
from bench.vm.accel import Accel
from bench.vm.clone import Saved
from bench.vm.kernel import GuestKernel, fetch_kernel, guest_kernel
from bench.vm.kernel_build import build_micro

_PER_GUEST = "bench.hostname=ID bench.address=IP/PREFIX bench.gateway=IP"
_PER_CLONE = "its identity comes after it is restored"
_SETS = "libvirt is told not to use QEMU's cpu-unavailable-features, and asks for sets of CPU features instead of each"
_PMEM = f"QEMU's own options: -object {domain.DAX_BACKEND} -device nvdimm; libvirt would map the file writable"


class Supplies(Struct, frozen=True):
    """Made by `prepare`. `root` is the file system the guests' disks are made from, or all of them read."""

    kernel: GuestKernel
    initrd: str
    root: str
    accel: Accel
    words: tuple[str, ...] = ()  # of the kernel's command line, beside those that follow from the settings
    saved: Saved | None = None  # where clones start from


def supply(cache: Path, images: ImageStore, spec: InstanceSpec, settings: VmSettings) -> Supplies:
    """Make or find all of it but a template. Raises HostError, ImageError, CommandError."""
    kernel = build_micro(cache) if settings.kernel == "micro" else distribution_kernel(cache)
    found = accel.accelerator(cache, kernel, settings.accel)
    told = not settings.calibrate and found.name == "tcg"
    return Supplies(
        kernel=kernel,
        initrd=str(initramfs.payload_initramfs(cache, kernel, spec.image, spec.payload, settings.storage)),
        root=str(
            disks.erofs_image(images, spec.image, dax=settings.storage == "shared-dax")
            if settings.storage in domain.SHARED
            else disks.ext4_template(images, spec.image, settings.disk)
        ),
        accel=found,
        words=clocks.told(cache, settings.machine, domain.vcpus_of(spec.limits.cpus)) if told else (),
    )


def distribution_kernel(cache: Path) -> GuestKernel:
    """The one in the cache, else fetched."""
    try:
        return guest_kernel(cache)
    except HostError:
        return fetch_kernel(cache)


@contextmanager
def root_disk(path: Path, supplies: Supplies, settings: VmSettings) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(the disk a guest gets, files of it that are its own); those are removed at the end."""
    template = Path(supplies.root)
    if settings.storage in domain.SHARED:
        yield supplies.root, ()
        return
    make = {"copy": disks.copy_disk, "reflink": disks.reflink_disk, "qcow2-backing": disks.qcow2_overlay}
    try:
        make[settings.storage](template, path)
        yield str(path), (str(path),)
    finally:
        path.unlink(missing_ok=True)


def shared_files(supplies: Supplies, settings: VmSettings) -> tuple[str, ...]:
    """Files on disk that this guest shares with its like."""
    root = (supplies.root,) if settings.storage in ("qcow2-backing", *domain.SHARED) else ()
    state = (supplies.saved.state,) if supplies.saved else ()
    return (*root, *state, supplies.kernel.vmlinuz, supplies.initrd)


def describe(name: str, supplies: Supplies, settings: VmSettings) -> Mapping[str, str]:
    """What is stored with the run; `name`, which the keys begin with, tells profiles and conditions of a run apart."""
    clone = settings.start == "clone"
    words = [*domain.fixed_words(settings), *supplies.words, _PER_CLONE if clone else _PER_GUEST]
    known = {
        "settings": json.dumps(msgspec.to_builtins(settings)), "guest kernel": supplies.kernel.package,
        "kernel command line": " ".join(words), "initramfs": supplies.initrd, "root": supplies.root,
    }  # fmt: skip
    deviations = [_SETS] if settings.cpu_query == "sets" else []
    deviations += [f"QEMU's own option: -machine {domain.BARE_CHIPSET}"] if settings.chipset == "bare" else []
    deviations += [_PMEM] if settings.storage == "shared-dax" else []
    if deviations:
        known["deviation"] = "; ".join(deviations)
    if supplies.saved:
        seed = "64 fresh bytes of the host's" if settings.reseed else "none: clones draw the same random numbers"
        known |= {"template took": f"{supplies.saved.seconds:.2f} s, within prepare", "clones' new seed": seed}
    return {f"{name}: {key}": value for key, value in known.items()}
