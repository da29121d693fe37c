"""cgroup folders: where the controllers are (v1, hybrid, v2), and how groups are made, filled, emptied, removed.

The functions on paths are used by the launcher too, so this module imports next to nothing.
"""

from __future__ import annotations

import os
import time

V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "cpuset", "pids", "blkio", "devices", "freezer")
"""Hierarchies that an instance may need a group in; each group costs memory, so none is made unasked."""


def v1_mounts(mountinfo: str) -> dict[str, str]:
    """Controller -> mount point, from the text of /proc/self/mountinfo."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if tail and tail[0] == "cgroup":
            for option in tail[2].split(","):
                if option in V1_CONTROLLERS:
                    found.setdefault(option, fields[4])
    return found


def v2_mount(mountinfo: str) -> str | None:
    """Where cgroup2 is mounted, or None."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[:1] == ["cgroup2"]:
            return left.split()[4]
    return None


def current_mounts() -> tuple[dict[str, str], str | None]:
    """(controller -> mount point of v1 and hybrid hosts, mount point of cgroup2)."""
    with open("/proc/self/mountinfo") as file:
        text = file.read()
    return v1_mounts(text), v2_mount(text)


def write(path: str, value: str) -> None:
    """Write `value` in one call, as the kernel wants it; the OSError names the file and the value."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{path} <- {value}") from error
    finally:
        os.close(fd)


def make(path: str, settings: list[tuple[str, str]]) -> None:
    """Make the group (parents too) and write its limits."""
    os.makedirs(path, exist_ok=True)
    for name, value in settings:
        write(f"{path}/{name}", value)


def attach(path: str, pid: int) -> None:
    write(f"{path}/cgroup.procs", str(pid))


def pids(path: str) -> list[int]:
    """Host pids in the group and in those below it; empty if it is gone."""
    found = []
    for folder, _, _ in os.walk(path):
        try:
            with open(f"{folder}/cgroup.procs") as file:
                found += [int(line) for line in file]
        except OSError:
            # gone meanwhile; or threaded (EOPNOTSUPP: libvirt's vCPUs on v2), then the group above names the process
            continue
    return found


def oom_kills(path: str) -> int:
    """How many processes of the group the OOM killer took; 0 where the group does not say."""
    for name in ("memory.events", "memory.oom_control"):  # v2, v1
        try:
            with open(f"{path}/{name}") as file:
                found = dict(line.split() for line in file)
        except OSError:
            continue
        return int(found.get("oom_kill", 0))
    return 0


def limit_met(path: str) -> bool:
    """Whether the group's own memory limit stopped it, whatever came of that; False where the group does not say."""
    try:
        with open(f"{path}/memory.events") as file:  # v2
            return int(dict(line.split() for line in file).get("oom", 0)) > 0
    except OSError:
        pass
    try:
        with open(f"{path}/memory.failcnt") as file:  # v1
            return int(file.read()) > 0
    except OSError:
        return False


def remove(path: str, timeout: float = 5.0) -> None:
    """Remove the group and those below it. Busy ones are retried: exiting processes leave a group only when reaped.

    Raises OSError (EBUSY) after `timeout` seconds. Idempotent.
    """
    deadline = time.monotonic() + timeout
    for folder, _, _ in sorted(os.walk(path), reverse=True):
        while True:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
            else:
                break
