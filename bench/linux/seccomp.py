"""seccomp(2): loading a compiled filter, and the kernel's numbers for what a filter may answer.

Imported by the launcher's children: os and ctypes only. Compiling is `bench.container.seccomp`'s, long before.
"""

from __future__ import annotations

import ctypes
import os

ARCH_X86_64 = 0xC000003E  # AUDIT_ARCH_*, as a filter sees it; x32 is x86-64 with a bit in the call's number
ARCH_I386 = 0x40000003
X32_BIT = 0x40000000

RET_KILL_PROCESS = 0x80000000
RET_KILL_THREAD = 0x00000000
RET_TRAP = 0x00030000
RET_ERRNO = 0x00050000
RET_USER_NOTIF = 0x7FC00000
RET_TRACE = 0x7FF00000
RET_LOG = 0x7FFC0000
RET_ALLOW = 0x7FFF0000
RET_DATA = 0x0000FFFF

FLAG_TSYNC = 1
FLAG_LOG = 2
FLAG_SPEC_ALLOW = 4

INSTRUCTION = 8  # bytes of a struct sock_filter
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

_SYS_SECCOMP = 317  # x86-64; the set-up refuses other architectures
_SET_MODE_FILTER = 1

_libc = ctypes.PyDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def load_filter(program: bytes, flags: int = 0) -> None:
    """Put this thread, and all that it becomes, under `program`: an array of struct sock_filter.

    Needs CAP_SYS_ADMIN or no_new_privs, so without the latter it comes before capabilities are dropped; whatever comes
    after it must be allowed by the filter. It can't be undone. Raises OSError; ESRCH: another thread would not follow.
    """
    if not program or len(program) % INSTRUCTION or len(program) > MAX_INSTRUCTIONS * INSTRUCTION:
        raise ValueError(f"{len(program)} bytes are no seccomp filter")
    call = _Program(len(program) // INSTRUCTION, program)
    result = _libc.syscall(
        ctypes.c_long(_SYS_SECCOMP), ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(flags), ctypes.byref(call)
    )
    if result:
        number = ctypes.get_errno() if result < 0 else 3  # ESRCH; a positive result is the thread that did not follow
        raise OSError(number, os.strerror(number), "seccomp")
