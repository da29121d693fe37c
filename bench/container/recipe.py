"""A spec -> the recipe that the launcher learns: every step of a container's set-up, in order, as data.

docs/runtime.md explains the order. Nothing here touches the host but to look at what is to be bound into a container.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench.container import mount_options, profile
from bench.container.groups import Groups
from bench.container.spec_check import sysctl_path
from bench.container.spec_records import Capabilities, Device, Hook, IdMapping, Mount, Process, Spec
from bench.errors import ConfigError
from bench.linux import syscalls
from bench.linux.capabilities import NUMBERS, last_capability

Step = list[Any]

CLONE = {
    "mount": syscalls.CLONE_NEWNS, "network": syscalls.CLONE_NEWNET, "uts": syscalls.CLONE_NEWUTS,
    "pid": syscalls.CLONE_NEWPID, "ipc": syscalls.CLONE_NEWIPC, "user": syscalls.CLONE_NEWUSER,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}  # fmt: skip
_LINKS = (
    ("/proc/self/fd", "/dev/fd"), ("/proc/self/fd/0", "/dev/stdin"), ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"), ("pts/ptmx", "/dev/ptmx"),
)  # fmt: skip
_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK}
_ONLY_BIND = syscalls.MS_BIND | syscalls.MS_REC


OWN_ROOT = ("bind_own_root",)
"""A kitchen's root for storages that give each instance a folder, `Placed.root`."""


class Filter(Struct, frozen=True):
    """A compiled seccomp program: its file, and the flags to load it with."""

    path: str
    flags: int = 0


class Kitchen(Struct, frozen=True):
    """What a recipe needs beside the spec. `hold`: wait for a start. `setgroups` False: the gid map forbids it."""

    root: tuple[str, ...] | None  # action that mounts `root` in the instance's own folder; None: bind the bundle's
    bundle: Path
    groups: Groups
    shared: tuple[str, ...] = ()  # v1 groups that all instances are in
    filter: Filter | None = None
    hold: bool = False
    setgroups: bool = True


def recipe(spec: Spec, kitchen: Kitchen) -> dict[str, Any]:
    """The fields of `init.Recipe`. Raises ConfigError for a bind mount whose source is not there."""
    linux = spec.linux
    joins = [(one.path, CLONE[one.type]) for one in linux.namespaces if one.path]
    new = sum(CLONE[one.type] for one in linux.namespaces if not one.path and one.type != "cgroup")
    every = sum({CLONE[one.type] for one in linux.namespaces})
    return {
        "namespaces": new,
        "joins": joins,
        "uid_map": _id_map(linux.uid_mappings),
        "gid_map": _id_map(linux.gid_mappings),
        "unified": kitchen.groups.parents["unified"] if kitchen.groups.unified else "",
        "groups": kitchen.groups.recipe(),
        "shared": list(kitchen.shared),
        "steps": list(_steps(spec, kitchen)),
        "exec_steps": list(_exec_steps(spec, kitchen, every)),
        "hooks": _hooks((*spec.hooks.prestart, *spec.hooks.create_runtime)),
        "argv": list(spec.process.args),
        "env": dict(entry.split("=", 1) for entry in spec.process.env),
        "umask": 0o022 if spec.process.user.umask is None else spec.process.user.umask,
        "terminal": spec.process.terminal,
    }


def _id_map(mappings: Sequence[IdMapping]) -> str:
    return "".join(f"{one.container_id} {one.host_id} {one.size}\n" for one in mappings)


def _hooks(hooks: Sequence[Hook]) -> list[dict[str, Any]]:
    return [{"path": one.path, "args": list(one.args), "env": list(one.env), "timeout": one.timeout} for one in hooks]


# --- the set-up, in order ---


def _steps(spec: Spec, kitchen: Kitchen) -> Iterator[Step]:
    user_namespace = spec.linux.namespace("user") is not None
    if spec.linux.uid_mappings:
        yield ["await_parent"]
    if user_namespace:
        yield ["user", 0, 0, [] if kitchen.setgroups else None]
    yield ["session"]
    if spec.process.oom_score_adj is not None:
        yield ["oom_score_adj", spec.process.oom_score_adj]
    if not kitchen.groups.unified and not spec.linux.uid_mappings:
        yield ["own_groups"]
    if spec.linux.new("cgroup"):
        # Now that we are in our groups: the root of a cgroup namespace is the group one is in at this moment.
        yield ["unshare", syscalls.CLONE_NEWCGROUP]
    if spec.linux.namespace("mount") is not None:
        yield from _mounts(spec, kitchen, user_namespace)
    yield from _names(spec)
    yield ["await_parent"]
    if spec.linux.new("network"):
        yield ["network"]
    yield from ([*_own_hook(one)] for one in spec.hooks.start_container)
    if kitchen.hold:
        yield ["hold"]
    yield from _process(spec.process, kitchen)


def _own_hook(hook: Hook) -> Step:
    return ["hook", _hooks((hook,))[0], "creating"]


def _names(spec: Spec) -> Iterator[Step]:
    if spec.linux.new("uts"):
        yield ["host_name"]
        if spec.domainname:
            yield ["domain_name", spec.domainname]


def _mounts(spec: Spec, kitchen: Kitchen, user_namespace: bool) -> Iterator[Step]:
    """Up to the pivot paths are the host's; after it the container's own, whatever its symlinks say."""
    linux, devices = spec.linux, _devices(spec)
    binds = [one for one in spec.mounts if _parsed(one).bind]
    propagation = linux.rootfs_propagation
    yield ["propagation", syscalls.MS_REC | (syscalls.MS_SLAVE if "s" in propagation[:2] else syscalls.MS_PRIVATE)]
    for one in binds:
        yield ["pick_up", _source(one, kitchen.bundle), bool(_parsed(one).flags & syscalls.MS_REC)]
    if user_namespace:  # may not make devices: the host's are bound
        yield from (["pick_up", one.path, False] for one in devices)
    yield from ([*_own_hook(one)] for one in spec.hooks.create_container)
    if kitchen.root is None:
        root = str(kitchen.bundle / spec.root.path)
        yield ["bind_root", root]
    else:
        root = "root"
        yield ["own_folder"]
        yield list(kitchen.root)
    yield ["pivot_own_root"] if kitchen.root == OWN_ROOT else ["pivot", root]
    for one in spec.mounts:
        if one.type in ("cgroup", "cgroup2"):
            yield _cgroups(one, kitchen.groups)
        yield from _mount(one, kitchen.bundle, binds.index(one) if one in binds else -1)
    for number, device in enumerate(devices, len(binds)):
        yield ["place_tree", number, device.path, False] if user_namespace else _device(device)
    yield from (["symlink", source, path] for source, path in _LINKS)
    if spec.process.terminal:
        size = spec.process.console_size
        yield ["terminal", size.height if size else 0, size.width if size else 0]
    yield from (["sysctl", sysctl_path(name), value] for name, value in linux.sysctl.items())
    yield from (["read_only", path] for path in linux.readonly_paths)
    yield from (["mask", path] for path in linux.masked_paths)
    if spec.root.readonly:
        yield ["remount", "/", syscalls.MS_RDONLY]
    if propagation in mount_options.PROPAGATION:
        yield ["propagate", "/", mount_options.PROPAGATION[propagation]]
    yield ["drop_old_root"]


def _parsed(mount: Mount) -> mount_options.MountOptions:
    return mount_options.parse(mount.options, mount.type)


def _source(mount: Mount, bundle: Path) -> str:
    """Of a bind mount. Raises ConfigError if it is not there: the kernel's own message would not say which."""
    source = os.path.join(bundle, mount.source)
    if not os.path.lexists(source):
        raise ConfigError(
            f"nothing to bind at {source}", hint=f"make it, or leave out the mount on {mount.destination}"
        )
    return source


def _mount(mount: Mount, bundle: Path, number: int) -> Iterator[Step]:
    options = _parsed(mount)
    if number >= 0:
        yield ["place_tree", number, mount.destination, os.path.isdir(_source(mount, bundle))]
        if options.flags & ~_ONLY_BIND:
            yield ["remount", mount.destination, options.flags & ~_ONLY_BIND]
    elif mount.type not in ("cgroup", "cgroup2"):
        yield ["filesystem", mount.type, mount.destination, options.flags, options.data, mount.source or mount.type]
    yield from (["propagate", mount.destination, flags] for flags in options.propagation)


def _cgroups(mount: Mount, groups: Groups) -> Step:
    flags = _parsed(mount).flags
    if groups.unified:
        return ["filesystem", "cgroup2", mount.destination, flags, "", "cgroup"]
    folders = list(dict.fromkeys(groups.parents.values()))
    shared = [",".join(name for name, parent in groups.parents.items() if parent == folder) for folder in folders]
    return ["cgroups", mount.destination, flags, shared]


def _devices(spec: Spec) -> list[Device]:
    """Those that every container has, then the spec's own; the spec's word on a path counts."""
    named = {f"/dev/{name}": Device("c", f"/dev/{name}", major, minor, 0o666) for name, major, minor in profile.DEVICES}
    return list({**named, **{one.path: one for one in spec.linux.devices}}.values())


def _device(one: Device) -> Step:
    mode = 0o666 if one.file_mode is None else one.file_mode
    if one.type == "p":
        return ["fifo", one.path, mode, one.uid or 0, one.gid or 0]
    return ["device", one.path, _KINDS[one.type], one.major or 0, one.minor or 0, mode, one.uid or 0, one.gid or 0]


# --- who the payload is ---


def _process(process: Process, kitchen: Kitchen) -> Iterator[Step]:
    """The filter comes as late as may be: last with no_new_privs; without, loading it needs a capability that goes
    right after."""
    kept, seccomp = process.capabilities, kitchen.filter
    for one in process.rlimits:
        yield ["rlimit", getattr(resource, one.type), _signed(one.soft), _signed(one.hard)]
    yield ["working_directory", process.cwd]
    yield ["bounding_set", sorted(set(range(last_capability() + 1)) - set(_numbers(kept.bounding)))]
    groups = list(process.user.additional_gids) if kitchen.setgroups else None
    yield ["user", process.user.uid, process.user.gid, groups]
    if seccomp is not None and not process.no_new_privileges:
        if process.user.uid:  # to whom capabilities stayed permitted, but not effective
            loading = _mask(kept.permitted) | 1 << NUMBERS["SYS_ADMIN"]
            yield ["capabilities", loading, loading, _mask(kept.inheritable)]
        yield ["seccomp", seccomp.path, seccomp.flags]
    yield from _final(kept)
    if process.no_new_privileges:
        yield ["no_new_privs"]
        if seccomp is not None:
            yield ["seccomp", seccomp.path, seccomp.flags]


def _final(kept: Capabilities) -> Iterator[Step]:
    yield ["capabilities", _mask(kept.effective), _mask(kept.permitted), _mask(kept.inheritable)]
    if kept.raised:
        yield ["ambient_set", _numbers(kept.raised)]


def _signed(value: int) -> int:
    """RLIM_INFINITY is the largest number of the kernel and -1 to Python."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _numbers(names: Sequence[str]) -> list[int]:
    return [NUMBERS[name.removeprefix("CAP_")] for name in names]


def _mask(names: Sequence[str]) -> int:
    return sum(1 << number for number in set(_numbers(names)))


def _exec_steps(spec: Spec, kitchen: Kitchen, namespaces: int) -> Iterator[Step]:
    """One more process in a running instance; in the root of the one it joins."""
    yield ["session"]
    if not kitchen.groups.unified:
        yield ["join_groups"]
    if namespaces:
        yield ["join_target", namespaces]
    if namespaces & syscalls.CLONE_NEWPID:
        yield ["fork"]
    if namespaces & syscalls.CLONE_NEWUSER:
        yield ["user", 0, 0, [] if kitchen.setgroups else None]
    yield from _process(spec.process, kitchen)


# --- what to show of it ---


def describe(fields: Mapping[str, Any]) -> list[str]:
    """The set-up as lines to read, in order: namespaces, groups, then every step."""
    names = [name for name, flag in CLONE.items() if fields["namespaces"] & flag]
    lines = [f"clone: new namespaces {' '.join(names) or 'none'}"]
    lines += [f"join: {path}" for path, _ in fields["joins"]]
    for folder, settings in fields["groups"]:
        lines.append(f"cgroup: {folder}/NAME " + " ".join(f"{file}={value}" for file, value in settings))
    lines += [f"cgroup: {path}" for path in fields["shared"]]
    return [*lines, *(said(step) for step in fields["steps"]), f"exec: {' '.join(fields['argv'])}"]


def said(step: Sequence[Any]) -> str:
    """One step in words: its name and its arguments."""
    name, *values = step
    return " ".join([str(name).replace("_", " "), *(_word(value) for value in values)]).rstrip()


def _word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) and value > 4096 else str(value)
