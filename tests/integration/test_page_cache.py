"""What instances share when all of them read the same file of the image: 20 MiB, by N instances, counted by the host.

Counted before and after the reading, in units of the file: pages of the host's page cache that hold a piece of it, in
whatever file or disk of a footprint (cachestat); pages of the same files that hold something else, which the host read
ahead; what the instances' memory groups are charged; and what guests say of their own page cache. The tests print the
table that docs/methodology.md holds.
"""

from __future__ import annotations

import hashlib
import mmap
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec
import pytest

from bench.config.profiles import PROFILES
from bench.container.storage import abilities, support
from bench.drivers.base import Driver, Instance
from bench.images import ballast
from bench.linux import procfs
from bench.linux.files import cached, uncache
from bench.model import MIB, ContainerSettings, Footprint, InstanceSpec, PhaseLog, Settings, VmSettings
from bench.samplers.disk import walk
from bench.samplers.memory import MemorySampler

pytestmark = pytest.mark.root
SIZE = 20 * MIB
FILE = f"/{ballast.FOLDER}/0000"
CONTENT = ballast.noise(0, SIZE)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
AROUND = 0.25  # of the file: what else is read or touched meanwhile (busybox, the runtime's own files, guests' kernels)


class Shares(msgspec.Struct, frozen=True):
    """Of one storage with `count` instances, each figure over the size of the file."""

    name: str
    count: int
    host: float  # pages of the host's page cache that hold it
    ahead: float  # those of the same disks that hold something else
    charged: float  # to the instances' memory groups
    guests: float | None  # what their own page caches have grown by; None without guests

    def __str__(self) -> str:
        guests = "" if self.guests is None else f"{self.guests:.2f}"
        return f"| `{self.name}` | {self.count} | {self.host:.2f} | {self.ahead:.2f} | {self.charged:.2f} | {guests} |"


def files_of(footprints: list[Footprint]) -> Iterator[str]:
    """Every regular file in the footprints that could hold the file or be a disk it is on, each inode once.

    A FUSE mount in an instance's folder has inodes, and pages, of its own.
    """
    seen = set()
    own = {path for one in footprints for path in one.disk_own}
    shared = {path for one in footprints for path in one.disk_shared}
    for path in (*own, *shared, *(f"{folder}/root{FILE}" for folder in own)):
        for name, status in walk(path):
            large = stat.S_ISREG(status.st_mode) and status.st_size >= SIZE
            if large and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield name


def pieces(name: str) -> list[int]:
    """Where each MiB of the file begins in `name`, which holds all of it, or none."""
    with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        found = [view.find(CONTENT[start : start + 4096]) for start in range(0, SIZE, MIB)]
    held = [place for place in found if place >= 0]
    assert len(held) in (0, len(found)), f"{name} holds a part of it"
    return held


def host_pages(places: dict[str, list[int]]) -> tuple[int, int]:
    """Bytes of the page cache that hold a piece of the file, and those of the same files that hold something else."""
    of_it = sum(cached(name, start, MIB) or 0 for name, starts in places.items() for start in starts)
    return of_it, sum(cached(name) or 0 for name, starts in places.items() if starts) - of_it


def charged(footprints: list[Footprint]) -> float:
    return {one.metric: one.value for one in MemorySampler().read(footprints)}["instances.memory.cgroup"]


def own_cache(instances: list[Instance]) -> int:
    """What the kernels that instances see say of their page caches: a guest's own."""
    said = [instance.exec(["/bin/cat", "/proc/meminfo"], timeout=60).stdout for instance in instances]
    return sum(procfs.sizes(text)["Cached"] for text in said)


def read_by(instance: Instance) -> None:
    """Have the instance read the file to its end, and see that it was this file."""
    done = instance.exec(["/bin/sha256sum", FILE], timeout=120)
    assert done.stdout.split()[:1] == [DIGEST], done.stderr


def measured(name: str, driver: Driver, specs: list[InstanceSpec]) -> Shares:
    with ExitStack() as stack:
        instances = []
        for spec in specs:
            driver.prepare(spec)
            instance = stack.enter_context(driver.launch(spec, PhaseLog()))
            instance.wait_ready(90)
            instances.append(instance)
            assert instance.exec(["/bin/sha256sum", "/bin/busybox"], timeout=60).status == 0  # the tool is cached now
        footprints = [instance.footprint() for instance in instances]
        places = {path: pieces(path) for path in files_of(footprints)}
        for path in places:
            uncache(path)
        guests = driver.name == "vm"
        own = own_cache(instances) if guests else 0
        before, group = host_pages(places), charged(footprints)
        for instance in instances:
            read_by(instance)
        after, grown = host_pages(places), charged(footprints) - group
        return Shares(
            name,
            len(specs),
            (after[0] - before[0]) / SIZE,
            (after[1] - before[1]) / SIZE,
            grown / SIZE,
            (own_cache(instances) - own) / SIZE if guests else None,
        )


@pytest.fixture
def shares(
    driver_of: Callable[[str], Driver], make_spec: Callable[..., InstanceSpec], capsys: pytest.CaptureFixture[str]
) -> Callable[..., Shares]:
    if cached(__file__) is None:
        pytest.skip("this kernel has no cachestat; remedy: Linux 6.5")

    def measure(name: str, settings: Settings | None, count: int, shown: str = "") -> Shares:
        driver = driver_of(name)
        specs = [make_spec(name, settings=settings) for _ in range(count)]
        image = driver._context.images.resolve(f"default+{SIZE // MIB}MiB")  # type: ignore[attr-defined]
        found = measured(shown or name, driver, [msgspec.structs.replace(spec, image=image) for spec in specs])
        with capsys.disabled():
            print(f"\n{found}", end="")
        return found

    return measure


N = 4


def near(value: float) -> object:
    return pytest.approx(value, abs=AROUND)


def test_processes_share_one_copy(shares: Callable[..., Shares]) -> None:
    found = shares("process", None, N)
    assert found.host == near(1)
    assert found.charged == near(1), "to the one that read it first"


@pytest.mark.parametrize(
    ("storage", "copies"),
    [("overlay", 1), ("copy", N), ("btrfs", N), ("reflink", N), ("fuse-overlayfs", N + 1)],
)
def test_containers_share_what_their_storage_shares(storage: str, copies: int, shares: Callable[..., Shares]) -> None:
    """Reflinks and snapshots share blocks, not pages: the page cache knows files, and each has its own. fuse-overlayfs
    has the layer's pages, and each mount its own besides."""
    answer = support(storage, abilities())
    if not answer.ok:
        pytest.skip(f"{answer.reason}; remedy: {answer.hint}")
    profile = "container" if storage == "overlay" else f"container:{storage}"
    found = shares(profile, ContainerSettings(storage=storage, network="none"), N)  # type: ignore[arg-type]
    assert found.host == near(copies)


@pytest.mark.slow
@pytest.mark.libvirt
@pytest.mark.parametrize(
    ("profile", "changed", "copies", "own"),
    [
        ("vm:stock", {"disk": 96 * MIB}, N, N),
        ("vm:lean", {"disk": 96 * MIB, "memory": 128 * MIB}, 1, N),
        ("vm:micro", {"memory": 128 * MIB}, 1, N),
        ("vm:micro", {"memory": 128 * MIB, "storage": "shared-dax"}, 1, 0),
    ],
    ids=["copy", "qcow2-backing", "shared-ro", "shared-dax"],
)
def test_guests_each_have_a_copy_in_their_own_ram(
    profile: str, changed: dict[str, object], copies: int, own: int, shares: Callable[..., Shares]
) -> None:
    """Beside those the host has one of each disk it is on: disks of their own double it, a shared one adds one. Not
    where the root is memory that all guests have in common: the host's copy is theirs."""
    keys = {**PROFILES[profile], **changed, "network": "none"}
    settings = msgspec.convert(keys, VmSettings)
    found = shares(profile, settings, N, f"{profile} {settings.storage}")
    assert found.host == near(copies)
    assert found.guests == near(own), "in each guest once more, or in none"
