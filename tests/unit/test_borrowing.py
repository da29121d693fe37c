"""Children that run in our memory until exec, each case in a Python of its own: one of them leaves it broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.container import borrow
from bench.linux import borrowing, bpf, seccomp

pytestmark = pytest.mark.skipif(not borrowing.SUPPORTED, reason="needs glibc and a Python before 3.14")

_START = f"""
import os, sys
sys.path.insert(0, {str(Path.cwd())!r})
from bench.linux.borrowing import Borrowing, Broken
from bench.linux.program import execve
lender, seen = Borrowing(), []
def spawn(work, *argv):
    try:
        pid = lender.spawn(0, work, execve(argv[0], argv, {{"A": "b"}}))
        assert pid == lender.pid
        print("became", end=" ")
    except OSError as error:
        print(type(error).__name__, error.errno, end=" ")
    print(os.waitstatus_to_exitcode(os.waitpid(lender.pid, 0)[1]), flush=True)
"""


def _said(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _START + script], capture_output=True, text=True)
    return [*done.stdout.splitlines(), *done.stderr.splitlines()[-1:]]


def test_it_becomes_the_program_with_arguments_and_environment() -> None:
    script = (
        "spawn(seen.append, '/bin/sh', '-c', 'exit $((3 + ${#A}))')\nassert seen == [lender.pid]\nprint('same memory')"
    )
    assert _said(script) == ["became 4", "same memory"]


def test_what_it_does_to_the_process_is_its_own() -> None:
    script = """
here = os.getcwd()
spawn(lambda _: os.chdir("/proc"), "/bin/sh", "-c", "test $PWD = /proc")
assert os.getcwd() == here
"""
    assert _said(script) == ["became 0"]


def test_failures_are_told_and_the_next_one_works() -> None:
    script = """
def bad(pid): raise FileExistsError(17, "there")
for _ in range(3):
    spawn(seen.append, "/nonexistent")
    spawn(bad, "/bin/true")
    spawn(seen.append, "/bin/true")
"""
    assert _said(script) == ["FileNotFoundError 2 127", "FileExistsError 17 127", "became 0"] * 3


def test_a_fault_of_ours_never_becomes_the_program() -> None:
    found = _said("spawn(lambda _: 1 // 0, '/bin/true')")
    assert found == ["OSError 71 127", "ZeroDivisionError: integer division or modulo by zero"]


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root; remedy: run as root")
def test_a_fault_is_not_told_from_the_childs_root(tmp_path: Path) -> None:
    """A traceback shows source lines by their path: in the child those would be the container's files."""
    source = tmp_path / "evil.py"
    source.write_text("# coding: evil\nstolen = 1\n")
    script = f"""
code = compile("def fault(pid):\\n    os.chroot({str(tmp_path)!r}); os.chdir('/'); 1 // 0", "/evil.py", "exec")
exec(code)
spawn(fault, "/bin/true")
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _START + script], capture_output=True, text=True)
    assert done.stdout == "OSError 71 127\n"
    assert "ZeroDivisionError" in done.stderr
    assert "stolen" not in done.stderr


def test_a_child_can_not_import_into_us() -> None:
    found = _said(
        "import builtins\nspawn(lambda _: __import__('this'), '/bin/true')\nimport bench.errors\nprint('fine')"
    )
    assert found[0] == "OSError 71 127"
    assert found[1] == "fine"
    assert "No module named 'this'" in found[2]


def test_one_that_is_killed_leaves_us_broken() -> None:
    script = """
try:
    lender.spawn(0, lambda pid: os.kill(pid, 9), execve("/bin/true", ["/bin/true"], {}))
except Broken:
    os._exit(os.write(1, b"broken") * 0)
"""
    assert _said(script) == ["broken"]


# --- which recipes may ---

FIELDS = {"steps": [["session"]], "uid_map": "", "joins": [], "unified": "", "hooks": [], "terminal": False}


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrow.os, "geteuid", lambda: 0)


def test_a_plain_recipe_may() -> None:
    assert borrow.possible(FIELDS)


def test_no_storage_is_slower_for_being_forked() -> None:
    """Storages are compared with each other: their roots come to be in the same kind of child."""
    for root in (["overlay_root", "/lower", ""], ["bind_own_root"]):
        assert borrow.possible({**FIELDS, "steps": [root]})


@pytest.mark.parametrize(
    "other",
    [
        {"uid_map": "0 1000 1\n"},
        {"joins": [["/proc/1/ns/net", 1]]},
        {"unified": "/sys/fs/cgroup/x"},
        {"hooks": [{"path": "/x"}]},
        {"terminal": True},
        {"steps": [["hold"]]},
        {"steps": [["rlimit", 1, 2, 3]]},
        {"steps": [["user", 0, 0, []], ["user", 7, 0, []]]},
    ],
)  # fmt: skip
def test_what_needs_a_fork_may_not(other: dict[str, object]) -> None:
    assert not borrow.possible({**FIELDS, **other})


def test_without_root_none_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrow.os, "geteuid", lambda: 1000)
    assert not borrow.possible(FIELDS)


def _filter(tmp_path: Path, denied: int | None) -> str:
    answer = bpf.Instruction(bpf.RETURN, 0, 0, seccomp.RET_ALLOW)
    refusal = bpf.Instruction(bpf.RETURN, 0, 0, seccomp.RET_ERRNO | 1)
    check = [bpf.Instruction(bpf.LOAD, 0, 0, bpf.NUMBER), bpf.Instruction(bpf.JEQ, 0, 1, denied or 0), refusal]
    path = tmp_path / "filter"
    path.write_bytes(bpf.encode([*(check if denied is not None else []), answer]))
    return str(path)


@pytest.mark.parametrize(("denied", "may"), [(None, True), (165, True), (14, False), (59, False), (126, False)])
def test_a_filter_must_let_it_go_on(tmp_path: Path, denied: int | None, may: bool) -> None:
    steps = [["session"], ["seccomp", _filter(tmp_path, denied), 0], ["capabilities", 0, 0, 0]]
    assert borrow.possible({**FIELDS, "steps": steps}) is may


def test_a_filter_that_minds_one_argument_does_not(tmp_path: Path) -> None:
    refusal = bpf.Instruction(bpf.RETURN, 0, 0, seccomp.RET_KILL_PROCESS)
    checks = [
        bpf.Instruction(bpf.LOAD, 0, 0, bpf.NUMBER), bpf.Instruction(bpf.JEQ, 0, 3, 157),
        bpf.Instruction(bpf.LOAD, 0, 0, 16), bpf.Instruction(bpf.JEQ, 0, 1, 47), refusal,
        bpf.Instruction(bpf.RETURN, 0, 0, seccomp.RET_ALLOW),
    ]  # fmt: skip
    path = tmp_path / "filter"
    path.write_bytes(bpf.encode(checks))
    assert not borrow.possible({**FIELDS, "steps": [["seccomp", str(path), 0]]})


def test_nothing_else_may_come_after_the_filter(tmp_path: Path) -> None:
    assert not borrow.possible({**FIELDS, "steps": [["seccomp", _filter(tmp_path, None), 0], ["mask", "/proc/x"]]})
