"""Extents that several files have in common count once; the kernel's answers are read as they are meant."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.linux.files import Extent, Placement, placement
from bench.linux.mountinfo import Mount, by_point, mount_of, mounts
from bench.model import Footprint, Reading
from bench.samplers import disk
from bench.samplers.disk import DiskSampler, measure, union
from bench.samplers.scratch import ScratchSampler

BLOCK = 4096


@pytest.mark.parametrize(
    ("ranges", "bytes_"),
    [
        ([], 0),
        ([("a", 0, 10), ("a", 20, 30)], 20),
        ([("a", 0, 10), ("a", 5, 30), ("a", 7, 8)], 30),
        ([("a", 0, 10), ("a", 10, 20)], 20),
        ([("a", 0, 10), ("b", 0, 10)], 20),
        ([("b", 5, 6), ("a", 0, 100), ("a", 3, 4)], 101),
    ],
)
def test_bytes_covered(ranges: list[disk.Range], bytes_: int) -> None:
    assert union(ranges) == union(reversed(ranges)) == bytes_


# --- counting


class FileSystem:
    """Makes files whose blocks lie where it is told, on a file system that shares extents."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.places: dict[str, list[Extent]] = {}
        self.inline: set[str] = set()
        self.found = by_point([Mount(str(root), "7:0", "btrfs")])

    def file(self, name: str, *blocks: int) -> Path:
        """Of as many blocks as it has numbers: block `n` lies at n x 4 KiB of the file system."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(BLOCK * len(blocks)))
        self.places[str(path)] = [Extent(number * BLOCK, BLOCK, True) for number in blocks]
        return path

    def placement(self, path: str) -> Placement:
        return Placement(tuple(self.places[path]), path in self.inline)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileSystem:
    one = FileSystem(tmp_path)
    monkeypatch.setattr(disk, "placement", one.placement)
    monkeypatch.setattr(disk, "mounts", lambda: list(one.found.values()))
    return one


def values(readings: Sequence[Reading]) -> dict[str, float]:
    return {reading.metric.rpartition(".")[2]: reading.value for reading in readings}


def test_clones_cost_what_was_written_since(made: FileSystem) -> None:
    base = made.file("base/a", 10, 11, 12, 13)
    one = made.file("one/a", 10, 11, 12, 13)
    two = made.file("two/a", 10, 40, 41, 13)  # two blocks of it written
    footprints = [Footprint(path.parent.name, (), {}, (str(path),), (str(base),)) for path in (one, two)]
    found = values(DiskSampler().read(footprints))
    assert (found["shared"], found["own"]) == (4 * BLOCK, 2 * BLOCK)
    assert found["claimed"] == 4 * 4 * BLOCK, "du adds up each of the four, base twice"
    assert found["apparent"] == 4 * 4 * BLOCK


def test_clones_of_each_other_count_once(made: FileSystem) -> None:
    paths = [str(made.file(f"{name}/a", 1, 2, 3)) for name in ("one", "two", "three")]
    assert measure(paths).allocated == 3 * BLOCK
    assert measure(paths[:1]).allocated == 3 * BLOCK
    assert measure(paths[1:], measure(paths[:1])).allocated == 0


def test_blocks_without_a_place_count_in_full(made: FileSystem) -> None:
    """Not written yet: FIEMAP leaves it out, the inode does not."""
    path = made.file("one/a", 1, 2, 3)
    made.places[str(path)] = [Extent(BLOCK, BLOCK, False)]
    assert measure([str(path)]).allocated == 3 * BLOCK


def test_data_beside_an_inode_have_no_blocks(made: FileSystem) -> None:
    """btrfs says 4 KiB of each of them; they lie in the trees that a snapshot shares."""
    path = made.file("one/a", 1)
    made.places[str(path)] = []
    made.inline.add(str(path))
    (made.root / "one/link").symlink_to("x" * 100)  # inline as well; no program can ask for it
    found = measure([str(path), str(made.root / "one/link")])
    assert (found.allocated, found.blocks >= BLOCK) == (0, True)


def test_equal_places_on_two_file_systems_are_two(made: FileSystem) -> None:
    made.found |= by_point([Mount(str(made.root / "other"), "7:1", "xfs")])
    paths = [str(made.file(name, 1, 2)) for name in ("one/a", "other/a")]
    assert measure(paths).allocated == 4 * BLOCK


def test_ext4_shares_nothing_and_is_not_asked(made: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    made.found = by_point([Mount(str(made.root), "8:1", "ext4")])
    paths = [str(made.file(name, 1, 2)) for name in ("one", "two")]
    monkeypatch.setattr(disk, "placement", lambda path: pytest.fail("asked"))
    assert measure(paths).allocated == 4 * BLOCK


def test_a_file_that_vanishes_meanwhile_is_none(made: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made.file("one/a", 1)

    def gone(path: str) -> Placement:
        raise FileNotFoundError(path)

    monkeypatch.setattr(disk, "placement", gone)
    assert measure([str(path)]).allocated == BLOCK


# --- the check against the file system


def test_only_file_systems_made_for_the_run_are_asked(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    for name in ("run/scratch/mnt", "elsewhere", "run/fuse"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(os.urandom(BLOCK))
    lines = [
        f"31 1 7:0 / {tmp_path}/run/scratch/mnt rw - ext4 /dev/loop0 rw",
        f"32 1 0:40 / {tmp_path}/run/fuse rw - fuse.fuse-overlayfs fuse rw",
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw",
    ]
    (proc / "self/mountinfo").write_text("\n".join(lines) + "\n")
    flushed: list[str] = []
    sampler = ScratchSampler(tmp_path / "run", proc, flushed.append)
    inside, outside = tmp_path / "run/scratch/mnt/file", tmp_path / "elsewhere/file"
    one = Footprint("x", disk_own=(str(inside), str(outside)), disk_shared=(str(outside), str(tmp_path / "run/fuse")))
    found = values(sampler.read([one]))
    assert found["counted"] == os.lstat(inside).st_blocks * 512
    assert found["used"] > 0
    assert flushed == [f"{tmp_path}/run/scratch/mnt"]
    assert ScratchSampler(tmp_path / "run/fuse", proc, flushed.append).read([one]) == []


# --- what the kernel says


def test_mounts_and_who_lies_on_them(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    lines = [
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw",
        "30 20 0:30 / /run rw,nosuid shared:5 master:1 - tmpfs tmpfs rw",
        "31 20 0:45 /sub /a\\040b rw - btrfs /dev/loop0 rw",
        "32 20 7:1 / /run rw - xfs /dev/loop1 rw",
    ]
    (tmp_path / "self/mountinfo").write_text("\n".join(lines) + "\n")
    found = by_point(mounts(tmp_path))
    for path, device in {"/": "8:1", "/etc/x": "8:1", "/run/x": "7:1", "/a b/c/d": "0:45", "/running": "8:1"}.items():
        mount = mount_of(path, found)
        assert mount is not None
        assert mount.device == device, path
    assert mount_of("/x", {}) is None


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, int]]:
    """Extents (logical, physical, length, flags) of a file, handed out two at a time."""
    some: list[tuple[int, int, int, int]] = []

    def ioctl(fd: int, request: int, buffer: bytearray) -> int:
        assert (request, len(buffer)) == (0xC020660B, 32 + 128 * 56)
        start, length, _, _, room, _ = struct.unpack_from("=QQLLLL", buffer)
        assert (start + length, room) == ((1 << 64) - 1, 128)
        wanted = [one for one in some if one[0] >= start][:2]
        struct.pack_into("=L", buffer, 20, len(wanted))
        for place, (logical, physical, size, flags) in enumerate(wanted):
            struct.pack_into("=QQQQQLLLL", buffer, 32 + 56 * place, logical, physical, size, 0, 0, flags, 0, 0, 0)
        return 0

    monkeypatch.setattr("bench.linux.files.fcntl.ioctl", ioctl)
    return some


def test_extents_are_read_to_the_last(tmp_path: Path, kernel: list[tuple[int, int, int, int]]) -> None:
    path = tmp_path / "file"
    path.touch()
    assert placement(path) == Placement((), False)
    kernel += [
        (0, 1 << 40, BLOCK, 0x2000),  # shared
        (BLOCK, 0, BLOCK, 0x2 | 0x4),  # to be allocated
        (2 * BLOCK, 77, BLOCK, 0x8 | 0x2000),  # compressed: its length is not what it takes
        (3 * BLOCK, 5 * BLOCK, 3 * BLOCK, 0x800),  # set aside, not written: allocated all the same
        (9 * BLOCK, 0, 100, 0x200),  # beside the inode
        (10 * BLOCK, 20 * BLOCK, BLOCK, 0x1),
    ]
    placed = Extent(1 << 40, BLOCK, True), Extent(5 * BLOCK, 3 * BLOCK, False), Extent(20 * BLOCK, BLOCK, False)
    assert placement(path) == Placement(placed, True)


def test_a_link_or_a_fifo_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OSError, match="symbolic"):
        placement(tmp_path / "link")
