"""Storage drivers as far as they can be judged without root: what a host can do, and what is found of a dead run."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from bench.container.scratch import SMALLEST, loops_below, mounts_below, scratch_filesystem
from bench.container.storage import STORAGES, Abilities, abilities, lowerdir, open_storage, support
from bench.errors import HostError, UsageError

ABLE = Abilities(
    root=True,
    filesystems=frozenset({"overlay", "fuse", "xfs", "btrfs"}),
    programs=frozenset({"mkfs.xfs", "mkfs.btrfs", "fuse-overlayfs", "mount", "cp"}),
    devices=frozenset({"fuse", "loop-control"}),
)


@pytest.mark.parametrize("name", STORAGES)
def test_what_works_and_what_needs_root(name: str) -> None:
    assert support(name, ABLE).ok
    answer = support(name, msgspec.structs.replace(ABLE, root=False))
    assert (answer.ok, answer.hint) == (False, "run it with sudo")


@pytest.mark.parametrize(
    ("name", "lacking", "reason", "hint"),
    [
        ("overlay", {"overlay"}, "this kernel has no overlay", "modprobe overlay, or a kernel with it"),
        ("fuse-overlayfs", {"fuse-overlayfs"}, "fuse-overlayfs is not", "apt-get install -y fuse-overlayfs"),
        ("btrfs", {"btrfs"}, "this kernel has no btrfs", "modprobe btrfs, or a kernel with it"),
        ("btrfs", {"mkfs.btrfs"}, "mkfs.btrfs is not installed", "apt-get install -y btrfs-progs"),
        ("btrfs", {"loop-control"}, "there is no /dev/loop-control", "modprobe loop, or let it in here"),
        ("reflink", {"xfs", "btrfs"}, "this kernel has no xfs", "modprobe xfs, or a kernel with it"),
        ("reflink", {"mkfs.xfs", "btrfs"}, "mkfs.xfs is not installed", "apt-get install -y xfsprogs"),
    ],
)
def test_a_refusal_names_the_remedy(name: str, lacking: set[str], reason: str, hint: str) -> None:
    answer = support(name, without(lacking))
    assert not answer.ok
    assert answer.reason.startswith(reason)
    assert answer.hint == hint


def without(lacking: set[str]) -> Abilities:
    return Abilities(True, ABLE.filesystems - lacking, ABLE.programs - lacking, ABLE.devices - lacking)


def test_reflink_takes_the_file_system_there_is() -> None:
    assert support("reflink", without({"xfs"})).ok
    assert support("reflink", without({"mkfs.xfs"})).ok


def test_a_storage_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no storage 'zfs'") as caught, open_storage("zfs", tmp_path / "run"):
        pass
    assert caught.value.hint == "one of: overlay, copy, reflink, btrfs, fuse-overlayfs"
    assert os.listdir(tmp_path) == []


def test_abilities_are_read_from_proc_and_dev(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "dev").mkdir()
    (tmp_path / "proc/filesystems").write_text("nodev\tproc\nnodev\toverlay\n\text4\n")
    (tmp_path / "dev/fuse").write_bytes(b"")
    found = abilities(tmp_path)
    assert found.filesystems == {"proc", "overlay", "ext4"}
    assert found.devices == {"fuse"}


def test_mounts_and_loop_devices_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    lines = [
        "30 1 0:30 / /state/a rw - overlay overlay rw",
        "31 1 7:0 / /state/a/mnt rw,noatime - xfs /dev/loop0 rw",
        "32 1 7:0 / /state/ab rw - xfs /dev/loop0 rw",
        "33 31 0:31 / /state/a/mnt/with\\040space rw shared:1 - tmpfs none rw",
    ]
    (tmp_path / "self/mountinfo").write_text("\n".join(lines) + "\n")
    assert mounts_below(Path("/state/a"), tmp_path) == ["/state/a/mnt/with space", "/state/a/mnt"]
    for number, backing in enumerate(["/state/a/disk", "/state/ab/disk", "/state/a/gone (deleted)"]):
        (tmp_path / f"loop{number}/loop").mkdir(parents=True)
        (tmp_path / f"loop{number}/loop/backing_file").write_text(f"{backing}\n")
    assert loops_below(Path("/state/a"), tmp_path) == ["loop0", "loop2"]


def test_layers_as_overlays_option_takes_them() -> None:
    assert lowerdir([Path("/low"), Path("/a:b,c\\d")]) == "/a\\:b\\,c\\\\d:/low"


def test_a_scratch_file_system_too_small_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="too small"), scratch_filesystem(tmp_path / "x", "xfs", SMALLEST - 1):
        pass
    assert os.listdir(tmp_path) == []
