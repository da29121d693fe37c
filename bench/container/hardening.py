"""How much of the default container's confinement there is: none of it, all of it, or more. As changes of a spec.

`none` leaves the namespaces and the groups, and nothing else: what is then still contained is contained by those.
`strict` adds a user namespace, a shorter list of system calls, a read-only root, no capability and no way to gain one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

from msgspec.structs import replace

from bench.container.spec import default_seccomp
from bench.container.spec_check import validate
from bench.container.spec_records import (
    Capabilities,
    DeviceRule,
    IdMapping,
    Mount,
    Namespace,
    Resources,
    Seccomp,
    Spec,
    SyscallArg,
    SyscallRule,
)
from bench.linux.capabilities import CONTAINER_DEFAULT, NUMBERS, permitted

Security = Literal["none", "default", "strict"]

DESCRIBED: Mapping[Security, str] = {
    "none": "no seccomp filter, every capability this host has, nothing masked or read-only, every device",
    "default": f"{len(CONTAINER_DEFAULT)} capabilities kept, default allow-list of system calls",
    "strict": "user namespace, no capabilities, no new privileges, shorter allow-list, read-only root",
}
FIRST_ID, IDS = 1_000_000_000, 65_536
"""Host ids that a strict container's are mapped to: far from those that accounts are given."""

_REFUSED = """
    chroot mknod mknodat ptrace personality fanotify_mark modify_ldt vmsplice io_setup io_submit io_cancel io_destroy
    io_getevents io_pgetevents io_pgetevents_time64 mlock mlock2 mlockall memfd_secret socketcall
    sched_setscheduler sched_setattr sched_setparam setpriority ioprio_set adjtimex clock_adjtime clock_adjtime64
    remap_file_pages process_mrelease rt_tgsigqueueinfo
    msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget ipc
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
"""
REFUSED = frozenset(_REFUSED.split())
"""Of the calls a default container has, those that a server rarely makes and attacks often do."""

SOCKET_FAMILIES = (1, 2, 10)
"""unix, IPv4, IPv6."""

_SCRATCH = tuple(
    Mount(path, "tmpfs", "tmpfs", ("nosuid", "nodev", "noexec", "mode=1777", "size=67108864"))
    for path in ("/tmp", "/run")
)


def secured(spec: Spec, security: Security) -> Spec:
    """The default container's spec, with less or more."""
    if security == "none":
        return _bare(spec)
    return _strict(spec) if security == "strict" else spec


def _bare(spec: Spec) -> Spec:
    ours = permitted()  # a host may have kept some from us
    names = tuple(f"CAP_{name}" for name, number in NUMBERS.items() if number in ours)
    process = replace(spec.process, capabilities=Capabilities(bounding=names, effective=names, permitted=names))
    resources = replace(spec.linux.resources or Resources(), devices=(DeviceRule(True, "rwm"),))
    linux = replace(spec.linux, seccomp=None, masked_paths=(), readonly_paths=(), resources=resources)
    return _valid(replace(spec, process=process, linux=linux), "none")


def _strict(spec: Spec) -> Spec:
    process = replace(spec.process, capabilities=Capabilities(), no_new_privileges=True)
    mapping = (IdMapping(0, FIRST_ID, IDS),)
    linux = replace(
        spec.linux,
        namespaces=(*spec.linux.namespaces, Namespace("user")),
        uid_mappings=mapping,
        gid_mappings=mapping,
        seccomp=strict_seccomp(),
        sysctl={},  # they name ids that are not mapped
    )
    root = replace(spec.root, readonly=True)
    return _valid(replace(spec, process=process, root=root, linux=linux, mounts=(*spec.mounts, *_SCRATCH)), "strict")


def _valid(spec: Spec, name: str) -> Spec:
    validate(spec, f"a container with security {name}")
    return spec


@functools.cache
def strict_seccomp() -> Seccomp:
    """The default filter without what REFUSED names, and with three families of sockets."""
    default = default_seccomp()
    kept = []
    for rule in default.syscalls:
        names = tuple(name for name in rule.names if name not in REFUSED and name != "socket")
        if names:
            kept.append(replace(rule, names=names))
    families = (
        SyscallRule(("socket",), "SCMP_ACT_ALLOW", None, (SyscallArg(0, family, "SCMP_CMP_EQ"),))
        for family in SOCKET_FAMILIES
    )
    return replace(default, syscalls=(*kept, *families))
