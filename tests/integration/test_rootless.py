"""Containers of an ordinary user: `nobody` gets the same in a user namespace, and is told what is missing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.container.state import Records
from tests.integration.by_hand import AS_NOBODY, NOBODY, ByHand, Terminal, home_of_nobody

pytestmark = pytest.mark.root

LOOP = "echo up; trap 'exit 4' TERM; while :; do sleep 0.05; done"
_RANGE = "nobody:400000:65536\n"


@contextlib.contextmanager
def _with_line(path: Path, line: str) -> Iterator[None]:
    """A file of the host as it is with a line more, for a moment."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes((before or b"") + line.encode())
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with home_of_nobody() as folder:
        yield folder


@pytest.fixture(params=["alone", "many"])
def users(request: pytest.FixtureRequest) -> Iterator[str]:
    """`alone`: root is the only user inside; `many`: newuidmap gives it more."""
    if request.param == "alone":
        yield "alone"
        return
    if not shutil.which("newuidmap"):
        pytest.skip("no newuidmap; remedy: apt-get install uidmap")
    with _with_line(Path("/etc/subuid"), _RANGE), _with_line(Path("/etc/subgid"), _RANGE):
        yield "many"


@pytest.fixture
def bench(home: Path) -> Iterator[ByHand]:

    made = ByHand(home / "state", home / "cache", AS_NOBODY, home / "checkout")
    yield made
    assert made.clear() == []


def test_the_same_in_a_user_namespace(users: str, bench: ByHand) -> None:
    script = "id -u; cat /proc/self/uid_map | wc -l; touch /x && ls /x; hostname; ip link | grep -c .; echo $$"
    done = bench("run", "--rm", "default", "sh", "-c", script)
    words = done.stdout.split()
    assert words[:3] == ["0", "1" if users == "alone" else "2", "/x"]
    assert words[4:] == ["2", "1"], "one interface, lo; and the payload is pid 1"
    assert "no cgroups are delegated to you" in done.stderr
    assert ("root is the only user inside" in done.stderr) == (users == "alone")


def test_it_is_nobody_to_the_host(users: str, bench: ByHand) -> None:
    bench("run", "-d", "--name", "n", "default", "sh", "-c", "touch /made; sleep 100")
    (record,) = Records(bench.state).all()
    assert os.stat(f"/proc/{record.pid}").st_uid == NOBODY
    bench.until(lambda: Path(record.changed, "made").exists())
    assert Path(record.changed, "made").stat().st_uid == NOBODY
    attack = "mknod /disk b 254 0 && head -c 1 /disk; echo 0 > /proc/sys/kernel/panic"
    refused = bench("exec", "n", "sh", "-c", attack, status=None)
    assert refused.status
    assert refused.stdout == ""


def test_other_users_need_ranges(users: str, bench: ByHand) -> None:
    done = bench("run", "--rm", "-u", "1000:1000", "default", "id", status=125 if users == "alone" else 0)
    if users == "alone":
        assert "does not exist in your user namespace" in done.stderr
        assert "subuid" in done.stderr
    else:
        assert done.stdout == "uid=1000 gid=1000\n"


def test_what_other_users_wrote_is_removed(users: str, bench: ByHand) -> None:
    owner = "0" if users == "alone" else "1000"
    script = f"mkdir -p /d/e; touch /d/e/f; chmod 700 /d; chown -R {owner} /d"
    bench("run", "--name", "w", "default", "sh", "-c", script)
    bench("rm", "w")
    assert list(bench.state.iterdir()) == []


def test_the_life_of_a_detached_one(users: str, bench: ByHand) -> None:
    bench("run", "-d", "--init", "--name", "d", "default", "sh", "-c", LOOP)
    assert bench("exec", "d", "sh", "-c", "id -u; hostname; exit 6", status=6).stdout.startswith("0\n")
    bench.until(lambda: bench("logs", "d").stdout == "up\n")
    assert "no freezer cgroup" in bench("pause", "d", status=3).stderr
    assert json.loads(bench("stats", "--json", "d").stdout)[0]["stats"] == {"memory": None, "cpu": None, "pids": None}
    bench("kill", "-s", "TERM", "d")
    bench.until(lambda: bench.ps()["d"]["status"] == "exited")
    assert bench.ps()["d"]["exit_status"] == 4


def test_a_killed_monitor(users: str, bench: ByHand) -> None:
    bench("run", "-d", "--name", "k", "default", "sleep", "100")
    (record,) = Records(bench.state).all()
    os.kill(record.monitor, signal.SIGKILL)
    bench.until(lambda: bench.ps()["k"]["status"] == "dead")
    bench("rm", "-f", "k")
    assert list(bench.state.iterdir()) == []


def test_a_terminal(users: str, bench: ByHand) -> None:
    user = Terminal(bench.argv("run", "--rm", "-t", "-i", "default", "sh"), bench.env)
    user.expect("# ")
    user.type("tty; stty size; exit 21\n")
    user.expect("/dev/pts/0")
    user.expect("30 100")
    assert user.status() == 21


def test_volumes_are_ones_own(users: str, bench: ByHand, home: Path) -> None:
    for name, owner in (("mine", NOBODY), ("roots", 0)):
        (home / name).mkdir(exist_ok=True)
        os.chown(home / name, owner, owner)
    volumes = ("-v", f"{home}/mine:/mine", "-v", f"{home}/roots:/roots")
    done = bench("run", "--rm", *volumes, "default", "sh", "-c", "touch /mine/x; touch /roots/x", status=1)
    assert "Permission denied" in done.stderr
    assert (home / "mine/x").stat().st_uid == NOBODY
    assert not (home / "roots/x").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--memory", "32m"), "--memory needs cgroups"),
        (("--pids-limit", "3"), "--pids-limit needs cgroups"),
        (("--network", "bridge"), "--network bridge needs root"),
        (("--storage", "btrfs"), "storage btrfs needs root"),
    ],
)
def test_what_can_not_be_had_is_refused(bench: ByHand, options: tuple[str, ...], said: str) -> None:
    assert said in bench("run", *options, "default", "true", status=125).stderr
    assert not bench.state.exists() or list(bench.state.iterdir()) == []


def test_the_hosts_network_and_a_copied_root(bench: ByHand) -> None:
    options = ("--name", "c", "--network", "host", "--storage", "copy")
    done = bench("run", *options, "default", "sh", "-c", "touch /y; ls /sys/class/net")
    assert done.stdout.split() == sorted(os.listdir("/sys/class/net"))
    bench("rm", "c")


def test_overlay_changes_are_not_committed_half(bench: ByHand) -> None:
    bench("run", "--name", "c", "default", "touch", "/x")
    assert "--storage copy" in bench("commit", "c", "x:1", status=3).stderr
    bench("rm", "c")


@pytest.mark.skipif(not shutil.which("pasta"), reason="no pasta; remedy: apt-get install passt")
def test_the_users_own_network(bench: ByHand) -> None:
    tun = Path("/dev/net/tun")
    mode = stat.S_IMODE(tun.stat().st_mode)
    try:
        tun.chmod(0o600)
        assert "/dev/net/tun" in bench("run", "--rm", "--network", "user", "default", "true", status=125).stderr
        tun.chmod(0o666)
        links = bench("run", "--rm", "--network", "user", "default", "ip", "-4", "addr").stdout
    finally:
        tun.chmod(mode)
    assert sum("inet " in line and "127.0.0.1" not in line for line in links.splitlines()) == 1
