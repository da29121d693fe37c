"""The command line from outside: messages, exit codes, no traceback; and that asking costs little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__
from bench.metrics import METRICS

BENCH = [sys.executable, "-m", "bench"]
Capture = pytest.CaptureFixture[str]


def bench(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *words], capture_output=True, text=True, timeout=60, env={**os.environ, **env})


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "nosuch", "--dry-run"], 2, "nosuch"),
        (["run", "/nosuch/file.toml", "--dry-run"], 2, "/nosuch/file.toml"),
        (["run", "density", "--drivers", "docker", "--dry-run"], 2, "docker"),
        (["run", "density", "--drivers", "vm:nosuch", "--dry-run"], 2, "vm:nosuch"),
        (["run", "density", "--set", "vm.nosuch=1", "--dry-run"], 2, "vm.nosuch"),
        (["run", "density", "--set", "limits.memry=1", "--dry-run"], 2, "did you mean 'memory'"),
        (["run", "density", "--set", "rounds='three'", "--dry-run"], 2, "rounds"),
        (["run", "density", "--count", "0", "--dry-run"], 2, "--count"),
        (["run", "density", "--count", "-3", "--dry-run"], 2, "--count"),
        (["run", "density", "--count", "1000000000", "--dry-run"], 2, "--count"),
        (["run", "density", "--count", "three", "--dry-run"], 2, "--count"),
        (["run", "density", "--max-time", "soon", "--dry-run"], 2, "--max-time"),
        (["run", "density", "--accel", "xen", "--dry-run"], 2, "--accel"),
        (["run"], 2, "SCENARIO"),
        (["nosuch"], 2, "nosuch"),
        (["show", "nosuch"], 2, "nosuch"),
        (["report", "nosuch"], 2, "nosuch"),
        (["clean", "nosuch"], 2, "nosuch"),
        (["list", "nosuch"], 2, "nosuch"),
        (["image", "inspect", "nosuch"], 2, "nosuch"),
        (["image", "inspect", "/nosuch.tar"], 2, "/nosuch.tar"),
    ],
)
def test_bad_usage_is_one_clear_message(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, which has loaded the libraries already: as `main` does it, up to the exit."""
    for name in ("RESULTS", "CACHE", "STATE"):
        monkeypatch.setenv(f"BENCH_{name}", str(tmp_path / name))
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as exited:
        __main__.main()
    out, err = capsys.readouterr()
    assert exited.value.code == code, err
    assert said in err
    assert err.startswith("bench: error: ")
    assert out == ""


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"\0" * 700)
    done = bench("image", "inspect", str(broken), BENCH_CACHE=str(tmp_path))
    assert done.returncode == 2
    assert str(broken) in done.stderr


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_ours_is_a_sentence_with_a_way_to_the_traceback(debug: bool) -> None:
    code = (
        "import sys; from bench import __main__; from bench.verbs import listing\n"
        "def broken(*words): raise ZeroDivisionError('planted')\n"
        "listing.show_list = broken; sys.argv = ['bench', 'list', 'runs']; __main__.main()"
    )
    env = {**os.environ, **({"BENCH_DEBUG": "1"} if debug else {})}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "internal error: ZeroDivisionError: planted" in done.stderr
    assert ("Traceback" in done.stderr) is debug


@pytest.mark.parametrize("verb", ["run", "doctor", "list", "show", "report", "clean", "image", "image build"])
def test_every_verb_documents_its_exit_codes(verb: str) -> None:
    done = bench(*verb.split(), "--help")
    assert done.returncode == 0
    assert "Exit codes:" in done.stdout
    assert "143 SIGTERM" in done.stdout


def test_version() -> None:
    assert bench("--version").stdout.startswith("bench, version 0.")


def test_lists() -> None:
    metrics = json.loads(bench("list", "metrics", "--json").stdout)
    assert [one["metric"] for one in metrics] == list(METRICS)
    assert {one["driver"] for one in json.loads(bench("list", "drivers", "--json").stdout)} == {
        "process",
        "container",
        "vm",
    }
    assert "vm:stock" in bench("list", "profiles").stdout
    assert "density" in bench("list", "scenarios").stdout


def test_a_dry_run_shows_the_plan_and_changes_nothing(tmp_path: Path) -> None:
    done = bench("run", "density", "--dry-run", "--seed", "7", "--json", BENCH_RESULTS=str(tmp_path / "results"))
    plan = json.loads(done.stdout)
    assert plan["seed"] == 7
    assert len(plan["trials"]) == 9
    assert plan["estimate"]["seconds"] > 60
    again = json.loads(bench("run", "density", "--dry-run", "--seed", "7", "--json").stdout)
    assert again == plan
    assert not (tmp_path / "results").exists()
    text = bench("run", "density", "--dry-run", "--seed", "7").stdout
    assert "min" in text
    assert "GiB of memory" in text


def test_an_accelerator_that_is_forced_is_a_key_of_the_scenario() -> None:
    done = bench("run", "density", "--set", "vm.accel=auto", "--accel", "tcg", "--dry-run", "--json")
    assert 'accel = "tcg"' in json.loads(done.stdout)["effective"], done.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from bench.cli import cli\n"
        "try: cli.main(['--help'], standalone_mode=False)\n"
        "finally: print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert not loaded & {"pandas", "numpy", "scipy", "matplotlib", "libvirt", "rich", "msgspec", "pyroute2", "pyperf"}


def test_reading_a_run_needs_no_libvirt() -> None:
    """The report builds on any laptop."""
    code = (
        "import sys; sys.modules['libvirt'] = None; sys.modules['pyroute2'] = None\n"
        "import bench.verbs.show, bench.verbs.listing, bench.verbs.doctor, bench.verbs.run\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0
