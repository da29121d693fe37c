"""The head of a guest's persistent memory, against the kernel's rules for one (nd_pfn_validate)."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bench.images import pmem
from bench.model import MIB

UUID = bytes(range(16))


def summed(block: bytes) -> int:
    """Fletcher-64, said another way: the second sum counts each word once for every word from it on."""
    words: tuple[int, ...] = struct.unpack(f"<{len(block) // 4}I", block)
    low = 0
    high: list[int] = []
    for word in words:
        low = (low + word) % 2**32
        high.append(low)
    return sum(high) % 2**32 << 32 | low


def test_a_head_is_one_that_the_kernel_takes() -> None:
    block = pmem.head(10 * MIB, UUID)
    assert len(block) == 4096
    assert block[:16] == b"NVDIMM_PFN_INFO\0"
    assert block[16:48] == UUID + bytes(16)
    flags, major, minor, at, pages, mode, pad, cut, align, page, size = struct.unpack_from("<IHHQQIIIIIH", block, 48)
    assert (flags, major, minor, mode) == (0, 1, 4, 1)
    assert at == pmem.STEP
    assert at + pages * page == 10 * MIB
    assert (pad, cut, align, page, size) == (0, 0, 2 * MIB, 4096, 64)
    assert struct.unpack("<Q", block[-8:]) == (summed(block[:-8] + bytes(8)),)
    assert not any(block[94:-8])


@pytest.mark.parametrize("length", [0, 1, 2 * MIB, 2 * MIB + 1])
def test_data_follow_the_head_in_whole_steps(length: int, tmp_path: Path) -> None:
    data = (b"0123456789abcdef" * (length // 16 + 1))[:length]
    (tmp_path / "data").write_bytes(data)
    pmem.as_memory(tmp_path / "data", tmp_path / "memory", UUID)
    made = (tmp_path / "memory").read_bytes()
    assert len(made) % pmem.STEP == 0
    assert len(made) - pmem.STEP - length < pmem.STEP
    assert made[4096:8192] == pmem.head(len(made), UUID)
    assert made[pmem.STEP :].rstrip(b"\0") == data
    assert not any(made[:4096] + made[8192 : pmem.STEP])
