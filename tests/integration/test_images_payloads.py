"""The built-in payloads for real: as chrooted processes that share a tree, and as pid 1."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import process
from bench.config.scenario import BUILTIN_PAYLOADS as BUILTIN
from bench.images.store import ImageStore

pytestmark = pytest.mark.root

PORT = "8097"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = ImageStore(tmp_path_factory.mktemp("images"))
    return store.tree(store.resolve("default"))


@pytest.fixture(autouse=True)
def cleared(tree: Path) -> Iterator[None]:
    """End what stays; a driver ends it with the cgroup."""
    yield
    for pid in rooted(tree):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for left in (tree / "tmp").iterdir():
        left.unlink()


def rooted(tree: Path) -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/root") == str(tree):
                found.append(int(pid))
        except OSError:
            continue
    return found


@contextmanager
def running(
    tree: Path, name: str, address: str = "", *, pid1: bool = False, beside: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """`beside`: a command of the shell that starts another process first."""
    command = ["chroot", str(tree), *BUILTIN[name].command]
    if beside:
        command = ["chroot", str(tree), "/bin/sh", "-c", f"{beside} & exec {BUILTIN[name].command[0]}"]
    if pid1:
        command = ["unshare", "--pid", "--fork", "--kill-child", *command]
    env = {"BENCH_ADDRESS": address, "BENCH_PORT": PORT}
    with process.spawn(command, stdout=subprocess.PIPE, env=env) as child:
        yield child


def first_line(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], 10)[0], "no line in 10 s"
    return child.stdout.readline()


def inside(child: subprocess.Popen[bytes]) -> int:
    """The host's pid of the pid 1 that `unshare` forked."""
    return int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text())


def status_of(address: str) -> int:
    with urllib.request.urlopen(f"http://{address}:{PORT}/", timeout=5) as reply:
        assert b"bench" in reply.read()
        return int(reply.status)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("name", ["httpd", "idle"])
def test_sigterm_ends_it_at_once_with_status_0(tree: Path, name: str) -> None:
    with running(tree, name, "127.0.97.1") as child:
        assert first_line(child) == b"bench-ready\n"
        asked = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0
        assert time.monotonic() - asked < 1


@pytest.mark.parametrize("name", ["httpd", "idle"])
def test_sigterm_ends_it_as_pid_1_too(tree: Path, name: str) -> None:
    """Pid 1 of a namespace gets only signals it handles: without a trap this waits for ever."""
    with running(tree, name, "127.0.97.2", pid1=True) as child:
        assert first_line(child) == b"bench-ready\n"
        time.sleep(0.2)  # it is waiting by now, not starting
        asked = time.monotonic()
        os.kill(inside(child), signal.SIGTERM)
        assert child.wait(5) == 0
        assert time.monotonic() - asked < 1


def test_pid_1_without_a_trap_stays(tree: Path) -> None:
    """The fault planted: the test above can fail."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "chroot", tree, "/bin/sh", "-c", "echo up; exec sleep 60"]
    with process.spawn(command, stdout=subprocess.PIPE) as child:
        assert first_line(child) == b"up\n"
        os.kill(inside(child), signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)


def test_httpd_answers_as_soon_as_it_says_so(tree: Path) -> None:
    for number in range(10):
        with running(tree, "httpd", f"127.0.97.{10 + number}") as child:
            assert first_line(child) == b"bench-ready\n"
            assert status_of(f"127.0.97.{10 + number}") == 200  # no retry: connection refused fails the test
            child.send_signal(signal.SIGTERM)
            assert child.wait(5) == 0


def test_httpd_without_an_address_serves_on_all(tree: Path) -> None:
    with running(tree, "httpd") as child:
        assert first_line(child) == b"bench-ready\n"
        assert status_of("127.0.97.30") == 200
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0


def ask(address: str, request: bytes) -> bytes:
    with socket.create_connection((address, int(PORT)), timeout=5) as asking:
        asking.sendall(request)
        return b"".join(iter(lambda: asking.recv(1 << 16), b""))


def test_httpd_serves_what_is_below_its_folder_and_no_more(tree: Path) -> None:
    at, page = "127.0.97.31", (tree / "srv/www/index.html").read_bytes()
    with running(tree, "httpd", at) as child:
        assert first_line(child) == b"bench-ready\n"
        for path in (b"/", b"/index.html", b"/?a=1"):
            head, _, body = ask(at, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.0 200 OK\r\n")
            assert f"Content-Length: {len(page)}".encode() in head
            assert body == page
        assert ask(at, b"HEAD / HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n")
        for path in (b"/none", b"/../../etc/passwd", b"/..", b"srv", b"/" + b"x" * 900, b"/" + b"x" * 5000):
            assert ask(at, b"GET " + path + b" HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 404 ")
        assert ask(at, b"POST / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 501 ")


def test_a_silent_client_keeps_nobody_waiting(tree: Path) -> None:
    with running(tree, "httpd", "127.0.97.32") as child, contextlib.ExitStack() as silent:
        assert first_line(child) == b"bench-ready\n"
        for _ in range(100):
            silent.enter_context(socket.create_connection(("127.0.97.32", int(PORT)), timeout=5)).sendall(b"GET /")
        assert status_of("127.0.97.32") == 200
    with running(tree, "httpd", "127.0.97.32") as child:  # and their going is noticed
        assert first_line(child) == b"bench-ready\n"
        for _ in range(700):
            socket.create_connection(("127.0.97.32", int(PORT)), timeout=5).close()
        assert status_of("127.0.97.32") == 200


@pytest.mark.parametrize("pid1", [False, True])
def test_httpd_that_can_not_bind_fails_without_the_line(tree: Path, pid1: bool) -> None:
    with running(tree, "httpd", "127.0.97.40") as first:
        assert first_line(first) == b"bench-ready\n"
        for _ in range(5):
            with running(tree, "httpd", "127.0.97.40", pid1=pid1) as second:
                assert second.wait(5) not in (0, None)
                assert first_line(second) == b""
        assert status_of("127.0.97.40") == 200
        first.send_signal(signal.SIGTERM)
        assert first.wait(5) == 0


def test_nothing_outlives_pid_1(tree: Path) -> None:
    with running(tree, "httpd", "127.0.97.41", pid1=True, beside="sleep 60") as child:
        assert first_line(child) == b"bench-ready\n"
        time.sleep(0.2)
        assert len(rooted(tree)) == 2
        os.kill(inside(child), signal.SIGTERM)
        assert child.wait(5) == 0
        assert rooted(tree) == []


@pytest.mark.parametrize("name", ["httpd", "idle"])
def test_waiting_costs_no_cpu_and_no_more_processes(tree: Path, name: str) -> None:
    with running(tree, name, "127.0.97.50") as child:
        assert first_line(child) == b"bench-ready\n"
        time.sleep(0.3)
        assert os.listdir(tree / "tmp") == []
        pids = rooted(tree)
        assert len(pids) == 1
        before = [cpu_ticks(pid) for pid in pids]
        time.sleep(1)
        assert [cpu_ticks(pid) for pid in pids] == before
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0


def test_several_share_one_tree_and_die_alone(tree: Path) -> None:
    with running(tree, "idle") as a, running(tree, "idle") as b:
        assert [first_line(child) for child in (a, b)] == [b"bench-ready\n"] * 2
        a.send_signal(signal.SIGTERM)
        assert a.wait(5) == 0
        time.sleep(0.2)
        assert b.poll() is None
        b.send_signal(signal.SIGTERM)
        assert b.wait(5) == 0
