"""A child's set-up as a list of system calls, packed before the fork: nothing is left to think about after it.

A child of the launcher runs in a copy of its memory. Every Python function it calls for the first time costs page
faults, a copy of each page they change, and slow first turns of the interpreter; so all that can be is compiled to
calls, which one small loop makes. What the child alone can know remains a Python function in the same list.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from bench.linux import syscalls as sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    Buffer = ctypes.Array[ctypes.c_char]
    Call = tuple[Any, ...]  # number and arguments: int, bytes, or a buffer
    Exec = tuple[int, bytes, ctypes.Array[ctypes.c_char_p], ctypes.Array[ctypes.c_char_p]]
    Text = list[bytes]  # a file and what to write there
    Spare = dict[int, int]  # errno (0: it worked) -> how many of the operations after it to leave out
    Work = Call | Text | Callable[[], object]
    Op = tuple[Work, Spare | None]
    Program = list[tuple[Work, Spare | None, int]]  # with the step each belongs to

# Numbers of x86-64; the set-up refuses other architectures.
_READ, _WRITE, _OPEN, _CLOSE, _RT_SIGACTION, _DUP2, _GETPID, _EXECVE = 0, 1, 2, 3, 13, 33, 39, 59
_CHDIR, _MKDIR, _SYMLINK, _CHOWN, _UMASK, _SETSID, _MKNOD, _PIVOT_ROOT = 80, 83, 88, 92, 95, 112, 133, 155
_PRCTL, _CHROOT, _MOUNT, _UMOUNT2, _SETHOSTNAME, _SETDOMAINNAME, _UNSHARE = 157, 161, 165, 166, 170, 171, 272
_SECCOMP, _SECCOMP_SET_MODE_FILTER = 317, 1
_SIGNALS = (1, 2, 3, 13, 15, 25)
"""HUP, INT, QUIT, TERM may be ignored by who started us (nohup, a shell's `&`), PIPE and XFSZ are by the interpreter:
exec would hand that on."""

_syscall = ctypes.PyDLL(None, use_errno=True).syscall


class StepError(OSError):
    """A call of a program failed; `step` is the number of the step it belongs to."""

    step = 0


def run(program: Program, trace: Callable[[int], None] | None = None) -> None:
    """Make the calls in order. Raises OSError of the first that fails, with its step in `step`."""
    syscall, skip = _syscall, 0
    for call, spare, step in program:
        if skip:
            skip -= 1
            continue
        if call.__class__ is tuple:
            if syscall(*call) == -1:
                number = ctypes.get_errno()
                if spare is None or number not in spare:
                    raise _failed(number, step)
                skip = spare[number]
            elif spare is not None:
                skip = spare.get(0, 0)
        elif call.__class__ is list:
            path, text = call
            file = syscall(_OPEN, path, os.O_WRONLY | os.O_CLOEXEC, 0)
            if file < 0 or syscall(_WRITE, file, text, len(text)) < 0:
                raise _failed(ctypes.get_errno(), step, f"{os.fsdecode(path)} <- {text.decode()}")
            syscall(_CLOSE, file)
        else:
            try:
                call()  # type: ignore[operator]
            except OSError as error:
                raise _failed(error.errno or 0, step, str(error)) from error
        if trace is not None:
            trace(step)


def _failed(number: int, step: int, said: str = "") -> StepError:
    error = StepError(number, said if os.strerror(number) in said else f"{os.strerror(number)}: {said}".rstrip(": "))
    error.step = step
    return error


def buffer(data: bytes) -> Buffer:
    """A copy of `data` that calls can be given the address of."""
    return ctypes.create_string_buffer(data, len(data))


def read(fd: int, into: Buffer) -> int:
    """Bytes read; -1 on failure."""
    return int(_syscall(_READ, fd, into, len(into)))


def warm_up() -> None:
    """Let the interpreter specialize the loop, here where every child inherits it: 40 times a call without effect."""
    calls: list[Work] = [(_GETPID,), [b"/dev/null", b"0"]]
    run([(calls[turn % 8 == 0], {0: 1} if turn % 3 else None, 0) for turn in range(120)])


# --- operations ---


def close(fd: int) -> Op:
    return (_CLOSE, fd), None


def open(path: str, flags: int) -> Op:
    return (_OPEN, os.fsencode(path), flags, 0), None


def mkdir(path: str) -> Iterator[Op]:
    """And the folders above it, if they are missing."""
    yield (_MKDIR, os.fsencode(path), 0o755), {0: 1, errno.EEXIST: 1, errno.ENOENT: 0}
    yield (lambda: os.makedirs(path, 0o755, exist_ok=True)), None


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "", spare: Spare | None = None) -> Op:
    return (_MOUNT, *map(os.fsencode, (source, target, fstype)), flags, os.fsencode(data)), spare


def write(path: str, text: str) -> Op:
    """In one call, as the kernel's own files want it."""
    return [os.fsencode(path), text.encode()], None


def chdir(path: str) -> Op:
    return (_CHDIR, os.fsencode(path)), None


def pivot_root(path: str) -> Iterator[Op]:
    yield chdir(path)
    yield (_PIVOT_ROOT, b".", b"."), None


def drop_old_root() -> Iterator[Op]:
    yield (_UMOUNT2, b".", sys.MNT_DETACH), None
    yield chdir("/")


def mknod(path: str, mode: int, device: int, otherwise: Callable[[], object]) -> Iterator[Op]:
    """The launcher's umask is 0. `otherwise`: what to do where something is there already, or the folder is missing."""
    yield (_MKNOD, os.fsencode(path), mode, device), {0: 1, errno.EEXIST: 0, errno.ENOENT: 0}
    yield otherwise, None


def symlink(source: str, path: str, otherwise: Callable[[], object]) -> Iterator[Op]:
    yield (_SYMLINK, os.fsencode(source), os.fsencode(path)), {0: 1, errno.EEXIST: 0}
    yield otherwise, None


def chown(path: str, uid: int, gid: int) -> Op:
    return (_CHOWN, os.fsencode(path), uid, gid), None


def prctl(option: int, value: int = 0, third: int = 0) -> Op:
    return (_PRCTL, option, value, third, 0, 0), None


def setsid() -> Op:
    return (_SETSID,), None


def unshare(flags: int) -> Op:
    return (_UNSHARE, flags), None


def chroot(path: str) -> Iterator[Op]:
    yield (_CHROOT, os.fsencode(path)), None
    yield chdir("/")


def sethostname(name: str) -> Op:
    return (_SETHOSTNAME, name.encode(), len(name.encode())), None


def restore_signals() -> Iterator[Op]:
    default = bytes(32)  # of struct sigaction
    return (((_RT_SIGACTION, number, default, 0, 8), None) for number in _SIGNALS)


def dup2(fd: int, target: int) -> Op:
    return (_DUP2, fd, target), None


def execve(path: str, argv: Sequence[str], env: Mapping[str, str]) -> Exec:
    """Its arguments are packed here, and stay alive as long as the call."""
    words = [*map(os.fsencode, argv)]
    settings = [os.fsencode(f"{name}={value}") for name, value in env.items()]
    text = ctypes.c_char_p
    return (
        _EXECVE, os.fsencode(path), (text * (len(words) + 1))(*words, None),
        (text * (len(settings) + 1))(*settings, None),
    )  # fmt: skip


def umask(mask: int) -> Op:
    return (_UMASK, mask), None


def seccomp(program: Buffer, size: int, flags: int) -> Op:
    """`program` must live as long as the operation: what is passed is its address."""
    return (_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, struct.pack("=HxxxxxxQ", size, ctypes.addressof(program))), None


def setdomainname(name: str) -> Op:
    return (_SETDOMAINNAME, name.encode(), len(name.encode())), None


def capset(effective: int, permitted: int, inheritable: int) -> Op:
    return (sys.SYS_CAPSET, *sys.packed_capabilities(effective, permitted, inheritable)), None


def operations(made: Op | Iterable[Op], step: int) -> Program:
    """What a step's action made, with the number of the step."""
    return [(call, spare, step) for call, spare in ([made] if isinstance(made, tuple) else made)]
