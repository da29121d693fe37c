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
from bench.container.spec_records import Capabilities, Device, Hook, IdMapping, Mount, Process, Seccomp, Spec
from bench.errors import ConfigError
from bench.linux import syscalls
from bench.linux.capabilities import NUMBERS, last_capability
from bench.linux.mounts import OVERLAY_ROOT

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
_USUAL = frozenset((*(one[0] for one in profile.MOUNTS), *(f"/dev/{one[0]}" for one in profile.DEVICES)))
"""Where something is in every container: in a pid namespace of its own no link of a procfs leads out from there."""
_KEY_CALLS = frozenset(("keyctl", "request_key", "add_key"))
_PASSING = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
_CGROUPS = ("cgroup", "cgroup2")
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
    reaper: bool = False  # a pid 1 of ours, which reaps and passes signals on
    early: bool = False  # the root is mounted before a user namespace's root takes over, to whom its folders are closed
    pooled: bool = False  # each instance takes a network namespace and groups that are there already


def recipe(spec: Spec, kitchen: Kitchen) -> dict[str, Any]:
    """The fields of `init.Recipe`. Raises ConfigError for a bind mount whose source is not there."""
    linux = spec.linux
    # The user namespace comes last: it may have no rights on the others.
    joined = sorted((one for one in linux.namespaces if one.path), key=lambda one: one.type == "user")
    joins = [(one.path, CLONE[one.type]) for one in joined]
    later = {"cgroup", "network"} if kitchen.pooled else {"cgroup"}
    new = sum(CLONE[one.type] for one in linux.namespaces if not one.path and one.type not in later)
    every = sum({CLONE[one.type] for one in linux.namespaces})
    return {
        "namespaces": new,
        "joins": joins,
        "uid_map": _id_map(linux.uid_mappings),
        "gid_map": _id_map(linux.gid_mappings),
        "unified": kitchen.groups.parents["unified"] if kitchen.groups.unified else "",
        "groups": [(parent, [] if kitchen.pooled else settings) for parent, settings in kitchen.groups.recipe()],
        "shared": list(kitchen.shared),
        "steps": list(_steps(spec, kitchen)),
        "exec_steps": list(_exec_steps(spec, kitchen, every)),
        "hooks": hook_fields((*spec.hooks.prestart, *spec.hooks.create_runtime)),
        "argv": list(spec.process.args),
        "env": dict(entry.split("=", 1) for entry in spec.process.env),
        "umask": 0o022 if spec.process.user.umask is None else spec.process.user.umask,
        "terminal": spec.process.terminal,
    }


def _id_map(mappings: Sequence[IdMapping]) -> str:
    return "".join(f"{one.container_id} {one.host_id} {one.size}\n" for one in mappings)


def hook_fields(hooks: Sequence[Hook]) -> list[dict[str, Any]]:
    """As `hooks.run_hook` takes them."""
    return [{"path": one.path, "args": list(one.args), "env": list(one.env), "timeout": one.timeout} for one in hooks]


# --- the set-up, in order ---


def _steps(spec: Spec, kitchen: Kitchen) -> Iterator[Step]:
    user_namespace = spec.linux.namespace("user") is not None
    yield from _began(spec, kitchen, user_namespace)
    if spec.linux.namespace("mount") is not None:
        yield from _mounts(spec, kitchen, user_namespace)
    yield from _names(spec)
    if not spec.hooks.create_container:
        yield ["await_parent"]
    if spec.linux.new("network") and not kitchen.pooled:
        yield ["network"]
    if kitchen.hold:
        yield ["hold"]
    yield from _process(spec.process, kitchen)
    yield from (["start_hook", one] for one in hook_fields(spec.hooks.start_container))  # with no more rights than it
    if kitchen.reaper:
        yield ["reaper"]


def _began(spec: Spec, kitchen: Kitchen, user_namespace: bool) -> Iterator[Step]:
    """Groups, the user namespace's root, a session."""
    if kitchen.pooled:
        yield ["enter_network"]
    # Before the user namespace's root: to the host's files that one is a stranger.
    if spec.process.oom_score_adj is not None:
        yield ["oom_score_adj", spec.process.oom_score_adj]
    if not kitchen.groups.unified and not spec.linux.uid_mappings:
        yield ["join_groups" if kitchen.pooled else "own_groups"]
    if spec.linux.uid_mappings:
        yield ["await_parent"]
    if kitchen.early:
        yield from _rooted(kitchen)
    if user_namespace:
        yield ["user", 0, 0, [] if kitchen.setgroups else None]
    if not spec.linux.new("pid"):  # others see us on our way
        yield ["hide"]
    yield ["session"]
    if _keys_in_reach(spec.linux.seccomp):
        yield ["own_keyring"]
    if spec.linux.new("cgroup"):
        # Now that we are in our groups: the root of a cgroup namespace is the group one is in at this moment.
        yield ["unshare", syscalls.CLONE_NEWCGROUP]


def _rooted(kitchen: Kitchen) -> Iterator[Step]:
    yield ["own_folder"]
    yield list(kitchen.root or ())


def _keys_in_reach(seccomp: Seccomp | None) -> bool:
    """Whether the payload could ask for keys: then the session's, which are the host's, are not to be found."""
    if seccomp is None or seccomp.default_action in _PASSING:
        return True
    return any(rule.action in _PASSING and _KEY_CALLS & set(rule.names) for rule in seccomp.syscalls)


def _names(spec: Spec) -> Iterator[Step]:
    if spec.linux.new("uts"):
        yield ["host_name"]
        if spec.domainname:
            yield ["domain_name", spec.domainname]


def _mounts(spec: Spec, kitchen: Kitchen, user_namespace: bool) -> Iterator[Step]:
    """Up to the pivot paths are the host's; after it the container's own, whatever its symlinks say."""
    bound = [_checked(one) for one in _devices(spec) if user_namespace and one.type != "p"]
    yield from _picked_up(spec, kitchen, bound)
    if spec.hooks.create_container:  # after the launcher's own
        yield ["await_parent"]
    yield from (["hook", one] for one in hook_fields(spec.hooks.create_container))
    if kitchen.root is None:
        root = str(kitchen.bundle / spec.root.path)
        yield ["bind_root", root]
    else:
        root = OVERLAY_ROOT
        if not kitchen.early:
            yield from _rooted(kitchen)
    yield ["pivot_own_root"] if kitchen.root == OWN_ROOT else ["pivot", root]
    if not user_namespace:  # `..` of the root leads to what is mounted over it
        yield ["drop_old_root"]
    yield from _placed(spec, kitchen, bound)
    yield from (["symlink", source, path] for source, path in _LINKS)
    if os.path.exists("/proc/kcore"):  # as runc; what it leads to is masked
        yield ["symlink", "/proc/kcore", "/dev/core"]
    if spec.process.terminal:
        yield _terminal(spec.process)
    yield from _hidden(spec)
    if user_namespace:  # which may mount a procfs only where another one is still in sight
        yield ["drop_old_root"]
    if not spec.process.terminal:  # whose streams are its own already
        yield ["own_null"]


def _placed(spec: Spec, kitchen: Kitchen, bound: Sequence[Device]) -> Iterator[Step]:
    """Mounts, then devices; `bound` are those that come from the host."""
    trees, trusted = _trees(spec.mounts), spec.linux.new("pid") and spec.linux.namespace("user") is None
    for at, mount in enumerate(spec.mounts):
        if not (trusted and mount.destination in _USUAL):
            yield ["contained", mount.destination]
        if mount.type in _CGROUPS:
            yield from _cgroups(mount, spec, kitchen.groups, len(trees) + len(bound))
        yield from _mount(mount, kitchen.bundle, trees.get(at, -1))
    for device in _devices(spec):
        if not (trusted and device.path in _USUAL):
            yield ["contained", device.path]
        number = len(trees) + bound.index(device) if device in bound else -1
        yield ["place_tree", number, device.path, False] if number >= 0 else _device(device)


def _hidden(spec: Spec) -> Iterator[Step]:
    """What is set, and then can't be changed or seen any more."""
    linux = spec.linux
    yield from (["sysctl", sysctl_path(name), value] for name, value in linux.sysctl.items())
    yield from (["read_only", path] for path in linux.readonly_paths)
    yield from (["mask", path] for path in linux.masked_paths)
    if spec.root.readonly:
        yield ["remount", "/", syscalls.MS_RDONLY]
    if linux.rootfs_propagation in mount_options.PROPAGATION:
        yield ["propagate", "/", mount_options.PROPAGATION[linux.rootfs_propagation]]


def _trees(mounts: Sequence[Mount]) -> dict[int, int]:
    """Place among the mounts of each bind -> the number of its tree: those that go on travelling come first."""
    binds = [at for at, one in enumerate(mounts) if _parsed(one).bind]
    return {at: number for number, at in enumerate(sorted(binds, key=lambda at: not _travels(mounts[at])))}


def _travels(mount: Mount) -> bool:
    """Whether later mounts are to come in from the host, or go out to it."""
    return any(flags & (mount_options.MS_SHARED | mount_options.MS_SLAVE) for flags in _parsed(mount).propagation)


def _picked_up(spec: Spec, kitchen: Kitchen, devices: Sequence[Device]) -> Iterator[Step]:
    """What is bound from the host; nothing but what travels keeps its tie to the host's mounts."""
    propagation = spec.linux.rootfs_propagation
    mounts = [spec.mounts[at] for at in _trees(spec.mounts)]
    yield from (_pick_up(one, kitchen.bundle) for one in mounts if _travels(one))
    yield ["propagation", syscalls.MS_REC | (syscalls.MS_SLAVE if "s" in propagation[:2] else syscalls.MS_PRIVATE)]
    yield from (_pick_up(one, kitchen.bundle) for one in mounts if not _travels(one))
    yield from (["pick_up", one.path, False] for one in devices)
    if any(one.type in _CGROUPS for one in spec.mounts) and spec.linux.namespace("cgroup") is None:
        yield from (["pick_up_group", parent] for parent in dict.fromkeys(kitchen.groups.parents.values()))


def _pick_up(mount: Mount, bundle: Path) -> Step:
    return ["pick_up", _source(mount, bundle), bool(_parsed(mount).flags & syscalls.MS_REC)]


def _terminal(process: Process) -> Step:
    size = process.console_size
    return ["terminal", size.height if size else 0, size.width if size else 0]


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
        if options.flags & ~_ONLY_BIND or options.cleared:
            yield ["remount", mount.destination, options.flags & ~_ONLY_BIND, options.cleared]
        if _travels(mount) and not any(flags & mount_options.MS_SHARED for flags in options.propagation):
            yield ["propagate", mount.destination, mount_options.MS_SLAVE | syscalls.MS_REC]  # what is below it too
    elif options.flags & mount_options.MS_REMOUNT:
        raise ConfigError(f"mount on {mount.destination}: remount: its file system may be the host's too")
    elif mount.type not in _CGROUPS:
        yield ["filesystem", mount.type, mount.destination, options.flags, options.data, mount.source or mount.type]
    yield from (["propagate", mount.destination, flags] for flags in options.propagation)


def _cgroups(mount: Mount, spec: Spec, groups: Groups, tree: int) -> Iterator[Step]:
    """The container's own groups as roots: of its cgroup namespace, else bound. `tree`: number of the first to bind."""
    flags, data = _parsed(mount).flags, _parsed(mount).data
    if data:
        raise ConfigError(f"mount on {mount.destination}: option {data!r} is not supported")
    if sum(one.type in _CGROUPS for one in spec.mounts) > 1:
        raise ConfigError(f"mount on {mount.destination}: only one cgroup mount is supported")
    where, own = mount.destination, spec.linux.namespace("cgroup") is not None
    folders = list(dict.fromkeys(groups.parents.values()))
    names = [",".join(name for name, parent in groups.parents.items() if parent == folder) for folder in folders]
    if own:
        unified = ["filesystem", "cgroup2", where, flags, "", "cgroup"]
        yield unified if groups.unified else ["cgroups", where, flags, names]
    elif groups.unified:
        yield from _bound_group(tree, where, flags)
    else:
        yield ["filesystem", "tmpfs", where, flags & ~syscalls.MS_RDONLY, "mode=755", "cgroup"]
        for number, name in enumerate(names, tree):
            yield from _bound_group(number, f"{where}/{name}", flags)
        yield ["remount", where, flags]


def _bound_group(tree: int, where: str, flags: int) -> Iterator[Step]:
    yield ["place_tree", tree, where, True]
    yield ["remount", where, flags]


def _devices(spec: Spec) -> list[Device]:
    """Those that every container has, then the spec's own; the spec's word on a path counts."""
    named = {f"/dev/{name}": Device("c", f"/dev/{name}", major, minor, 0o666) for name, major, minor in profile.DEVICES}
    return list({**named, **{one.path: one for one in spec.linux.devices}}.values())


def _checked(one: Device) -> Device:
    """A device to bind, for it can't be made: the host's must be what is asked for. Raises ConfigError."""
    try:
        found = os.stat(one.path)
    except OSError as error:
        raise ConfigError(f"linux.devices: {one.path}, bound in a user namespace: {error.strerror}") from error
    kind, number = stat.S_IFMT(found.st_mode), os.makedev(one.major or 0, one.minor or 0)
    if (kind, found.st_rdev) != (_KINDS[one.type], number):
        raise ConfigError(f"linux.devices: {one.path}: the host's, which is bound in a user namespace, is another one")
    if one.path not in _USUAL and (one.file_mode, one.uid, one.gid) != (None, None, None):
        raise ConfigError(f"linux.devices: {one.path}: mode and owner are the host's in a user namespace")
    return one


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
    if _keys_in_reach(spec.linux.seccomp):
        yield ["own_keyring"]
    if not kitchen.groups.unified:
        yield ["join_groups"]
    if namespaces:
        yield ["hide"]
        yield ["join_target", namespaces]
    if namespaces & syscalls.CLONE_NEWPID:
        yield ["fork"]
    if namespaces & syscalls.CLONE_NEWUSER:
        yield ["user", 0, 0, [] if kitchen.setgroups else None]
    if namespaces & syscalls.CLONE_NEWNS and not spec.process.terminal:
        yield ["own_null"]
    if spec.process.terminal:
        if namespaces & syscalls.CLONE_NEWPID:
            yield ["session"]  # once more: the leader of the first one is the process that waits
        yield [*_terminal(spec.process), False]
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
    words = name if "/" in name else name.replace("_", " ")  # a path is not ours to change
    return " ".join([words, *(_word(value) for value in values)]).rstrip()


def _word(value: object) -> str:
    if isinstance(value, dict):  # a hook
        return str(value["path"])
    if isinstance(value, list):
        return ",".join(map(str, value))
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) and value > 4096 else str(value)
