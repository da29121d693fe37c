"""Pure cgroup v2: born in the group, controllers handed down and kept, beside systemd if that is there."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.container.groups import device_group, layout, leftovers, remove_all, run_group
from bench.container.spec_records import DeviceRule, Pids, Resources
from bench.linux import cgroups, devices
from bench.model import RunId
from bench.process import run
from tests.integration.boxes import Boxes, namespaces, sh

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(layout().kind != "v2", reason=f"cgroups are {layout().kind} here; remedy: make test-rig"),
]
NEEDED = {"memory", "cpu", "pids"}


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes.open() as made:
        yield made


def handed_down(folder: Path) -> set[str]:
    return set((folder / "cgroup.subtree_control").read_text().split())


def top_of(boxes: Boxes) -> Path:
    return Path(str(layout().v2), boxes.parent)


def test_an_instance_is_born_in_its_group_and_alone_there(boxes: Boxes) -> None:
    with boxes.running(sh("echo up; sleep 100")) as box:
        box.wait_for("up\n")
        own = Path(box.groups["unified"])
        assert Path(f"/proc/{box.pid}/cgroup").read_text() == f"0::{str(own).removeprefix(str(layout().v2))}\n"
        assert cgroups.pids(str(own)) == sorted([box.pid, *children(box.pid)])
        for folder in (top_of(boxes), own.parent):
            assert (folder / "cgroup.procs").read_text() == "", "groups that hand controllers down hold no process"
            assert handed_down(folder) >= NEEDED
        assert handed_down(own) == set()


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_exec_comes_in_the_group_too(boxes: Boxes) -> None:
    with boxes.running(sh("echo up; sleep 100")) as box:
        box.wait_for("up\n")
        assert box.exec("/bin/sh", "-c", "cat /proc/self/cgroup").stdout == "0::/\n"  # the root of its namespace


def test_all_with_the_same_rules_are_under_one_program(boxes: Boxes) -> None:
    same = Resources(devices=(DeviceRule(False, "rwm"), DeviceRule(True, "r", "c", 1, 5)))
    spec = sh("echo up; sleep 100", resources=same)
    with boxes.running(spec) as one, boxes.running(spec) as two:
        shared = Path(one.groups["unified"]).parent
        assert shared == Path(two.groups["unified"]).parent
        assert devices.attached(str(shared)) == 1
        assert devices.attached(one.groups["unified"]) == 0
    with boxes.running(sh("echo up; sleep 100")) as other:
        assert Path(other.groups["unified"]).parent != shared


@pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="no systemd here; remedy: make test-rig")
def test_systemd_leaves_our_controllers_alone(boxes: Boxes) -> None:
    """It takes those back from the root that none of its own units needs, save where others use them."""
    root = Path(str(layout().v2))
    with boxes.running(sh("echo up; sleep 100")) as box:
        box.wait_for("up\n")
        limits = ["--property=CPUWeight=50", "--property=IOWeight=50", "--property=MemoryMax=64M"]
        run(["systemd-run", "--wait", "--quiet", *limits, "/bin/true"], timeout=120)
        run(["systemctl", "daemon-reload"], timeout=120)
        assert handed_down(root) >= NEEDED
        assert handed_down(top_of(boxes)) >= NEEDED
        assert Path(box.groups["unified"], "memory.max").exists()
        assert Path(f"/proc/{box.pid}/cgroup").read_text().startswith("0::/bench-")


def test_what_a_dead_launcher_left_is_found_by_the_run_and_removed() -> None:
    made = RunId("20261124-000000-test-v2left")
    here = layout()
    here.prepare(run_group(made))
    groups = here.groups(run_group(made), Resources(), ruled=True)
    assert device_group(here, run_group(made), Resources(), groups) is None
    own = groups.of("left")["unified"]
    os.mkdir(own)
    sleep = shutil.which("sleep")
    assert sleep is not None
    pid = os.posix_spawn(sleep, [sleep, "600"], {})
    try:
        cgroups.attach(own, pid)
        assert leftovers(made) == [f"{here.v2}/{run_group(made)}"]
        remove_all(made)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert leftovers(made) == []
    finally:
        remove_all(made)


@pytest.mark.parametrize(("kind", "file"), [("network", "net"), ("cgroup", "cgroup")])
def test_joining_a_namespace_is_in_the_instance_s_own_group(boxes: Boxes, kind: str, file: str) -> None:
    limit = Resources(pids=Pids(20))
    with boxes.running(sh("echo up; sleep 100")) as box:
        box.wait_for("up\n")
        others = (one for one in ("mount", "network", "uts", "ipc", "pid", "cgroup") if one != kind)
        joined = namespaces(*others, **{kind: f"/proc/{box.pid}/ns/{file}"})
        with boxes.running(sh("echo up; sleep 100", namespaces=joined, sysctl={}, resources=limit)) as other:
            other.wait_for("up\n")
            own = Path(other.groups["unified"])
            assert Path(f"/proc/{other.pid}/cgroup").read_text() == f"0::{str(own).removeprefix(str(layout().v2))}\n"
            assert (own / "pids.max").read_text() == "20\n"
            assert other.pid in cgroups.pids(str(own))
