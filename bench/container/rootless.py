"""Containers of an ordinary user: in a user namespace of its own, without what only root can give.

What is degraded is said; what was asked for and can't be had is refused.
"""

from __future__ import annotations

import os
import pwd
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import astuple, replace

from bench import process
from bench.container.client import Launcher, Placed
from bench.container.delegation import Delegation
from bench.container.groups import Groups
from bench.container.recipe import CLONE
from bench.container.spec_records import IdMapping, Mount, Namespace, Resources, Spec
from bench.container.storage import Copy, Overlay, Root, Storage
from bench.errors import HostError, UsageError
from bench.model import Image, Support

_TUN = "/dev/net/tun"
_NETWORK_TIMEOUT = 10.0  # s
_REMOVE_TIMEOUT = 60.0  # s
NO_GROUPS = Groups({}, {}, False)
NOT_DELEGATED = Delegation()
_GIVES = {"memory": "limits of memory", "cpu": "limits of CPU time", "pids": "limits of processes", "freezer": "pause"}
_DELEGATE = "systemd-run --user --scope --property=Delegate=yes before the command, or run it as root, or leave it out"


def id_maps(user_id: int | None = None, slash: Path = Path("/")) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """Of users and of groups: root inside is the user, the others are what /etc/subuid and /etc/subgid give it.

    Both or none: without newuidmap, or without an entry, root is the only user there is.
    """
    uid = os.getuid() if user_id is None else user_id
    gid = os.getgid()
    single = ((IdMapping(0, uid, 1),), (IdMapping(0, gid, 1),))
    if not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        return single
    users, groups = _given(slash / "etc/subuid", uid), _given(slash / "etc/subgid", uid)
    if users is None or groups is None:
        return single
    return (*single[0], IdMapping(1, *users)), (*single[1], IdMapping(1, *groups))


def _given(path: Path, uid: int) -> tuple[int, int] | None:
    """First id and count of the user's first range."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    for line in path.read_text().splitlines() if path.exists() else []:
        words = line.split(":")
        if len(words) == 3 and words[0] in (name, str(uid)) and words[1].isdecimal() and words[2].isdecimal():
            return int(words[1]), int(words[2])
    return None


def without_root(spec: Spec, limit: str | None, delegation: Delegation = NOT_DELEGATED) -> Spec:
    """The same container with a user namespace around it. Raises HostError for what needs root, or a delegation:
    `limit` is the first limit that was asked for."""
    held = delegation.host is not None
    if not held and (limit := limit or _limited(spec.linux.resources)) is not None:
        raise HostError(f"{limit} needs cgroups, and none is delegated to you", hint=_DELEGATE)
    users, groups = id_maps()
    linux = replace(
        spec.linux,
        namespaces=(*(one for one in spec.linux.namespaces if one.type != "user"), Namespace("user")),
        uid_mappings=spec.linux.uid_mappings or users,
        gid_mappings=spec.linux.gid_mappings or groups,
        resources=replace(spec.linux.resources, devices=()) if held else Resources(),
        sysctl={name: _sysctl(name, value, groups) for name, value in spec.linux.sysctl.items()},
    )
    mounts = tuple(_mount(one, linux.namespace("network") is None) for one in spec.mounts)
    made = replace(spec, linux=linux, mounts=mounts)
    _check_user(made)
    return made


def _limited(resources: Resources) -> str | None:
    """The first limit of a bundle's, by its key. Rules of devices aren't one: nobody but root makes any."""
    memory, cpu, pids, weight = resources.memory, resources.cpu, resources.pids, resources.block_io
    found = {"memory": memory, "cpu": cpu, "pids": pids, "blockIO": weight}
    return next((f"linux.resources.{key}" for key, one in found.items() if one is not None and any(astuple(one))), None)


def _sysctl(name: str, value: str, groups: tuple[IdMapping, ...]) -> str:
    """Who may ping: only groups that exist."""
    return f"0 {sum(one.size for one in groups) - 1}" if name == "net.ipv4.ping_group_range" else value


def _check_user(spec: Spec) -> None:
    user = spec.process.user
    for number, mappings in ((user.uid, spec.linux.uid_mappings), (user.gid, spec.linux.gid_mappings)):
        if not any(0 <= number - one.container_id < one.size for one in mappings):
            raise UsageError(
                f"user {user.uid}:{user.gid} does not exist in your user namespace",
                hint="apt-get install uidmap, and ranges for you in /etc/subuid and /etc/subgid",
            )


def _mount(mount: Mount, host_network: bool) -> Mount:
    """A sysfs belongs to a network namespace: the host's is not ours to mount, but may be bound. A devpts whose group
    has no number inside can't be mounted with it."""
    if mount.type == "sysfs" and host_network:
        return Mount(mount.destination, "bind", "/sys", ("rbind", "nosuid", "noexec", "nodev", "ro"))
    if mount.type == "devpts" and not _many():
        return replace(mount, options=tuple(one for one in mount.options if not one.startswith("gid=")))
    return mount


def _many() -> bool:
    return len(id_maps()[1]) > 1


def warnings(spec: Spec, delegation: Delegation = NOT_DELEGATED) -> Iterator[str]:
    """What a container of this user does not have."""
    if delegation.host is None:
        why = f" ({delegation.reason})" if delegation.reason else ""
        yield f"no cgroups are delegated to you: no limits, no pause, no stats{why}"
    elif delegation.lacks:
        without = ", ".join(f"no {_GIVES[name]}" for name in delegation.lacks)
        yield f"no {' '.join(delegation.lacks)} cgroups are delegated to you: {without}"
    if len(spec.linux.uid_mappings) == 1:
        yield "root is the only user inside: install uidmap and get ranges in /etc/subuid and /etc/subgid for others"


# --- network -----------------------------------------------------------------------------------------------------


@contextmanager
def user_network(pid: int) -> Iterator[None]:
    """The user's own connections, as the only interface of the namespaces of process `pid`: by pasta(1), which lives as
    long as the context. Raises HostError without it."""
    if not shutil.which("pasta"):
        raise HostError("--network user needs pasta", hint="apt-get install -y passt, or --network none")
    if not os.access(_TUN, os.R_OK | os.W_OK):
        raise HostError(f"pasta needs {_TUN}, which you may not open", hint=f"sudo chmod 666 {_TUN}")
    with process.spawn(["pasta", "--quiet", "--foreground", "--config-net", str(pid)]) as child:
        deadline = time.monotonic() + _NETWORK_TIMEOUT
        while len(Path(f"/proc/{pid}/net/dev").read_text().splitlines()) < 4:  # two of headings, and lo
            if child.poll() is not None or time.monotonic() > deadline:
                raise HostError("pasta made no interface", hint="what it said is above")
            time.sleep(0.01)
        yield


# --- files -------------------------------------------------------------------------------------------------------


def remove_tree(spec: Spec, path: Path) -> None:
    """Remove what a container wrote: some of it may belong to users that are ours in its user namespace only, and the
    folder that overlayfs works in is closed to us."""
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    groups: list[int] | None = [] if len(spec.linux.gid_mappings) > 1 else None
    maps = ["".join(f"{one.container_id} {one.host_id} {one.size}\n" for one in mappings)
            for mappings in (spec.linux.uid_mappings, spec.linux.gid_mappings)]  # fmt: skip
    fields = {
        "namespaces": CLONE["user"], "joins": [], "uid_map": maps[0], "gid_map": maps[1], "unified": "", "groups": [],
        "shared": [], "steps": [["await_parent"], ["user", 0, 0, groups], ["await_parent"]], "exec_steps": [],
        "hooks": [],
        "argv": ["/bin/rm", "-rf", str(path)], "env": {}, "umask": 0o22, "terminal": False,
    }  # fmt: skip
    with Launcher() as launcher:
        done = launcher.launch(launcher.learn(fields), Placed("rm"))
        done.ended(_REMOVE_TIMEOUT)
        done.close()
        os.close(done.output)


# --- storage -----------------------------------------------------------------------------------------------------


class _UserOverlay(Overlay):
    """Overlayfs in a user namespace keeps its marks in attributes that an ordinary user may write."""

    @contextmanager
    def root(self, image: Image, own: Path) -> Iterator[Root]:
        with super().root(image, own) as root:
            yield replace(root, step=("overlay_root", root.step[1], ",userxattr"))  # which turns redirects off as well


def support(name: str) -> Support:
    if name in ("overlay", "copy"):
        return Support(True)
    return Support(False, f"storage {name} needs root", "run it as root, or --storage overlay|copy")


@contextmanager
def open_storage(name: str, folder: Path) -> Iterator[Storage]:
    """Raises HostError for one that only root can have."""
    if not (answer := support(name)).ok:
        raise HostError(answer.reason, hint=answer.hint)
    folder.mkdir(parents=True)
    try:
        yield _UserOverlay(folder) if name == "overlay" else Copy(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
