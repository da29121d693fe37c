"""What a process may do and who it is: the last steps before exec, as plain functions that a child runs in order."""

from __future__ import annotations

import os

from bench.linux import cgroups, syscalls


def session() -> None:
    os.setsid()


def oom_score_adj(value: int) -> None:
    cgroups.write("/proc/self/oom_score_adj", str(value))


def unshare(flags: int) -> None:
    syscalls.unshare(flags)


def domain_name(name: str) -> None:
    syscalls.setdomainname(name)


def sysctl(path: str, value: str) -> None:
    """`path`: below /proc/sys, which is the container's own by now."""
    cgroups.write(f"/proc/sys/{path}", value)


def rlimit(kind: int, soft: int, hard: int) -> None:
    import resource  # not in the launcher's memory unless a recipe has limits

    resource.setrlimit(kind, (soft, hard))


def working_directory(path: str) -> None:
    os.chdir(path)


def chroot(path: str) -> None:
    os.chroot(path)
    os.chdir("/")


def bounding_set(dropped: list[int]) -> None:
    """Capability numbers that no exec can ever give back."""
    for number in dropped:
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)


def user(uid: int, gid: int, groups: list[int] | None) -> None:
    """Become `uid`, keeping the permitted capabilities for the steps that follow. `groups` None: they stay."""
    if uid:
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    if groups is not None:
        os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Bit masks of capability numbers."""
    syscalls.capset(effective, permitted, inheritable)


def ambient_set(numbers: list[int]) -> None:
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in numbers:
        syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)


def no_new_privs() -> None:
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


ACTIONS = {
    action.__name__: action
    for action in (
        session, oom_score_adj, unshare, domain_name, sysctl, rlimit, working_directory, chroot, bounding_set, user,
        capabilities, ambient_set, no_new_privs,
    )
}  # fmt: skip
"""By name, as a recipe's steps call them."""
