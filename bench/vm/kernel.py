"""The guest kernel: the distribution's own cloud kernel, fetched as a package and unpacked into the cache.

It is never installed on the host.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from bench import process
from bench.errors import CommandError, HostError

log = logging.getLogger(__name__)

_TIMEOUT = 300.0


class KernelSource(Struct, frozen=True):
    """Where a distribution keeps it: `meta` depends on the versioned packages whose names match `wanted`."""

    meta: str
    wanted: str


SOURCES: Mapping[str, KernelSource] = {
    "debian": KernelSource("linux-image-cloud-amd64", r"linux-image-\d\S*"),
    # Written from the package lists, not proved: Ubuntu splits the modules off, and compresses them with zstd.
    "ubuntu": KernelSource("linux-image-virtual", r"linux-(image|modules)-\d\S*"),
}


class GuestKernel(Struct, frozen=True):
    """An unpacked kernel. `modules` is the folder that holds modules.dep; `package` is name=version."""

    vmlinuz: str
    modules: str
    release: str
    package: str


def kernels_dir(cache: Path) -> Path:
    return cache / "kernels"


def guest_kernel(cache: Path) -> GuestKernel:
    """The newest kernel in the cache. Raises HostError if there is none."""
    found = [kernel for path in sorted(kernels_dir(cache).glob("*/"), key=_age) if (kernel := _read(path))]
    if not found:
        raise HostError(f"no guest kernel in {kernels_dir(cache)}", hint="bench image build")
    return found[-1]


def fetch_kernel(cache: Path) -> GuestKernel:
    """Fetch and unpack the distribution's cloud kernel, unless the cache holds that version.

    Raises HostError on a distribution we know no package of, CommandError if apt can't deliver.
    """
    source = _source()
    kernels_dir(cache).mkdir(parents=True, exist_ok=True)
    packages = _versioned(source)
    version = _version(packages[0])
    home = kernels_dir(cache) / f"{packages[0]}_{version}".replace(":", "_")
    if kernel := _read(home):
        return kernel
    log.info("fetching the guest kernel %s %s", packages[0], version)
    with tempfile.TemporaryDirectory(dir=kernels_dir(cache), prefix=".new-") as scratch:
        _unpack(packages, Path(scratch), f"{packages[0]}={version}")
        _publish(Path(scratch) / "kernel", home)
    kernel = _read(home)
    if kernel is None:
        raise HostError(f"{packages[0]} holds no kernel we understand", hint=f"look into {home}")
    return kernel


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def _source() -> KernelSource:
    try:
        name = platform.freedesktop_os_release().get("ID", "")
    except OSError:
        name = ""
    if name not in SOURCES:
        raise HostError(
            f"no guest kernel package is known for {name or 'this distribution'} (known: {', '.join(SOURCES)})",
            hint="run bench on one of these, or leave the vm driver out: --drivers process,container",
        )
    return SOURCES[name]


def _versioned(source: KernelSource) -> list[str]:
    """The packages `source.meta` stands for today, the kernel image first."""
    if not (names := _depends(source)):
        process.run(["apt-get", "update", "-q"], timeout=_TIMEOUT)  # a fresh machine has no package lists
        names = _depends(source)
    if not names:
        raise HostError(f"apt knows no {source.meta}", hint="apt-get update, and check the sources of apt")
    return sorted(names, key=lambda name: not name.startswith("linux-image"))


def _depends(source: KernelSource) -> list[str]:
    said = process.run(["apt-cache", "depends", "--important", source.meta], timeout=60, check=False).stdout
    names = re.findall(r"^\s*\|?(?:Pre)?Depends: (\S+)$", said, re.MULTILINE)
    return [name for name in dict.fromkeys(names) if re.fullmatch(source.wanted, name)]


def _version(package: str) -> str:
    said = process.run(["apt-cache", "policy", package], timeout=60).stdout
    if not (match := re.search(r"^\s*Candidate: (\S+)$", said, re.MULTILINE)):
        raise HostError(f"apt offers no {package}", hint="apt-get update")
    return match[1]


def _unpack(packages: list[str], scratch: Path, label: str) -> None:
    """Leave vmlinuz, modules/ (with modules.dep) and the file `package` in scratch/kernel."""
    _download(packages, scratch)
    tree = scratch / "tree"
    for archive in scratch.glob("*.deb"):
        process.run(["dpkg-deb", "-x", archive, tree], timeout=_TIMEOUT)
    images = sorted(tree.glob("boot/vmlinuz-*"))
    if not images:
        raise HostError(f"{label} holds no boot/vmlinuz-*", hint="report it: the package's layout has changed")
    release = images[0].name.removeprefix("vmlinuz-")
    process.run(["depmod", "-b", tree, release], timeout=60)
    home = scratch / "kernel"
    home.mkdir()
    images[0].rename(home / "vmlinuz")
    os.chmod(home / "vmlinuz", 0o644)  # Ubuntu's is for root alone, and QEMU runs as another user
    modules = next(
        path for path in (tree / "lib/modules" / release, tree / "usr/lib/modules" / release) if path.is_dir()
    )
    modules.rename(home / "modules")
    (home / "package").write_text(f"{label}\n{release}\n")


def _download(packages: list[str], scratch: Path) -> None:
    # apt drops its privileges to fetch; as root it can't write here and says so on stderr, harmlessly.
    command = ["apt-get", "download", "-q", *packages]
    try:
        process.run(command, timeout=_TIMEOUT, cwd=scratch)
    except CommandError:  # lists older than the mirror: the version they name is gone from it
        process.run(["apt-get", "update", "-q"], timeout=_TIMEOUT)
        process.run(command, timeout=_TIMEOUT, cwd=scratch)


def _publish(ready: Path, home: Path) -> None:
    """Move into place in one step; another process may have done the same at the same time."""
    ready.chmod(0o755)
    try:
        ready.rename(home)
    except OSError:
        if not home.is_dir():
            raise
        shutil.rmtree(ready)


def _read(home: Path) -> GuestKernel | None:
    """The kernel unpacked in `home`, None if there is none (or a half made one of a version before ours)."""
    try:
        package, release = (home / "package").read_text().splitlines()
    except (OSError, ValueError):
        return None
    if not (home / "vmlinuz").is_file() or not (home / "modules/modules.dep").is_file():
        return None
    return GuestKernel(str(home / "vmlinuz"), str(home / "modules"), release, package)
