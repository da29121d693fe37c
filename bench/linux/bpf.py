"""Classic BPF as seccomp uses it: what a filter answers to a call, and the filters a running process is under."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from bench.linux import seccomp

LOAD, JUMP, JEQ, JGT, JGE, JSET, AND, RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
"""The instructions seccomp filters are made of: 32-bit load at an offset, jumps, mask, return; all with a constant."""

NUMBER, ARCH = 0, 4
"""Offsets of the call's number and architecture in struct seccomp_data."""

_ARGUMENTS = 16
_DATA = struct.Struct("=IIQ6Q")
_WORD = 0xFFFFFFFF
_DOUBLE = 0xFFFFFFFFFFFFFFFF

# The kernel's own order, the strictest first (seccomp(2)).
_STRICTNESS = {
    seccomp.RET_KILL_PROCESS: "kill_process",
    seccomp.RET_KILL_THREAD: "kill_thread",
    seccomp.RET_TRAP: "trap",
    seccomp.RET_ERRNO: "errno",
    seccomp.RET_USER_NOTIF: "user_notif",
    seccomp.RET_TRACE: "trace",
    seccomp.RET_LOG: "log",
    seccomp.RET_ALLOW: "allow",
}
_ORDER = list(_STRICTNESS)


class Instruction(NamedTuple):
    """struct sock_filter."""

    code: int
    jt: int
    jf: int
    k: int


Program = Sequence[Instruction]


def decode(program: bytes) -> list[Instruction]:
    """Raises ValueError if that is not a whole number of instructions."""
    if len(program) % seccomp.INSTRUCTION:
        raise ValueError(f"{len(program)} bytes are no array of struct sock_filter")
    return [Instruction(*fields) for fields in struct.iter_unpack("=HBBI", program)]


def encode(program: Program) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def run(program: bytes | Program, number: int, arch: int, args: Sequence[int] = ()) -> int:
    """What the filter returns for system call `number`: a RET_* value with its 16 bits of data.

    Raises ValueError for an instruction or offset that seccomp filters have no use for, and for a program without end.
    """
    code = decode(program) if isinstance(program, bytes) else program
    six = [*(value & _DOUBLE for value in args), 0, 0, 0, 0, 0, 0][:6]
    words = struct.unpack("=16I", _DATA.pack(number & _WORD, arch, 0, *six))
    accumulator = at = 0
    while 0 <= at < len(code):
        operation, jt, jf, k = code[at]
        if operation == RETURN:
            return k
        at += 1
        if operation == LOAD and k % 4 == 0 and k < _DATA.size:
            accumulator = words[k // 4]
        elif operation == AND:
            accumulator &= k
        elif operation == JUMP:
            at += k
        else:
            at += jt if holds(operation, accumulator, k) else jf
    raise ValueError("the program ends without an answer")


def answers(program: bytes | Program, number: int, arch: int) -> frozenset[int]:
    """All that the filter may return for system call `number` over all arguments: one value if they don't matter.

    Both ways are gone at a jump that depends on an argument, so an answer may be among them that no arguments get.
    Raises ValueError like `run`.
    """
    code = decode(program) if isinstance(program, bytes) else program
    known = {NUMBER: number & _WORD, ARCH: arch}
    found: set[int] = set()
    seen: set[int] = set()
    todo = [(0, 0)]  # where to go on, and with what in the accumulator
    while todo:
        at, value = todo.pop()
        fork = _follow(code, known, at, value, found)
        todo += [(way, _UNKNOWN) for way in fork if way not in seen]
        seen.update(fork)
    return frozenset(found)


_UNKNOWN = -1


def _follow(code: Program, known: Mapping[int, int], at: int, value: int, found: set[int]) -> tuple[int, ...]:
    """Go on to the next jump that depends on an argument and return both its ways, or to an answer, for `found`."""
    while at < len(code):
        operation, jt, jf, k = code[at]
        at += 1
        if operation == RETURN:
            found.add(k)
            return ()
        if operation == LOAD:
            value = known.get(k, _UNKNOWN)
        elif operation == AND:
            value = value & k if value >= 0 else _UNKNOWN
        elif operation == JUMP:
            at += k
        elif value < 0:
            return at + jt, at + jf
        else:
            at += jt if holds(operation, value, k) else jf
    raise ValueError("the program ends without an answer")


def argument_constants(program: bytes | Program) -> dict[int, frozenset[int]]:
    """Index of each argument the filter looks at -> the numbers it compares that one with: those worth trying."""
    code = decode(program) if isinstance(program, bytes) else program
    found: dict[int, set[int]] = {}
    offset = NUMBER
    for operation, _, _, k in code:
        if operation == LOAD:
            offset = k
        elif offset >= _ARGUMENTS and operation not in (JUMP, RETURN):
            found.setdefault((offset - _ARGUMENTS) // 8, set()).add(k)
    return {index: frozenset(numbers) for index, numbers in found.items()}


def holds(operation: int, value: int, k: int) -> bool:
    if operation == JEQ:
        return value == k
    if operation == JGT:
        return value > k
    if operation == JGE:
        return value >= k
    if operation == JSET:
        return bool(value & k)
    raise ValueError(f"instruction {operation:#x} {k:#x} is not one seccomp filters use")


def describe(action: int) -> str:
    """`allow`, `errno EPERM`, `kill_process`; an unknown action counts as the kernel takes it: kill_process."""
    word = _STRICTNESS.get(action & ~seccomp.RET_DATA & _WORD, "kill_process")
    data = action & seccomp.RET_DATA
    return f"{word} {errno.errorcode.get(data, data)}" if word == "errno" else word


def weaker(ours: int, theirs: int) -> bool:
    """Whether the answer `ours` lets more through than `theirs`; which errno a refusal gives is no difference."""
    return _rank(ours) > _rank(theirs)


def _rank(action: int) -> int:
    kind = action & ~seccomp.RET_DATA & _WORD
    return _ORDER.index(kind) if kind in _ORDER else 0


# --- the filters of a running process ------------------------------------------------------------------------------

_DETACH, _SEIZE, _INTERRUPT, _GET_FILTER = 17, 0x4206, 0x4207, 0x420C
_WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def installed_filters(pid: int) -> list[bytes]:
    """The filters that process `pid` is under, the latest first. It is stopped meanwhile, and goes on afterwards.

    Raises OSError: EACCES without CAP_SYS_ADMIN or for a caller under a filter itself, EIO on a kernel without
    CONFIG_CHECKPOINT_RESTORE, EPERM if `pid` may not be traced.
    """
    found: list[bytes] = []
    with _stopped(pid):
        try:
            while True:
                found.append(_filter(pid, len(found)))
        except OSError as error:
            if error.errno != errno.ENOENT:  # no filter of this index: the end of the list
                raise
    return found


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """Stop `pid` without a signal of ours (attaching the old way leaves a SIGSTOP behind when another came first)."""
    _ptrace(_SEIZE, pid)
    _ptrace(_INTERRUPT, pid)
    _, status = os.waitpid(pid, _WALL)
    if not os.WIFSTOPPED(status):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"process {pid}")
    try:
        yield
    finally:
        event = status >> 16
        _ptrace(_DETACH, pid, 0, 0 if event else os.WSTOPSIG(status))  # a signal on its way is delivered all the same


def _filter(pid: int, index: int) -> bytes:
    length = _ptrace(_GET_FILTER, pid, index)
    buffer = ctypes.create_string_buffer(length * seccomp.INSTRUCTION)
    _ptrace(_GET_FILTER, pid, index, ctypes.addressof(buffer))
    return buffer.raw


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result = int(
        _libc.ptrace(ctypes.c_long(request), ctypes.c_int(pid), ctypes.c_void_p(address), ctypes.c_void_p(data))
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"ptrace {request:#x} of process {pid}")
    return result
