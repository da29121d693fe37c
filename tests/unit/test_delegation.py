"""Which cgroups are delegated to an ordinary user, on made-up trees; and that what is taken is given back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.container import rootless
from bench.container.adjust import Options
from bench.container.delegation import Delegation, find, reap, taken
from bench.container.groups import CgroupLayout
from bench.container.spec import default_spec
from bench.container.spec_records import Cpu, DeviceRule, Pids, Resources
from bench.errors import HostError
from bench.linux import cgroups, membership
from bench.linux.membership import Hierarchy, hierarchies
from bench.model import RunId

RUN = RunId("20261124-000000-test-abc123")
SELF = os.getpid()
MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:33 /other /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
42 31 0:38 / /elsewhere rw - cgroup2 cgroup2 rw,nsdelegate
"""
OWN = """\
9:name=systemd:/user
8:pids:/docker/1
4:memory:/docker/1/x:y
1:cpu,cpuacct:/
0::/user.slice/session-3.scope
"""


def test_our_own_groups_as_folders() -> None:
    assert hierarchies(MOUNTS, OWN) == [
        Hierarchy(("cpu", "cpuacct"), "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
        Hierarchy(("memory",), "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/x:y"),
        Hierarchy((), "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/user.slice/session-3.scope"),
    ]


def test_a_group_out_of_our_namespace_is_nowhere() -> None:
    assert hierarchies("41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/../other\n") == []


# --- v1 ----------------------------------------------------------------------------------------------------------


def v1(*names: str) -> list[Hierarchy]:
    return [Hierarchy((name,), f"/c/{name}", f"/c/{name}/mine") for name in names]


def only(*paths: str) -> Callable[[str], bool]:
    """Who may write these and what is below them."""
    return lambda path: any(path == one or path.startswith(f"{one}/") for one in paths)


def test_v1_controllers_are_taken_one_by_one() -> None:
    made = find(v1("memory", "pids", "devices"), {SELF}, may_write=only("/c/memory/mine", "/c/devices/mine"))
    assert made.host == CgroupLayout({"memory": "/c/memory/mine"}, None, delegated=True)
    assert made.lacks == ("cpu", "pids", "freezer")
    assert made.host.groups("bench-abc123", Resources()).of("abc123-c1") == {
        "memory": "/c/memory/mine/bench-abc123/abc123-c1"
    }
    with pytest.raises(HostError, match=r"no pids cgroups are delegated to you, so pids\.max can't be set"):
        made.host.groups("bench-abc123", Resources(pids=Pids(3)))


@pytest.mark.parametrize("missing", ["/c/memory/mine", "/c/memory/mine/tasks", "/c/memory/mine/cgroup.procs"])
def test_a_v1_group_is_whole_or_not_delegated(missing: str) -> None:
    made = find(v1("memory"), {SELF}, may_write=lambda path: path != missing)
    assert made.host is None
    assert "yours to write" in made.reason


# --- v2 ----------------------------------------------------------------------------------------------------------


def group(path: Path, has: str = "", hands: str = "", inside: str = "", kind: str = "domain") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    files = {"controllers": has, "subtree_control": hands, "procs": inside, "type": kind}
    for name, text in files.items():
        (path / f"cgroup.{name}").write_text(text)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """top/slice (root's), top/slice/user (delegated, all controllers), top/slice/user/scope: we, and we alone."""
    group(tmp_path / "top", "memory cpu pids io", "memory cpu pids")
    group(tmp_path / "top/slice", "memory cpu pids", "memory cpu pids")
    group(tmp_path / "top/slice/user", "memory cpu pids", "memory pids")
    group(tmp_path / "top/slice/user/scope", "memory pids", inside=f"{SELF}\n")
    return tmp_path / "top"


def unified(top: Path, own: str = "slice/user/scope") -> list[Hierarchy]:
    return [Hierarchy((), str(top), f"{top}/{own}")]


def test_the_nearest_group_is_taken_and_we_are_in_its_way(tree: Path) -> None:
    made = find(unified(tree), {SELF}, may_write=only(f"{tree}/slice/user"))
    assert made == Delegation(
        CgroupLayout({}, f"{tree}/slice/user/scope", delegated=True), "", ("cpu",), ("memory", "pids"), (SELF,)
    )


def test_who_waits_for_us_is_moved_along(tree: Path) -> None:
    group(tree / "slice/user/scope", "memory pids", inside=f"{SELF}\n77\n")
    assert find(unified(tree), {SELF, 77, 78}, may_write=only(f"{tree}/slice/user")).aside == (77, SELF)


def test_others_are_not_moved_and_the_next_one_up_is_taken(tree: Path) -> None:
    group(tree / "slice/user/scope", "memory pids", inside=f"{SELF}\n1000\n")
    made = find(unified(tree), {SELF}, may_write=only(f"{tree}/slice/user"))
    assert made.host == CgroupLayout({}, f"{tree}/slice/user", delegated=True)
    assert made.hands == ("cpu",)
    assert made.aside == ()
    alone = find(unified(tree), {SELF}, may_write=only(f"{tree}/slice/user/scope"))
    assert alone.host is None
    assert "while processes 1000 are in it" in alone.reason


@pytest.mark.parametrize("file", ["", "/cgroup.procs", "/cgroup.subtree_control"])
def test_a_v2_group_is_whole_or_not_delegated(tree: Path, file: str) -> None:
    scope = f"{tree}/slice/user/scope"
    made = find(unified(tree), {SELF}, may_write=lambda path: path.startswith(scope) and path != scope + file)
    assert made.host is None
    assert made.reason == f"neither {scope} nor a group above it is yours to write"


def test_a_threaded_group_is_passed_over(tree: Path) -> None:
    group(tree / "slice/user/scope", "pids", kind="threaded")
    made = find(unified(tree), {SELF}, may_write=only(f"{tree}/slice/user"))
    assert made.host == CgroupLayout({}, f"{tree}/slice/user", delegated=True)


def test_one_with_controllers_is_better_than_a_nearer_one_without(tree: Path) -> None:
    group(tree / "slice/user", "memory cpu pids", "")
    group(tree / "slice/user/scope", "", inside=f"{SELF}\n1000\n")
    made = find(unified(tree), {SELF}, may_write=only(f"{tree}/slice/user"))
    assert made.host == CgroupLayout({}, f"{tree}/slice/user", delegated=True)
    bare = find(unified(tree), {SELF}, may_write=only(f"{tree}/slice/user/scope"))
    assert bare == Delegation(
        CgroupLayout({}, f"{tree}/slice/user/scope", delegated=True), "", ("memory", "cpu", "pids")
    )


def test_controllers_of_v1_come_first(tree: Path) -> None:
    made = find([*unified(tree), *v1("memory")], {SELF}, may_write=lambda _: True)
    assert made.host is not None
    assert made.host.kind == "v1"


def test_a_limit_without_its_delegated_controller_is_refused(tree: Path) -> None:
    made = find(unified(tree), {SELF}, may_write=only(f"{tree}/slice/user"))
    assert made.host is not None
    assert made.host.groups("p", Resources(pids=Pids(3))).unified
    with pytest.raises(HostError, match=r"no cpu cgroups are delegated to you, so cpu\.weight can't be set"):
        made.host.groups("p", Resources(cpu=Cpu(shares=1024)))


def test_what_is_delegated_is_handed_on_and_no_more_is_asked_for(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(cgroups, "write", lambda path, value: written.append(f"{path[len(str(tree)) :]} {value}"))
    group(tree / "slice/user/scope/bench-abc123", "memory pids")
    CgroupLayout({}, f"{tree}/slice/user/scope", delegated=True).prepare("bench-abc123")
    folders = ("/slice/user/scope", "/slice/user/scope/bench-abc123")
    assert written == [f"{one}/cgroup.subtree_control +{name}" for one in folders for name in ("memory", "pids")]


# --- taken and given back ----------------------------------------------------------------------------------------


class Kernel:
    """Moves processes and hands down controllers of a made-up tree by the rule: no group does both."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top, self.refuses = top, ""
        monkeypatch.setattr(cgroups, "write", self.write)
        monkeypatch.setattr(Path, "rmdir", lambda path: self._rmdir(path))

    def write(self, path: str, value: str) -> None:
        where = Path(path)
        folder = where.parent
        if where.name == "cgroup.procs":
            if self._read(folder, "subtree_control"):
                raise OSError(errno.EBUSY, "busy", path)
            for one in self.top.rglob("cgroup.procs"):
                one.write_text("".join(f"{pid}\n" for pid in one.read_text().split() if pid != value))
            where.touch()
            where.write_text(where.read_text() + f"{value}\n")
        else:
            if self.refuses and value.startswith(self.refuses):
                raise OSError(errno.EBUSY, "busy", path)
            there = self._read(folder, "subtree_control")
            if value.startswith("+") and self._read(folder, "procs"):
                raise OSError(errno.EBUSY, "busy", path)
            names = [word[1:] for word in value.split()]
            where.write_text(" ".join(names if value[0] == "+" else [one for one in there if one not in names]))

    @staticmethod
    def _read(folder: Path, name: str) -> list[str]:
        path = folder / f"cgroup.{name}"
        return path.read_text().split() if path.exists() else []

    @staticmethod
    def _rmdir(path: Path) -> None:
        if (path / "cgroup.procs").read_text():
            raise OSError(errno.EBUSY, "busy", str(path))
        (path / "cgroup.procs").unlink()
        os.rmdir(path)


@pytest.fixture
def kernel(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tree, monkeypatch)
    monkeypatch.setattr(membership, "current", lambda: unified(tree))
    return made


def test_we_step_aside_and_come_back(tree: Path, tmp_path: Path, kernel: Kernel) -> None:
    scope = tree / "slice/user/scope"
    with taken(RUN, tmp_path) as made:
        assert made.host == CgroupLayout({}, str(scope), delegated=True)
        assert (scope / "bench-abc123-self/cgroup.procs").read_text().split() == [str(SELF)]
        assert (scope / "cgroup.subtree_control").read_text().split() == ["memory", "pids"]
        assert (tmp_path / "delegation.json").exists()
    assert (scope / "cgroup.procs").read_text().split() == [str(SELF)]
    assert (scope / "cgroup.subtree_control").read_text() == ""
    assert not (scope / "bench-abc123-self").exists()
    assert not (tmp_path / "delegation.json").exists()


def test_what_others_use_by_then_is_left_to_them(tree: Path, tmp_path: Path, kernel: Kernel) -> None:
    scope = tree / "slice/user/scope"
    with taken(RUN, tmp_path):
        kernel.refuses = "-"
    assert (scope / "cgroup.subtree_control").read_text().split() == ["memory", "pids"]
    assert (scope / "bench-abc123-self/cgroup.procs").read_text().split() == [str(SELF)]


def test_what_the_kernel_refuses_after_all_is_no_delegation(tree: Path, tmp_path: Path, kernel: Kernel) -> None:
    kernel.refuses = "+"
    with taken(RUN, tmp_path) as made:
        assert made.host is None
        assert "busy" in made.reason
    assert not (tree / "slice/user/scope/bench-abc123-self").exists()


def test_a_dead_one_s_groups_are_found_by_its_folder(tree: Path, tmp_path: Path, kernel: Kernel) -> None:
    scope = tree / "slice/user/scope"
    group(scope, "memory pids", "memory pids")
    (scope / "bench-abc123-self").mkdir()
    (scope / "bench-abc123-self/cgroup.procs").touch()
    (scope / "bench-abc123").mkdir()
    held = {"run": RUN, "host": CgroupLayout({}, str(scope), delegated=True), "hands": ["memory", "pids"],
            "aside": f"{scope}/bench-abc123-self"}  # fmt: skip
    (tmp_path / "delegation.json").write_bytes(msgspec.json.encode(held))
    assert [one.name for one in reap(tmp_path)] == [f"{scope}/bench-abc123", f"{scope}/bench-abc123-self"]
    assert sorted(path.name for path in scope.iterdir() if path.is_dir()) == []
    assert (scope / "cgroup.subtree_control").read_text() == ""
    assert reap(tmp_path) == []


# --- what is said ------------------------------------------------------------------------------------------------


def test_limits_stay_where_groups_are_delegated_and_device_rules_do_not() -> None:
    wanted = Resources(devices=(DeviceRule(False, "rwm"),), pids=Pids(3))
    spec = default_spec(["/bin/sh"], root="root", resources=wanted)
    held = Delegation(CgroupLayout({"pids": "/c"}, None, delegated=True))
    assert rootless.without_root(spec, "--pids-limit", held).linux.resources == Resources(pids=Pids(3))
    with pytest.raises(HostError, match=r"linux\.resources\.pids needs cgroups, and none is delegated") as caught:
        rootless.without_root(spec, None)
    assert "Delegate=yes" in (caught.value.hint or "")


def test_what_is_missing_is_told() -> None:
    spec = rootless.without_root(default_spec(["/bin/sh"], root="root"), Options().limited)
    host = CgroupLayout({}, "/c", delegated=True)
    told = [list(rootless.warnings(spec, one))[0:1] for one in (
        Delegation(reason="because"), Delegation(host, lacks=("cpu", "freezer")), Delegation(host),
    )]  # fmt: skip
    assert told[:2] == [
        ["no cgroups are delegated to you: no limits, no pause, no stats (because)"],
        ["no cpu freezer cgroups are delegated to you: no limits of CPU time, no pause"],
    ]
    assert "cgroups" not in "".join(told[2])
