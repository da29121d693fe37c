"""Real instances: a run's context on this host, and proof that nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from bench.config.profiles import DEFAULT_PROFILE, PROFILES, SETTINGS
from bench.config.scenario import BUILTIN_PAYLOADS
from bench.container.groups import layout
from bench.drivers.base import Driver
from bench.drivers.context import RunContext
from bench.drivers.network import RunNetwork
from bench.drivers.registry import make_driver
from bench.images.store import ImageStore
from bench.linux.lines import LineHub
from bench.model import MIB, InstanceSpec, Limits, RunId, Settings
from bench.paths import cache_dir
from tests.integration.traces import traces

_tokens = iter(f"t{number:05d}" for number in range(os.getpid() % 1000 * 100, 99_999))


@pytest.fixture
def own_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder for programs that a test starts, apart from all others'; short: socket paths end at 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="bench-state-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        monkeypatch.setenv("BENCH_STATE", name)
        yield Path(name)
        if os.listdir(name):  # a test that failed: without its state folder nobody could find what is left
            subprocess.run([sys.executable, "-m", "bench", "clean"], check=False, timeout=120)


@pytest.fixture
def run_id() -> RunId:
    return RunId(f"20261124-000000-test-{next(_tokens)}")


@pytest.fixture
def context(run_id: RunId, tmp_path: Path) -> Iterator[RunContext]:
    """Everything a driver needs; afterwards nothing of the run may be left on the host."""
    state = Path("/var/lib/bench-test") / run_id[-6:]  # short: socket paths end at 108 bytes
    state.mkdir(parents=True)
    network = RunNetwork(run_id)
    with LineHub() as hub:
        made = RunContext(run=run_id, state=state, images=ImageStore(cache_dir() / "images"), hub=hub, network=network)
        try:
            yield made
        finally:
            network.close()
            made.launcher.close()
    for path in layout().parents(run_id):
        assert not os.path.exists(path), f"{path} was left behind"
    left = [str(path) for path in state.rglob("*") if path.is_file()]
    assert not left
    _remove(state)
    assert not traces(run_id)


def _remove(state: Path) -> None:
    import shutil

    shutil.rmtree(state)
    if not any(state.parent.iterdir()):
        state.parent.rmdir()


@pytest.fixture
def make_spec(context: RunContext, tmp_path: Path) -> Callable[..., InstanceSpec]:
    """A spec of the default image and the idle payload, with what a test changes. `driver` may name a profile too."""
    numbers = iter(range(1, 10_000))

    def make(driver: str, payload: str = "idle", settings: Settings | None = None, **changes: object) -> InstanceSpec:
        driver, _, profile = driver.partition(":")
        profile = profile or DEFAULT_PROFILE[driver]
        memory = 256 * MIB if driver == "vm" else 64 * MIB
        spec = InstanceSpec(
            run=context.run,
            driver=driver,
            profile=profile,
            number=next(numbers),
            image=context.images.resolve("default"),
            payload=BUILTIN_PAYLOADS[payload],
            limits=Limits(memory=memory, cpus=1.0, pids=64),
            settings=settings or msgspec.convert(PROFILES[f"{driver}:{profile}"], SETTINGS[driver]),
            logs=str(tmp_path),
        )
        return msgspec.structs.replace(spec, **changes)

    return make


@pytest.fixture
def driver_of(context: RunContext) -> Iterator[Callable[[str], Driver]]:
    """Drivers by name, which may have a profile behind it; closed at the end."""
    made: dict[str, Driver] = {}

    def get(name: str) -> Driver:
        name = name.partition(":")[0]
        if name not in made:
            made[name] = make_driver(name, context)
        return made[name]

    yield get
    for driver in made.values():
        driver.close()
