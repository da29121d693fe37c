"""What the outer guest is made of, each part cached under the digest of what it depends on."""

from __future__ import annotations

import compileall
import hashlib
import logging
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from bench.errors import HostError
from bench.images.build import find_busybox
from bench.process import run
from bench.vm.initramfs import cpio, file, folder, module_files, symlink
from bench.vm.kernel import GuestKernel

log = logging.getLogger("bench.rig")

TREE = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).with_name("guest")
PACKAGES = (
    "systemd", "systemd-sysv", "udev", "dbus", "kmod", "mount", "util-linux", "util-linux-extra", "procps", "iproute2",
    "python3", "gcc", "libc6-dev", "busybox-static", "libseccomp2",
    "qemu-system-x86", "qemu-utils", "ipxe-qemu", "libvirt-daemon", "libvirt-daemon-driver-qemu",
    "nftables", "e2fsprogs", "btrfs-progs", "xfsprogs", "fuse-overlayfs", "uidmap", "passt", "runc",
)  # fmt: skip
INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4")
_LEFT_OUT = ("mypy", "mypyc", "ruff", "pip", "grimp", "importlinter", "pandas-stubs", "__editable__", "tenancy_bench")
_PROJECT = ("bench", "tests", "benchmarks", "tools", "pyproject.toml", "requirements.lock", "README.md")
_ROOM = 3 << 30  # bytes of the cache's disk for what is made in the rig, and for its file system
_CACHED = ("images", "kernels", "programs")
_JOB_FILES = ("job.sh", "judge.py", "patient.py")
_ROOT_SIZE = "6G"  # sparse; nothing that is written there outlives the guest


class Parts(Struct, frozen=True):
    """Files that QEMU gets: `root`, `venv` and `cache` are ext4 images, `job` a tar archive."""

    vmlinuz: Path
    initrd: Path
    root: Path
    venv: Path
    cache: Path
    job: Path


def make_parts(home: Path, kernel: GuestKernel, cache: Path, parameters: dict[str, str]) -> Parts:
    """All parts below `home`; `cache` holds the images and kernels that bench uses in the guest.

    Raises HostError, CommandError.
    """
    home.mkdir(parents=True, exist_ok=True)
    modules = kernel.package
    busybox = find_busybox()
    base = cached(home, "base", ".tar", [*sources(), *PACKAGES], _debian)
    units = [path.read_text() for path in _units()]
    return Parts(
        vmlinuz=Path(kernel.vmlinuz),
        initrd=cached(home, "initrd", ".cpio", [modules, _text(GUEST / "initrd-init"), _sum(busybox)],
                       lambda path: _initrd(path, kernel, busybox)),
        root=cached(home, "root", ".img", [base.name, modules, *units], lambda path: _root(path, base, kernel)),
        venv=cached(home, "venv", ".img", [_text(TREE / ".venv/.installed"), *_LEFT_OUT], _venv),
        cache=cached(home, "cache", ".img", [*_kept(cache), _text(cache / "images/index.json")],
                      lambda path: _cache(path, cache)),
        job=_job(home / "job.tar", parameters),
    )  # fmt: skip


def cached(home: Path, name: str, suffix: str, key: list[str], make: Callable[[Path], None]) -> Path:
    """The part, made unless it is there; what it was before is removed."""
    path = home / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}{suffix}"
    if path.exists():
        return path
    log.info("making %s", path.name)
    scratch = home / f".new-{name}"
    scratch.unlink(missing_ok=True)
    make(scratch)
    for old in home.glob(f"{name}-*{suffix}"):
        old.unlink()
    scratch.rename(path)
    return path


def _text(path: Path) -> str:
    return path.read_text()


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _units() -> list[Path]:
    return sorted(path for path in GUEST.iterdir() if path.name.startswith("rig"))


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=home, prefix=".tree-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def _ext4(path: Path, tree: Path, size: str) -> None:
    run(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", tree, path, size], timeout=300)


# --- the system ------------------------------------------------------------------------------------------------------


def sources() -> list[str]:
    """This host's own sources of Debian packages, as lines of a sources.list. Raises HostError if there are none."""
    line = "deb $(REPO_URI) $(CODENAME) $(COMPONENT)"
    said = run(["apt-get", "indextargets", "--format", line, "Created-By: Packages", "Origin: Debian"], timeout=60)
    if not said.stdout.strip():
        raise HostError("apt knows no Debian packages", hint="apt-get update; the rig needs a Debian host")
    return list(dict.fromkeys(said.stdout.splitlines()))


def _debian(path: Path) -> None:
    drop = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale", "info")]
    run(["mmdebstrap", "--mode=root", "--variant=essential", "--format=tar", *drop,
         "--aptopt=APT::Install-Recommends \"false\"", f"--include={','.join(PACKAGES)}",
         "", path, *sources()], timeout=1200)  # fmt: skip


def _root(path: Path, base: Path, kernel: GuestKernel) -> None:
    with _scratch(path.parent) as tree:
        run(["tar", "-xf", base, "-C", tree, "--exclude=./dev/*", "--numeric-owner"], timeout=300)
        shutil.copytree(kernel.modules, tree / "lib/modules" / kernel.release, symlinks=True)
        for unit in _units():
            target = tree / ("usr/local/sbin" if unit.suffix == ".sh" else "etc/systemd/system") / unit.name
            shutil.copy(unit, target)
            target.chmod(0o755 if unit.suffix == ".sh" else 0o644)
        (tree / "etc/hostname").write_text("rig\n")
        (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 rig\n")
        run(["useradd", "--root", tree, "--system", "--user-group", "--shell", "/usr/sbin/nologin", "libvirt-qemu"],
            timeout=60)  # fmt: skip
        for place in ("job", "out", "opt/venv", "var/cache/bench"):
            (tree / place).mkdir(parents=True, exist_ok=True)
        _ext4(path, tree, _ROOT_SIZE)


def _initrd(path: Path, kernel: GuestKernel, busybox: Path) -> None:
    files = module_files(Path(kernel.modules), INITRD_MODULES)
    path.write_bytes(cpio([
        *(folder(name) for name in ("bin", "dev", "proc", "sys", "new", "modules")),
        file("bin/busybox", busybox.read_bytes()),
        symlink("bin/sh", "busybox"),
        file("init", (GUEST / "initrd-init").read_bytes()),
        *(file(f"modules/{number:02}-{one.name}", one.read_bytes()) for number, one in enumerate(files)),
    ]))  # fmt: skip


# --- the project -----------------------------------------------------------------------------------------------------


def _venv(path: Path) -> None:
    """The libraries of .venv, which the guest's Python takes as they are: it is the same Debian's."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = Path("lib") / version / "site-packages"
    with _scratch(path.parent) as tree:
        shutil.copytree(
            TREE / ".venv" / packages, tree / packages, copy_function=os.link, symlinks=True,
            ignore=lambda _, names: [name for name in names if name.startswith(_LEFT_OUT)],
        )  # fmt: skip
        (tree / packages / "project.pth").write_text("/job\n")
        (tree / "bin").mkdir()
        (tree / "bin/python").symlink_to(f"/usr/bin/{version}")
        (tree / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
        _ext4(path, tree, "1G")


def _kept(cache: Path) -> list[str]:
    """What of bench's cache goes along: all but answers about this host, and what is half made."""
    places = (*_CACHED, "images/disks")
    found = [path for name in places for path in (cache / name).glob("*") if not path.name.startswith(".")]
    return sorted(str(path.relative_to(cache)) for path in found)


def _cache(path: Path, cache: Path) -> None:
    with _scratch(path.parent) as tree:
        for name in _CACHED:
            if (cache / name).is_dir():
                run(["cp", "-a", cache / name, tree / name], timeout=600)  # device nodes as what they are
                shutil.rmtree(tree / name / "tmp", ignore_errors=True)
        used = sum(file.lstat().st_blocks * 512 for file in tree.rglob("*"))
        _ext4(path, tree, f"{(used + _ROOM) // 1024}k")


def _job(path: Path, parameters: dict[str, str]) -> Path:
    """The tree as it is now, compiled, and what to do with it. Made anew every time."""
    with _scratch(path.parent) as stage:
        for name in _PROJECT:
            if (TREE / name).is_dir():
                shutil.copytree(TREE / name, stage / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(TREE / name, stage / name)
        compileall.compile_dir(stage, quiet=1, stripdir=str(stage), prependdir="/job")
        for name in _JOB_FILES:
            shutil.copy(GUEST / name, stage / name)
        (stage / "job.env").write_text("".join(f"{key}={shlex.quote(value)}\n" for key, value in parameters.items()))
        with tarfile.open(path, "w") as archive:
            archive.add(stage, ".", filter=_of_root)
    return path


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    return member
