"""The records of an OCI runtime-spec config.json: what this runtime supports of it, and nothing else.

A key that is not here is refused when the file is read. Names and units are the specification's (bytes, microseconds).
Absent means unset; so does 0 in `resources`, as engines write it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

_Id = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_Count = Annotated[int, Meta(ge=0, le=0x7FFFFFFFFFFFFFFF)]
_Limit = Annotated[int, Meta(ge=-1, le=0x7FFFFFFFFFFFFFFF)]  # -1: unlimited
_Word = Annotated[int, Meta(ge=0)]  # 64 bits; the upper end is checked with the rest

Action = Literal[
    "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP", "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE", "SCMP_ACT_LOG", "SCMP_ACT_ALLOW",
]  # fmt: skip
Operator = Literal[
    "SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"
]
Architecture = Literal["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
FilterFlag = Literal["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
Propagation = Literal[
    "", "shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable"
]  # fmt: skip


class _Record(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"):
    pass


# --- the process -------------------------------------------------------------------------------------------------


class ConsoleSize(_Record, frozen=True):
    height: Annotated[int, Meta(ge=0, le=0xFFFF)]
    width: Annotated[int, Meta(ge=0, le=0xFFFF)]


class User(_Record, frozen=True):
    uid: _Id
    gid: _Id
    umask: Annotated[int, Meta(ge=0, le=0o777)] | None = None
    additional_gids: tuple[_Id, ...] = ()


class Capabilities(_Record, frozen=True):
    """Names with their prefix CAP_."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()

    @property
    def raised(self) -> tuple[str, ...]:
        """What of `ambient` the kernel grants: what is permitted and inheritable too. The templates of runc and crun
        ask for more, which they then leave out; so do we."""
        return tuple(name for name in self.ambient if name in self.permitted and name in self.inheritable)


class Rlimit(_Record, frozen=True):
    type: str
    soft: _Word
    hard: _Word


class Process(_Record, frozen=True):
    """`capabilities` absent: none at all."""

    user: User
    args: tuple[str, ...]
    cwd: str
    terminal: bool = False
    console_size: ConsoleSize | None = None
    env: tuple[str, ...] = ()
    capabilities: Capabilities = Capabilities()
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    apparmor_profile: str = ""  # these two only empty
    selinux_label: str = ""


# --- the root and what is mounted in it --------------------------------------------------------------------------


class Root(_Record, frozen=True):
    """`path`: absolute, or relative to the bundle."""

    path: str
    readonly: bool = False


class Mount(_Record, frozen=True):
    """`source` of a bind mount: absolute, or relative to the bundle. `options`: see `mount_options.parse`."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()


class Hook(_Record, frozen=True):
    """`timeout`: seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: Annotated[int, Meta(ge=1, le=86_400)] | None = None


class Hooks(_Record, frozen=True):
    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


# --- resources ---------------------------------------------------------------------------------------------------


class Memory(_Record, frozen=True):
    """Bytes. `swap`: memory and swap together."""

    limit: _Limit | None = None
    reservation: _Limit | None = None
    swap: _Limit | None = None
    swappiness: Annotated[int, Meta(ge=0, le=100)] | None = None
    disable_oom_killer: bool = field(default=False, name="disableOOMKiller")  # only false


class Cpu(_Record, frozen=True):
    """`quota` in each `period`: microseconds. `cpus`, `mems`: lists such as 0-3,6."""

    shares: _Count | None = None
    quota: _Limit | None = None
    period: _Count | None = None
    cpus: str = ""
    mems: str = ""


class Pids(_Record, frozen=True):
    limit: _Limit


class BlockIO(_Record, frozen=True):
    weight: Annotated[int, Meta(ge=0, le=1000)] | None = None


class DeviceRule(_Record, frozen=True):
    """Later rules win. `type` absent: all; `major`, `minor` absent or -1: any; `access`: letters of rwm."""

    allow: bool
    access: str
    type: Literal["a", "b", "c"] | None = None
    major: _Limit | None = None
    minor: _Limit | None = None


class Resources(_Record, frozen=True):
    devices: tuple[DeviceRule, ...] = ()
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIO | None = field(default=None, name="blockIO")


# --- seccomp -----------------------------------------------------------------------------------------------------


class SyscallArg(_Record, frozen=True):
    index: Annotated[int, Meta(ge=0, le=5)]
    value: _Word
    op: Operator
    value_two: _Word = 0  # with MASKED_EQ: what `value`, the mask, must leave over


class SyscallRule(_Record, frozen=True):
    """All `args` must hold; if several are about the same argument, any of the rule's `args` may hold."""

    names: tuple[str, ...]
    action: Action
    errno_ret: Annotated[int, Meta(ge=0, le=4095)] | None = None
    args: tuple[SyscallArg, ...] = ()


class Seccomp(_Record, frozen=True):
    """`default_action` is the answer to calls no rule is about; errno values absent: EPERM."""

    default_action: Action
    default_errno_ret: Annotated[int, Meta(ge=0, le=4095)] | None = None
    architectures: tuple[Architecture, ...] = ()
    flags: tuple[FilterFlag, ...] = ()
    syscalls: tuple[SyscallRule, ...] = ()


# --- linux -------------------------------------------------------------------------------------------------------


class Namespace(_Record, frozen=True):
    """`path` empty: a new one; else the one to join."""

    type: Literal["pid", "network", "mount", "ipc", "uts", "user", "cgroup"]
    path: str = ""


class IdMapping(_Record, frozen=True):
    container_id: _Id = field(name="containerID")
    host_id: _Id = field(name="hostID")
    size: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]


class Device(_Record, frozen=True):
    type: Literal["c", "b", "u", "p"]
    path: str
    major: Annotated[int, Meta(ge=0, le=0xFFF)] | None = None
    minor: Annotated[int, Meta(ge=0, le=0xFFFFF)] | None = None
    file_mode: Annotated[int, Meta(ge=0, le=0o7777)] | None = None
    uid: _Id | None = None
    gid: _Id | None = None


class Linux(_Record, frozen=True):
    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    devices: tuple[Device, ...] = ()
    cgroups_path: str = ""
    resources: Resources = Resources()
    seccomp: Seccomp | None = None
    sysctl: dict[str, str] = {}
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    rootfs_propagation: Propagation = ""
    mount_label: str = ""  # only empty

    def namespace(self, kind: str) -> Namespace | None:
        """The namespace of that type; None: the runtime's own is used."""
        return next((namespace for namespace in self.namespaces if namespace.type == kind), None)

    def new(self, kind: str) -> bool:
        """Whether the container gets a new namespace of that type."""
        namespace = self.namespace(kind)
        return namespace is not None and not namespace.path


class Spec(_Record, frozen=True):
    """A config.json. `annotations` have no meaning to this runtime."""

    oci_version: str
    process: Process
    root: Root
    linux: Linux
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    annotations: dict[str, str] = {}
