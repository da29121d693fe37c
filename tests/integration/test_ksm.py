"""KSM for real: equal guests are merged, the wait ends, and the host's settings come back, also after SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from bench.config.profiles import PROFILES
from bench.drivers.base import Driver
from bench.drivers.context import RunContext
from bench.ksm import FOLDER, NOTE, PACE, Ksm, put_back
from bench.model import MIB, InstanceSpec, PhaseLog, VmSettings
from bench.samplers.memory import MemorySampler
from tests.integration.test_run import BENCH

pytestmark = pytest.mark.root


def settings() -> dict[str, str]:
    return {name: (FOLDER / name).read_text().strip() for name in ("run", *PACE)}


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    if not FOLDER.is_dir():
        pytest.skip("this kernel has no KSM; remedy: one with CONFIG_KSM")
    if (FOLDER / "pages_sharing").read_text().strip() != "0":
        pytest.skip("pages of other programs are merged here; remedy: end them")
    before = settings()
    yield
    assert settings() == before


@pytest.mark.libvirt
def test_equal_guests_are_merged_and_the_wait_ends(
    driver_of: Callable[[str], Driver], make_spec: Callable[..., InstanceSpec], context: RunContext
) -> None:
    chosen = msgspec.convert({**PROFILES["vm:micro"], "network": "none"}, VmSettings)
    driver, note = driver_of("vm"), context.state / NOTE
    merging = Ksm(note)
    with ExitStack() as stack:
        stack.callback(put_back, note)
        merging.switch("on")
        specs = [make_spec("vm:micro", settings=chosen) for _ in range(2)]
        driver.prepare(specs[0])
        guests = [stack.enter_context(driver.launch(spec, PhaseLog())) for spec in specs]  # they boot side by side
        for guest in guests:
            guest.wait_ready(90)
        footprints = [guest.footprint() for guest in guests]
        found = {one.metric: one.value for one in merging.settle()}
        memory = {one.metric: one.value for one in MemorySampler().read(footprints)}
        assert found["host.ksm.settled"] < 60
        assert found["host.ksm.cpu"] > 0
        assert found["host.ksm.sharing"] > 8 * MIB, "two guests of one kernel have that much in common"
        spared = memory["instances.memory.touched"] - memory["instances.memory.guest"]
        assert spared > 4 * MIB, "PSS divides what is merged"


def test_settings_come_back_after_a_run_was_killed(tmp_path: Path) -> None:
    words = ["run", "memory", "--drivers", "container", "--rounds", "1", "--count", "2", "--set", "ksm=on"]
    env = {**os.environ, "BENCH_RESULTS": str(tmp_path / "results"), "BENCH_STATE": str(tmp_path / "state")}
    before = settings()
    with subprocess.Popen([*BENCH, *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            deadline = time.monotonic() + 60
            while settings()["run"] != "1":
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            run.send_signal(signal.SIGKILL)
    assert settings() != before
    done = subprocess.run([*BENCH, "clean"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"sysctl {FOLDER}/run put back to {before['run']}" in done.stdout
