"""vm.storage = "shared-dax": all guests read the root in the host's page cache, and none of them can change it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from bench.config.profiles import PROFILES
from bench.drivers.base import Instance
from bench.drivers.context import RunContext
from bench.drivers.vm import VmDriver, _key
from bench.errors import HostError
from bench.images import ballast, pmem
from bench.linux import procfs
from bench.model import MIB, InstanceSpec, PhaseLog, VmSettings
from bench.paths import cache_dir
from bench.samplers.memory import MemorySampler
from bench.vm import domain
from bench.vm.kernel_build import BUILD, micro_kernel

pytestmark = [pytest.mark.root, pytest.mark.libvirt]

Make = Callable[..., InstanceSpec]
PATIENCE = 90.0
SIZE = 20 * MIB
FILE = f"/{ballast.FOLDER}/0000"
DIGEST = hashlib.sha256(ballast.noise(0, SIZE)).hexdigest()
ELSE = 5 * MIB  # what else is touched meanwhile: the reader's own memory, translated code


@pytest.fixture
def driver(driver_of: Callable[[str], VmDriver]) -> VmDriver:
    try:
        micro_kernel(cache_dir())
    except HostError:
        pytest.fail(f"no kernel of vm:micro: {BUILD}")
    return driver_of("vm")


@pytest.fixture
def with_file(context: RunContext, make_spec: Make) -> Callable[..., InstanceSpec]:
    """Guests of micro's with what a test changes, and 20 MiB in their image."""
    image = context.images.resolve(f"default+{SIZE // MIB}MiB")

    def make(profile: str = "micro", **changes: object) -> InstanceSpec:
        keys = {**PROFILES[f"vm:{profile}"], "network": "none", "memory": 128 * MIB, **changes}
        return make_spec("vm", profile=profile, settings=msgspec.convert(keys, VmSettings), image=image)

    return make


def say(guest: Instance, *argv: str) -> str:
    done = guest.exec(argv, timeout=60)
    assert done.status == 0, done.stderr
    return done.stdout


def views(guest: Instance) -> dict[str, float]:
    """The guest's own page cache, as it says itself, and what the host sees of its RAM and of the rest. Bytes."""
    seen = {one.metric: one.value for one in MemorySampler().read([guest.footprint()])}
    cached = procfs.sizes(say(guest, "/bin/cat", "/proc/meminfo"))["Cached"]
    return {"cached": cached, "ram": seen["instances.memory.guest"], "rest": seen["instances.memory.overhead"]}


@pytest.mark.parametrize(
    ("storage", "kernel"),
    [("shared-ro", "micro"), ("shared-dax", "micro"), ("shared-dax", "distribution")],
)
def test_what_a_guest_reads_of_its_root(
    storage: str, kernel: str, driver: VmDriver, with_file: Callable[..., InstanceSpec]
) -> None:
    """With shared-ro it is in the guest's RAM; with shared-dax in none of it, but in what QEMU maps besides."""
    spec = with_file(storage=storage, kernel=kernel)
    driver.prepare(spec)
    with driver.launch(spec, PhaseLog()) as guest:
        guest.wait_ready(PATIENCE)
        dax = storage == "shared-dax"
        mounts = say(guest, "/bin/cat", "/proc/1/mounts")  # pid 1 sees what is below the overlay
        assert ("/dev/pmem0 /run/image erofs ro," in mounts, "dax=always" in mounts) == (dax, dax)
        say(guest, "/bin/sha256sum", "/bin/busybox")  # the tool itself is there now
        before = views(guest)
        assert say(guest, "/bin/sha256sum", FILE).split()[0] == DIGEST
        grown = {name: value - before[name] for name, value in views(guest).items()}
        own, mapped = (0, SIZE) if dax else (SIZE, 0)
        assert grown["cached"] == pytest.approx(own, abs=MIB)
        assert grown["ram"] == pytest.approx(own, abs=ELSE)
        assert grown["rest"] == pytest.approx(mapped, abs=ELSE)
        footprint = guest.footprint()
        root = driver._prepared[_key(spec)][1].root
        assert root in footprint.disk_shared
        assert root not in footprint.disk_own
        assert Path(root).stat().st_size % pmem.STEP == (0 if dax else pytest.approx(pmem.STEP, abs=pmem.STEP))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def place_of_a_copy(context: RunContext) -> Iterator[Path]:
    """Where QEMU's user can reach it."""
    path = context.state / "copy.erofs"
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("writable", [False, True])
def test_no_guest_can_write_the_root_of_all(
    writable: bool,
    driver: VmDriver,
    with_file: Callable[..., InstanceSpec],
    place_of_a_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Root in the guest writes to the device. Where QEMU may write a copy of the file, the same attempt arrives in it,
    or this would prove nothing."""
    spec = with_file(storage="shared-dax")
    driver.prepare(spec)
    key = _key(spec)
    root = Path(driver._prepared[key][1].root)
    if writable:
        shutil.copy(root, place_of_a_copy)
        place_of_a_copy.chmod(0o666)
        root = place_of_a_copy
        driver._prepared[key] = spec, msgspec.structs.replace(driver._prepared[key][1], root=str(root))
        monkeypatch.setattr(domain, "DAX_BACKEND", domain.DAX_BACKEND.replace("readonly=on", "readonly=off"))
        monkeypatch.setattr(domain, "DAX_DEVICE", domain.DAX_DEVICE.replace("unarmed=on", "unarmed=off"))
    before = digest(root)
    with driver.launch(spec, PhaseLog()) as guest:
        guest.wait_ready(PATIENCE)
        maps = Path(f"/proc/{guest.pid}/maps").read_text().splitlines()
        modes = {line.split()[1] for line in maps if line.endswith(str(root))}
        assert modes == {"rw-s" if writable else "r--s"}
        last = (root.stat().st_size - pmem.STEP) // 4096 - 1  # behind the file system
        write = f"dd if=/dev/urandom of=/dev/pmem0 bs=4096 count=1 seek={last} conv=notrunc,fsync"
        refused = guest.exec(["/bin/sh", "-c", write], timeout=60)
        assert (refused.status == 0) == writable, "its own kernel knows"
        say(guest, "/bin/sh", "-c", f"echo 0 > /sys/bus/nd/devices/region0/read_only && {write}")  # or not
        assert say(guest, "/bin/sha256sum", FILE).split()[0] == DIGEST, "it lives on, with what it had"
    assert (digest(root) != before) == writable


def test_clones_share_it_too(driver: VmDriver, with_file: Callable[..., InstanceSpec]) -> None:
    """And flush it: on a device whose state is not restored their kernels would wait for ever, at the latest at their
    end."""
    specs = [with_file("clone") for _ in range(2)]
    driver.prepare(specs[0])
    with ExitStack() as stack:
        guests = [stack.enter_context(driver.launch(spec, PhaseLog())) for spec in specs]
        for guest, spec in zip(guests, specs, strict=True):
            guest.wait_ready(PATIENCE)
            assert say(guest, "/bin/hostname").strip() == spec.id
            before = views(guest)["cached"]
            assert say(guest, "/bin/sha256sum", FILE).split()[0] == DIGEST
            assert views(guest)["cached"] - before < MIB
            say(guest, "/bin/sync")
            say(guest, "/bin/sh", "-c", "echo x > /kept && sync /kept")
            say(guest, "/sbin/blockdev", "--flushbufs", "/dev/pmem0")
            guest.stop(20)
            assert not guest.alive()
