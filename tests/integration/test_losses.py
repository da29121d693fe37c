"""What a host takes away in the middle of a run: room, descriptors, memory, answers, the clock, libvirt, its quiet.

Each ends as one clear outcome with its exit code; what was measured is kept, and the host is as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.linux import cgroups
from bench.model import RunId
from bench.records import DISTURBED, LaunchRecord, TeardownRecord, TrialRecord
from bench.store import RunData, list_runs, read_run
from tests.integration.traces import traces

BENCH = [sys.executable, "-m", "bench"]
ONE = ["--rounds", "1", "--set", "warmups=0"]
BARE = ["--set", "reserve.disk=0", "--set", "reserve.descriptors=0", "--set", "reserve.pressure=1"]
"""The reserve would end a ramp before the host refuses anything, which is what these tests are about."""

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_state")]


class Run:
    """`bench run density` as a process of its own."""

    def __init__(self, results: Path, *words: str, prefix: tuple[str, ...] = (), program: list[str] = BENCH) -> None:
        self.results = results
        self._before = set(list_runs(results))
        argv = [*prefix, *program, "run", "density", *BARE, *words]
        self._process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "BENCH_RESULTS": str(results)}, start_new_session=True,
        )  # fmt: skip

    def await_launches(self, number: int, timeout: float = 90) -> RunId:
        """Wait until so many instances are up."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._process.poll() is None:
            for path in set(list_runs(self.results)) - self._before:
                if (path / "trials.jsonl").read_text().count('"kind":"launch"') >= number:
                    return RunId(path.name)
            time.sleep(0.01)
        raise AssertionError(f"no {number} launches: {self.ended()}")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[int]:
        """It, whose pid this is, and its launcher, for as long as this lasts."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield self._process.pid
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)

    def ended(self, timeout: float = 150) -> tuple[int, str]:
        """Exit status and what it said on stderr. Interrupted after `timeout`, so that it leaves nothing."""
        try:
            _, said = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=30)
            self._process.kill()
            raise
        return self._process.returncode, said

    def failed(self, code: int, *said: str) -> RunData:
        """What it wrote, once it has ended with `code` and said so; nothing of it is left on the host."""
        status, stderr = self.ended()
        assert status == code, stderr
        assert "Traceback" not in stderr
        assert "error: internal error" not in stderr
        for text in said:
            assert text in stderr
        data = self.data()
        assert not traces(data.info.run)
        return data

    def data(self) -> RunData:
        (path,) = set(list_runs(self.results)) - self._before
        return read_run(path)


def bench(*words: str, results: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "BENCH_RESULTS": str(results)}
    return subprocess.run([*BENCH, *words], capture_output=True, text=True, timeout=120, env=env)


def payload(script: str) -> list[str]:
    """Options that make `script` the payload; it is ready when it says so."""
    command = json.dumps(["/bin/sh", "-c", script])
    return [
        "--set",
        "payload=mine",
        "--set",
        f"payloads.mine.command={command}",
        "--set",
        "payloads.mine.ready.line='ready'",
    ]


def trials(data: RunData) -> list[TrialRecord]:
    return [one for one in data.records if isinstance(one, TrialRecord)]


def pids_of(run: RunId, program: str) -> list[int]:
    """Pids that the run's groups or names hold, of what runs `program`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and program in (entry / "comm").read_text():
                text = (entry / "cgroup").read_text() + (entry / "cmdline").read_text()
                found += [int(entry.name)] if run[-6:] in text else []
    return found


# --- room and descriptors ----------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a part of a run."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "small", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("driver", ["process", pytest.param("container", marks=pytest.mark.slow)])
def test_results_on_a_disk_that_gets_full(driver: str, small: Path) -> None:
    run = Run(small / "results", "--drivers", driver, "--count", "30", "--rounds", "3", "--set", "settle=0")
    data = run.failed(2, "No space left on device", "--results")
    assert data.info.status == "running", "which a resumed run goes on with"
    assert len(data.records) > 20
    assert not data.warnings, "no line is torn"
    subprocess.run(["mount", "-o", "remount,size=16m", str(small)], check=True)
    done = bench("run", "--resume", data.info.run, results=run.results)
    assert done.returncode == 0, done.stderr
    assert [one.limiter for one in trials(run.data())] == ["count"] * 3
    assert not traces(data.info.run)


@pytest.mark.parametrize("driver", [pytest.param("process", marks=pytest.mark.slow), "container"])
def test_descriptors_run_out(driver: str, tmp_path: Path) -> None:
    words = ["--drivers", driver, "--count", "100", *ONE, "--set", "settle=0"]
    run = Run(tmp_path, *words, prefix=("prlimit", "--nofile=90:90"))
    (trial,) = trials(run.failed(1))
    assert trial.limiter == "descriptors", trial.evidence
    assert "Too many open files" in trial.evidence
    assert 5 < trial.alive < 90


# --- memory ------------------------------------------------------------------------------------------------------


def test_the_oom_killer_takes_an_instance(tmp_path: Path) -> None:
    words = ["--drivers", "container", "--count", "2", *ONE, "--set", "settle=3", "--set", "limits.memory='24 MiB'"]
    run = Run(tmp_path, *words, *payload("echo ready; sleep 0.5; exec tail /dev/zero"))
    (trial,) = trials(run.failed(1))
    assert trial.limiter == "died"
    assert "killed by the OOM killer, at its memory limit" in trial.evidence


@pytest.mark.libvirt
@pytest.mark.slow
def test_the_oom_killer_takes_a_hypervisor(tmp_path: Path) -> None:
    eats = "echo ready; sleep 2; while :; do dd if=/dev/zero of=/dev/shm/x bs=1M count=90 2>&1; done"
    run = Run(tmp_path, "--drivers", "vm", "--count", "1", *ONE, "--set", "settle=20", *payload(eats))
    name = run.await_launches(1)
    (pid,) = pids_of(name, "qemu")
    group = group_of(pid, "memory")
    limit = int((group / "memory.usage_in_bytes").read_text()) + (8 << 20)
    (group / "memory.limit_in_bytes").write_text(str(limit))
    (trial,) = trials(run.failed(1))
    assert trial.limiter == "died", trial.evidence
    assert "its hypervisor was killed by the OOM killer, at its memory limit" in trial.evidence


def group_of(pid: int, controller: str) -> Path:
    mounts, _ = cgroups.current_mounts()
    if controller not in mounts:
        pytest.skip(f"no v1 {controller} cgroups here; on v2 the same is done by memory.max: remedy: a host with v1")
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return Path(mounts[controller] + path)
    raise AssertionError(controller)


@pytest.fixture
def cage() -> Iterator[Path]:
    """A memory group of our own."""
    place = group_of(os.getpid(), "memory") / f"cage-{os.getpid()}"
    place.mkdir()
    yield place
    for pid in cgroups.pids(str(place)):
        os.kill(pid, signal.SIGKILL)
    cgroups.remove(str(place))


def fill(cage: Path) -> None:
    """Something in it asks for more than there is even without page cache, and gets it when something else has gone."""
    stat = dict(line.split() for line in (cage / "memory.stat").read_text().splitlines())
    usage = int((cage / "memory.usage_in_bytes").read_text())
    (cage / "memory.limit_in_bytes").write_text(str(usage + (4 << 20)))
    wants = int(stat["total_cache"]) + (24 << 20)
    eats = f"set -e; echo $$ > {cage}/cgroup.procs; head -c {wants} /dev/zero | tail"  # keeps the last line: all of it
    subprocess.run(["sh", "-c", eats], stdout=subprocess.DEVNULL, check=True, timeout=60)


def test_the_oom_killer_takes_the_harness(cage: Path, tmp_path: Path) -> None:
    words = ["--drivers", "container", "--count", "400", "--rounds", "1", "--set", "settle=0"]
    run = Run(tmp_path, *words, prefix=("sh", "-c", f'echo $$ > {cage}/cgroup.procs; exec "$@"', "sh"))
    name = run.await_launches(10)
    with run.stopped() as harness:  # so that it is between two launches
        Path(f"/proc/{harness}/oom_score_adj").write_text("1000")  # not its launcher, not what fills
        fill(cage)
    status, said = run.ended()
    assert status == -signal.SIGKILL, said
    assert "Traceback" not in said
    assert cgroups.oom_kills(str(cage)) > 0
    launched = sum(isinstance(one, LaunchRecord) for one in run.data().records)
    assert 10 <= launched < 400, "it was to be killed between two launches"
    assert traces(name), "nothing to find is no test"
    cleaned = bench("clean", name, results=tmp_path)
    assert cleaned.returncode == 0, cleaned.stderr
    assert not traces(name)


# --- what does not answer ----------------------------------------------------------------------------------------


def test_a_container_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    stubborn = payload("trap '' TERM INT HUP; echo ready; while :; do sleep 1; done")
    words = ["--drivers", "process,container", "--count", "2", *ONE, "--set", "settle=0", "--set", "stop_timeout=0.3"]
    data = Run(tmp_path, *words, *stubborn).failed(0)
    ends = [one for one in data.records if isinstance(one, TeardownRecord)]
    assert len(ends) == 4
    assert all(one.error is None and one.phases["stopped"] - one.phases["stop"] >= 0.3e9 for one in ends)


@pytest.fixture
def freezer() -> Iterator[Callable[[int], None]]:
    """Puts a process where no signal reaches it; in the end all are let go."""
    place = group_of(os.getpid(), "freezer") / f"frozen-{os.getpid()}"
    place.mkdir()

    def freeze(pid: int) -> None:
        """Or, with 0, let all go."""
        if pid:
            (place / "cgroup.procs").write_text(str(pid))
        (place / "freezer.state").write_text("FROZEN" if pid else "THAWED")

    yield freeze
    (place / "freezer.state").write_text("THAWED")
    cgroups.remove(str(place))


@pytest.mark.slow
def test_a_container_that_hangs_on_kill(freezer: Callable[[int], None], tmp_path: Path) -> None:
    """Two killers give up after ten seconds each."""
    words = ["--drivers", "container", "--count", "2", *ONE, "--set", "settle=2", "--set", "stop_timeout=0.5"]
    run = Run(tmp_path, *words, "--set", "payload=idle")
    name = run.await_launches(1)
    mounts, _ = cgroups.current_mounts()
    (pid, *_) = cgroups.pids(f"{mounts['memory']}/bench-{name[-6:]}")
    freezer(pid)
    status, said = run.ended()
    assert status == 1, said
    assert "Traceback" not in said
    assert "error: internal error" not in said
    assert f"{name[-6:]}-c1" in said, "who hangs is named"
    assert f"pid {pid}" in said
    assert "killed and not gone" in said
    assert "bench clean" in said
    assert run.data().info.status == "done", "what was measured is whole"
    assert traces(name)
    early = bench("clean", results=tmp_path)
    assert early.returncode == 1
    assert f"pid {pid}" in early.stderr
    freezer(0)
    cleaned = bench("clean", results=tmp_path)
    assert cleaned.returncode == 0, cleaned.stderr
    assert not traces(name)


@pytest.mark.libvirt
@pytest.mark.slow
def test_a_guest_that_stops_answering(tmp_path: Path) -> None:
    words = ["--drivers", "vm", "--count", "2", *ONE, "--set", "settle=1", "--set", "stop_timeout=2"]
    run = Run(tmp_path, *words, "--set", "service.watch=always")
    name = run.await_launches(1)
    (pid, *_) = pids_of(name, "qemu")
    os.kill(pid, signal.SIGSTOP)
    data = run.failed(0)
    (trial,) = trials(data)
    assert trial.limiter == "service", "alive, and of no use"
    assert f"{name[-6:]}-v1" in trial.evidence or "no answer" in trial.evidence, trial.evidence


# --- time, libvirt, neighbours -----------------------------------------------------------------------------------

JUMPING = """
import itertools, sys, time
real, calls = time.time, itertools.count()
time.time = lambda: real() + (-1e8 if next(calls) % 2 else 1e8)
from bench.__main__ import main
sys.argv[0] = "bench"
main()
"""


def test_a_wall_clock_that_jumps(tmp_path: Path) -> None:
    words = ["--drivers", "process,container", "--count", "3", "--rounds", "2", "--set", "settle=0.05"]
    run = Run(tmp_path, *words, program=[sys.executable, "-c", JUMPING])
    data = run.failed(0)
    dates = [one.date for one in data.records]
    assert max(dates) - min(dates) > 1e8, "a clock that stands is no test"
    launches = [one for one in data.records if isinstance(one, LaunchRecord)]
    assert all(0 < one.phases["ready"] < 10e9 for one in launches)
    shown = bench("show", data.info.run, "--json", results=tmp_path)
    rows = {row["metric"]: row for row in json.loads(shown.stdout)["summary"]}
    assert 0 < rows["startup.ready"]["median"] < 10
    assert bench("report", data.info.run, "-o", str(tmp_path / "page.html"), results=tmp_path).returncode == 0


@pytest.fixture
def libvirtd() -> Iterator[subprocess.Popen[bytes]]:
    """A libvirt daemon for this test, where the host runs none."""
    if any(Path("/run/libvirt").glob("*-sock")):
        pytest.skip("a libvirt daemon runs here, and its connections are not ours to cut: remedy: stop libvirtd")
    if shutil.which("libvirtd") is None or shutil.which("virtlogd") is None:
        pytest.skip("no libvirtd: remedy: apt-get install libvirt-daemon")
    before = set(Path("/run/libvirt").glob("*"))
    with contextlib.ExitStack() as stack:
        for path in map(Path, ("/var/lib/libvirt", "/var/log/libvirt", "/etc/libvirt")):
            if not path.exists():
                stack.callback(shutil.rmtree, path, ignore_errors=True)
        for program in ("virtlogd", "libvirtd"):
            daemon = subprocess.Popen([program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
        deadline = time.monotonic() + 30
        while not Path("/run/libvirt/libvirt-sock").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        yield daemon
    for path in set(Path("/run/libvirt").glob("*")) - before:  # a daemon that was killed leaves its sockets too
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.libvirt
@pytest.mark.slow
def test_the_connection_to_libvirt_is_lost(libvirtd: subprocess.Popen[bytes], tmp_path: Path) -> None:
    run = Run(tmp_path, "--drivers", "vm", "--count", "2", *ONE, "--set", "settle=1", "--connect", "qemu:///system")
    run.await_launches(1, timeout=150)
    libvirtd.kill()
    (trial,) = trials(run.failed(1))
    assert (trial.limiter, trial.alive) == ("launch", 1)
    assert "libvirt" in trial.evidence


@pytest.mark.libvirt
@pytest.mark.slow
def test_a_connection_through_ssh_that_leads_back_here(libvirtd: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Another program in place of ssh runs on this host what it is told to run on the other."""
    there = tmp_path / "ssh"
    there.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift 2\nexec sh -c "$*"\n')
    there.chmod(0o755)
    uri = f"qemu+ssh://here/system?command={there}"
    run = Run(tmp_path, "--drivers", "vm", "--count", "1", *ONE, "--set", "settle=0", "--connect", uri)
    run.await_launches(1, timeout=240)  # a daemon that has just begun asks every QEMU what it can do
    data = run.failed(0)
    assert [(one.limiter, one.alive) for one in trials(data)] == [("count", 1)]
    assert data.info.drivers["vm:stock"]["uri"] == uri


@pytest.mark.slow
def test_two_runs_at_the_same_time_are_apart_and_say_so(tmp_path: Path) -> None:
    words = ["--drivers", "process,container", "--count", "8", "--rounds", "2", "--set", "settle=0.2"]
    runs = [Run(tmp_path / name, *words) for name in "ab"]
    found = [run.failed(0) for run in runs]
    names = [data.info.run for data in found]
    for data, other in zip(found, reversed(names), strict=True):
        assert data.info.status == "done"
        assert {one.limiter for one in trials(data)} == {"count"}
        assert DISTURBED + other in data.info.warnings
        shown = bench("show", data.info.run, results=tmp_path / "ab"[names.index(data.info.run)])
        assert f"doubt: {DISTURBED}{other}" in re.sub(r"\s+", " ", shown.stdout)


@pytest.mark.slow
def test_a_run_alone_is_not_disturbed(tmp_path: Path) -> None:
    data = Run(tmp_path, "--drivers", "process", "--count", "2", *ONE, "--set", "settle=0").failed(0)
    assert not [text for text in data.info.warnings if text.startswith(DISTURBED)]
