"""Exposure of real instances: known differences between drivers and profiles have to be seen, and only those."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from bench.config.scenario import settings_for
from bench.drivers.base import Driver, Instance
from bench.drivers.context import RunContext
from bench.errors import CommandError
from bench.images.exposure import exposure_program, with_exposure
from bench.linux.callcount import counting
from bench.linux.calls import NAMES
from bench.linux.http_load import Answer
from bench.model import Completed, HttpCheck, InstanceSpec, PhaseLog
from bench.paths import cache_dir
from bench.probes.exposure import calls, facts, hostcalls, setup
from bench.probes.exposure.look import Host, kernel_of, look
from bench.probes.unchanged import differences, snapshot
from bench.process import run
from bench.records import Exposure, ExposureRecord
from bench.store import read_run
from bench.verbs.exposure import _inside
from tests.fakes import scenario

pytestmark = pytest.mark.root

Inside = Callable[[Sequence[str]], Completed]
Open = Callable[[str], AbstractContextManager[tuple[Instance, Inside]]]

DENIED = {
    "mount", "umount2", "pivot_root", "reboot", "swapon", "init_module", "delete_module", "kexec_load", "bpf",
    "perf_event_open", "keyctl", "add_key", "unshare", "setns", "userfaultfd", "io_uring_setup", "open_by_handle_at",
    "sethostname", "settimeofday", "acct", "syslog", "quotactl", "iopl",
}  # fmt: skip
"""What a container of Docker's defaults may not call either."""
ALLOWED = {"read", "clone", "fork", "vfork", "socket", "ptrace", "exit", "pause", "futex", "personality", "kill"}


def on_host(words: Sequence[str]) -> Completed:
    return run([exposure_program(cache_dir()), *words], timeout=60, check=False)


@pytest.fixture
def opened(context: RunContext, driver_of: Callable[[str], Driver], make_spec: Callable[..., InstanceSpec],
           tmp_path: Path) -> Open:  # fmt: skip
    """A running httpd of a driver and profile with the program in it, and how to run that."""
    image = with_exposure(context.images, context.images.resolve("default"), exposure_program(cache_dir()))

    @contextmanager
    def launch(name: str) -> Iterator[tuple[Instance, Inside]]:
        driver, profile = name.split(":")
        settings = settings_for(scenario(tmp_path), driver, profile)
        spec = make_spec(name, "httpd", settings, image=image)
        driver_of(driver).prepare(spec)
        with driver_of(driver).launch(spec, PhaseLog()) as instance:
            instance.wait_ready(60)
            yield instance, functools.partial(_inside, instance)
            instance.stop(10)

    return launch


def by_name(found: Exposure) -> dict[str, str]:
    return {item.name: item.found for item in found.items}


def looked_at(inside: Inside, instance: Instance) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Calls, facts and set-up."""
    states = [setup.state(pid) for pid in instance.footprint().pids]
    return (
        by_name(calls.exposure(calls.tried(inside), calls.tried(on_host))),
        by_name(facts.exposure(facts.read(on_host), facts.read(inside), facts.read(on_host))),
        by_name(setup.exposure(states, setup.state(os.getpid()))),
    )


def test_a_bare_process_reaches_and_sees_all_that_the_host_does(opened: Open) -> None:
    before = snapshot([])
    with opened("process:default") as (instance, inside):
        tried, seen, parts = looked_at(inside, instance)
        assert kernel_of(inside, on_host) == "host"
    host = calls.exposure(calls.tried(on_host), {})
    assert tried == by_name(host), "the host's own answers are the control"
    assert {name for name, found in seen.items() if found not in (facts.SAME, facts.NONE)} == set()
    assert sum(found == facts.SAME for found in seen.values()) >= 25
    assert set(parts.values()) <= {setup.SHARED}
    changed = [line for line in differences(before, snapshot([])) if "mounted" not in line]  # others mount here too
    assert changed == []


def test_what_the_default_container_denies_and_hides_and_one_without_a_filter_does_not(opened: Open) -> None:
    with opened("container:default") as (instance, inside):
        tried, seen, parts = looked_at(inside, instance)
    assert {tried[name] for name in DENIED} == {calls.DENIED}
    assert {tried[name] for name in ALLOWED} == {calls.WORKS}
    assert tried["clone3"] == calls.ABSENT  # so that a C library falls back to clone, which filters can look into
    assert seen["boot id"] == seen["kernel release"] == seen["memory"] == facts.SAME
    assert {seen["kernel log"], seen["machine id"], seen["kernel symbols' addresses"]} == {facts.HIDDEN}
    assert {seen["host name"], seen["processes"], seen["network interfaces"]} == {facts.DIFFERENT}
    assert parts["namespace pid"] == parts["seccomp mode"] == parts["writable host paths"] == setup.CONFINED
    assert parts["namespace user"] == parts["user id map"] == setup.SHARED

    with opened("container:bare") as (instance, inside):
        bare, shown, weaker = looked_at(inside, instance)
    assert {bare[name] for name in DENIED} <= {calls.WORKS, calls.ABSENT}, "without a filter all are reachable"
    assert list(bare.values()).count(calls.WORKS) > list(tried.values()).count(calls.WORKS) + 50
    assert shown["kernel log"] == facts.SAME
    assert weaker["seccomp mode"] == weaker["capabilities effective"] == setup.SHARED
    assert weaker["namespace pid"] == setup.CONFINED


def test_a_planted_mount_of_the_host_and_a_planted_filter_are_seen(tmp_path: Path) -> None:
    """A process with a filter that kills, and one whose own mounts hold a folder of the host's."""
    program = str(exposure_program(cache_dir()))
    killing = (
        "import os, sys; from bench.linux import bpf, seccomp as s; i = bpf.Instruction\n"
        "s.load_filter(bpf.encode([i(bpf.LOAD, 0, 0, 0), i(bpf.JEQ, 0, 1, 165), i(bpf.RETURN, 0, 0,"
        " s.RET_KILL_PROCESS), i(bpf.RETURN, 0, 0, s.RET_ALLOW)]))\n"
        f"os.execv({program!r}, [{program!r}, *sys.argv[1:]])"
    )
    filtered = calls.tried(lambda words: run([sys.executable, "-c", killing, *words], timeout=60, check=False))
    found = calls.exposure(filtered, filtered)
    assert found.counts["killed"] == 1
    assert by_name(found)["mount"] == calls.KILLED

    shared = tmp_path / "of the host"
    shared.mkdir()
    script = 'mount -t tmpfs x /mnt && mkdir "/mnt/in" && mount --bind "$1" /mnt/in && echo && exec sleep 60'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", str(shared)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"\n"
            state = setup.state(child.pid)
        finally:
            child.kill()
    assert "/mnt/in" in state.writable
    assert "/mnt" not in state.writable
    assert state.namespaces["mnt"] != os.readlink("/proc/self/ns/mnt")


def test_calls_under_load_are_the_instances_and_a_load_that_is_not_executed_is_refused(opened: Open) -> None:
    with opened("container:default") as (instance, _), counting() as counter:
        check = HttpCheck(port=8080)
        found = hostcalls.measured(hostcalls.Watched(counter, instance), check)
        used = {one.name: one.per_second or 0 for one in found.items if one.found == hostcalls.USED}
        assert 40 <= used["accept4"] <= 110, "fifty requests a second are accepted"
        assert "epoll_wait" not in used, "that is how the harness waits, not how httpd does"

        def idle(*_: object) -> list[Answer]:
            return []

        with pytest.raises(CommandError, match="rejected: 0 of"):
            hostcalls.measured(hostcalls.Watched(counter, instance, idle, lambda seconds: None), check)


def test_calls_of_every_thread_count_with_their_process() -> None:
    script = (
        "import os, threading, sys\n"
        "sys.stdin.readline()\n"
        "t = threading.Thread(target=lambda: [os.getppid() for _ in range(1000)]); t.start(); t.join()\n"
        "print(flush=True); sys.stdin.readline()"
    )
    argv = [sys.executable, "-I", "-S", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child, counting() as counter:
        assert child.stdin is not None
        assert child.stdout is not None
        time.sleep(0.2)
        before = counter.read()
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        counts = hostcalls.during(before, counter.read(), {child.pid})
        child.kill()
    assert {NAMES[number]: count for number, count in counts.items()}["getppid"] == 1000


@pytest.mark.libvirt
@pytest.mark.slow
def test_a_guest_has_a_kernel_of_its_own_and_its_hypervisor_is_what_the_host_sees(opened: Open) -> None:
    with opened("vm:stock") as (instance, inside):
        assert kernel_of(inside, on_host) == "own"
        host = Host(on_host, calls.tried(on_host))
        found = {one.exposure.axis: one.exposure for one in look(instance, inside, host, HttpCheck(port=8080))}
    assert [axis for axis, one in found.items() if one.missing] == ["functions"]
    tried, seen, parts = (by_name(found[axis]) for axis in ("calls", "facts", "setup"))
    assert {tried[name] for name in DENIED - {"iopl"}} <= {calls.WORKS, calls.ABSENT}, "root of a kernel of its own"
    assert {seen["boot id"], seen["uptime"], seen["memory"], seen["cpu model"]} == {facts.DIFFERENT}
    assert sum(one == facts.SAME for one in seen.values()) <= 3
    assert parts["seccomp mode"] == setup.CONFINED, "QEMU's own filter"
    assert "futex" in by_name(found["host-calls"])


@pytest.mark.slow
def test_an_isolation_run_keeps_every_axis_with_its_host_side(tmp_path: Path, own_state: Path) -> None:
    """By the command, with a payload that has no network: what can't be measured there says why."""
    argv = [
        sys.executable,
        "-m",
        "bench",
        "run",
        "isolation",
        "--drivers",
        "container:strict",
        "--results",
        str(tmp_path),
    ]
    run(argv, check=False, timeout=200)
    [folder] = tmp_path.iterdir()
    found = {one.exposure.axis: one for one in read_run(folder).records if isinstance(one, ExposureRecord)}
    assert list(found) == ["host-calls", "calls", "functions", "facts", "setup"]
    assert {one.kernel for one in found.values()} == {"host"}
    assert [axis for axis, one in found.items() if one.exposure.missing] == ["host-calls", "functions"]
    assert "no network" in (found["host-calls"].exposure.missing or "")
    counts = found["calls"].exposure.counts
    assert counts["denied"] > 50
    assert counts["works"] < counts["works on the host"]
    assert found["setup"].exposure.counts["capabilities"] == 0
    shown = run([sys.executable, "-m", "bench", "show", folder.name, "--results", str(tmp_path)], timeout=60).stdout
    assert "System calls reachable" in shown
