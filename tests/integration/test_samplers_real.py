"""Samplers on a real process in real cgroups: what they say is what was done there."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.linux import cgroups
from bench.model import Footprint, Reading
from bench.process import spawn
from bench.samplers import cpu_seconds, default_samplers

pytestmark = pytest.mark.root
MIB = 1 << 20


@pytest.fixture
def groups() -> Iterator[dict[str, str]]:
    """Controller -> folder of a new group, in v1 hierarchies or in cgroup2."""
    old, unified = cgroups.current_mounts()
    mounts = {key: old[key] for key in ("memory", "cpuacct") if key in old} or {"unified": str(unified)}
    name = f"bench-test-{secrets.token_hex(3)}"
    with ExitStack() as stack:
        for mount in mounts.values():
            stack.callback(cgroups.remove, f"{mount}/{name}")
            cgroups.make(f"{mount}/{name}", [])
        yield {key: f"{mount}/{name}" for key, mount in mounts.items()}


def values(footprints: Sequence[Footprint]) -> dict[str, float]:
    readings: list[Reading] = []
    for sampler in default_samplers(list):
        readings += sampler.read(footprints)
    return {reading.metric: reading.value for reading in readings}


def test_a_process_that_took_memory_and_cpu(groups: dict[str, str], tmp_path: Path) -> None:
    footprint = Footprint("x", cgroups=groups, disk_own=(str(tmp_path),))
    before = values([footprint])
    assert (before["instances.processes"], before["instances.memory.pss"]) == (0, 0)
    folders = " ".join(f"{path}/cgroup.procs" for path in groups.values())
    work = (
        f"for f in {folders}; do echo $$ > $f; done; exec python3 -c '"
        f"import time; held = bytearray(32 << 20)\nbegan = time.process_time()\n"
        f"while time.process_time() - began < 0.3: pass\n"
        f'open("{tmp_path}/done", "wb").write(bytes(1 << 20)); time.sleep(60)\''
    )
    with spawn(["sh", "-c", work]):
        deadline = time.monotonic() + 20
        while not (tmp_path / "done").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        after = values([footprint])
    assert after["instances.processes"] == 1
    assert 32 * MIB < after["instances.memory.uss"] <= after["instances.memory.pss"] < 64 * MIB
    assert 32 * MIB < after["instances.memory.cgroup"] - before["instances.memory.cgroup"] < 80 * MIB
    assert 0 < after["instances.memory.kernel"] < 8 * MIB
    assert 0.3 <= after["instances.cpu"] < 3
    assert after["instances.cpu"] == pytest.approx(cpu_seconds(footprint), abs=0.1)
    assert MIB <= after["instances.disk.own"] - before["instances.disk.own"] < 2 * MIB
    assert values([footprint])["instances.processes"] == 0, "it was killed, and is no part of the sum any more"


def test_a_full_ramp_is_read_in_well_under_a_second(groups: dict[str, str], tmp_path: Path) -> None:
    with ExitStack() as stack:
        pids = [stack.enter_context(spawn(["sleep", "60"])).pid for _ in range(72)]
        for path in groups.values():
            for pid in pids:
                cgroups.attach(path, pid)
        footprints = [Footprint(str(pid), (pid,), groups, (str(tmp_path),)) for pid in pids]
        start = time.monotonic()
        found = values(footprints)
        assert time.monotonic() - start < 0.5
    assert found["instances.processes"] == 72
