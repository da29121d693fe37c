"""What a config.json of the right shape may still ask for that makes no sense or can't be had: refused, by key.

Each check yields (key path, reason). Paths that leave the root by `..` or symlinks are the mounting code's to stop:
only it can, without a race.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import fields

from bench.container import mount_options
from bench.container.spec_records import (
    Capabilities,
    Device,
    DeviceRule,
    Hook,
    IdMapping,
    Linux,
    Memory,
    Mount,
    Process,
    Resources,
    Rlimit,
    Seccomp,
    Spec,
    SyscallRule,
)
from bench.errors import ConfigError
from bench.linux.capabilities import NUMBERS

Problem = tuple[str, str]

_RLIMITS = """
    CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME
"""
RLIMITS = {f"RLIMIT_{name}": number for number, name in enumerate(_RLIMITS.split())}
"""Name -> the kernel's number."""

_VERSION = re.compile(r"1\.\d+\.\d+([-+].*)?")
_CANDIDATE = re.compile(r"1\.0\.0-rc.*")  # from before the format was settled
_CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_SYSTEMD_PATH = re.compile(r"[^/:]*:[^/:]*:[^/:]*")
_WORD_MAX = 0xFFFFFFFFFFFFFFFF
_NAME_MAX = 64  # bytes of a host or domain name
_IPC_SYSCTL = re.compile(
    r"kernel/(msgmax|msgmnb|msgmni|msg_next_id|sem|sem_next_id|shmall|shmmax|shmmni|shm_next_id|shm_rmid_forced)"
    r"|fs/mqueue/[^/]+"
)
_UTS_SYSCTL = re.compile(r"kernel/(domainname|hostname)")
_OWNERS = (("network", re.compile(r"net/.+")), ("ipc", _IPC_SYSCTL), ("uts", _UTS_SYSCTL))


def validate(spec: Spec, where: str = "config.json") -> None:
    """Raises ConfigError naming `where`, the key, and what is wrong with it."""
    for key, reason in _problems(spec):
        raise ConfigError(f"{where}: {key}: {reason}", hint="docs/runtime.md lists what the built-in runtime supports")


def sysctl_path(key: str) -> str:
    """`net.ipv4.conf.eth0/1.forwarding` -> its path below /proc/sys; as in sysctl(8), `/` stands for a dot in a name.

    Raises ConfigError for a key that is not a path below it.
    """
    parts = [part.replace("/", ".") for part in key.split(".")]
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"{key!r} is no sysctl")
    return "/".join(parts)


def _problems(spec: Spec) -> Iterator[Problem]:
    yield from _texts(spec, "")  # first: the other checks may then put any text into a message
    if not _VERSION.fullmatch(spec.oci_version) or _CANDIDATE.fullmatch(spec.oci_version):
        yield "ociVersion", f"{spec.oci_version!r} is not 1.x.y"
    yield from _process(spec.process)
    if not spec.root.path:
        yield "root.path", "is empty"
    for index, mount in enumerate(spec.mounts):
        yield from _mount(mount, f"mounts[{index}]")
    yield from _names(spec)
    yield from _hooks(spec)
    yield from _linux(spec.linux)
    yield from _mapped(spec)


def _texts(value: object, key: str) -> Iterator[Problem]:
    """NUL would end a string for the kernel early; a lone surrogate is no text at all."""
    if isinstance(value, str):
        if "\0" in value:
            yield key, "holds a NUL byte"
        elif not _encodable(value):
            yield key, "is not valid Unicode"
    elif isinstance(value, Struct):
        for item in fields(value):
            yield from _texts(getattr(value, item.name), f"{key}.{item.encode_name}".lstrip("."))
    elif isinstance(value, Mapping):
        for name, text in value.items():
            yield from itertools.chain(_texts(name, key), _texts(text, f"{key}.{name}"))
    elif isinstance(value, Sequence):
        for index, item in enumerate(value):
            yield from _texts(item, f"{key}[{index}]")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _absolute(paths: Iterable[tuple[str, str]]) -> Iterator[Problem]:
    for key, path in paths:
        if not path.startswith("/"):
            yield key, f"{path!r} is not an absolute path"


def _twice(names: Sequence[object], key: str) -> Iterator[Problem]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"{key}[{index}]", f"{name!r} is there twice"


# --- the process -------------------------------------------------------------------------------------------------


def _process(process: Process) -> Iterator[Problem]:
    if not process.args or not process.args[0]:
        yield "process.args", "names no program"
    yield from _absolute([("process.cwd", process.cwd)])
    yield from _environment(process.env, "process.env")
    yield from _capabilities(process.capabilities)
    yield from _rlimits(process.rlimits)
    if process.apparmor_profile:
        yield "process.apparmorProfile", "AppArmor profiles are not supported"
    if process.selinux_label:
        yield "process.selinuxLabel", "SELinux labels are not supported"


def _environment(entries: Sequence[str], key: str) -> Iterator[Problem]:
    for index, entry in enumerate(entries):
        if entry.find("=") < 1:
            yield f"{key}[{index}]", f"{entry!r} is not NAME=VALUE"


def _capabilities(sets: Capabilities) -> Iterator[Problem]:
    for item in fields(sets):
        names: tuple[str, ...] = getattr(sets, item.name)
        for name in names:
            if name.removeprefix("CAP_") not in NUMBERS or not name.startswith("CAP_"):
                yield f"process.capabilities.{item.name}", f"there is no capability {name!r}"
    for name in sets.effective:
        if name not in sets.permitted:
            yield "process.capabilities.effective", f"{name} is not permitted"


def _rlimits(limits: Sequence[Rlimit]) -> Iterator[Problem]:
    yield from _twice([limit.type for limit in limits], "process.rlimits")
    for index, limit in enumerate(limits):
        key = f"process.rlimits[{index}]"
        if limit.type not in RLIMITS:
            yield f"{key}.type", f"there is no limit {limit.type!r}"
        if limit.hard > _WORD_MAX:
            yield f"{key}.hard", "does not fit into 64 bits"
        if limit.soft > limit.hard:
            yield f"{key}.soft", f"{limit.soft} is more than the hard limit, {limit.hard}"


# --- root, mounts, names, hooks ----------------------------------------------------------------------------------


def _mount(mount: Mount, key: str) -> Iterator[Problem]:
    yield from _absolute([(f"{key}.destination", mount.destination)])
    if not mount.destination.strip("/"):
        yield f"{key}.destination", "is the root itself"
    try:
        options = mount_options.parse(mount.options, mount.type)
    except ConfigError as error:
        yield f"{key}.options", error.message
        return
    if options.bind and not mount.source:
        yield f"{key}.source", "a bind mount needs one"
    if not options.bind and mount.type in ("", "none"):
        yield f"{key}.type", "is missing, and this is no bind mount"


def _names(spec: Spec) -> Iterator[Problem]:
    for key, name in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        if len(name.encode()) > _NAME_MAX:
            yield key, f"is longer than {_NAME_MAX} bytes"
        if name and not spec.linux.new("uts"):
            yield key, "needs a new uts namespace: it would rename whoever shares this one"


def _hooks(spec: Spec) -> Iterator[Problem]:
    for item in fields(spec.hooks):
        hooks: tuple[Hook, ...] = getattr(spec.hooks, item.name)
        for index, hook in enumerate(hooks):
            key = f"hooks.{item.encode_name}[{index}]"
            yield from _absolute([(f"{key}.path", hook.path)])
            yield from _environment(hook.env, f"{key}.env")


# --- linux -------------------------------------------------------------------------------------------------------


def _linux(linux: Linux) -> Iterator[Problem]:
    yield from _namespaces(linux)
    yield from _mappings(linux)
    for index, device in enumerate(linux.devices):
        yield from _device(device, f"linux.devices[{index}]")
    yield from _twice([device.path for device in linux.devices], "linux.devices")
    yield from _cgroups_path(linux.cgroups_path)
    yield from _resources(linux.resources)
    yield from _sysctls(linux)
    for name, paths in (("maskedPaths", linux.masked_paths), ("readonlyPaths", linux.readonly_paths)):
        yield from _absolute((f"linux.{name}[{index}]", path) for index, path in enumerate(paths))
    if linux.seccomp is not None:
        yield from _seccomp(linux.seccomp)
    if linux.mount_label:
        yield "linux.mountLabel", "SELinux labels are not supported"


def _namespaces(linux: Linux) -> Iterator[Problem]:
    yield from _twice([namespace.type for namespace in linux.namespaces], "linux.namespaces")
    for index, namespace in enumerate(linux.namespaces):
        if namespace.path:
            yield from _absolute([(f"linux.namespaces[{index}].path", namespace.path)])
    if not linux.new("mount"):
        yield "linux.namespaces", "a new mount namespace is needed: the root is made in it"


def _mappings(linux: Linux) -> Iterator[Problem]:
    for key, mappings in (("linux.uidMappings", linux.uid_mappings), ("linux.gidMappings", linux.gid_mappings)):
        if mappings and not linux.new("user"):
            yield key, "needs a new user namespace"
        if not mappings and linux.new("user"):
            yield key, "is missing: a new user namespace knows nobody without it"
        for index, mapping in enumerate(mappings):
            yield from _overlaps(mapping, mappings[:index], f"{key}[{index}]")


def _overlaps(mapping: IdMapping, before: Sequence[IdMapping], key: str) -> Iterator[Problem]:
    for name in ("container_id", "host_id"):
        start: int = getattr(mapping, name)
        if start + mapping.size > 1 << 32:
            yield key, "goes beyond 32 bits"
        for other in before:
            if start < getattr(other, name) + other.size and getattr(other, name) < start + mapping.size:
                yield key, "overlaps an earlier one"


def _mapped(spec: Spec) -> Iterator[Problem]:
    """An id that no mapping covers can't be taken: setuid would fail at the last moment."""
    if not spec.linux.new("user"):
        return
    user, groups = spec.process.user, spec.linux.gid_mappings
    wanted = [("uid", user.uid, spec.linux.uid_mappings), ("gid", user.gid, groups)]
    wanted += [(f"additionalGids[{index}]", gid, groups) for index, gid in enumerate(user.additional_gids)]
    for name, number, mappings in wanted:
        if not any(0 <= number - mapping.container_id < mapping.size for mapping in mappings):
            yield f"process.user.{name}", f"{number} is in no mapping of the user namespace"


def _device(device: Device, key: str) -> Iterator[Problem]:
    yield from _absolute([(f"{key}.path", device.path)])
    if device.type != "p" and (device.major is None or device.minor is None):
        yield key, "needs major and minor"


def _cgroups_path(path: str) -> Iterator[Problem]:
    if ".." in path.split("/"):
        yield "linux.cgroupsPath", f"{path!r} leaves its hierarchy"
    if _SYSTEMD_PATH.fullmatch(path):
        yield "linux.cgroupsPath", f"{path!r} is a systemd unit; only folders are supported"


def _sysctls(linux: Linux) -> Iterator[Problem]:
    for name in linux.sysctl:
        key = f"linux.sysctl.{name}"
        try:
            path = sysctl_path(name)
        except ConfigError as error:
            yield key, error.message
            continue
        owner = next((kind for kind, pattern in _OWNERS if pattern.fullmatch(path)), None)
        if owner is None:
            yield key, "belongs to the whole host, not to a namespace"
        elif not linux.new(owner):
            yield key, f"needs a new {owner} namespace"


# --- resources and seccomp ---------------------------------------------------------------------------------------


def _resources(resources: Resources) -> Iterator[Problem]:
    for index, rule in enumerate(resources.devices):
        yield from _device_rule(rule, f"linux.resources.devices[{index}]")
    if resources.memory is not None:
        yield from _memory(resources.memory)
    if (cpu := resources.cpu) is not None:
        yield from _between(cpu.shares, 2, 262_144, "linux.resources.cpu.shares")
        yield from _between(cpu.period, 1000, 1_000_000, "linux.resources.cpu.period")
        yield from _between(None if cpu.quota == -1 else cpu.quota, 1000, 1 << 44, "linux.resources.cpu.quota")
        for name in ("cpus", "mems"):
            if (text := getattr(cpu, name)) and not _CPU_LIST.fullmatch(text):
                yield f"linux.resources.cpu.{name}", f"{text!r} is no list such as 0-3,6"
    if resources.block_io is not None:
        yield from _between(resources.block_io.weight, 10, 1000, "linux.resources.blockIO.weight")


def _between(value: int | None, low: int, high: int, key: str) -> Iterator[Problem]:
    if value and not low <= value <= high:
        yield key, f"{value} is not from {low} to {high}"


def _memory(memory: Memory) -> Iterator[Problem]:
    key = "linux.resources.memory"
    limit = memory.limit if memory.limit and memory.limit > 0 else None
    if memory.swap and memory.swap > 0 and (limit is None or memory.swap < limit):
        yield f"{key}.swap", "is memory and swap together: it needs a limit, and can't be less than that"
    if limit is not None and memory.reservation is not None and memory.reservation > limit:
        yield f"{key}.reservation", "is more than the limit"
    if memory.disable_oom_killer:
        yield f"{key}.disableOOMKiller", "is not supported"


def _device_rule(rule: DeviceRule, key: str) -> Iterator[Problem]:
    if not rule.access or set(rule.access) - set("rwm"):
        yield f"{key}.access", f"{rule.access!r} is not made of r, w and m"
    one = [number for number in (rule.major, rule.minor) if number is not None and number >= 0]
    if rule.type in (None, "a") and one:
        yield key, "numbers need a type, b or c"


def _seccomp(seccomp: Seccomp) -> Iterator[Problem]:
    if seccomp.default_errno_ret is not None and seccomp.default_action not in _WITH_NUMBER:
        yield "linux.seccomp.defaultErrnoRet", f"means nothing to {seccomp.default_action}"
    for index, rule in enumerate(seccomp.syscalls):
        yield from _rule(rule, f"linux.seccomp.syscalls[{index}]")


_WITH_NUMBER = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")


def _rule(rule: SyscallRule, key: str) -> Iterator[Problem]:
    if not rule.names or not all(rule.names):
        yield f"{key}.names", "names no system call"
    if rule.errno_ret is not None and rule.action not in _WITH_NUMBER:
        yield f"{key}.errnoRet", f"means nothing to {rule.action}"
    for index, arg in enumerate(rule.args):
        if arg.value > _WORD_MAX or arg.value_two > _WORD_MAX:
            yield f"{key}.args[{index}]", "does not fit into 64 bits"
        if arg.value_two and arg.op != "SCMP_CMP_MASKED_EQ":
            yield f"{key}.args[{index}].valueTwo", f"means nothing to {arg.op}"
