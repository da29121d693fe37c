"""`pip install` into a clean virtual environment gives a working `bench`, anywhere, with and without `[vm]`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.root]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from: pip's build leaves folders beside pyproject.toml."""
    copy = tmp_path_factory.mktemp("source") / "bench"
    ignored = shutil.ignore_patterns(".venv", ".git", "results", "reports", "__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT, copy, ignore=ignored, symlinks=True)
    return copy


def installed(source: Path, where: Path, extra: str) -> Path:
    """The `bench` command of a new environment."""
    subprocess.run([sys.executable, "-m", "venv", str(where)], check=True)
    pip = [str(where / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{source}{extra}"], check=True, timeout=600)
    return where / "bin/bench"


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(source, tmp_path_factory.mktemp("plain") / "venv", "")


@pytest.fixture(scope="module")
def with_vm(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(source, tmp_path_factory.mktemp("vm") / "venv", "[vm]")


def call(bench: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    env["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    return subprocess.run([str(bench), *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=280)


QUICK = ("--rounds", "1", "--count", "2", "--set", "settle=0.1")


def test_without_vm_all_but_the_vm_driver_works(plain: Path, tmp_path: Path) -> None:
    done = call(plain, tmp_path, "run", "density", "--drivers", "process,container", *QUICK)
    assert done.returncode == 0, done.stderr
    run = done.stdout.splitlines()[-1]
    report = call(plain, tmp_path, "report", run)
    assert report.returncode == 0, report.stderr
    assert "<svg" in (tmp_path / "reports" / f"{run}.html").read_text()
    assert call(plain, tmp_path, "show", run).returncode == 0
    refused = call(plain, tmp_path, "run", "density", "--drivers", "vm", *QUICK)
    assert refused.returncode == 3
    assert "[vm]" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.libvirt
def test_with_vm_a_guest_runs_too(with_vm: Path, tmp_path: Path) -> None:
    done = call(with_vm, tmp_path, "run", "density", "--drivers", "container,vm", *QUICK)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / done.stdout.splitlines()[-1] / "trials.jsonl").exists()
