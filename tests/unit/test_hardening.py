"""The container with less, and with more, of the default confinement."""

from __future__ import annotations

import pytest

from bench.container import hardening, profile
from bench.container.hardening import secured, strict_seccomp
from bench.container.recipe import Kitchen, recipe
from bench.container.spec import default_spec
from bench.container.spec_records import Seccomp
from bench.drivers.container import _read_only
from bench.errors import UsageError
from tests.unit.test_recipe import KITCHEN, in_order

SPEC = default_spec(["/bin/true"], root="root")


def named(filter: Seccomp) -> set[str]:
    return {name for rule in filter.syscalls for name in rule.names}


def test_default_is_the_default() -> None:
    assert secured(SPEC, "default") is SPEC


def test_none_leaves_namespaces_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardening, "permitted", lambda: frozenset({0, 21}))
    bare = secured(SPEC, "none")
    assert bare.linux.namespaces == SPEC.linux.namespaces
    assert bare.linux.seccomp is None
    assert bare.linux.masked_paths == bare.linux.readonly_paths == ()
    assert bare.process.capabilities.effective == ("CAP_CHOWN", "CAP_SYS_ADMIN"), "all that this host lets us have"


def test_strict_takes_away_and_gives_nothing() -> None:
    strict = secured(SPEC, "strict")
    assert strict.process.capabilities.bounding == ()
    assert strict.process.no_new_privileges
    assert strict.root.readonly
    assert strict.linux.uid_mappings[0].host_id >= 1_000_000_000
    assert set(strict.linux.masked_paths) >= set(SPEC.linux.masked_paths)
    assert set(strict.linux.readonly_paths) >= set(SPEC.linux.readonly_paths)
    assert SPEC.linux.seccomp is not None
    assert named(strict_seccomp()) < named(SPEC.linux.seccomp)


def test_what_strict_refuses_the_default_allows() -> None:
    """A name misspelt there would refuse nothing."""
    allowed = {name for names in profile.SYSCALLS.values() for name in names.split()} | {"personality"}
    assert allowed >= hardening.REFUSED
    assert not named(strict_seccomp()) & hardening.REFUSED


def test_strict_has_three_families_of_sockets() -> None:
    rules = [rule for rule in strict_seccomp().syscalls if "socket" in rule.names]
    assert sorted(arg.value for rule in rules for arg in rule.args) == [1, 2, 10]
    assert all(arg.op == "SCMP_CMP_EQ" for rule in rules for arg in rule.args)


def test_its_root_is_mounted_while_the_layers_can_still_be_reached() -> None:
    kitchen = Kitchen(("overlay_read_only", "/layers"), KITCHEN.bundle, KITCHEN.groups, early=True)
    steps = [step[0] for step in recipe(secured(SPEC, "strict"), kitchen)["steps"]]
    assert in_order(steps, "await_parent", "own_folder", "overlay_read_only", "user", "pivot")
    assert steps.count("overlay_read_only") == 1


def test_strict_takes_no_storage_that_would_have_to_be_written_from_inside() -> None:
    assert _read_only(("overlay_root", "/a:/b", ",x")) == ("overlay_read_only", "/a:/b")
    with pytest.raises(UsageError, match="overlay only"):
        _read_only(("bind_own_root",))
