"""`touch` really dirties what it says, in every driver; and the OOM killer takes an instance before the harness."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from bench.config.scenario import BUILTIN_PAYLOADS
from bench.drivers.base import Driver
from bench.levels import PayloadKeys
from bench.linux import oom, procfs
from bench.model import MIB, InstanceSpec, Limits, PhaseLog
from bench.samplers.memory import MemorySampler

DRIVERS = [
    pytest.param("process", marks=pytest.mark.root),
    pytest.param("container", marks=pytest.mark.root),
    pytest.param("vm:micro", marks=[pytest.mark.root, pytest.mark.libvirt]),
]
Make = Callable[..., InstanceSpec]
Get = Callable[[str], Driver]
MIBS = 24


def touching(make_spec: Make, name: str, mib: int, per_second: float) -> InstanceSpec:
    keys = PayloadKeys("touch", mib, per_second)
    payload = replace(BUILTIN_PAYLOADS["touch"], env=keys.env)
    return replace(make_spec(name), payload=payload, limits=Limits(memory=128 * MIB, cpus=1.0, pids=64))


def referenced(pids: tuple[int, ...], seconds: float) -> int:
    """Bytes that these processes use within so long."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("1")
    time.sleep(seconds)
    return sum(procfs.sizes(procfs.read(f"/proc/{pid}/smaps_rollup") or "").get("Referenced", 0) for pid in pids)


def pss(driver: Driver, spec: InstanceSpec) -> float:
    driver.prepare(spec)
    with driver.launch(spec, PhaseLog()) as instance:
        instance.wait_ready(90)
        found = {one.metric: one.value for one in MemorySampler().read([instance.footprint()])}
        return found["instances.memory.pss"]


@pytest.mark.parametrize("name", DRIVERS)
def test_memory_is_dirtied_before_it_is_ready(name: str, driver_of: Get, make_spec: Make) -> None:
    driver = driver_of(name)
    none, some = (pss(driver, touching(make_spec, name, mib, 0.1)) for mib in (0, MIBS))
    least = 0.6 if name.startswith("vm") else 0.95  # a guest touches RAM as it boots, and gives it to its payload
    assert MIBS * MIB * least < some - none < (MIBS + 12) * MIB


@pytest.mark.parametrize("name", [pytest.param("process", marks=[pytest.mark.root, pytest.mark.slow]), DRIVERS[1]])
def test_memory_is_touched_again_at_the_rate_asked_for(name: str, driver_of: Get, make_spec: Make) -> None:
    driver = driver_of(name)
    for per_second, again in ((0.01, False), (2.0, True)):
        spec = touching(make_spec, name, MIBS, per_second)
        driver.prepare(spec)
        with driver.launch(spec, PhaseLog()) as instance:
            instance.wait_ready(20)
            used = referenced(instance.footprint().pids, 3)
            assert (used > MIBS * MIB * 0.95) == again, f"{used} bytes at {per_second} a second"
            instance.stop(5)


@pytest.mark.parametrize("name", DRIVERS[:2])
def test_one_whose_memory_is_taken_ends(name: str, driver_of: Get, make_spec: Make) -> None:
    """As the OOM killer would: it takes the process that has the memory."""
    driver = driver_of(name)
    spec = touching(make_spec, name, MIBS, 2.0)
    driver.prepare(spec)
    with driver.launch(spec, PhaseLog()) as instance:
        instance.wait_ready(20)
        resident = {
            pid: procfs.sizes(procfs.read(f"/proc/{pid}/smaps_rollup") or "") for pid in instance.footprint().pids
        }
        time.sleep(1.2)
        assert instance.alive(), "else it ends anyhow"
        os.kill(max(resident, key=lambda pid: resident[pid].get("Rss", 0)), signal.SIGKILL)
        deadline = time.monotonic() + 10
        while instance.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not instance.alive()


@pytest.mark.parametrize("name", DRIVERS)
def test_the_oom_killer_takes_an_instance_before_the_harness(name: str, driver_of: Get, make_spec: Make) -> None:
    driver = driver_of(name)
    spec = make_spec(name)
    driver.prepare(spec)
    with oom.spared(oom.HARNESS) as ours, driver.launch(spec, PhaseLog()) as instance:
        assert ours == oom.adjustment()
        instance.wait_ready(90)
        pids = instance.footprint().pids
        assert pids
        assert {oom.adjustment(pid) for pid in pids} == {oom.INSTANCE}
        assert ours < oom.INSTANCE
        with contextlib.suppress(FileNotFoundError):
            assert max(map(score, pids)) > score("self"), "it is the kernel's own word that counts"


def score(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score").read_text())
