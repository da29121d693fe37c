"""What a process may do and who it is: steps of a recipe -> the last operations before exec."""

from __future__ import annotations

import errno
import struct

from bench.linux import program, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.linux.program import Op

_SETGROUPS, _SETRESUID, _SETRESGID = 116, 117, 119  # of x86-64
_KEYCTL, _JOIN_SESSION_KEYRING = 250, 1


def session() -> Op:
    return program.setsid()


def own_keyring() -> Op:
    """A new session keyring, where the kernel has any: the keys in ours are the host's."""
    return (_KEYCTL, _JOIN_SESSION_KEYRING, 0), {errno.ENOSYS: 0}


def hide() -> Op:
    """Until exec: /proc/PID/exe, which is the host's Python, and our memory are not for who is in the container."""
    return program.prctl(syscalls.PR_SET_DUMPABLE, 0)


def oom_score_adj(value: int) -> Op:
    return program.write("/proc/self/oom_score_adj", str(value))


def unshare(flags: int) -> Op:
    return program.unshare(flags)


def domain_name(name: str) -> Op:
    return program.setdomainname(name)


def sysctl(path: str, value: str) -> Op:
    """`path`: below /proc/sys, which is the container's own by now."""
    return program.write(f"/proc/sys/{path}", value)


def rlimit(kind: int, soft: int, hard: int) -> Op:
    import resource  # not in the launcher's memory unless a recipe has limits

    return (lambda: resource.setrlimit(kind, (soft, hard))), None


def working_directory(path: str) -> Op:
    return program.chdir(path)


def chroot(path: str) -> Iterator[Op]:
    return program.chroot(path)


def bounding_set(dropped: list[int]) -> Iterator[Op]:
    """Capability numbers that no exec can ever give back."""
    return (program.prctl(syscalls.PR_CAPBSET_DROP, number) for number in dropped)


def user(uid: int, gid: int, groups: list[int] | None) -> Iterator[Op]:
    """Become `uid`, keeping the permitted capabilities for the steps that follow. `groups` None: they stay."""
    if uid:
        yield program.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    if groups is not None:
        yield (_SETGROUPS, len(groups), struct.pack(f"={len(groups)}I", *groups)), None
    yield (_SETRESGID, gid, gid, gid), None
    yield (_SETRESUID, uid, uid, uid), None


def capabilities(effective: int, permitted: int, inheritable: int) -> Op:
    """Bit masks of capability numbers."""
    return program.capset(effective, permitted, inheritable)


def ambient_set(numbers: list[int]) -> Iterator[Op]:
    yield program.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in numbers:
        yield program.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)


def no_new_privs() -> Op:
    return program.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


ACTIONS = {
    action.__name__: action
    for action in (
        session, own_keyring, hide, oom_score_adj, unshare, domain_name, sysctl, rlimit, working_directory, chroot,
        bounding_set, user, capabilities, ambient_set, no_new_privs,
    )
}  # fmt: skip
"""By name, as a recipe's steps call them."""
