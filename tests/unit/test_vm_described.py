"""What the vm driver stores with a run: all that was made for guests, told apart by profile and condition."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.config.loader import parse_scenario
from bench.drivers.context import RunContext
from bench.drivers.vm import VmDriver
from bench.images.store import ImageStore
from bench.model import InstanceSpec, VmSettings
from bench.plan import make_plan
from bench.runner import Runner
from bench.vm import accel, supplies
from bench.vm.accel import Accel
from bench.vm.kernel import GuestKernel
from bench.vm.supplies import Supplies
from tests import fakes

KERNEL = GuestKernel("/k/vmlinuz", "/k/modules", "6.1", "k=6.1")


class NoNetwork:
    """Bridges are root's to make."""

    def ensure(self, ramp: int) -> None:
        pass


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VmDriver:
    """One that makes nothing for its guests, and says of each that it did."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))

    def supply(_cache: Path, _images: ImageStore, _spec: InstanceSpec, settings: VmSettings) -> Supplies:
        return Supplies(KERNEL, f"/initrd-{settings.storage}", f"/{settings.storage}", Accel("tcg", "told", 0.0))

    opened: Any = SimpleNamespace(connection=SimpleNamespace(embedded=True))
    monkeypatch.setattr(supplies, "supply", supply)
    monkeypatch.setattr(accel, "qemu_version", lambda: "9.9")
    monkeypatch.setattr(VmDriver, "_open", lambda *_: opened)
    hub: Any = None  # nothing is launched
    network: Any = NoNetwork()
    return VmDriver(RunContext(fakes.RUN, tmp_path, ImageStore(tmp_path), hub, network))


def described(driver: VmDriver, tmp_path: Path, drivers: str, *overrides: str) -> dict[str, str]:
    """What is stored with a run, once all of it is prepared."""
    text = f'schema = 1\nname = "s"\nrounds = 2\ncount.default = 2\ndrivers = {drivers}\n'
    scenario = parse_scenario(text, "s.toml", overrides=overrides)
    fake = fakes.FakeDriver()
    job = fakes.job(fake, fakes.Recorder(fake), fakes.scenario(tmp_path))
    Runner(replace(job, scenario=scenario, plan=make_plan(scenario, 1), drivers={"vm": driver})).prepare()
    return dict(driver.describe())


def named(keys: dict[str, str], key: str) -> dict[str, str]:
    """The value of `key` under each name that has one."""
    return {name.removesuffix(f": {key}"): value for name, value in keys.items() if name.endswith(f": {key}")}


def test_every_variant_of_a_sweep_is_stored(driver: VmDriver, tmp_path: Path) -> None:
    keys = described(driver, tmp_path, "['vm']", "vm.storage=shared-ro,shared-dax,copy")
    variants = {f"stock [vm.storage={one}]": one for one in ("shared-ro", "shared-dax", "copy")}
    assert {name: json.loads(text)["storage"] for name, text in named(keys, "settings").items()} == variants
    assert named(keys, "root") == {name: f"/{one}" for name, one in variants.items()}
    assert list(named(keys, "deviation")) == ["stock [vm.storage=shared-dax]"]
    assert keys["accelerator"] == "tcg"


def test_a_condition_that_changes_nothing_of_what_is_made_has_its_name_too(driver: VmDriver, tmp_path: Path) -> None:
    """A reader looks for it by its trials' condition."""
    keys = described(driver, tmp_path, "['vm']", "warmups=0,1", "vm.thp=true,false")
    found = {name: json.loads(text)["thp"] for name, text in named(keys, "settings").items()}
    assert found == {f"stock [vm.thp={thp},warmups={n}]": thp == "true" for n in (0, 1) for thp in ("true", "false")}


def test_profiles_without_a_sweep_have_their_bare_names(driver: VmDriver, tmp_path: Path) -> None:
    keys = described(driver, tmp_path, "['vm:stock', 'vm:lean']")
    assert set(named(keys, "settings")) == {"stock", "lean"}


def test_profiles_with_the_same_keys_are_both_stored(driver: VmDriver) -> None:
    for profile in ("stock", "lean"):
        spec = InstanceSpec(
            fakes.RUN, "vm", profile, 1, fakes.IMAGE, None, None, VmSettings(network="none")  # type: ignore[arg-type]
        )  # fmt: skip
        driver.prepare(spec)
    assert set(named(dict(driver.describe()), "settings")) == {"stock", "lean"}
