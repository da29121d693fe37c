"""What goes wrong on a host, one clear message each, nothing left running."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.paths import cache_dir

BENCH = [sys.executable, "-m", "bench"]
NOBODY = 65534
# Another user who may still read this checkout, wherever it lies; nothing else of root is left to it.
_READ = "-all,+dac_read_search"
AS = ["setpriv", "--inh-caps", _READ, "--ambient-caps", _READ, "--bounding-set", _READ]

pytestmark = pytest.mark.root


def bench(*words: str, user: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    full = {**os.environ, "BENCH_CACHE": str(cache_dir()), **env}
    prefix = [] if user is None else [*AS, "--reuid", str(user), "--regid", str(user), "--clear-groups"]
    return subprocess.run([*prefix, *BENCH, *words], capture_output=True, text=True, timeout=240, env=full)


def refused(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in done.stderr


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder everybody may write to; pytest's own are for its user alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize("driver", ["process", "container", "vm"])
def test_without_root(driver: str, public: Path) -> None:
    state = str(public / "state")
    done = bench(
        "run", "density", "--drivers", driver, user=NOBODY, BENCH_RESULTS=str(public / "results"), BENCH_STATE=state
    )
    refused(done, 3, f"the {driver} driver can't run here", "root", "hint:")


def test_doctor_without_root_says_no_and_why(public: Path) -> None:
    done = bench("doctor", user=NOBODY, BENCH_STATE=str(public / "state"))
    assert done.returncode == 3, done.stderr
    assert "needs root" in done.stdout
    assert "cannot run here" in done.stdout


@pytest.fixture
def no_qemu(tmp_path: Path) -> str:
    """A PATH with all but QEMU."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for program in Path(place).iterdir():
            target = folder / program.name
            if not program.name.startswith("qemu") and not target.exists():
                target.symlink_to(program)
    return str(folder)


def test_without_qemu(no_qemu: str, tmp_path: Path) -> None:
    code = (
        "import sys, bench.process as p; "
        f"p.clean_env = lambda extra=None: {{'PATH': {no_qemu!r}}}; "  # it would add /usr/sbin, where QEMU is not
        f"sys.argv = ['bench', 'run', 'density', '--drivers', 'vm', '--results', {str(tmp_path / 'r')!r}]; "
        "from bench.__main__ import main; main()"
    )
    env = {**os.environ, "PATH": no_qemu, "BENCH_CACHE": str(cache_dir())}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    refused(done, 3, "the vm driver can't run here", "qemu-system-x86")


@pytest.mark.libvirt
def test_libvirt_refusing(tmp_path: Path) -> None:
    done = bench("run", "density", "--drivers", "vm", "--count", "1", "--rounds", "1", "--connect", "qemu:///nosuch",
                 BENCH_RESULTS=str(tmp_path))  # fmt: skip
    refused(done, 3, "qemu:///nosuch", "hint:")


def test_a_results_folder_of_someone_else(tmp_path: Path) -> None:
    done = bench("run", "density", "--drivers", "process", user=NOBODY, BENCH_RESULTS=str(tmp_path / "results"))
    refused(done, 2, "cannot be written", "--results DIR")


def test_results_that_can_not_be_written() -> None:
    refused(bench("run", "density", "--results", "/proc/nosuch"), 2, "/proc/nosuch", "--results DIR")


def test_no_room_above_the_reserve(tmp_path: Path) -> None:
    done = bench(
        "run", "density", "--drivers", "container", "--set", "reserve.memory=1 TiB", BENCH_RESULTS=str(tmp_path)
    )
    refused(done, 3, "reserved for the host", "reserve.memory")


def test_a_missing_image(tmp_path: Path) -> None:
    done = bench("run", "density", "--drivers", "container", "--image", "/nosuch.tar", BENCH_RESULTS=str(tmp_path))
    refused(done, 2, "/nosuch.tar")


def test_a_payload_that_never_gets_ready_fails_the_trial_and_keeps_the_run(tmp_path: Path) -> None:
    words = ("--set", "payload=mute", "--set", "payloads.mute.command=['/bin/sh','-c','echo only this; sleep 99']")
    done = bench(
        "run", "density", "--drivers", "container", "--rounds", "1", "--set", "timeout=1", *words,
        "--set", "stop_timeout=0.3", "--set", "payloads.mute.ready.line='never'", BENCH_RESULTS=str(tmp_path),
    )  # fmt: skip
    refused(done, 1, "was not ready within 1 s", "only this")
    assert (tmp_path / done.stdout.splitlines()[-1] / "trials.jsonl").read_text().count('"kind":"trial"') == 1
