"""One class a way to run the payload: `start` to its first byte, in seconds, and `end`, which is not timed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from bench.container.client import LaunchedProcess, Launcher, Placed
from bench.container.recipe import Kitchen, recipe
from bench.container.spec import default_spec, encode, resources_of
from benchmarks.stage import LIMITS, PARENT, PAYLOAD, Bridge, Stage, build


class Contestant(Protocol):
    name: str

    def start(self) -> float:
        """Seconds from asking to the payload's first byte."""
        ...

    def end(self) -> None:
        """Make all of the last start's go away."""
        ...


class Ours:
    """The built-in runtime, as the container driver calls it."""

    def __init__(self, stage: Stage, launcher: Launcher, name: str = "bench", networked: bool = True) -> None:
        self.name, self._stage, self._launcher, self._networked = name, stage, launcher, networked
        spec = default_spec([PAYLOAD], root="root", hostname="bench", resources=resources_of(LIMITS))
        root = ("overlay_root", stage.lowerdir, "")
        shared = (stage.rules,) if stage.rules else ()
        self._recipe = launcher.learn(recipe(spec, Kitchen(root, stage.folder, stage.groups, shared, stage.filter)))
        self._number = 0
        self.running: deque[tuple[str, LaunchedProcess]] = deque()

    def start(self, *, keep: bool = False) -> float:
        began = time.monotonic_ns()
        number = self._number
        self._number += 1
        name = f"{self.name}-{number}"
        own = f"{self._stage.folder}/{name}"
        os.mkdir(own)
        process = self._launcher.launch(self._recipe, self._place(name, own, number), pidfd=not keep)
        os.read(process.output, 1)
        took = time.monotonic_ns() - began
        os.close(process.output)
        self.running.append((name, process))
        return took / 1e9

    def _place(self, name: str, own: str, number: int) -> Placed:
        if not self._networked:
            return Placed(name, own, name)
        bridge, port = spread(self._stage.bridges, number)
        return Placed(
            name, own, name, f"bnours{number}", bridge.index, bridge.address(port), 20, bridge.gateway
        )  # fmt: skip

    def end_all(self) -> None:
        """All are dead before the first group goes: each memory group that goes visits every file system alive."""
        pids = [process.pid for _, process in self.running]
        for at in range(0, len(pids), TOGETHER):
            self._launcher.end(pids[at : at + TOGETHER])
        for pid in pids:
            self._launcher.wait(pid)
        while self.running:
            self.end()

    def end(self) -> None:
        """The oldest that runs."""
        name, process = self.running.popleft()
        process.close()
        self._launcher.destroy(self._recipe, name, process.pid)
        shutil.rmtree(self._stage.folder / name)


TOGETHER = 1000  # pids in one request
PORTS = 500  # of a bridge: see docs/runtime.md


def spread(bridges: Sequence[Bridge], number: int) -> tuple[Bridge, int]:
    """The bridge of instance `number`, and its number there."""
    return bridges[number // PORTS % len(bridges)], number % PORTS


class Floor:
    """A C program that does the steps itself; asked as our launcher is, over the same kind of socket."""

    def __init__(self, name: str, argv: Sequence[object]) -> None:
        self.name = name
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:  # it is descriptor 3 there
            words = ["sh", "-c", f'exec "$@" 3<&{theirs.fileno()}', "sh", *map(str, argv)]
            self._child = subprocess.Popen(words, pass_fds=(theirs.fileno(),))
        self._number = 0
        self.running: deque[int] = deque()

    def _ask(self, what: str) -> list[int]:
        self._link.send(what.encode())
        answer, fds, _, _ = socket.recv_fds(self._link, 16, 1)
        if answer != b"ok":
            raise SystemExit(f"the {self.name} failed: its message is above")
        return fds

    def start(self) -> float:
        """Numbers are never used twice: a network device lives on for a while when its instance is gone."""
        began = time.monotonic_ns()
        (output,) = self._ask(f"launch {self._number}")
        first = os.read(output, 1)
        took = time.monotonic_ns() - began
        os.close(output)
        if not first:
            raise SystemExit(f"the {self.name}'s payload did not start: its message is above")
        self.running.append(self._number)
        self._number += 1
        return took / 1e9

    def end(self) -> None:
        self._ask(f"destroy {self.running.popleft()}")

    def end_all(self) -> None:
        while self.running and self._child.poll() is None:
            self.end()

    def close(self) -> None:
        self.end_all()
        self._link.close()
        self._child.wait()


@contextmanager
def bare_floor(stage: Stage) -> Iterator[Floor]:
    work = stage.folder / "bare-work"
    work.mkdir()
    with closing(Floor("bare floor", [build("bare", stage.folder), work, stage.lowerdir, PAYLOAD])) as floor:
        yield floor


@contextmanager
def equal_floor(stage: Stage, folder: str = "equal-work", networked: bool = True) -> Iterator[Floor]:
    """The same groups, filter, network as `Ours`."""
    work = stage.folder / folder
    work.mkdir()
    networks = [f"{one.name},{one.address(0)},20,{one.gateway}" for one in stage.bridges] if networked else ["none"]
    groups = [
        ",".join([parent, *(f"{file}={value}" for file, value in settings)])
        for parent, settings in stage.groups.recipe()
    ]
    shared = f"{stage.rules}/tasks" if stage.rules else "none"
    argv = [
        build("equal", stage.folder), work, stage.lowerdir, "+".join(networks), stage.filter.path, shared, *groups,
        "--", PAYLOAD,
    ]  # fmt: skip
    with closing(Floor("equal floor", argv)) as floor:
        yield floor


class Spawner:
    """A small process in a mount namespace without the cgroup2 mount, from which command-line runtimes are started.

    crun refuses a hybrid host; what hides the mount from it is done once, outside the timer, for all of them alike.
    """

    def __init__(self) -> None:
        code = [sys.executable, "-I", "-S", str(Path(__file__).parent / "spawner.py")]
        self._child = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> float:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        answer = json.loads(self._child.stdout.readline())
        if "failed" in answer:
            raise SystemExit(f"{request}: {answer['failed']}")
        return int(answer["ns"]) / 1e9

    def close(self) -> None:
        self._child.communicate()


class Command:
    """A runtime that is a command. `argv` and `after` hold NAME where the container's name goes."""

    def __init__(self, name: str, spawner: Spawner, argv: Sequence[str], after: Sequence[Sequence[str]] = ()) -> None:
        self.name, self._spawner, self._argv, self._after = name, spawner, argv, after
        self._number = 0

    def _named(self, argv: Sequence[str]) -> list[str]:
        return [word.replace("NAME", f"{self.name.split()[0]}-{self._number}") for word in argv]

    def start(self) -> float:
        self._number += 1
        return self._spawner.ask(start=self._named(self._argv))

    def end(self) -> None:
        self._spawner.ask(end=[self._named(argv) for argv in self._after])


def bwrap(spawner: Spawner, stage: Stage) -> Command:
    argv = [
        "bwrap", "--unshare-all", "--die-with-parent", "--bind", str(stage.rootfs), "/", "--proc", "/proc", "--dev",
        "/dev", PAYLOAD,
    ]  # fmt: skip
    return Command("bwrap --unshare-all", spawner, argv)


def oci(spawner: Spawner, stage: Stage, runtime: str) -> Command:
    """crun or runc with the same spec as ours: namespaces, limits, masks, capabilities, filter; no union, no veth."""
    bundle = stage.folder / runtime
    bundle.mkdir()
    spec = default_spec(
        [PAYLOAD], root=str(stage.rootfs), hostname=runtime, resources=resources_of(LIMITS),
        cgroups_path=f"/{PARENT}/{runtime}",
    )  # fmt: skip
    (bundle / "config.json").write_bytes(encode(replace(spec, process=replace(spec.process, oom_score_adj=None))))
    base = [runtime, "--root", str(stage.folder / f"{runtime}-state")]
    return Command(
        f"{runtime} run",
        spawner,
        [*base, "run", "--bundle", str(bundle), "NAME"],
        [[*base, "delete", "--force", "NAME"]],
    )


def lxc(spawner: Spawner, stage: Stage) -> Command:
    (stage.folder / "lxc").mkdir()
    config = stage.folder / "lxc.conf"
    config.write_text(
        f"lxc.rootfs.path = dir:{stage.rootfs}\nlxc.net.0.type = empty\nlxc.mount.auto = proc:mixed sys:ro\n"
        f"lxc.uts.name = lxc\nlxc.cgroup.memory.limit_in_bytes = {LIMITS.memory}\n"
        f"lxc.cgroup.pids.max = {LIMITS.pids}\nlxc.apparmor.profile = unconfined\n"
    )
    where = ["-P", str(stage.folder / "lxc")]
    return Command(
        "lxc-execute", spawner, ["lxc-execute", *where, "-n", "NAME", "-f", str(config), "--", PAYLOAD],
        [["lxc-stop", *where, "-k", "-n", "NAME"]],
    )  # fmt: skip
