"""Blocks counted by us, against what a real file system says is in use: reflinks, snapshots, qcow2, whole runs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import process
from bench.analysis import quality, summarise
from bench.container.scratch import SMALLEST, loops_below, mounts_below, scratch_filesystem
from bench.container.storage import abilities
from bench.images.disks import qcow2_overlay
from bench.linux.btrfs import create_subvolume, snapshot
from bench.linux.files import cached, flush, placement, uncache
from bench.model import MIB, Footprint, RunId
from bench.records import StepRecord
from bench.samplers.disk import measure
from bench.samplers.scratch import ScratchSampler
from bench.store import RunData, read_run
from tests.integration.test_run import BENCH, bench
from tests.integration.traces import traces
from tests.unit.fabricated import host, info

pytestmark = pytest.mark.root
WITHIN = 0.02


@pytest.fixture
def scratch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    kind = request.param
    able = abilities()
    if kind not in able.filesystems or "loop-control" not in able.devices:
        pytest.skip(f"this kernel has no {kind} or no loop devices; remedy: modprobe {kind} loop")
    with scratch_filesystem(tmp_path / "scratch", kind, SMALLEST) as mount:
        yield mount


def used(mount: Path) -> int:
    flush(mount)
    state = os.statvfs(mount)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def written(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def overwrite(path: Path, start: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(size))


@pytest.mark.parametrize("scratch", ["btrfs", "xfs"], indirect=True)
def test_a_reflinked_copy_costs_what_is_written_to_it(scratch: Path) -> None:
    base, clone = written(scratch / "base", 16 * MIB), scratch / "clone"
    process.run(["cp", "--reflink=always", base, clone], timeout=60)
    before = used(scratch)
    shared = measure([str(base)])
    assert shared.allocated == 16 * MIB
    assert measure([str(clone)], shared).allocated == 0
    assert all(one.shared for one in placement(clone).extents)
    overwrite(clone, 4 * MIB, 8 * MIB)
    after = used(scratch)
    own = measure([str(clone)], measure([str(base)]))
    assert own.allocated == 8 * MIB
    assert own.blocks == 16 * MIB, "what du claims"
    assert after - before == pytest.approx(own.allocated, rel=WITHIN)


@pytest.mark.parametrize("scratch", ["btrfs"], indirect=True)
def test_a_snapshot_shares_across_subvolumes(scratch: Path) -> None:
    base, snap = scratch / "base", scratch / "snap"
    create_subvolume(base)
    written(base / "big", 16 * MIB)
    (base / "small").write_bytes(b"in the tree itself")
    (base / "link").symlink_to("small")
    used(scratch)
    snapshot(base, snap)
    before = used(scratch)
    shared = measure([str(base)])
    assert shared.allocated == 16 * MIB
    assert (base / "big").stat().st_dev != (snap / "big").stat().st_dev
    assert measure([str(snap)], shared).allocated == 0
    overwrite(snap / "big", 0, 4 * MIB)
    after = used(scratch)
    assert measure([str(snap)], shared).allocated == 4 * MIB == pytest.approx(after - before, rel=WITHIN)


@pytest.mark.parametrize("scratch", ["ext4"], indirect=True)
def test_a_qcow2_disk_takes_what_was_written(scratch: Path) -> None:
    backing = written(scratch / "backing", 16 * MIB)
    disk = scratch / "disk.qcow2"
    before = used(scratch)
    qcow2_overlay(backing, disk)
    process.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 5M", disk], timeout=60)
    after = used(scratch)
    own = measure([str(disk)]).allocated
    assert 5 * MIB <= own < 6 * MIB
    assert after - before == own
    said = json.loads(process.run(["qemu-img", "info", "--output=json", disk], timeout=60).stdout)
    assert (said["actual-size"], said["virtual-size"]) == (own, 16 * MIB)


def test_the_page_cache_of_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "file", 3 * MIB)
    if cached(path) is None:
        pytest.skip("this kernel has no cachestat; remedy: Linux 6.5")
    uncache(path)
    assert cached(path) == 0
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        file.read(MIB)
    assert cached(path) == MIB


# --- the check of a run against its own file system


def ramp(scratch: Path, hidden: int) -> RunData:
    """Four instances with a file of 4 MiB each; beside it one of `hidden` bytes that no footprint names."""
    sampler, footprints, records = ScratchSampler(scratch.parent.parent), [], []
    for n in range(5):
        if n:
            own = written(scratch / f"own{n}", 4 * MIB)
            written(scratch / f"hidden{n}", hidden)
            footprints.append(Footprint(str(n), disk_own=(str(own),)))
        readings = tuple(sampler.read(footprints))
        records.append(
            StepRecord(trial="r1-vm:stock", driver="vm", profile="stock", payload="idle", round=1, date=0.0, n=n,
                       readings=readings)
        )  # fmt: skip
    return RunData(info(), host(), tuple(records))


@pytest.mark.parametrize("scratch", ["ext4", "xfs", "btrfs"], indirect=True)
@pytest.mark.parametrize(("hidden", "doubted"), [(4 * MIB // 20, True), (0, False)])
def test_five_percent_that_nobody_counted_are_seen(scratch: Path, hidden: int, doubted: bool) -> None:
    data = ramp(scratch, hidden)
    said = "\n".join(doubt.message for doubt in quality(data, summarise(data)))
    assert ("disk of one more is not what its file system says (disk.used): 5 % of it is in no file" in said) == doubted


@pytest.mark.slow
@pytest.mark.libvirt
def test_default_drivers_agree_with_the_file_system_within_two_percent(tmp_path: Path) -> None:
    results = tmp_path / "results"
    words = ["--rounds", "1", "--set", "settle=0.1", "--set", "count.default=8", "--set", "count.vm=2"]
    done = bench("run", "disk", *words, results=results)
    assert done.returncode == 0, done.stderr
    (path,) = results.iterdir()
    data = read_run(path)
    found = {(row.driver, row.profile, row.metric): row.median for row in summarise(data).summary}
    for driver, profile in (("container", "default"), ("container", "copy"), ("vm", "stock"), ("vm", "lean")):
        counted = found[driver, profile, "disk.counted"]
        assert counted > 0
        assert found[driver, profile, "disk.used"] == pytest.approx(counted, rel=WITHIN), profile
    assert found["process", "default", "disk.used"] == found["process", "default", "disk.counted"] == 0
    assert "disk.used" not in "\n".join(doubt.message for doubt in quality(data, summarise(data)))
    assert not traces(RunId(path.name))


def test_the_file_system_of_a_killed_run_is_found_and_removed(tmp_path: Path) -> None:
    words = ["run", "disk", "--drivers", "container", "--rounds", "1", "--count", "100", "--set", "settle=1"]
    env = {**os.environ, "BENCH_RESULTS": str(tmp_path / "results"), "BENCH_STATE": str(tmp_path / "state")}
    with subprocess.Popen([*BENCH, *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            (upper,) = awaited(tmp_path / "state", "*/scratch/mnt/container/*-c2/upper")
        finally:
            run.kill()
    token = upper.parts[-6]
    assert mounts_below(tmp_path) != []
    assert loops_below(tmp_path) != []
    done = subprocess.run([*BENCH, "clean"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"mount {tmp_path}/state/{token}/scratch/mnt" in done.stdout
    assert mounts_below(tmp_path) == loops_below(tmp_path) == []
    assert not (tmp_path / "state" / token).exists()
    assert not traces(RunId(f"20261124-000000-disk-{token}"))


def awaited(folder: Path, pattern: str) -> list[Path]:
    deadline = time.monotonic() + 60
    while not (found := list(folder.glob(pattern))):
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.02)
    return found
