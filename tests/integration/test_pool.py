"""container:pooled: what an instance finds ready, that it is nobody else's, and that its cost is told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.container.groups import run_group
from bench.drivers.container import ContainerDriver
from bench.drivers.context import RunContext
from bench.drivers.network import PORTS, netdevs
from bench.errors import HostError, UsageError
from bench.model import ContainerSettings, InstanceSpec, Leftover, PhaseLog, RunId
from tests.integration.traces import traces

pytestmark = pytest.mark.root

Make = Callable[..., InstanceSpec]
TIMEOUT = 20


@pytest.fixture
def driver(driver_of: Callable[[str], ContainerDriver]) -> ContainerDriver:
    return driver_of("container:pooled")


def groups(run: RunId) -> list[str]:
    """Names of groups below the run's own, those of device rules left out."""
    found = Path("/sys/fs/cgroup").glob(f"**/{run_group(run)}/**/*-n*")
    return sorted({path.name for path in found if path.is_dir()})


def test_an_instance_takes_what_is_there_and_nobody_takes_it_again(
    driver: ContainerDriver, make_spec: Make, context: RunContext
) -> None:
    first, second = make_spec("container:pooled"), make_spec("container:pooled")
    driver.prepare(first)
    with pytest.raises(UsageError, match="no pool was filled"), driver.launch(first, PhaseLog()):
        pass
    driver.fill(first, 2)
    made, names = netdevs(context.run), groups(context.run)
    assert (len(made), len(names)) == (2, 2)
    with driver.launch(first, PhaseLog()) as one:
        one.wait_ready(TIMEOUT)
        assert netdevs(context.run) == made, "a launch makes no interface"
        assert one.footprint().netdev in made
        assert {Path(path).name for path in one.footprint().cgroups.values()} < set(names)
        memory = Path(next(path for name, path in one.footprint().cgroups.items() if name in ("memory", "unified")))
        limit = next(path for path in (memory / "memory.limit_in_bytes", memory / "memory.max") if path.exists())
        assert int(limit.read_text()) == first.limits.memory
        assert one.exec(["ls", "/sys/class/net"], timeout=TIMEOUT).stdout.split() == ["eth0", "lo"]
        assert one.exec(["hostname"], timeout=TIMEOUT).stdout.strip() == first.id
        used = os.stat(f"/proc/{one.pid}/ns/net").st_ino
    with driver.launch(second, PhaseLog()) as two:
        two.wait_ready(TIMEOUT)
        assert os.stat(f"/proc/{two.pid}/ns/net").st_ino != used
        assert two.address != one.address
    with pytest.raises(HostError, match="have been used"), driver.launch(make_spec("container:pooled"), PhaseLog()):
        pass
    driver.drain()
    assert (netdevs(context.run), groups(context.run)) == ([], [])
    assert not [trace for trace in traces(context.run) if trace.startswith("process")], "who held them is gone"


def test_a_cold_launch_finds_nothing_ready(driver: ContainerDriver, make_spec: Make, context: RunContext) -> None:
    cold = make_spec("container")
    assert not driver.pools(cold)
    driver.prepare(cold)
    with driver.launch(cold, PhaseLog()) as instance:
        instance.wait_ready(TIMEOUT)
        assert netdevs(context.run) == [cold.netdev]


def test_without_a_bridge_there_is_nothing_to_pool(driver: ContainerDriver, make_spec: Make) -> None:
    with pytest.raises(UsageError, match="without a bridge"):
        driver.prepare(make_spec("container:pooled", settings=ContainerSettings(network="none")))


def test_a_ramp_s_bridges_are_there_before_it(driver: ContainerDriver, make_spec: Make, context: RunContext) -> None:
    driver.prepare(make_spec("container", ramp=2 * PORTS + 1))
    bridges = [name for name in os.listdir("/sys/class/net") if name.startswith(f"bn{context.run[-6:]}br")]
    assert len([name for name in bridges if name[-1].isdigit()]) == 3


def test_reap_finds_a_pool(driver: ContainerDriver, make_spec: Make, context: RunContext) -> None:
    spec = make_spec("container:pooled")
    driver.prepare(spec)
    driver.fill(spec, 2)
    found = list(ContainerDriver(context).reap(context.run))
    assert {"cgroup", "netdev", "process"} <= {one.kind for one in found}
    assert (netdevs(context.run), groups(context.run)) == ([], [])
    assert Leftover("netdev", f"bn{context.run[-6:]}n0") in found


def test_a_run_shows_the_pool_beside_the_profile(tmp_path: Path) -> None:
    env = {**os.environ, "BENCH_RESULTS": str(tmp_path)}
    quick = ("--count", "3", "--rounds", "2", "--set", "settle=0.1")
    names = "container,container:pooled"
    command = [sys.executable, "-m", "bench", "run", "density", "--drivers", names, *quick, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    rows = {(row["profile"], row["metric"]): row for row in said["summary"]}
    assert rows["pooled", "pool.size"]["median"] == 4, "three and a warm-up"
    assert rows["pooled", "pool.fill"]["median"] > 0
    assert ("pooled", "pool.memory") in rows
    assert not [metric for profile, metric in rows if profile == "default" and metric.startswith("pool")]
    assert rows["pooled", "startup.ready"]["n"] == rows["default", "startup.ready"]["n"] == 6
    assert not traces(RunId(said["run"]))
