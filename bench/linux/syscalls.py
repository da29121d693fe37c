"""libc and raw system calls, with the kernel's own names. Nothing outside this room touches ctypes.

Imported by the launcher, whose heap every launch copies: only modules the interpreter has loaded anyway, and ctypes.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

_SYS_PIVOT_ROOT = 155  # x86-64; the set-up refuses other architectures
_SYS_CLONE3 = 435
_SYS_CAPSET = 126
_CAP_VERSION_3 = 0x20080522

# PyDLL keeps the GIL across the call: the child of clone3 goes on in the interpreter and must own it.
_libc = ctypes.PyDLL(None, use_errno=True)


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
            "set_tid", "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def clone3(flags: int, cgroup_fd: int | None = None) -> tuple[int, int]:
    """Fork with namespaces: (0, -1) in the child, (pid, pidfd) in the parent. Like fork, the stack is copied.

    `cgroup_fd`: a cgroup v2 folder to be born in. Only for a process with one thread. Raises OSError.
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=17)
    if cgroup_fd is not None:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup_fd
    pid = _check(_libc.syscall(_SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args)), "clone3")
    return (pid, pidfd.value) if pid else (0, -1)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """Join the namespaces `flags` of the process behind a pidfd (or of one namespace file)."""
    _check(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), os.fsencode(data)
    )
    _check(result, f"mount {fstype or 'flags'} on {target}")


def umount2(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    _check(_libc.syscall(_SYS_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)), f"pivot_root {new_root}")


def sethostname(name: str) -> None:
    data = name.encode()
    _check(_libc.sethostname(data, len(data)), f"sethostname {name}")


def prctl(option: int, arg2: int = 0) -> int:
    words = [ctypes.c_ulong(value) for value in (arg2, 0, 0, 0)]
    return _check(_libc.prctl(option, *words), f"prctl {option}")


def keep_capabilities(kept: frozenset[int], last: int) -> None:
    """Drop all capabilities but `kept` (numbers up to `last`) from the bounding, permitted, effective and inheritable
    sets; the ambient set is cleared."""
    for number in range(last + 1):
        if number not in kept:
            prctl(PR_CAPBSET_DROP, number)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    data = (_CapData * 2)()
    for number in kept:
        data[number // 32].effective |= 1 << (number % 32)
        data[number // 32].permitted |= 1 << (number % 32)
    header = _CapHeader(_CAP_VERSION_3, 0)
    _check(_libc.syscall(_SYS_CAPSET, ctypes.byref(header), ctypes.byref(data)), "capset")
