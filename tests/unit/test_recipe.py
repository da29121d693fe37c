"""The set-up of a container as data: what comes before what, and why it must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bench.container.groups import Groups
from bench.container.recipe import Filter, Kitchen, describe, recipe, said
from bench.container.spec import default_spec
from bench.container.spec_records import IdMapping, Mount, Namespace, Process, Spec, User
from bench.errors import ConfigError
from bench.linux.syscalls import CLONE_NEWNET

GROUPS = Groups({"memory": "/c/memory/p"}, {"memory": [("memory.limit_in_bytes", "1")]}, False)
KITCHEN = Kitchen(("overlay_root", "/l2:/l1", ""), Path("/bundle"), GROUPS, ("/c/devices/p/rules",), Filter("/f"))
SPEC = default_spec(["/bin/sh", "-c", "true"], root="root", hostname="h")


def steps(spec: Spec = SPEC, kitchen: Kitchen = KITCHEN) -> list[list[Any]]:
    return recipe(spec, kitchen)["steps"]  # type: ignore[no-any-return]


def names(spec: Spec = SPEC, kitchen: Kitchen = KITCHEN) -> list[str]:
    return [step[0] for step in steps(spec, kitchen)]


def with_process(**changes: Any) -> Spec:
    process: Process = replace(SPEC.process, **changes)
    return replace(SPEC, process=process)


def in_order(found: list[str], *wanted: str) -> bool:
    places = [found.index(name) for name in wanted]
    return places == sorted(places)


def test_the_default_order() -> None:
    assert in_order(
        names(), "own_groups", "unshare", "propagation", "overlay_root", "pivot", "drop_old_root", "filesystem",
        "device", "sysctl", "read_only", "mask", "await_parent", "network", "bounding_set", "user", "seccomp",
        "capabilities",
    )  # fmt: skip


def test_after_the_pivot_every_path_is_the_containers() -> None:
    found = names()
    before = found[: found.index("pivot")]
    assert not {"filesystem", "device", "mask", "read_only", "sysctl"} & set(before)


def test_the_filter_is_last_where_no_capability_is_needed_to_load_it() -> None:
    found = names(with_process(no_new_privileges=True))
    assert found[-2:] == ["no_new_privs", "seccomp"]
    assert found.count("seccomp") == 1


def test_an_ordinary_user_keeps_the_right_to_load_the_filter_until_it_is_loaded() -> None:
    found = steps(with_process(user=User(1000, 1000)))
    loading, last = [step for step in found if step[0] == "capabilities"]
    assert loading[2] & 1 << 21, "CAP_SYS_ADMIN"
    assert not last[2] & 1 << 21
    assert in_order([step[0] for step in found], "user", "capabilities", "seccomp")


def test_binds_are_picked_up_before_the_pivot_and_placed_after(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    mount = Mount("/data", "bind", str(tmp_path / "data"), ("rbind", "ro"))
    found = steps(replace(SPEC, mounts=(*SPEC.mounts, mount)))
    kinds = [step[0] for step in found]
    assert in_order(kinds, "pick_up", "pivot", "drop_old_root", "contained", "place_tree", "remount")
    assert found[kinds.index("place_tree")] == ["place_tree", 0, "/data", True]


def test_a_bind_without_a_source_is_named() -> None:
    with pytest.raises(ConfigError, match="nothing to bind at /bundle/nosuch"):
        recipe(replace(SPEC, mounts=(Mount("/x", "bind", "nosuch", ("bind",)),)), KITCHEN)


def test_a_user_namespace_waits_for_its_maps_and_binds_devices() -> None:
    maps = (IdMapping(0, 100_000, 65_536),)
    linux = replace(
        SPEC.linux, namespaces=(*SPEC.linux.namespaces, Namespace("user")), uid_mappings=maps, gid_mappings=maps
    )
    found = names(replace(SPEC, linux=linux))
    assert found[:3] == ["oom_score_adj", "await_parent", "user"]
    assert "device" not in found
    assert found.count("pick_up") == found.count("place_tree") == 6
    assert "own_groups" not in found, "the launcher attaches it: inside it is nobody"
    assert recipe(replace(SPEC, linux=linux), KITCHEN)["uid_map"] == "0 100000 65536\n"


def test_an_instance_that_is_held_has_all_but_its_rights_set_up() -> None:
    assert in_order(names(kitchen=replace(KITCHEN, hold=True)), "network", "hold", "bounding_set")


def test_on_v2_it_is_born_in_its_group() -> None:
    fields = recipe(SPEC, replace(KITCHEN, groups=Groups({"unified": "/c/p"}, {"unified": []}, True), shared=()))
    assert fields["unified"] == "/c/p"
    assert "own_groups" not in [step[0] for step in fields["steps"]]


def test_the_set_up_can_be_read() -> None:
    lines = describe(recipe(SPEC, KITCHEN))
    assert lines[0] == "clone: new namespaces mount network uts pid ipc"
    assert "cgroup: /c/memory/p/NAME memory.limit_in_bytes=1" in lines
    assert "mask /proc/kcore" in lines
    assert lines[-1] == "exec: /bin/sh -c true"


def test_what_is_pooled_is_entered_and_not_made() -> None:
    kitchen = replace(KITCHEN, pooled=True)
    made, cold = recipe(SPEC, kitchen), recipe(SPEC, KITCHEN)
    assert cold["namespaces"] - made["namespaces"] == CLONE_NEWNET
    found = names(kitchen=kitchen)
    assert found[0] == "enter_network", "sysfs is that of the namespace it is mounted in"
    assert {"own_groups", "network"} & set(found) == set()
    assert in_order(found, "enter_network", "join_groups", "unshare", "filesystem")
    assert made["groups"] == [("/c/memory/p", [])], "their limits are set"
    assert {"own_groups", "network"} <= set(names())


def test_a_path_is_said_as_it_is() -> None:
    assert said(["hook /opt/my_hook", {"path": "/a_b"}]) == "hook /opt/my_hook /a_b"
    assert said(["own_null"]) == "own null"
