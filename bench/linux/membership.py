"""The cgroups a process is in, as folders. Apart from `cgroups`, which the launcher loads and copies: it never asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bench.linux.cgroups import V1_CONTROLLERS


class Hierarchy(NamedTuple):
    """`controllers`: of v1; none: it is cgroup2. `top`: its mount point; `own`: the folder of the process's group."""

    controllers: tuple[str, ...]
    top: str
    own: str


def current() -> list[Hierarchy]:
    """Of this process."""
    with open("/proc/self/mountinfo") as mounts, open("/proc/self/cgroup") as groups:
        return hierarchies(mounts.read(), groups.read())


def hierarchies(mountinfo: str, membership: str) -> list[Hierarchy]:
    """From the texts of /proc/PID/mountinfo and /proc/PID/cgroup: each hierarchy once, by the first mount that shows
    the process's group. One that no mount shows is left out."""
    paths = {name: path for names, path in _lines(membership) for name in names.split(",")}  # cgroup2 is ""
    found: dict[tuple[str, ...], Hierarchy] = {}
    for controllers, root, top in _mounted(mountinfo):
        path = paths.get(controllers[0] if controllers else "")
        if controllers not in found and path is not None and (own := _folder(path, root, top)) is not None:
            found[controllers] = Hierarchy(controllers, top, own)
    return list(found.values())


def _lines(membership: str) -> Iterator[tuple[str, str]]:
    """Controllers and path of `4:cpu,cpuacct:/path`."""
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        yield names, path


def _mounted(mountinfo: str) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Controllers, the group that is the mount's root, and the mount point."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if tail[:1] == ["cgroup2"]:
            yield (), fields[3], fields[4]
        elif tail[:1] == ["cgroup"] and (names := tuple(x for x in tail[2].split(",") if x in V1_CONTROLLERS)):
            yield names, fields[3], fields[4]


def _folder(path: str, root: str, top: str) -> str | None:
    """Where a group is seen; None if it is not below the mount's root, or outside of our cgroup namespace (`/..`)."""
    above = root.rstrip("/")
    if ".." in path.split("/") or not f"{path}/".startswith(f"{above}/"):
        return None
    return (top + path[len(above) :]).rstrip("/")
