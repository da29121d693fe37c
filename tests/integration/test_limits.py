"""Limits hold: each is exceeded, and an unlimited twin passes the same bound; what can't be enforced is refused."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.container.groups import layout
from bench.container.spec import default_mounts
from bench.container.spec_records import (
    BlockIO,
    Cpu,
    DeviceRule,
    Memory,
    Mount,
    Pids,
    Resources,
    Rlimit,
)
from bench.errors import HostError
from bench.linux import cgroups, devices
from bench.linux.devices import Rule
from bench.model import MIB
from tests.integration.boxes import PROBE, Box, Boxes, probe, sh

pytestmark = pytest.mark.root

V2_MEMORY = ("memory.low", "memory.max")


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes.open() as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_left(boxes: Boxes) -> Iterator[None]:
    yield
    assert boxes.instances() == []


def file_of(box: Box, controller: str, name: str) -> str:
    group = box.groups.get(controller) or box.groups["unified"]
    return (Path(group) / name).read_text().strip()


# --- memory --------------------------------------------------------------------------------------------------------


def test_memory(boxes: Boxes) -> None:
    over = boxes.run(probe("dirty", 96, resources=Resources(memory=Memory(limit=32 * MIB))))
    assert (over.status, over.output) == (128 + 9, "")
    assert boxes.run(probe("dirty", 16, resources=Resources(memory=Memory(limit=32 * MIB)))).output == "ok 16\n"
    assert boxes.run(probe("dirty", 96)).output == "ok 96\n"


def test_only_what_is_inside_dies_and_the_kernel_counts_it(boxes: Boxes) -> None:
    spec = sh(f"echo up; {PROBE} dirty 96; echo $?; sleep 100", resources=Resources(memory=Memory(limit=32 * MIB)))
    with boxes.running(spec) as box:
        box.wait_for("137\n")
        assert box.exec("/bin/true").status == 0
        events = "memory.oom_control" if layout().v1 else "memory.events"
        assert "oom_kill 1" in file_of(box, "memory", events)


def test_limit_and_reservation_reach_the_kernel(boxes: Boxes) -> None:
    memory = Memory(limit=64 * MIB, reservation=32 * MIB)
    with boxes.running(sh("sleep 100", resources=Resources(memory=memory))) as box:
        reserved, limit = ("memory.soft_limit_in_bytes", "memory.limit_in_bytes") if layout().v1 else V2_MEMORY
        assert file_of(box, "memory", reserved) == str(32 * MIB)
        assert file_of(box, "memory", limit) == str(64 * MIB)


def test_swappiness_reaches_the_kernel_or_is_refused(boxes: Boxes) -> None:
    spec = sh("sleep 100", resources=Resources(memory=Memory(swappiness=10)))
    if not layout().v1:
        with pytest.raises(HostError, match="no swappiness of a group"):
            boxes.run(spec)
        return
    with boxes.running(spec) as box:
        assert file_of(box, "memory", "memory.swappiness") == "10"


def test_swap(boxes: Boxes) -> None:
    """No swap is a limit that always holds; some, where there is none, is refused."""
    none = Resources(memory=Memory(limit=32 * MIB, swap=32 * MIB))
    assert boxes.run(probe("dirty", 96, resources=none)).status == 128 + 9
    some = Resources(memory=Memory(limit=32 * MIB, swap=64 * MIB))
    if len(Path("/proc/swaps").read_text().splitlines()) < 2:
        with pytest.raises(HostError, match="no swap on this host"):
            boxes.run(probe("dirty", 48, resources=some))
    else:
        assert boxes.run(probe("dirty", 48, resources=some)).output == "ok 48\n"


def test_a_tmpfs_counts_as_memory_and_has_its_own_bound(boxes: Boxes) -> None:
    fill = "dd if=/dev/zero of=/dev/shm/x bs=1M count=48 2>&1; stat -c %s /dev/shm/x"
    assert boxes.run(sh(fill)).lines[-1] == str(48 * MIB)
    told = boxes.run(sh(fill, resources=Resources(memory=Memory(limit=32 * MIB))))
    assert str(48 * MIB) not in told.lines[-1:]
    small = Mount("/dev/shm", "tmpfs", "shm", ("size=8m",))
    mounts = tuple(small if one.destination == "/dev/shm" else one for one in default_mounts())
    assert boxes.run(sh(fill, mounts=mounts)).lines[-1] == str(8 * MIB)


# --- cpu -----------------------------------------------------------------------------------------------------------


def _spun(boxes: Boxes, cpu: Cpu | None) -> int:
    """Milliseconds of CPU that one second of wanting gets."""
    return int(boxes.run(probe("spin", 1000, resources=Resources(cpu=cpu))).output.split()[1])


def test_cpu_quota(boxes: Boxes) -> None:
    limited, free = _spun(boxes, Cpu(quota=10_000, period=100_000)), _spun(boxes, None)
    assert limited <= 200  # a tenth of a second, with room for a burst
    assert free > 2 * limited


def test_cpu_shares(boxes: Boxes) -> None:
    """Two that want the same processor all the time: more shares, more of it."""
    specs = [probe("spin", 60_000, resources=Resources(cpu=Cpu(shares=shares, cpus="0"))) for shares in (4096, 256)]
    with boxes.running(specs[0]) as many, boxes.running(specs[1]) as few:
        started = time.monotonic()
        before = [_used(box) for box in (many, few)]
        time.sleep(2)
        got = [_used(box) - was for box, was in zip((many, few), before, strict=True)]
        lasted = time.monotonic() - started
    assert got[0] > 3 * got[1], got
    assert lasted / 4 < sum(got) < lasted * 1.25, "they were not on one processor"


def _used(box: Box) -> float:
    """Seconds of CPU time of its group."""
    if layout().v1:
        return int(file_of(box, "cpuacct", "cpuacct.usage")) / 1e9
    return int(file_of(box, "cpu", "cpu.stat").split()[1]) / 1e6  # usage_usec comes first


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor; remedy: a machine with two")
def test_cpuset(boxes: Boxes) -> None:
    script = "grep Cpus_allowed_list /proc/self/status; sleep 100"
    with boxes.running(sh(script, resources=Resources(cpu=Cpu(cpus="1", mems="0")))) as box:
        box.wait_for("\n")
        assert box.said.split() == ["Cpus_allowed_list:", "1"]
        assert os.sched_getaffinity(box.pid) == {1}
        wider = box.exec("/bin/taskset", "-p", "1", "1")
        assert "1" not in [str(cpu) for cpu in os.sched_getaffinity(box.pid) if cpu == 0], wider
    with boxes.running(sh(script)) as box:
        assert len(os.sched_getaffinity(box.pid)) == len(os.sched_getaffinity(0))


def test_processors_that_are_not_there_are_refused(boxes: Boxes) -> None:
    from bench.errors import LaunchError

    with pytest.raises(LaunchError, match=r"cpuset\.cpus"):
        boxes.run(sh("true", resources=Resources(cpu=Cpu(cpus="0-4000"))))


# --- pids, block devices, descriptors ------------------------------------------------------------------------------


def test_pids(boxes: Boxes) -> None:
    assert boxes.run(probe("crowd", 100, resources=Resources(pids=Pids(20)))).output == "made 19 errno 11\n"
    assert boxes.run(probe("crowd", 100, resources=Resources(pids=Pids(-1)))).output == "made 100 errno 0\n"
    assert boxes.run(probe("crowd", 100)).output == "made 100 errno 0\n"


def test_weights_of_block_io(boxes: Boxes) -> None:
    weighted = sh("sleep 100", resources=Resources(block_io=BlockIO(weight=200)))
    schedulers = [path.read_text() for path in Path("/sys/block").glob("*/queue/scheduler")]
    if not any("[bfq]" in one for one in schedulers):
        with pytest.raises(HostError, match=r"weight has no effect.*bfq"):
            boxes.run(weighted)
        return
    with boxes.running(weighted) as box:
        assert "200" in file_of(box, "blkio", "blkio.bfq.weight")


def test_open_descriptors(boxes: Boxes) -> None:
    script = 'i=3; while [ $i -lt 60 ]; do eval "exec $i</dev/null" || exit 3; i=$((i+1)); done; echo all'
    assert "all" not in boxes.run(sh(script, rlimits=(Rlimit("RLIMIT_NOFILE", 32, 32),))).output
    assert boxes.run(sh(script, rlimits=(Rlimit("RLIMIT_NOFILE", 64, 64),))).output == "all\n"


# --- devices ---------------------------------------------------------------------------------------------------------

DISK = os.stat("/dev/loop0").st_rdev if os.path.exists("/dev/loop0") else os.makedev(7, 0)


def _opened(boxes: Boxes, *rules: DeviceRule, kind: str = "b", number: int = DISK) -> str:
    words = ("device", kind, os.major(number), os.minor(number), "/tmp/node")
    return boxes.run(probe(*words, resources=Resources(devices=rules))).output.strip()


def _host_disk() -> int:
    return os.stat("/").st_dev


def test_devices(boxes: Boxes) -> None:
    everything, nothing = DeviceRule(True, "rwm"), DeviceRule(False, "rwm")
    assert _opened(boxes, nothing, number=_host_disk()) == "errno 1"
    assert _opened(boxes, nothing) == "errno 1"
    assert _opened(boxes) == "errno 1", "no rules at all must not mean all devices"
    assert _opened(boxes, nothing, DeviceRule(True, "rwm", "b", os.major(DISK), os.minor(DISK))).startswith("ok")
    assert _opened(boxes, everything).startswith("ok")
    assert _opened(boxes, nothing, DeviceRule(True, "m", "b")) == "errno 1"


def test_the_usual_devices_work_unless_a_rule_is_about_them(boxes: Boxes) -> None:
    zero = os.makedev(1, 5)
    assert _opened(boxes, DeviceRule(False, "rwm"), kind="c", number=zero).startswith("ok")
    assert (
        _opened(boxes, DeviceRule(False, "rwm"), DeviceRule(False, "rw", "c", 1, 5), kind="c", number=zero) == "errno 1"
    )


def test_rules_that_v1_would_take_no_notice_of_are_refused(boxes: Boxes) -> None:
    if not layout().v1:
        pytest.skip("no cgroup v1 here; v2 can enforce it")
    rules = (DeviceRule(False, "rwm"), DeviceRule(True, "rwm", "c"), DeviceRule(False, "w", "c", 1, 5))
    with pytest.raises(HostError, match=r"c 1:5 is a part of c \*:\*"):
        _opened(boxes, *rules)


# --- devices on cgroup v2: a program -------------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[str]:
    top = layout().v2
    if top is None:
        pytest.skip("no cgroup2 is mounted; remedy: mount -t cgroup2 none /sys/fs/cgroup/unified")
    path = f"{top}/bench-devices-{os.getpid()}"
    os.mkdir(path)
    try:
        yield path
    finally:
        cgroups.remove(path)


def _reached(group: str, *tries: tuple[str, int]) -> list[bool]:
    """Which of these a process in the group may open, with these flags."""
    pid = os.fork()
    if not pid:
        bits = 0
        try:
            cgroups.attach(group, os.getpid())
            for number, (path, flags) in enumerate(tries):
                try:
                    os.close(os.open(path, flags | os.O_NONBLOCK))
                    bits |= 1 << number
                except PermissionError:
                    continue
        finally:
            os._exit(bits)
    bits = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [bool(bits & 1 << number) for number in range(len(tries))]


TRIES = (
    ("/dev/null", os.O_RDWR),
    ("/dev/zero", os.O_RDONLY),
    ("/dev/zero", os.O_WRONLY),
    ("/dev/zero", os.O_RDWR),
    ("/dev/full", os.O_RDONLY),
    ("/dev/loop0", os.O_RDONLY),
)
ALL, NONE = Rule(True, "a", None, None, "rwm"), Rule(False, "a", None, None, "rwm")


@pytest.mark.parametrize(
    ("rules", "reached"),
    [
        ((), "......"),
        ((ALL,), "xxxxxx"),
        ((NONE,), "......"),
        ((ALL, NONE), "......"),
        ((NONE, ALL), "xxxxxx"),
        ((NONE, Rule(True, "c", 1, 3, "rwm")), "x....."),
        ((NONE, Rule(True, "c", 1, None, "rwm")), "xxxxx."),
        ((NONE, Rule(True, "c", 1, 5, "r"), Rule(True, "c", None, 5, "w")), ".xxx.."),
        ((ALL, Rule(False, "c", 1, 5, "w")), "xx..xx"),
        ((ALL, Rule(False, "c", None, None, "r"), Rule(True, "c", 1, 7, "r")), "..x.xx"),
        ((ALL, Rule(False, "b", None, None, "rwm")), "xxxxx."),
        ((NONE, Rule(True, "b", 7, 0, "r")), ".....x"),
    ],
)  # fmt: skip
def test_rules_of_a_v2_group(group: str, rules: tuple[Rule, ...], reached: str) -> None:
    assert _reached(group, *TRIES) == [True] * len(TRIES)  # else it proves nothing
    devices.attach(group, rules)
    assert _reached(group, *TRIES) == [letter == "x" for letter in reached]


def test_rules_hold_below_too_and_are_attached_once(group: str) -> None:
    assert devices.attached(group) == 0
    devices.attach(group, (NONE, Rule(True, "c", 1, None, "rwm")))
    devices.attach(group, (ALL,))  # there are some already
    assert devices.attached(group) == 1
    os.mkdir(f"{group}/below")
    devices.attach(f"{group}/below", (ALL,))  # can't widen what is above
    assert _reached(f"{group}/below", *TRIES)[-2:] == [True, False]


# --- all together ----------------------------------------------------------------------------------------------------


def test_every_resource_is_exercised() -> None:
    text = Path(__file__).read_text()
    for record in (Resources, Memory, Cpu, Pids, BlockIO):
        for name in record.__struct_fields__:
            assert name in text or name == "disable_oom_killer", f"{record.__name__}.{name}"
