"""The guest's initramfs: our init, the modules a virtio guest needs, and what the payload is.

One file serves all guests of one payload; what differs from guest to guest travels on the kernel command line.
Written by a small cpio writer of our own, so that the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import posixpath
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from bench import process
from bench.errors import HostError, ImageError
from bench.model import Image, Payload
from bench.vm.guest_program import guest_program
from bench.vm.kernel import GuestKernel

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console")
ROOT_MODULES = {
    "shared-ro": ("erofs", "overlay"),
    "shared-dax": ("nfit", "nd_pmem", "erofs", "overlay"),
}
"""What the root file system needs, by storage; all others are ext4."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LONGEST_DESCRIPTION = 65_000
_MOST_TEXTS = 1000
_TRAILER = "TRAILER!!!"
_CONSOLE = (5, 1)  # device number of /dev/console: pid 1's stdio, before devtmpfs is mounted


class Entry(Struct, frozen=True):
    """One member of a cpio archive; `mode` holds the file type, `rdev` is (major, minor) of a device node."""

    name: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def folder(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, mode: int = 0o755) -> Entry:
    return Entry(name, stat.S_IFREG | mode, data)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def cpio(entries: Iterable[Entry]) -> bytes:
    """A "newc" archive of `entries` in their order, owned by root, dated at the epoch: same input, same bytes."""
    members = [_member(number, entry) for number, entry in enumerate(entries, 1)]
    archive = b"".join([*members, _member(0, Entry(_TRAILER, 0))])
    return archive + b"\0" * (-len(archive) % 512)


def _member(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return _padded(header) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


# --- what goes in ------------------------------------------------------------------------------------------------


def payload_initramfs(cache: Path, kernel: GuestKernel, image: Image, payload: Payload, storage: str) -> Path:
    """The cached initramfs that runs `payload` in a root made of `image`; made if it is not there."""
    modules = (*MODULES, *ROOT_MODULES.get(storage, ("ext4",)))
    return build(cache, guest_entries(guest_program(cache), kernel, payload_description(image, payload), modules))


def probe_initramfs(cache: Path, kernel: GuestKernel) -> Path:
    """One without a payload: init then says so and powers off. It proves that a guest boots, and needs no device but
    the console."""
    return build(cache, _base(guest_program(cache)))


def guest_entries(program: bytes, kernel: GuestKernel, payload: bytes, names: Sequence[str]) -> list[Entry]:
    """All of it. A kernel without a folder of modules has what it needs built in."""
    files = module_files(Path(kernel.modules), names) if kernel.modules else []
    modules = [(path.name.partition(".ko")[0] + ".ko", _module(path)) for path in files]
    listing = "".join(f"{name}\n" for name, _ in modules).encode()
    return [
        *_base(program),
        folder("bench"),
        file("bench/payload", payload, 0o644),
        folder("bench/modules"),
        *(file(f"bench/modules/{name}", data, 0o644) for name, data in modules),
        file("bench/modules.list", listing, 0o644),
    ]


def build(cache: Path, entries: Sequence[Entry]) -> Path:
    """Write the archive into the cache under its digest, unless it is there, and return its path."""
    archive = cpio(entries)
    path = cache / "initramfs" / f"{hashlib.sha256(archive).hexdigest()[:24]}.cpio"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_bytes(archive)
        scratch.chmod(0o644)  # QEMU may run as another user
        scratch.rename(path)
    return path


def _base(program: bytes) -> list[Entry]:
    return [
        *(folder(name) for name in ("dev", "proc", "sys", "root", "run")),
        Entry("dev/console", stat.S_IFCHR | 0o600, rdev=_CONSOLE),
        file("init", program),
    ]


# --- the payload -------------------------------------------------------------------------------------------------


def payload_description(image: Image, payload: Payload) -> bytes:
    """What vm/guest/payload.c reads, each text ended by a zero: working directory, number of arguments, arguments,
    variables K=V. Raises ImageError for more than it takes."""
    argv = payload.command or image.command
    environment = [f"{key}={value}" for key, value in environment_of(image, payload).items()]
    workdir = posixpath.normpath(posixpath.join("/", image.workdir))
    texts = [workdir, str(len(argv)), *argv, *environment]
    data = b"".join(text.encode() + b"\0" for text in texts)
    if len(data) > _LONGEST_DESCRIPTION or max(len(argv), len(environment)) > _MOST_TEXTS:
        raise ImageError(
            f"the payload {payload.name} has more arguments and variables than a guest takes",
            hint=f"at most {_MOST_TEXTS} of each, {_LONGEST_DESCRIPTION} bytes in all",
        )
    return data


def environment_of(image: Image, payload: Payload) -> dict[str, str]:
    """The image's variables, then the payload's over them."""
    image_env = dict(pair.split("=", 1) for pair in image.env if "=" in pair)
    return {"PATH": DEFAULT_PATH, "HOME": "/root", **image_env, **payload.env}


# --- kernel modules ----------------------------------------------------------------------------------------------


def module_files(modules: Path, names: Sequence[str]) -> list[Path]:
    """Files of the modules `names` and all they depend on, dependencies first; those built in have none.

    Raises HostError for a module that is neither there nor built in.
    """
    depends = _dependencies(modules)
    builtin = {_module_name(line) for line in (modules / "modules.builtin").read_text().split()}
    files: dict[str, None] = {}
    for name in names:
        if name in depends:
            path, needs = depends[name]
            files.update(dict.fromkeys([*reversed(needs), path]))  # modules.dep lists the nearest dependency first
        elif name not in builtin:
            raise HostError(
                f"the guest kernel in {modules} has no {name}",
                hint="bench image build fetches it anew; if it still has none: another vm.storage, or vm.kernel=micro",
            )
    return [modules / path for path in files]


def _dependencies(modules: Path) -> dict[str, tuple[str, list[str]]]:
    found: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        found[_module_name(path)] = (path, needs.split())
    return found


def _module_name(path: str) -> str:
    return posixpath.basename(path).partition(".ko")[0].replace("-", "_")


def _module(path: Path) -> bytes:
    """The module, decompressed: not every kernel can do that itself."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        plain = path.with_suffix("")
        process.run(["zstd", "-dqf", "-o", plain, path], timeout=60)
        return plain.read_bytes()
    return path.read_bytes()
