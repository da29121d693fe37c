"""A hypervisor's process as /proc shows it: guest RAM, and beside it a mapping of the same size that is none."""

from __future__ import annotations

from pathlib import Path

from bench.model import Footprint, GuestRam

KIB = 1024
RAM = GuestRam(pid=77, start=0x7F5400000000, size=64 << 20)
GUEST, OVERHEAD = 20_000, 9_000  # PSS in KiB
_SAME_SIZE = 0x7F5410000000  # a decoy: what is found by size may be this one


def mapping(start: int, size: int, pss: int, rss: int, name: str = "") -> str:
    return (
        f"{start:x}-{start + size:x} rw-p 00000000 00:00 0 {name}\nSize: {size // KIB} kB\nRss: {rss} kB\n"
        f"Pss: {pss} kB\nPrivate_Dirty: {pss} kB\nVmFlags: rd wr mr mw me dd ac sd \n"
    )


def guest(root: Path, ram: GuestRam | None = RAM, *, split: bool = True, beyond: bool = False) -> Footprint:
    """Its files below `root`. `split`: the RAM is two mappings; `beyond`: one of them ends outside it."""
    half = RAM.size // 2
    folder = root / f"proc/{RAM.pid}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(RAM.start, half, GUEST // 2), (RAM.start + half, half, GUEST - GUEST // 2)] if split else []
    parts = parts or [(RAM.start, RAM.size, GUEST)]
    text = mapping(0x55D000000000, 1 << 20, 400, 400, "/usr/bin/qemu-system-x86_64")
    text += "".join(mapping(start, size + (4096 if beyond else 0), pss, pss + 100) for start, size, pss in parts)
    text += mapping(_SAME_SIZE, RAM.size, OVERHEAD - 400, OVERHEAD)
    (folder / "smaps").write_text(text)
    (folder / "smaps_rollup").write_text(
        f"55d000000000-7fff00000000 ---p 00000000 00:00 0 [rollup]\nRss: {GUEST + OVERHEAD} kB\n"
        f"Pss: {GUEST + OVERHEAD} kB\nPrivate_Clean: 0 kB\nPrivate_Dirty: {GUEST + OVERHEAD} kB\n"
    )
    return Footprint("guest", pids=(RAM.pid,), ram=ram)
