"""Probes against real instances: the expected matrix, a planted hole that is seen, and a host that is as it was."""

from __future__ import annotations

import itertools
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.isolation import WORST
from bench.battery import Battery, Control, Kit
from bench.config.scenario import settings_for
from bench.container import hardening
from bench.drivers.base import Driver
from bench.drivers.context import RunContext
from bench.images.attacks import PROGRAM, attack_program
from bench.linux import procfs
from bench.model import InstanceSpec, Limits, PhaseLog
from bench.paths import cache_dir
from bench.plan import BATTERY_ROOM, Trial
from bench.probes import PROBES
from bench.probes.base import Probe
from bench.probes.program import attack
from bench.probes.unchanged import differences, snapshot
from bench.probes.worlds import GuestWorld, host_world
from bench.process import run
from bench.records import Containment, Finding, FindingRecord, TrialRecord
from bench.store import read_run
from bench.verbs.isolation import armed
from tests.fakes import scenario

pytestmark = pytest.mark.root

GOLDEN = Path(__file__).parent.parent / "golden" / "isolation.toml"
FACTS = {
    "no-sysrq": lambda: not os.path.exists("/proc/sysrq-trigger"),
    "no-uevent-helper": lambda: not os.path.exists("/sys/kernel/uevent_helper"),
}
BY_LOAD = frozenset({"destroy.processors"})
"""Whose control needs idle processors: no test may depend on that."""

Get = Callable[[str], Driver]
Make = Callable[..., InstanceSpec]


def expected(target: str) -> dict[str, Containment]:
    """The golden outcome of every probe, on this host."""
    table: dict[str, Any] = tomllib.loads(GOLDEN.read_text())[target]
    found = {probe.id: Containment.CONTAINED for probe in PROBES}
    for fact, outcomes in table.pop("when", {}).items():
        if FACTS[fact]():
            found |= {probe: Containment(outcome) for probe, outcome in outcomes.items()}
    for probe, (outcome, reason) in table.items():
        assert len(reason) > 10, f"{probe}: a weaker outcome needs its reason"
        found[probe] = Containment(outcome)
    assert set(found) == {probe.id for probe in PROBES}, "the golden file names a probe that is not there"
    return found


def compared(target: str, found: dict[str, Finding]) -> tuple[list[str], list[str]]:
    """(weaker than expected, stronger than expected), each with its evidence."""
    weaker: list[str] = []
    stronger: list[str] = []
    for probe, wanted in expected(target).items():
        if probe not in found or probe in BY_LOAD or found[probe].outcome is wanted:
            continue
        line = f"{probe}: {found[probe].outcome.value}, not {wanted.value}: {found[probe].evidence}"
        worse = WORST.index(found[probe].outcome) < WORST.index(wanted)
        (weaker if worse else stronger).append(line)
    return weaker, stronger


# --- without guests --------------------------------------------------------------------------------------------------


@pytest.fixture
def battery(
    context: RunContext, driver_of: Get, make_spec: Make, tmp_path: Path
) -> Callable[..., dict[str, FindingRecord]]:
    """All probes (or the quick ones) against a profile of `container`, with those controls that need no guest."""
    image = armed(context, context.images.resolve("default"))
    limits = Limits(pids=64)

    def spec(driver: str, profile: str) -> Callable[[int], InstanceSpec]:
        settings = settings_for(scenario(tmp_path), driver, profile)
        return lambda number: make_spec(
            driver, settings=settings, profile=profile, number=number, image=image, limits=limits, ramp=4
        )

    @contextmanager
    def changes() -> Iterator[list[str]]:
        own = [context.state, cache_dir(), Path("/var/lib/bench"), tmp_path.parent.parent]
        found: list[str] = []
        before = snapshot(own)
        yield found
        found += differences(before, snapshot(own))

    kit = Kit(
        probes=PROBES, program=PROGRAM,
        world=lambda: host_world(str(attack_program(cache_dir())), context.state / "canary"),
        guest_world=lambda guest: GuestWorld(guest, PROGRAM, 30.0), ask=attack, mounts=os.readlink("/proc/self/ns/mnt"),
        kernel=(procfs.read("/proc/sys/kernel/random/boot_id") or "").strip(),
        controls={"process": Control(driver_of("process"), spec("process", "default"))}, differences=changes,
        limits=limits, shield=nullcontext, timeout=20.0, patience=20.0,
    )  # fmt: skip

    numbers = itertools.count(1, 100)

    def attacked(profile: str, *, quick: bool = False) -> dict[str, FindingRecord]:
        probes = [one for one in PROBES if not (quick and one.id.startswith(("destroy.", "process.joining")))]
        made = Battery(replace(kit, probes=probes, controls={} if quick else kit.controls))
        kept: list[FindingRecord] = []

        def record(probe: Probe, name: str, finding: Finding, control: Finding | None, took: float) -> FindingRecord:
            return FindingRecord(
                trial="r1", driver="container", profile=profile, payload="idle", round=1, date=0.0, instance=name,
                probe=probe.id, claim=probe.claim, severity=probe.severity, finding=finding, place=probe.place,
                control=control, seconds=took,
            )  # fmt: skip

        # a number of its own: what the kernel is still taking away of the last one has that name
        trial = Trial("r1", 1, "container", profile, "battery", BATTERY_ROOM, (), 0, next(numbers))
        changed = made.run(
            trial, driver_of("container"), spec("container", profile), record, kept.append, lambda text: None
        )
        assert changed == []
        return {one.probe: one for one in kept}

    return attacked


Battle = Callable[..., dict[str, FindingRecord]]


def test_the_default_container_and_a_hole_in_it(battery: Battle) -> None:
    """The matrix expected; then the same with the confinement taken away, which has to be seen as weaker."""
    sound = battery("default")
    weaker, stronger = compared("container:default", {name: one.finding for name, one in sound.items()})
    assert weaker == []
    assert stronger == [], "the boundary holds more than the golden file says: write that down there"
    failed = [one.probe for one in sound.values() if one.place == "process" and not one.counts]
    assert set(failed) <= BY_LOAD, "controls that did not get through"

    bare = battery("bare", quick=True)
    weaker, _ = compared("container:default", {name: one.finding for name, one in bare.items()})
    seen = {line.partition(":")[0] for line in weaker}
    holes = {
        "kernel.sysctl", "kernel.core-pattern", "kernel.reboot", "kernel.log", "mount.proc", "mount.read-only",
        "surface.bpf", "surface.user-namespace", "key.read", "file.log-device",
    }  # fmt: skip
    assert holes <= seen, "a container without filter, masks and dropped capabilities passes for a confined one"


@pytest.mark.slow
def test_the_strict_container(battery: Battle) -> None:
    found = battery("strict")
    assert compared("container:strict", {name: one.finding for name, one in found.items()}) == ([], [])


def test_strict_is_what_it_says_and_runs_a_payload(
    context: RunContext, driver_of: Get, make_spec: Make, tmp_path: Path
) -> None:
    driver = driver_of("container")
    spec = make_spec("container", settings=settings_for(scenario(tmp_path), "container", "strict"), profile="strict")
    driver.prepare(spec)
    assert "user namespace" in driver.describe()["security strict"]
    with driver.launch(spec, PhaseLog()) as instance:
        instance.wait_ready(20)
        [pid] = instance.footprint().pids[:1]
        status = procfs.read(f"/proc/{pid}/status") or ""
        assert f"Uid:\t{hardening.FIRST_ID}" in status
        assert "NoNewPrivs:\t1" in status
        assert "CapBnd:\t0000000000000000" in status
        assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
        said = instance.exec(
            ["/bin/sh", "-c", "touch /x; touch /tmp/x && ls /tmp; id -u; ls /sys/class/net"], timeout=20
        )
        assert "Read-only file system" in said.stderr
        assert said.stdout.split() == ["x", "0", "lo"]
        instance.stop(10)
    driver.close()


def test_a_change_of_the_host_would_be_seen(tmp_path: Path) -> None:
    """A mount is planted and taken away again."""
    before = snapshot([])
    run(["mount", "-t", "tmpfs", "attack", tmp_path], timeout=10)
    try:
        assert f"mounted by an attack: {tmp_path}" in differences(before, snapshot([]))
    finally:
        run(["umount", tmp_path], timeout=10)


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.mark.libvirt
@pytest.mark.slow
def test_the_guest_and_all_controls(tmp_path: Path) -> None:
    """By the command: at least 35 controls get through, and guests are what the golden file says."""
    argv = [sys.executable, "-m", "bench", "run", "isolation", "--drivers", "vm", "--results", str(tmp_path)]
    done = run(argv, check=False, timeout=280)
    assert done.status == 0, done.stderr
    [folder] = tmp_path.iterdir()
    records = read_run(folder).records
    found = [one for one in records if isinstance(one, FindingRecord)]
    assert compared("vm:stock", {one.probe: one.finding for one in found}) == ([], [])
    assert sum(one.counts for one in found) >= 35
    without = {one.probe for one in found if not one.counts}
    assert without <= {"destroy.processors", "kernel.uevent-helper", "kernel.interpreter"}
    [trial] = (one for one in records if isinstance(one, TrialRecord))
    assert trial.battery
    assert trial.accelerator in ("kvm", "tcg")
