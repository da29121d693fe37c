"""The default image with data in it that neither compress nor repeat: what an image's size costs, with nothing fetched.

`default+20MiB` is the default image and a layer of so many bytes in files of 64 MiB below /srv/ballast; the same bytes
on every host, so that the same busybox gives the same digest.
"""

from __future__ import annotations

import io
import random
import re
import tarfile

from bench.images import oci
from bench.images.archive import store_blob
from bench.images.layout import Layout
from bench.images.oci import Descriptor
from bench.model import GIB, MIB

FOLDER = "srv/ballast"
FILE = 64 * MIB
"""Bytes of each file but the last."""
_REFERENCE = re.compile(r"default\+([1-9]\d{0,5})(MiB|GiB)")
_UNITS = {"MiB": MIB, "GiB": GIB}


def size_of(reference: str) -> int | None:
    """Bytes of ballast that an image's name asks for; None if it is no such name."""
    match = _REFERENCE.fullmatch(reference)
    return int(match[1]) * _UNITS[match[2]] if match else None


def store_layer(layout: Layout, size: int) -> Descriptor:
    """Write the layer into the store, a file at a time; needs the lock. Raises HostError if there is no room."""
    with layout.scratch() as folder:
        path = folder / "ballast.tar"
        with tarfile.open(path, "x:", format=tarfile.USTAR_FORMAT) as tar:
            for name in ("srv", FOLDER):
                tar.addfile(_entry(name, tarfile.DIRTYPE, 0o755))
            for number, start in enumerate(range(0, size, FILE)):
                info = _entry(f"{FOLDER}/{number:04}", tarfile.REGTYPE, 0o644)
                info.size = min(FILE, size - start)
                tar.addfile(info, io.BytesIO(noise(number, info.size)))
        with path.open("rb") as file:
            return store_blob(layout, file, oci.LAYER)


def noise(number: int, size: int) -> bytes:
    """The content of the file with this number."""
    return random.Random(number).randbytes(size)


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    return info
