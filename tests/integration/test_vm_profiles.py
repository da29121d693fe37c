"""Each profile of the vm driver once, for real: what it is made of, that it works, and what is its own."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from bench.config.profiles import PROFILES
from bench.drivers.context import RunContext
from bench.drivers.vm import VmDriver
from bench.errors import HostError, LaunchError
from bench.model import InstanceSpec, Payload, Phase, PhaseLog, Ready, VmSettings
from bench.paths import cache_dir
from bench.vm import reap
from bench.vm.kernel_build import BUILD, micro_kernel

pytestmark = [pytest.mark.root, pytest.mark.libvirt]

Make = Callable[..., InstanceSpec]
PATIENCE = 90.0
_ALL, _ARP, _RARP = 0x0003, 0x0806, 0x8035  # kinds of frames, if_ether.h


@pytest.fixture
def driver(driver_of: Callable[[str], VmDriver]) -> VmDriver:
    return driver_of("vm")


@pytest.fixture
def small_kernel() -> None:
    """Built by `make integration`; alone, this would take minutes of a test."""
    try:
        micro_kernel(cache_dir())
    except HostError:
        pytest.fail(f"no kernel of vm:micro: {BUILD}")


def settings_of(profile: str, **changes: object) -> VmSettings:
    return msgspec.convert({**PROFILES[f"vm:{profile}"], **changes}, VmSettings)


def of_profile(make_spec: Make, profile: str, payload: str = "httpd", **changes: object) -> InstanceSpec:
    return make_spec("vm", payload=payload, profile=profile, settings=settings_of(profile, **changes))


def look_inside(driver: VmDriver, spec: InstanceSpec) -> Path:
    """Boot, answer, exec, write, stop: the contract in short. Returns the guest's QEMU's evidence without ending."""
    driver.prepare(spec)
    phases = PhaseLog()
    phases.begin()
    with driver.launch(spec, phases) as guest:
        guest.wait_ready(PATIENCE)
        assert phases.get(Phase.READY) is not None
        assert urllib.request.urlopen(f"http://{guest.address}:8080/", timeout=10).status == 200
        assert guest.exec(["/bin/hostname"], timeout=20).stdout.strip() == spec.id
        assert guest.exec(["/bin/sh", "-c", "echo kept >/new && cat /new; exit 4"], timeout=20).status == 4
        status = Path(f"/proc/{guest.pid}/status").read_text()
        assert "THP_enabled:\t0" in status, "its QEMU may use huge pages"
        footprint = guest.footprint()
        assert all(Path(path).exists() for path in (*footprint.disk_own, *footprint.disk_shared))
        guest.stop(20)
        assert not guest.alive()
    return Path(spec.logs or "") / spec.id


def words(evidence: Path) -> str:
    return evidence.with_name(evidence.name + ".argv").read_text()


def test_lean(driver: VmDriver, make_spec: Make) -> None:
    spec = of_profile(make_spec, "lean")
    argv = words(look_inside(driver, spec))
    assert "tb-size=24" in argv
    assert "balloon" not in argv
    assert "usb-uhci" not in argv
    assert "qemu-xhci" not in argv
    assert "pcie-root-port" not in argv
    described = driver.describe()
    assert json.loads(described["lean: settings"])["tb_cache"] == 24 << 20


def test_micro(driver: VmDriver, make_spec: Make, small_kernel: None) -> None:
    one, two = of_profile(make_spec, "micro"), of_profile(make_spec, "micro")
    argv = words(look_inside(driver, one))
    assert "/vmlinux" in argv
    assert ".erofs" in argv or "-erofs" in argv
    assert "cpu-unavailable-features" in driver.describe()["micro: deviation"]
    with driver.launch(two, PhaseLog()) as guest:
        guest.wait_ready(PATIENCE)
        said = guest.exec(["/bin/sh", "-c", "ls /new; cat /proc/mounts"], timeout=20)
        assert "No such file" in said.stderr, "the first guest's changes are in the shared root"
        assert " / overlay " in said.stdout
        assert not any("erofs" in path for path in guest.footprint().disk_own)


def test_microvm(driver: VmDriver, make_spec: Make, small_kernel: None) -> None:
    """It can't power itself off: its end is seen all the same, when it is asked to and when its payload ends."""
    spec = of_profile(make_spec, "micro", machine="microvm")
    began = time.monotonic()
    argv = words(look_inside(driver, spec))
    assert time.monotonic() - began < 20, "it was destroyed after the time for stopping was over"
    assert "virtio-blk-device" in argv
    assert "pci" not in argv.replace("x-pci", "")
    brief = Payload("brief", ("/bin/sh", "-c", "echo I go; exit 3"), Ready(line="never"))
    spec = msgspec.structs.replace(of_profile(make_spec, "micro", machine="microvm"), payload=brief)
    driver.prepare(spec)
    with driver.launch(spec, PhaseLog()) as guest, pytest.raises(LaunchError, match="exited with status 3"):
        guest.wait_ready(PATIENCE)
    assert time.monotonic() - began < PATIENCE


_DRAW = Payload(
    "draw", ("/bin/sh", "-c", "head -c 16 /dev/urandom | base64 >/drawn; echo ok; sleep 1000"), Ready(line="ok")
)


def draw(driver: VmDriver, spec: InstanceSpec) -> str:
    """The first random bytes a clone draws."""
    with driver.launch(spec, PhaseLog()) as guest:
        guest.wait_ready(PATIENCE)
        return guest.exec(["/bin/cat", "/drawn"], timeout=20).stdout


def test_clones_have_their_own_identity(driver: VmDriver, make_spec: Make, small_kernel: None) -> None:
    specs = [of_profile(make_spec, "clone") for _ in range(2)]
    driver.prepare(specs[0])
    with ExitStack() as stack:
        guests = [stack.enter_context(driver.launch(spec, PhaseLog())) for spec in specs]
        for guest in guests:
            guest.wait_ready(PATIENCE)
        inside = "hostname; cat /sys/class/net/eth0/address; ip -4 -o address show eth0"
        said = [guest.exec(["/bin/sh", "-c", inside], timeout=20).stdout for guest in guests]
        for guest, spec, text in zip(guests, specs, said, strict=True):
            assert text.split()[0] == spec.id
            assert f" {guest.address}/" in text
            assert urllib.request.urlopen(f"http://{guest.address}:8080/", timeout=10).status == 200
        assert said[0].split()[1] != said[1].split()[1], "the same MAC"
        other = guests[1].address
        fetched = guests[0].exec(["/bin/wget", "-q", "-O", "-", f"http://{other}:8080/"], timeout=20)
        assert fetched.status == 0, f"one clone does not reach the other: {fetched.stderr}"


def test_clones_draw_other_random_numbers_only_because_they_are_seeded_anew(
    driver: VmDriver, make_spec: Make, small_kernel: None
) -> None:
    """The same saved state restored twice. Without the seed the two agree, or this test could not tell."""
    drawn = {}
    for reseed in (False, True):
        specs = [
            msgspec.structs.replace(of_profile(make_spec, "clone", reseed=reseed), payload=_DRAW) for _ in range(2)
        ]
        driver.prepare(specs[0])
        drawn[reseed] = [draw(driver, spec) for spec in specs]
    assert all(len(text) == 25 for texts in drawn.values() for text in texts)
    assert drawn[False][0] == drawn[False][1]
    assert drawn[True][0] != drawn[True][1]
    assert drawn[True][0] != drawn[False][0]


def test_a_clone_s_start_wakes_no_other_guest(driver: VmDriver, make_spec: Make, small_kernel: None) -> None:
    """QEMU would have it announce itself to all, as one that has moved (RARP): in a crowd that is most of the work."""
    one, two = of_profile(make_spec, "clone"), of_profile(make_spec, "clone")
    driver.prepare(one)
    with driver.launch(one, PhaseLog()) as first:
        first.wait_ready(PATIENCE)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) as tap:
            tap.bind((one.netdev, 0))
            with driver.launch(two, PhaseLog()) as second:
                second.wait_ready(PATIENCE)
                assert urllib.request.urlopen(f"http://{second.address}:8080/", timeout=10).status == 200
                time.sleep(1)
            tap.settimeout(0)
            kinds = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    kinds.append(int.from_bytes(tap.recv(2048)[12:14], "big"))
    assert _ARP in kinds, "the host's question for its address reaches all, or this test sees nothing"
    assert _RARP not in kinds


def test_several_are_launched_at_once(driver: VmDriver, make_spec: Make, small_kernel: None) -> None:
    """Each thread one guest, booted ones and clones mixed, with and without huge pages; all alive at one moment."""
    specs = [of_profile(make_spec, profile, thp=thp) for thp in (False, True) for profile in ("micro", "clone")]
    for spec in specs:
        driver.prepare(spec)
    alive = threading.Barrier(len(specs), timeout=PATIENCE)

    def live(spec: InstanceSpec) -> tuple[str | None, str, bool]:
        phases = PhaseLog()
        phases.begin()
        with driver.launch(spec, phases) as guest:
            guest.wait_ready(PATIENCE)
            alive.wait()
            said = guest.exec(["/bin/hostname"], timeout=20).stdout.strip()
            assert urllib.request.urlopen(f"http://{guest.address}:8080/", timeout=10).status == 200
            huge = "THP_enabled:\t1" in Path(f"/proc/{guest.pid}/status").read_text()
            stamps = phases.freeze()
            assert 0 < stamps["created"] <= stamps["started"] <= stamps["ready"]
            alive.wait()
            guest.stop(20)
            assert not guest.alive()
        return guest.address, said, huge

    with ThreadPoolExecutor(len(specs)) as pool:
        seen = list(pool.map(live, specs))
    assert [said for _, said, _ in seen] == [spec.id for spec in specs]
    assert len({address for address, _, _ in seen}) == len(specs)
    assert [huge for _, _, huge in seen] == [False, False, True, True]
    assert not list(reap.hypervisors(reap.domain_prefix(specs[0].run)))


def test_a_template_s_memory_is_found_and_removed(context: RunContext, driver: VmDriver) -> None:
    folder = reap.memory_folder(context.run)
    folder.mkdir()
    (folder / "0a").write_bytes(b"x")
    assert str(folder / "0a") in {one.name for one in driver.reap(context.run)}
    assert not folder.exists()
