"""The default image, made from this host's static busybox and our payloads: two layers, the same bytes each time."""

from __future__ import annotations

import io
import shutil
import struct
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from bench import process
from bench.errors import HostError
from bench.images import oci
from bench.images.archive import adopt
from bench.images.compiled import compiled, parts
from bench.images.layout import Layout, sha256
from bench.images.oci import Config, Descriptor, Execution, Manifest, RootFs

NAME = "default"
_PAYLOAD = Path(__file__).parent / "payload"
_COMPILED = ("httpd", "idle")
_CREATED = "1970-01-01T00:00:00Z"
_HINT = "apt-get install -y busybox-static"
_PLACES = ("/bin/busybox", "/usr/bin/busybox")

_FOLDERS = ("bin", "dev", "etc", "proc", "run", "srv", "sys", "usr", "var")
_STICKY = ("tmp", "var/tmp")
_LINKS = {"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin", "var/run": "../run"}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}

_PT_INTERP = 3  # the program header that names a dynamic linker
_EM_X86_64 = 62


class Entry(Struct, frozen=True):
    """One file of a layer we make: a symlink with `link`, a character device with `device`, a folder without `data`."""

    path: str
    mode: int
    data: bytes | None = None
    link: str | None = None
    device: tuple[int, int] | None = None


def find_busybox() -> Path:
    """The host's busybox if it is static; raises HostError with the package to install."""
    found = [Path(place) for place in (*_PLACES, shutil.which("busybox") or "") if place and Path(place).is_file()]
    for path in found:
        if is_static(path.read_bytes()):
            return path
    if found:
        raise HostError(f"{found[0]} is not a static x86-64 program; the default image needs one", hint=_HINT)
    raise HostError("busybox is not installed; the default image is made from it", hint=_HINT)


def is_static(program: bytes) -> bool:
    """Whether it is an x86-64 ELF program that names no dynamic linker."""
    try:
        if program[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", program, 18)[0] != _EM_X86_64:
            return False
        (table,) = struct.unpack_from("<Q", program, 32)
        size, count = struct.unpack_from("<HH", program, 54)
        kinds = [struct.unpack_from("<I", program, table + number * size)[0] for number in range(count)]
    except struct.error:
        return False
    return _PT_INTERP not in kinds


def payload_programs(cache: Path) -> dict[str, bytes]:
    """The payloads that are compiled: path in the image -> program. Raises HostError without a compiler."""
    return {
        f"bin/payload-{name}": compiled(cache, f"payload-{name}", parts("kernel", name, "start")) for name in _COMPILED
    }


def build_default(layout: Layout, busybox: Path, programs: Mapping[str, bytes]) -> Descriptor:
    """Build the image into the store; needs the lock. Idempotent: the same programs give the same digest."""
    tars = (make_tar(_base(busybox)), make_tar(_payload(programs)))
    layers = tuple(layout.put_bytes(data, oci.LAYER) for data in tars)
    config = Config(
        architecture=oci.ARCHITECTURE,
        os=oci.SYSTEM,
        created=_CREATED,
        config=Execution(env=("PATH=/bin:/usr/bin",), cmd=("/bin/payload-idle",), working_dir="/"),
        rootfs=RootFs(diff_ids=tuple(sha256(data) for data in tars)),
    )
    manifest = Manifest(config=layout.put_bytes(msgspec.json.encode(config), oci.CONFIG), layers=layers)
    entry = layout.put_bytes(msgspec.json.encode(manifest), oci.MANIFEST)
    return adopt(layout, entry, manifest, NAME, NAME)


def make_tar(entries: Iterable[Entry]) -> bytes:
    """A layer's tar: sorted, everything owned by root and dated 1970, so that only the content decides the digest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for entry in sorted(entries, key=lambda entry: entry.path):
            tar.addfile(_header(entry), io.BytesIO(entry.data or b""))
    return buffer.getvalue()


def _header(entry: Entry) -> tarfile.TarInfo:
    info = tarfile.TarInfo(entry.path)
    info.mode = entry.mode
    if entry.link is not None:
        info.type, info.linkname = tarfile.SYMTYPE, entry.link
    elif entry.device is not None:
        info.type, (info.devmajor, info.devminor) = tarfile.CHRTYPE, entry.device
    elif entry.data is not None:
        info.size = len(entry.data)
    else:
        info.type = tarfile.DIRTYPE
    return info


def _base(busybox: Path) -> list[Entry]:
    applets = process.run([busybox, "--list"], timeout=10).stdout.split()
    links = {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
    return [
        *(Entry(path, 0o755) for path in _FOLDERS),
        *(Entry(path, 0o1777) for path in _STICKY),
        Entry("root", 0o700),
        Entry("bin/busybox", 0o755, data=busybox.read_bytes()),
        *(Entry(path, 0o777, link=target) for path, target in {**_LINKS, **links}.items()),
        *(Entry(path, 0o644, data=text.encode()) for path, text in _FILES.items()),
        # the shell opens null for each background command, `touch` reads urandom, and a bare process has no /dev
        # mounted over this one
        Entry("dev/null", 0o666, device=(1, 3)),
        Entry("dev/urandom", 0o666, device=(1, 9)),
    ]


def _payload(programs: Mapping[str, bytes]) -> list[Entry]:
    """The programs, and the files beside this module. A wheel does not keep modes: what is in bin/ is a program."""
    entries = [Entry(path, 0o755, data=data) for path, data in programs.items()]
    for path in sorted(_PAYLOAD.rglob("*")):
        name = path.relative_to(_PAYLOAD).as_posix()
        program = path.is_dir() or name.startswith("bin/")
        entries.append(Entry(name, 0o755 if program else 0o644, data=None if path.is_dir() else path.read_bytes()))
    return entries
