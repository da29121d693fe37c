"""A Docker daemon of our own, for one contestant: its own folders, socket and bridge; it and its traces end with us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import process
from benchmarks.contestants import Command, Spawner
from benchmarks.stage import LIMITS, PAYLOAD, Stage

BRIDGE = "bnbenchd0"
_START = 30.0  # seconds until the daemon answers


@contextlib.contextmanager
def docker(spawner: Spawner, stage: Stage) -> Iterator[Engine]:
    """`docker run` with the same limits, on the daemon's default kind of bridge."""
    home = stage.folder / "docker"
    home.mkdir()
    host = f"unix://{home}/socket"
    argv = [
        "dockerd", "--host", host, "--data-root", home / "data", "--exec-root", home / "exec", "--pidfile",
        home / "pid", "--bridge", BRIDGE, "--iptables=false", "--ip-masq=false", "--log-level", "error",
    ]  # fmt: skip
    process.run(["ip", "link", "add", BRIDGE, "type", "bridge"], timeout=10)
    try:
        process.run(["ip", "address", "add", "198.19.240.1/20", "dev", BRIDGE], timeout=10)
        process.run(["ip", "link", "set", BRIDGE, "up"], timeout=10)
        with open(home / "log", "wb") as log, subprocess.Popen([*map(str, argv)], stdout=log, stderr=log) as daemon:
            try:
                _await(host, daemon)
                _load(host, stage, home)
                engine = Engine(_command(host, spawner), _family(daemon.pid))
                yield engine
                engine.wake()
            finally:
                daemon.send_signal(signal.SIGCONT)
                daemon.terminate()
    finally:
        process.run(["ip", "link", "delete", BRIDGE], timeout=10)


class Engine:
    """A command whose daemons rest while it is not its turn: they follow every network device that others make. With
    them awake the equal floor's median was 4.7 ms, else 4.2 (one race of 300 each)."""

    def __init__(self, command: Command, daemons: Sequence[int]) -> None:
        self.name, self._command, self._daemons = command.name, command, daemons
        self._tell(signal.SIGSTOP)

    def _tell(self, number: signal.Signals) -> None:
        for pid in self._daemons:
            os.kill(pid, number)

    def wake(self) -> None:
        self._tell(signal.SIGCONT)

    def start(self) -> float:
        self.wake()
        return self._command.start()

    def end(self) -> None:
        self._command.end()
        self._tell(signal.SIGSTOP)


def _family(pid: int) -> list[int]:
    """The daemon and the containerd it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _await(host: str, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START
    while subprocess.run(["docker", "--host", host, "version"], capture_output=True).returncode:
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("dockerd does not start here: leave it out with --without docker")
        time.sleep(0.2)


def _load(host: str, stage: Stage, home: Path) -> None:
    with tarfile.open(home / "image.tar", "w") as tar:
        tar.add(stage.rootfs, arcname=".")
    process.run(["docker", "--host", host, "import", home / "image.tar", "payload"], timeout=60)


def _command(host: str, spawner: Spawner) -> Command:
    base = ["docker", "--host", host]
    limits = ["--memory", str(LIMITS.memory), "--cpus", str(LIMITS.cpus), "--pids-limit", str(LIMITS.pids)]
    return Command(
        "docker run", spawner, [*base, "run", "--rm", "--name", "NAME", *limits, "payload", PAYLOAD],
        [[*base, "rm", "--force", "NAME"]],
    )  # fmt: skip
