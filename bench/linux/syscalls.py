"""libc and raw system calls, with the kernel's own names. Nothing outside this room touches ctypes.

Imported by the launcher, whose heap every launch copies: only modules the interpreter has loaded anyway, and ctypes.
"""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PARENT = 0x00008000
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

SIGKILL, SIGPIPE, SIGXFSZ = 9, 13, 25  # the module `signal` would bring `enum` along

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

_SYS_PIVOT_ROOT = 155  # x86-64; the set-up refuses other architectures
SYS_CAPSET = 126
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_CLONE3 = 435
_CAP_VERSION_3 = 0x20080522
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4

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


# Declared once: converting each argument of each call by hand costs more than the calls themselves.
_ULONG, _TEXT = ctypes.c_ulong, ctypes.c_char_p
_libc.prctl.argtypes = [ctypes.c_int, _ULONG, _ULONG, _ULONG, _ULONG]
_libc.mount.argtypes = [_TEXT, _TEXT, _TEXT, _ULONG, _TEXT]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def clone3(flags: int, cgroup_fd: int | None = None) -> tuple[int, int]:
    """Fork with namespaces: (0, -1) in the child, (pid, pidfd) in the parent. Like fork, the stack is copied.

    `cgroup_fd`: a cgroup v2 folder to be born in. With CLONE_PARENT the child is the caller's sibling. Only for a
    process with one thread. Raises OSError.
    """
    pidfd = ctypes.c_int(-1)
    signal = 0 if flags & CLONE_PARENT else 17  # a sibling has its parent's signal already
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=signal)
    if cgroup_fd is not None:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup_fd
    pid = _check(_libc.syscall(_SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args)), "clone3")
    return (pid, pidfd.value) if pid else (0, -1)


def current_cpu() -> int:
    return _check(_libc.sched_getcpu(), "sched_getcpu")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """Join the namespaces `flags` of the process behind a pidfd (or of one namespace file)."""
    _check(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    result = _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), flags, os.fsencode(data))
    if result:  # the message takes longer than the call
        _check(result, f"mount {fstype or 'flags'} on {target}")


def umount2(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    _check(_libc.syscall(_SYS_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)), f"pivot_root {new_root}")


def open_tree(path: str, recursive: bool) -> int:
    """A copy of the mount at `path`, attached nowhere yet; with those below it if `recursive`. A descriptor."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _check(_libc.syscall(_SYS_OPEN_TREE, -100, os.fsencode(path), ctypes.c_uint(flags)), f"open_tree {path}")


def move_mount(tree: int, target: str) -> None:
    """Attach what `open_tree` returned."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", -100, os.fsencode(target), flags), f"move_mount on {target}")


def sethostname(name: str) -> None:
    data = name.encode()
    _check(_libc.sethostname(data, len(data)), f"sethostname {name}")


def restore_signals() -> None:
    """The interpreter ignores these, and exec would hand that on."""
    for number in (SIGPIPE, SIGXFSZ):
        _libc.signal(number, ctypes.c_void_p(0))


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    result = int(_libc.prctl(option, arg2, arg3, 0, 0))
    return result if result >= 0 else _check(result, f"prctl {option} {arg2}")


def packed_capabilities(effective: int, permitted: int, inheritable: int) -> tuple[bytes, bytes]:
    """capset(2)'s arguments: a process's three sets, each a bit mask of capability numbers."""
    words = [one >> shift & 0xFFFFFFFF for shift in (0, 32) for one in (effective, permitted, inheritable)]
    return struct.pack("=Ii", _CAP_VERSION_3, 0), struct.pack("=6I", *words)
