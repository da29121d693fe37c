"""A file as a guest's persistent memory: what its kernel wants to find at the beginning to map files from it.

The layout is that of Linux (`struct nd_pfn_sb`, version 1.4, drivers/nvdimm/pfn.h), which `ndctl create-namespace
--mode=fsdax --map=mem` writes. Without it memory of an NVDIMM has no page structures, and nothing of it can be mapped.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from bench.model import MIB

STEP = 2 * MIB
"""Bytes. A guest's kernel takes memory of devices in such pieces (sub-sections); the data begin behind the first."""
_SIGNATURE = b"NVDIMM_PFN_INFO"
_AT = 4096  # bytes from the beginning of the device
_SIZE = 4096  # bytes, its sum in the last eight
_VERSION = (1, 4)
_IN_RAM = 1  # the page structures are in the guest's own RAM: it can't write to the device
_PAGE, _PAGE_STRUCT = 4096, 64  # bytes, on x86-64
_HEAD = struct.Struct("<16s16s16sIHHQQIIIIIH")


def as_memory(data: Path, target: Path, uuid: bytes) -> None:
    """Write `data` to `target` behind a head, in whole steps. `uuid`: 16 bytes. Raises OSError."""
    length = data.stat().st_size
    size = STEP + -(-length // STEP) * STEP
    with data.open("rb") as source, target.open("xb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), head(size, uuid), _AT)
        file.seek(STEP)
        while length > 0:
            length -= (copied := os.copy_file_range(source.fileno(), file.fileno(), length))
            if not copied:
                raise OSError(f"{data} got shorter while it was copied")


def head(size: int, uuid: bytes) -> bytes:
    """Of a device of `size` bytes whose data begin at STEP."""
    fields = (
        _SIGNATURE, uuid, bytes(16),  # of a device without labels, whose own name is all zeros
        0, *_VERSION, STEP, (size - STEP) // _PAGE, _IN_RAM, 0, 0, STEP, _PAGE, _PAGE_STRUCT,
    )  # fmt: skip
    block = _HEAD.pack(*fields).ljust(_SIZE, b"\0")
    return block[:-8] + struct.pack("<Q", _fletcher(block))


def _fletcher(block: bytes) -> int:
    """Fletcher's sum of 64 bits over words of 32, as libnvdimm has it; the sum's own field counts as zeros."""
    low = high = 0
    for (word,) in struct.iter_unpack("<I", block):
        low = (low + word) & 0xFFFFFFFF
        high += low
    return (high & 0xFFFFFFFF) << 32 | low
