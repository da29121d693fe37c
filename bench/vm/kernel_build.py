"""The kernel of `vm:micro`: built from the distribution's kernel source with our configuration, everything built in.

An explicit step of some minutes (`bench kernel build`), cached by the digest of source and configuration.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path

from bench import process
from bench.errors import HostError
from bench.vm.kernel import GuestKernel, kernels_dir

log = logging.getLogger(__name__)

BUILD = "bench kernel build"
_SOURCES = Path("/usr/src")
_TOOLS = {
    "gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "xz": "xz-utils", "strip": "binutils",
}  # fmt: skip
_TIMEOUT = 3600.0  # seconds; five minutes on two quiet cores


def micro_config() -> str:
    """Our configuration, over tinyconfig."""
    return (resources.files("bench.vm") / "guest/micro.config").read_text()


def kernel_source() -> Path:
    """The newest source that a package of the distribution's has put here. Raises HostError."""
    found = sorted(_SOURCES.glob("linux-source-*.tar.xz"), key=_version)
    if not found:
        raise HostError(f"no kernel source in {_SOURCES}", hint="apt-get install linux-source, or make kernel")
    return found[-1]


def micro_kernel(cache: Path) -> GuestKernel:
    """The newest one that was built with the configuration of this version. Raises HostError if there is none."""
    wanted = hashlib.sha256(micro_config().encode()).hexdigest()[:12]
    found = sorted(kernels_dir(cache).glob(f"micro-{wanted}-*/vmlinux"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise HostError("the kernel of vm:micro is not built", hint=f"{BUILD} (takes some minutes, once)")
    return _read(found[-1].parent)


def build_micro(cache: Path) -> GuestKernel:
    """Build it, unless the cache has it. Raises HostError for a missing source or tool, CommandError if it fails."""
    if not any(_SOURCES.glob("linux-source-*.tar.xz")):
        return micro_kernel(cache)  # it needs no source any more
    source, config = kernel_source(), micro_config()
    digest = hashlib.sha256(config.encode()).hexdigest()[:12], _digest(source)[:12]
    home = kernels_dir(cache) / f"micro-{digest[0]}-{digest[1]}"
    if not (home / "vmlinux").is_file():
        _check_tools()
        home.parent.mkdir(parents=True, exist_ok=True)
        log.warning("building the kernel of vm:micro from %s: some minutes", source)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".build-") as scratch:
            _build(source, config, Path(scratch))
            _publish(Path(scratch) / "ready", home)
    return _read(home)


def _version(path: Path) -> list[int]:
    return [int(part) for part in path.name.removeprefix("linux-source-").removesuffix(".tar.xz").split(".")]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_tools() -> None:
    for program, package in _TOOLS.items():
        if shutil.which(program, path=process.clean_env()["PATH"]) is None:
            raise HostError(
                f"{program} is not installed; it builds the guest kernel", hint=f"apt-get install {package}"
            )


def _build(source: Path, config: str, scratch: Path) -> None:
    """Leave vmlinux and what tells its origin in scratch/ready."""
    process.run(["tar", "-xf", source, "-C", scratch], timeout=_TIMEOUT)
    tree = next(scratch.glob("linux-source-*"))
    (scratch / "micro.config").write_text(config)
    process.run(["make", "-s", "tinyconfig"], timeout=300, cwd=tree)
    process.run(["scripts/kconfig/merge_config.sh", "-m", ".config", scratch / "micro.config"], timeout=60, cwd=tree)
    process.run(["make", "-s", "olddefconfig"], timeout=300, cwd=tree)
    if missing := unmet(config, (tree / ".config").read_text()):
        raise HostError(f"{source.name} can't be configured as asked: {', '.join(missing)}", hint="report it")
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    process.run(["make", "-s", jobs, "vmlinux"], timeout=_TIMEOUT, cwd=tree, env={"KBUILD_BUILD_TIMESTAMP": "@0"})
    release = process.run(["make", "-s", "kernelrelease"], timeout=60, cwd=tree).stdout.strip()
    ready = scratch / "ready"
    ready.mkdir()
    process.run(["strip", "-o", ready / "vmlinux", tree / "vmlinux"], timeout=60)
    shutil.copy(tree / ".config", ready / "config")
    (ready / "package").write_text(f"{source.name} with guest/micro.config\n{release}\n")


def unmet(wanted: str, made: str) -> list[str]:
    """Lines of a configuration fragment that the finished configuration does not have: kconfig drops them silently."""
    lines = set(made.splitlines())
    missing = []
    for line in wanted.splitlines():
        name, equals, value = line.partition("=")
        if not equals or line.startswith("#"):
            continue
        met = not any(one.startswith(f"{name}=") for one in lines) if value == "n" else line in lines
        if not met:
            missing.append(line)
    return missing


def _publish(ready: Path, home: Path) -> None:
    ready.chmod(0o755)
    (ready / "vmlinux").chmod(0o644)  # QEMU may run as another user
    try:
        ready.rename(home)
    except OSError:  # another process has built the same meanwhile
        if not (home / "vmlinux").is_file():
            raise


def _read(home: Path) -> GuestKernel:
    package, release = (home / "package").read_text().splitlines()
    return GuestKernel(str(home / "vmlinux"), "", release, f"{package}, {home.name}")
