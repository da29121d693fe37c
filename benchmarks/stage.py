"""What every contestant of the runtime benchmarks runs on: a payload in two layers, cgroup parents, bridges."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from bench import process
from bench.container.groups import CgroupLayout, Groups, device_group, layout
from bench.container.recipe import Filter
from bench.container.seccomp import compile_file
from bench.container.spec import DEFAULT_DEVICE_RULES, default_seccomp, resources_of
from bench.linux import cgroups, interfaces
from bench.model import Limits

FLOORS = Path(__file__).parent / "floor"
PAYLOAD = "/payload"
LIMITS = Limits()
PARENT = "bench-runtime"  # of all cgroups made here
SUBNET = "198.19.{}.0"  # each bridge has a /20: 198.19.0.0, .16.0, .32.0 ...
PREFIX = 20


class Bridge(Struct, frozen=True):
    name: str
    index: int
    net: int  # third octet of its subnet

    @property
    def gateway(self) -> str:
        return f"198.19.{self.net}.1"

    def address(self, number: int) -> str:
        return f"198.19.{self.net + (number + 2) // 250}.{(number + 2) % 250 + 1}"


class Stage(Struct, frozen=True):
    """`layers` lowest first; `rootfs` is both in one folder, for runtimes that mount no union."""

    folder: Path
    layers: tuple[Path, Path]
    rootfs: Path
    groups: Groups
    rules: str | None  # the v1 group with the device rules
    filter: Filter
    bridges: tuple[Bridge, ...]

    @property
    def lowerdir(self) -> str:
        return ":".join(str(layer) for layer in reversed(self.layers))


@contextlib.contextmanager
def stage(folder: Path, bridges: int) -> Iterator[Stage]:
    """Build in the new `folder`. Raises HostError, CommandError (no compiler)."""
    groups = layout()
    with contextlib.ExitStack() as stack:
        folder.mkdir(parents=True)
        stack.callback(shutil.rmtree, folder)
        layers = _layers(folder)
        rootfs = folder / "rootfs"
        shutil.copytree(layers[0], rootfs)
        shutil.copytree(layers[1], rootfs, dirs_exist_ok=True)
        groups.prepare(PARENT)
        stack.callback(_remove_groups, groups)
        resources = replace(resources_of(LIMITS), devices=DEFAULT_DEVICE_RULES)
        wanted = groups.groups(PARENT, resources, ruled=True)
        rules = device_group(groups, PARENT, resources, wanted)
        made = tuple(stack.enter_context(_bridge(number)) for number in range(bridges))
        yield Stage(folder, layers, rootfs, wanted, rules, Filter(str(compile_file(default_seccomp(), folder))), made)


def build(name: str, folder: Path, *options: str) -> Path:
    """Compile `floor/NAME.c`."""
    process.run(["gcc", "-O2", "-Wall", *options, "-o", folder / name, FLOORS / f"{name}.c"], timeout=60)
    return folder / name


def _layers(folder: Path) -> tuple[Path, Path]:
    base, own = folder / "base", folder / "payload-layer"
    for name in ("proc", "sys", "dev", "etc", "tmp", "run"):
        (base / name).mkdir(parents=True)
    own.mkdir()
    shutil.copy(build("payload", folder, "-static"), own / PAYLOAD.lstrip("/"))
    return base, own


@contextlib.contextmanager
def _bridge(number: int) -> Iterator[Bridge]:
    name, net = f"bnbench{number}", number * 16
    index = interfaces.make_bridge(name, f"198.19.{net}.1", PREFIX)
    try:
        yield Bridge(name, index, net)
    finally:
        interfaces.delete_bridge(name)


def _remove_groups(groups: CgroupLayout) -> None:
    """In every hierarchy: other runtimes use more of them than we do."""
    for top in {*groups.tops(), *map(str, Path("/sys/fs/cgroup").glob("*/"))}:
        cgroups.remove(f"{top}/{PARENT}")
