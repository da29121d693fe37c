"""Real guests: what the contract of all drivers does not ask of the others."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from bench.drivers import vm
from bench.drivers.context import RunContext
from bench.drivers.vm import VmDriver
from bench.errors import HostError, LaunchError, ReadyTimeoutError
from bench.linux import interfaces
from bench.model import MIB, InstanceSpec, Limits, Payload, Phase, PhaseLog, Ready, VmSettings
from bench.paths import cache_dir
from bench.vm import accel, domain
from bench.vm.kernel import fetch_kernel, guest_kernel
from tests.integration.traces import traces

pytestmark = [pytest.mark.root, pytest.mark.libvirt]

Make = Callable[..., InstanceSpec]
PATIENCE = 90.0


@pytest.fixture(autouse=True, scope="module")
def _kernel() -> None:
    try:
        guest_kernel(cache_dir())
    except HostError:
        fetch_kernel(cache_dir())


@pytest.fixture
def driver(driver_of: Callable[[str], VmDriver]) -> VmDriver:
    return driver_of("vm")


def started() -> PhaseLog:
    log = PhaseLog()
    log.begin()
    return log


def script(text: str, line: str = "ok") -> Payload:
    return Payload("script", ("/bin/sh", "-c", text), Ready(line=line))


def test_boot_to_reply_with_every_phase_and_the_evidence(driver: VmDriver, make_spec: Make, tmp_path: Path) -> None:
    spec = make_spec("vm", payload="httpd")
    driver.prepare(spec)
    phases = started()
    with driver.launch(spec, phases) as guest:
        guest.wait_ready(PATIENCE)
        stamps = phases.freeze()
        order = ["created", "started", "kernel", "init", "ready"]
        assert [stamps[name] for name in order] == sorted(stamps[name] for name in order)
        assert urllib.request.urlopen(f"http://{guest.address}:8080/", timeout=10).status == 200
        assert guest.exec(["/bin/hostname"], timeout=20).stdout.strip() == spec.id
        environment = guest.exec(["/bin/sh", "-c", "echo $BENCH_ADDRESS"], timeout=20)
        assert environment.stdout.strip() == guest.address
        footprint = guest.footprint()
        assert {"memory"} <= set(footprint.cgroups) or {"unified"} <= set(footprint.cgroups)
        for path in footprint.cgroups.values():
            assert footprint.pids[0] in _pids_below(path), f"{path} does not hold the guest's QEMU"
        began = time.monotonic()
        guest.stop(20)
        assert time.monotonic() - began < 10, "it was destroyed, not stopped"
    written = ET.parse(tmp_path / f"{spec.id}.xml")
    assert written.findtext("name") == f"bench-{spec.id}"
    assert f"guest=bench-{spec.id}" in (tmp_path / f"{spec.id}.argv").read_text()
    console = (tmp_path / f"{spec.id}.console.log").read_text(errors="replace")
    assert "bench: init" in console
    assert "payload exited with status" in console
    described = driver.describe()
    assert described["accelerator"] in ("kvm", "tcg")
    assert all(isinstance(value, str) and value for value in described.values())


def _pids_below(path: str) -> set[int]:
    """Its threads' groups are threaded on cgroup2, where only the domain's own file lists processes."""
    found = set()
    for file in Path(path).rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in file.read_text().split()}
    return found


def test_a_guest_on_a_backing_file_without_network_and_with_half_a_cpu(
    driver: VmDriver, make_spec: Make, tmp_path: Path
) -> None:
    settings = VmSettings(storage="qcow2-backing", network="none", stop="destroy")
    spec = make_spec("vm", settings=settings, limits=Limits(256 * MIB, 1.5, 64))
    driver.prepare(spec)
    with driver.launch(spec, PhaseLog()) as guest:
        guest.wait_ready(PATIENCE)
        assert guest.address is None
        assert guest.exec(["/bin/sh", "-c", "ls /sys/class/net"], timeout=20).stdout.split() == ["lo"]
        assert guest.exec(["/bin/sh", "-c", "echo mine >/kept && nproc"], timeout=20).stdout.strip() == "2"
        footprint = guest.footprint()
        assert [path for path in footprint.disk_shared if path.endswith(".ext4")]
        assert [path for path in footprint.disk_own if path.endswith(".qcow2")]
        quotas = {file.read_text().strip() for path in footprint.cgroups.values() for file in _quota_files(path)}
        assert {"150000", "150000 100000"} & quotas
        guest.stop(20)
        assert not guest.alive()
    console = (tmp_path / f"{spec.id}.console.log").read_text(errors="replace")
    assert "payload exited" not in console  # as it was asked to: destroyed


def _quota_files(path: str) -> list[Path]:
    return [file for name in ("cpu.cfs_quota_us", "cpu.max") if (file := Path(path) / name).exists()]


def test_stop_asks_the_payload_first_and_kills_one_that_does_not_listen(
    driver: VmDriver, make_spec: Make, tmp_path: Path
) -> None:
    polite, deaf = "trap 'exit 5' TERM; echo ok; while :; do sleep 0.1; done", "trap '' TERM; echo ok; sleep 1000"
    for text, status in ((polite, 5), (deaf, 137)):
        spec = msgspec.structs.replace(make_spec("vm"), payload=script(text))
        driver.prepare(spec)
        with driver.launch(spec, PhaseLog()) as guest:
            guest.wait_ready(PATIENCE)
            guest.stop(20)
            assert not guest.alive()
        console = (tmp_path / f"{spec.id}.console.log").read_text(errors="replace")
        assert f"payload exited with status {status}" in console


def test_never_ready_shows_the_console(driver: VmDriver, make_spec: Make) -> None:
    spec = msgspec.structs.replace(make_spec("vm"), payload=script("sleep 1000", "never"))
    driver.prepare(spec)
    phases = started()
    with driver.launch(spec, phases) as guest, pytest.raises(ReadyTimeoutError) as caught:
        guest.wait_ready(12)
    assert "bench: init" in caught.value.message
    assert phases.get(Phase.INIT) is not None
    assert phases.get(Phase.READY) is None


def test_a_payload_that_ends_is_told_with_its_status(driver: VmDriver, make_spec: Make) -> None:
    spec = msgspec.structs.replace(make_spec("vm"), payload=script("exit 3"))
    driver.prepare(spec)
    with driver.launch(spec, PhaseLog()) as guest, pytest.raises(LaunchError, match="its payload exited with status 3"):
        guest.wait_ready(PATIENCE)


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plant a fault: launch with a domain that differs from what it should be."""
    make = domain.make_domain

    def change(**fields: object) -> None:
        def faulty(*arguments: object) -> domain.Domain:
            return dataclasses.replace(make(*arguments), **fields)  # type: ignore[arg-type]

        monkeypatch.setattr(vm.domain, "make_domain", faulty)

    return change


def test_no_root_device_is_named(driver: VmDriver, make_spec: Make, changed: Callable[..., None]) -> None:
    spec = make_spec("vm")
    driver.prepare(spec)
    changed(disk=None)
    began = time.monotonic()
    with driver.launch(spec, PhaseLog()) as guest, pytest.raises(LaunchError, match=r"\(no root device /dev/vda\)"):
        guest.wait_ready(PATIENCE)
    assert time.monotonic() - began < 45


def test_too_little_memory_ends_in_bounded_time(driver: VmDriver, make_spec: Make) -> None:
    spec = make_spec("vm", limits=Limits(40 * MIB, 1.0, 64))
    driver.prepare(spec)
    with driver.launch(spec, PhaseLog()) as guest, pytest.raises(LaunchError) as caught:
        guest.wait_ready(20)
    assert "memory" in caught.value.message, caught.value.message


def test_a_missing_kernel_is_named_and_nothing_stays(
    driver: VmDriver, make_spec: Make, changed: Callable[..., None], context: RunContext
) -> None:
    spec = make_spec("vm")
    driver.prepare(spec)
    boot = domain.DirectBoot(machine="q35", kernel="/nonexistent/vmlinuz", initrd="/nonexistent/i", cmdline="")
    changed(boot=boot)
    with pytest.raises(LaunchError, match="/nonexistent"), driver.launch(spec, PhaseLog()):
        pass
    driver.close()
    context.network.close()
    assert [trace for trace in traces(context.run) if not trace.startswith("file ")] == []


def test_an_accelerator_that_does_not_boot_is_refused_when_it_is_forced(driver: VmDriver, make_spec: Make) -> None:
    if accel.accelerator(cache_dir(), guest_kernel(cache_dir())).name == "kvm":
        pytest.skip("guests boot under kvm here")
    with pytest.raises(HostError, match="kvm") as caught:
        driver.prepare(make_spec("vm", settings=VmSettings(accel="kvm")))
    assert "accel" in (caught.value.hint or "")


@pytest.mark.slow
def test_guests_side_by_side_answer_and_one_death_hurts_nobody(driver: VmDriver, make_spec: Make) -> None:
    specs = [make_spec("vm", payload="httpd") for _ in range(3)]
    driver.prepare(specs[0])
    with ExitStack() as stack:
        guests = [stack.enter_context(driver.launch(spec, PhaseLog())) for spec in specs]
        for guest in guests:
            guest.wait_ready(PATIENCE)
        os.kill(guests[0].pid, signal.SIGKILL)  # its hypervisor dies, unasked
        deadline = time.monotonic() + 5
        while guests[0].alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not guests[0].alive()
        for guest in guests[1:]:
            assert urllib.request.urlopen(f"http://{guest.address}:8080/", timeout=10).status == 200


def test_taps_of_a_dead_run_go_together_and_no_other_s(driver: VmDriver, context: RunContext) -> None:
    token = context.run[-6:]
    ours, other = [f"bn{token}v{number}" for number in range(1, 30)], f"zz{token}"
    lines = "".join(f"tuntap add {name} mode tap\n" for name in (*ours, other))
    subprocess.run(["ip", "-batch", "-"], input=lines.encode(), check=True)
    try:
        assert [one.name for one in driver.reap(context.run) if one.kind == "netdev"] == ours
        assert not [name for name in os.listdir("/sys/class/net") if name.startswith(f"bn{token}")]
        assert Path(f"/sys/class/net/{other}/netdev_group").read_text().strip() == "0"
        assert interfaces.delete_together([*ours, "nosuch"]) == []
    finally:
        assert interfaces.delete_together([other]) == [other]


_CHILD = """
import pickle, sys, time
from pathlib import Path
from bench.drivers.context import RunContext
from bench.drivers.network import RunNetwork
from bench.drivers.vm import VmDriver
from bench.images.store import ImageStore
from bench.linux.lines import LineHub
from bench.model import PhaseLog
from bench.paths import cache_dir
spec = pickle.load(sys.stdin.buffer)
images = ImageStore(cache_dir() / "images")
driver = VmDriver(RunContext(spec.run, Path(sys.argv[1]), images, LineHub(), RunNetwork(spec.run)))
driver.prepare(spec)
with driver.launch(spec, PhaseLog()) as guest:
    guest.wait_ready(90)
    print("up", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_run_left_is_found_and_removed(driver: VmDriver, make_spec: Make, context: RunContext) -> None:
    """The run's process dies by SIGKILL; a fresh one, which never saw it, cleans up."""
    spec = make_spec("vm")
    argv = [sys.executable, "-c", _CHILD, str(context.state)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        pickle.dump(spec, child.stdin)
        child.stdin.close()
        assert child.stdout.readline() == b"up\n"
        child.kill()
    before = traces(context.run)
    assert any(trace.startswith("process") for trace in before), "the guest outlives the run's process"
    assert any(trace.startswith("cgroup") for trace in before)
    found = {one.kind for one in driver.reap(context.run)}
    assert {"process", "domain", "cgroup", "file"} <= found
    context.network.close()
    assert [trace for trace in traces(context.run) if not trace.startswith("file ")] == []
    assert not any(path.is_file() for path in context.state.rglob("*"))
    assert list(driver.reap(context.run)) == []
