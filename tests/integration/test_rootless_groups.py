"""Cgroups that root has delegated to `nobody`: his containers' limits hold in them, and nothing stays behind.

Each test runs on the kind of hierarchy that this host has; those of cgroup2 alone also on a hybrid host's, which has no
controller of ours, but the same rules for who may move whom.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bench.container.groups import layout
from bench.container.state import Record, Records
from bench.linux import cgroups
from bench.model import MIB
from tests.integration.by_hand import AS_NOBODY, NOBODY, ByHand, home_of_nobody

pytestmark = pytest.mark.root

NAME = "bench-delegated"
PATIENCE = 60.0  # s; the rig's processors are emulated
V1 = ("memory", "cpu", "cpuacct", "pids", "freezer", "cpuset")
LATER = "later"  # where commands start once the group above hands controllers down, and so takes nobody in
FILL = "dd if=/dev/zero of=/dev/shm/x bs=1M count=48 2>/dev/null; stat -c %s /dev/shm/x"
CROWD = "for n in 1 2 3 4 5 6 7 8; do sleep 0.3 & done; echo all; wait"
HYBRID = pytest.mark.skipif(
    layout().kind != "hybrid", reason=f"cgroups are {layout().kind} here; remedy: a host with both, as this project's"
)
PURE_V2 = pytest.mark.skipif(layout().kind != "v2", reason=f"cgroups are {layout().kind} here; remedy: make test-rig")
BEGIN = (
    "sh", "-c",
    'for one in $1; do (echo $$ > $one/cgroup.procs) 2>/dev/null || '
    f'{{ mkdir -p $one/{LATER}; echo $$ > $one/{LATER}/cgroup.procs; }} || exit 99; done; shift; exec "$@"',
    "sh",
)  # fmt: skip
"""Root's part: be in the delegated groups (a list of folders), then go on as what follows."""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with home_of_nobody() as folder:
        yield folder


@contextlib.contextmanager
def delegated(folders: Sequence[Path], files: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """New groups that are nobody's; what a command is to begin with, to be in them as nobody."""
    try:
        for folder in folders:
            folder.mkdir()
            for path in (folder, *(folder / file for file in files)):
                os.chown(path, NOBODY, NOBODY)
            for file in ("cpuset.cpus", "cpuset.mems") if (folder / "tasks").exists() else ():
                if (folder / file).exists():
                    cgroups.write(str(folder / file), (folder.parent / file).read_text().strip())
        yield (*BEGIN, " ".join(map(str, folders)), *AS_NOBODY)
    finally:
        for folder in folders:
            cgroups.remove(str(folder))


def on_v1(*controllers: str) -> contextlib.AbstractContextManager[tuple[str, ...]]:
    here = layout().v1
    return delegated([Path(here[name], NAME) for name in controllers if name in here], ("tasks", "cgroup.procs"))


def on_v2() -> contextlib.AbstractContextManager[tuple[str, ...]]:
    files = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
    return delegated([Path(str(layout().v2), NAME)], files)


@contextlib.contextmanager
def handed_down(*controllers: str) -> Iterator[None]:
    """By the root of cgroup2, to the groups below it; as it was, after that."""
    file = Path(str(layout().v2), "cgroup.subtree_control")
    new = [name for name in controllers if name not in file.read_text().split()]
    for name in new:
        cgroups.write(str(file), f"+{name}")
    try:
        yield
    finally:
        for name in new:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                cgroups.write(str(file), f"-{name}")


@contextlib.contextmanager
def by_hand(home: Path, prefix: tuple[str, ...]) -> Iterator[ByHand]:
    made = ByHand(home / "state", home / "cache", prefix, home / "checkout")
    yield made
    assert made.clear() == []


@pytest.fixture
def bench(home: Path) -> Iterator[ByHand]:
    """Every command in groups that are delegated to nobody."""
    with contextlib.ExitStack() as stack:
        if layout().kind == "v2":
            stack.enter_context(handed_down("memory", "cpu", "pids"))
            prefix = stack.enter_context(on_v2())
        else:
            prefix = stack.enter_context(on_v1(*V1))
        yield stack.enter_context(by_hand(home, prefix))


def the_record(bench: ByHand) -> Record:
    (record,) = Records(bench.state).all()
    return record


def group_of(record: Record, controller: str) -> Path:
    groups = record.groups.of(record.id)
    return Path(groups.get(controller) or groups["unified"])


def left() -> list[str]:
    """Groups of runs below the delegated ones."""
    return [path for path, _, _ in os.walk("/sys/fs/cgroup") if f"{NAME}/bench-" in path]


# --- with the controllers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "script", "said"),
    [(("--memory", "32m"), FILL, str(48 * MIB)), (("--pids-limit", "4"), CROWD, "all")],
    ids=["memory", "pids"],
)
def test_a_limit_holds_and_its_unlimited_twin_passes_the_bound(
    bench: ByHand, limit: tuple[str, ...], script: str, said: str
) -> None:
    free = bench("run", "--rm", "default", "sh", "-c", script)
    assert free.stdout.split() == [said]
    assert "cgroups are delegated" not in free.stderr, "nothing is degraded"
    assert said not in bench("run", "--rm", *limit, "default", "sh", "-c", script, status=None).stdout.split()
    assert left() == []


def test_a_share_of_the_processors_reaches_the_kernel(bench: ByHand) -> None:
    options = ("--cpus", "0.5", "--memory", "64m")
    bench("run", "-d", "--name", "q", *options, "default", "sleep", "100")
    file, value = ("cpu.max", "50000 100000") if layout().kind == "v2" else ("cpu.cfs_quota_us", "50000")
    assert (group_of(the_record(bench), "cpu") / file).read_text().strip() == value


def test_the_life_of_a_detached_one(bench: ByHand) -> None:
    bench("run", "-d", "--name", "d", "--memory", "64m", "default", "sleep", "100")
    record = the_record(bench)
    measured = json.loads(bench("stats", "--json", "d").stdout)[0]["stats"]
    assert measured["memory"] > 0
    assert measured["cpu"] > 0
    assert measured["pids"] == 1
    bench("pause", "d")
    assert bench.ps()["d"]["status"] == "paused"
    bench("resume", "d")
    assert bench.ps()["d"]["status"] == "running"
    with joining(bench, "d", "sleep", "90"):
        bench.until(lambda: json.loads(bench("stats", "--json", "d").stdout)[0]["stats"]["pids"] > 1, PATIENCE)
        assert len(cgroups.pids(str(group_of(record, "memory")))) > 1, "what comes in by exec is in the groups too"
    bench("rm", "-f", "d")
    assert left() == []


@contextlib.contextmanager
def joining(bench: ByHand, *words: str) -> Iterator[None]:
    """An `exec` that lasts."""
    child = subprocess.Popen(bench.argv("exec", *words), env=bench.env, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.terminate()
        child.wait(20)


def test_what_a_killed_one_left_is_found_and_removed(bench: ByHand) -> None:
    bench("run", "-d", "--name", "k", "default", "sleep", "100")
    bench("pause", "k")
    record = the_record(bench)
    os.kill(record.monitor, signal.SIGKILL)
    bench.until(lambda: bench.ps()["k"]["status"] == "dead", PATIENCE)
    assert left()
    argv = [*bench.argv("ps")[:-2], "clean"]
    done = subprocess.run(argv, env=bench.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"cgroup {group_of(record, 'memory').parent}" in done.stdout
    assert left() == []
    assert list(bench.state.iterdir()) == []


@pytest.mark.skipif(layout().kind == "v2", reason="cgroups are v2 here: one group has all; remedy: a host with v1")
def test_a_controller_that_is_not_delegated_is_missed_and_its_limit_refused(home: Path) -> None:
    with on_v1("memory") as prefix, by_hand(home, prefix) as bench:
        done = bench("run", "--rm", "--memory", "32m", "default", "sh", "-c", FILL, status=None)
        assert str(48 * MIB) not in done.stdout.split()
        assert "no cpu pids freezer cgroups are delegated to you" in done.stderr
        refused = bench("run", "--pids-limit", "4", "default", "true", status=125)
        assert "no pids cgroups are delegated to you, so pids.max can't be set" in refused.stderr
        assert left() == []


# --- cgroup2: who may move whom ----------------------------------------------------------------------------------


@HYBRID
def test_a_group_of_cgroup2_without_controllers_freezes_and_counts(home: Path) -> None:
    with on_v2() as prefix, by_hand(home, prefix) as bench:
        done = bench("run", "-d", "--name", "u", "default", "sleep", "100")
        assert "no memory cpu pids cgroups are delegated to you" in done.stderr
        record = the_record(bench)
        own = f"/{NAME}/bench-{record.id.partition('-')[0]}/{record.id}"
        assert f"0::{own}\n" in Path(f"/proc/{record.pid}/cgroup").read_text()
        measured = json.loads(bench("stats", "--json", "u").stdout)[0]["stats"]
        assert measured["cpu"] > 0
        assert measured["memory"] is measured["pids"] is None
        bench("pause", "u")
        assert bench.ps()["u"]["status"] == "paused"
        assert "no memory cgroups are delegated" in bench("run", "--memory", "9m", "default", "true", status=125).stderr
        bench("rm", "-f", "u")
        assert left() == []


TAKE = """
import sys
from pathlib import Path
from bench.container.delegation import taken
from bench.model import RunId

def say(more):
    own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
    print(own, more, sep="|", flush=True)

home = Path(sys.argv[1])
with taken(RunId("20261124-000000-test-aside1"), home, controllers=("hugetlb",)) as found:
    say((Path(found.host.v2) / "cgroup.subtree_control").read_text().strip() if found.host else found.reason)
    sys.stdin.readline()
say([path.name for path in home.iterdir()])
"""
ASIDE = f"/{NAME}/bench-aside1-self"


def take(
    home: Path, prefix: tuple[str, ...], meanwhile: Callable[[], object] = lambda: None
) -> tuple[list[str], list[str]]:
    """What `taken` makes of nobody's group, with a controller that a hybrid host's cgroup2 has: our own group, and what
    is handed down, or why nothing is; then, after it, our own group and the files that are left."""
    state = home / "taken"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    hand = ByHand(state, state, prefix, home / "checkout")
    argv = [*hand.argv("ps")[:-4], "-c", TAKE, str(state)]
    with subprocess.Popen(argv, env=hand.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        before = child.stdout.readline().strip().split("|")
        meanwhile()
        after = child.communicate("\n", timeout=30)[0].strip().split("|")
    assert child.returncode == 0
    return before, after


@HYBRID
def test_who_is_alone_in_the_group_steps_aside_and_comes_back(home: Path) -> None:
    with handed_down("hugetlb"), on_v2() as prefix:
        assert take(home, prefix) == ([ASIDE, "hugetlb"], [f"/{NAME}", "[]"])
        assert left() == []


@HYBRID
def test_others_in_the_group_are_not_moved(home: Path) -> None:
    top = f"{layout().v2}/{NAME}"
    with handed_down("hugetlb"), on_v2() as prefix, subprocess.Popen(["sleep", "100"]) as other:
        cgroups.attach(top, other.pid)
        with pytest.raises(OSError, match="busy") as control:
            cgroups.write(f"{top}/cgroup.subtree_control", "+hugetlb")
        assert control.value.errno == errno.EBUSY, "the kernel's rule that we step aside for"
        (own, reason), after = take(home, prefix)
        assert own == after[0] == f"/{NAME}"
        assert f"{top} is yours, but hands nothing down while processes {other.pid} are in it" in reason
        assert cgroups.pids(top) == [other.pid]
        other.kill()


@HYBRID
def test_what_others_use_by_now_stays_until_the_last(home: Path) -> None:
    """A neighbour below our group hands on what we handed down: that is not taken back, and we stay aside to our end.
    The empty group is removed by whoever comes back next."""
    top = Path(str(layout().v2), NAME)
    neighbour = top / "neighbour"

    def use() -> None:
        neighbour.mkdir()
        cgroups.write(str(neighbour / "cgroup.subtree_control"), "+hugetlb")

    with handed_down("hugetlb"), on_v2() as prefix:
        assert take(home, prefix, use) == ([ASIDE, "hugetlb"], [ASIDE, "[]"])
        assert (neighbour / "cgroup.subtree_control").read_text() == "hugetlb\n"
        assert left() == [f"{layout().v2}{ASIDE}"]
        neighbour.rmdir()
        assert take(home, prefix) == ([f"/{NAME}/{LATER}", "hugetlb"], [f"/{NAME}/{LATER}", "[]"])
        assert left() == []


@PURE_V2
def test_who_waits_for_a_detached_one_is_no_obstacle(bench: ByHand) -> None:
    """Command and monitor are both in the group; the containers' controllers are handed down all the same."""
    bench("run", "-d", "--name", "w", "--memory", "64m", "default", "sleep", "100")
    record = the_record(bench)
    group = group_of(record, "memory")
    assert (group / "memory.max").read_text().strip() == str(64 * MIB)
    assert Path(f"/proc/{record.monitor}/cgroup").read_text().strip().endswith("-self")
    bench("rm", "-f", "w")
    assert left() == []
    assert Path(str(layout().v2), NAME, "cgroup.subtree_control").read_text().split() == [], "as it was"


@PURE_V2
@pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="no systemd here; remedy: make test-rig")
def test_a_unit_with_delegate(home: Path) -> None:
    """As systemd gives it to a user's unit: the group, with us in it."""
    unit = ("systemd-run", "--wait", "--pipe", "--quiet", "--property=User=nobody", "--property=Delegate=yes")
    with by_hand(home, ()) as bench:
        settings = [f"--setenv={name}={value}" for name, value in bench.env.items()]
        for limit, passes in (((), True), (("--memory", "32m"), False)):
            argv = bench.argv("run", "--rm", *limit, "default", "sh", "-c", FILL)
            words = [*unit, *settings, f"--working-directory={home}", *argv]
            done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
            bench.note(done.stderr)
            assert (str(48 * MIB) in done.stdout.split()) == passes, done.stderr
            assert "cgroups are delegated" not in done.stderr


def test_without_a_delegation_it_is_told_and_why(home: Path) -> None:
    with by_hand(home, AS_NOBODY) as bench:
        done = bench("run", "--rm", "default", "true")
        assert "no cgroups are delegated to you: no limits, no pause, no stats (" in done.stderr
        refused = bench("run", "--memory", "9m", "default", "true", status=125)
        assert "Delegate=yes" in refused.stderr
