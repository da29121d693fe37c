"""What measuring the floor costs of this host leaves behind: nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bench import host
from bench.linux import cgroups
from bench.model import RunId
from tests.integration.traces import traces

pytestmark = pytest.mark.root


def groups(run: RunId) -> list[str]:
    old, unified = cgroups.current_mounts()
    mount = old.get("memory") or unified
    return sorted(str(path) for path in Path(mount).glob(f"bench-{run[-6:]}/floor-*")) if mount else []


def test_floor_costs_are_plausible_and_put_back(run_id: RunId) -> None:
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    network = os.readlink("/proc/self/ns/net")
    facts = host.measure_floor_costs(host.host_facts(), run_id)
    assert facts.empty_memcg_bytes is not None
    assert facts.empty_netns_bytes is not None
    assert 1_000 < facts.empty_memcg_bytes < 4_000_000
    assert 10_000 < facts.empty_netns_bytes < 4_000_000
    assert not traces(run_id)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (descriptors, threads)
    assert os.readlink("/proc/self/ns/net") == network


def test_groups_are_there_while_held_and_gone_after_a_fault(run_id: RunId) -> None:
    held = host._memory_groups(f"bench-{run_id[-6:]}", 3)
    held.__enter__()
    assert len(groups(run_id)) == 1, "the search would find a leftover"
    assert len([path for path in Path(groups(run_id)[0]).iterdir() if path.is_dir()]) == 3
    fault = RuntimeError("planted")
    assert not held.__exit__(RuntimeError, fault, None)
    assert not traces(run_id)
