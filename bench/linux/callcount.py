"""Counts the system calls of every process on this host, by a BPF program at the kernel's sys_enter tracepoint.

The kernel counts, so nothing is lost to a full buffer, and threads count with their process. All of it hangs on file
descriptors: when they are closed, or their owner dies, the kernel takes it away, so nothing has to be put back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from bench.errors import HostError

_BPF = 321  # the call, on x86-64
_MAP_CREATE, _LOOKUP, _NEXT_KEY, _LOAD, _OPEN_RAW = 0, 1, 4, 5, 17  # bpf(2)
_HASH, _RAW_TRACEPOINT = 1, 17
_ATTRIBUTE = 128  # bytes of union bpf_attr that we fill
_ROOM = 65_536  # pairs of process and call
_WORD = 0xFFFFFFFF

Counts = Mapping[tuple[int, int], int]
"""(process, call's number) -> calls since counting began."""

_libc = ctypes.CDLL(None, use_errno=True)


class CallCounter:
    """Open until `counting` is left."""

    def __init__(self, table: int) -> None:
        self._table = table

    def read(self) -> Counts:
        """Raises HostError if there were more pairs than the kernel's table holds: some were not counted."""
        found: dict[tuple[int, int], int] = {}
        key, value = ctypes.c_uint64(0), ctypes.c_uint64(0)
        previous, at, into = 0, ctypes.addressof(key), ctypes.addressof(value)
        last = ctypes.c_uint64(0)
        while _bpf(_NEXT_KEY, struct.pack("=IxxxxQQ", self._table, previous, at), missing=True) >= 0:
            if _bpf(_LOOKUP, struct.pack("=IxxxxQQ", self._table, at, into), missing=True) >= 0:
                found[key.value >> 32, key.value & _WORD] = value.value
            last.value, previous = key.value, ctypes.addressof(last)
        if len(found) >= _ROOM:
            raise HostError("more processes make system calls than can be counted", hint="end some of them")
        return found


@contextmanager
def counting() -> Iterator[CallCounter]:
    """Count from now on. Raises HostError where the kernel refuses, or sees other process numbers than we do."""
    with ExitStack() as stack:
        try:
            table = _bpf(_MAP_CREATE, struct.pack("=IIII", _HASH, 8, 8, _ROOM))
            stack.callback(os.close, table)
            program = _load(_program(table))
            stack.callback(os.close, program)
            name = ctypes.create_string_buffer(b"sys_enter")
            link = _bpf(_OPEN_RAW, struct.pack("=QI", ctypes.addressof(name), program))
            stack.callback(os.close, link)
        except OSError as error:
            raise HostError(
                f"system calls can't be counted here: bpf: {error.strerror}",
                hint="needs CAP_BPF and CAP_PERFMON, and a kernel with CONFIG_BPF_SYSCALL and CONFIG_FTRACE_SYSCALLS",
            ) from error
        counter = CallCounter(table)
        os.getppid()
        if not any(process == os.getpid() for process, _ in counter.read()):
            raise HostError(
                "system calls can't be attributed: the kernel counts them by process numbers of another namespace",
                hint="run bench in the host's own pid namespace",
            )
        yield counter


def _program(table: int) -> bytes:
    """Add one to `table` at (process << 32 | call). bpf(2), linux/bpf.h; registers 0 to 10, the last is the frame."""
    code = [
        _i(0xBF, 6, 1),  # r6 = context: registers, number
        _i(0x79, 7, 6, 8),  # r7 = number
        _i(0x67, 7, k=32), _i(0x77, 7, k=32),  # its low half
        _i(0x85, k=14),  # r0 = bpf_get_current_pid_tgid()
        _i(0x77, 0, k=32), _i(0x67, 0, k=32),  # the process, not the thread
        _i(0x4F, 0, 7),
        _i(0x7B, 10, 0, -8),  # the key, on the stack
        _i(0x18, 1, 1, 0, table), _i(0, 0),  # r1 = table; two instructions wide
        _i(0xBF, 2, 10), _i(0x07, 2, k=-8),
        _i(0x85, k=1),  # r0 = bpf_map_lookup_elem()
        _i(0x15, 0, offset=4),  # not there: over the next four
        _i(0xB7, 1, k=1),
        _i(0xDB, 0, 1),  # atomic add
        _i(0xB7, 0), _i(0x95),
        _i(0xB7, 1, k=1), _i(0x7B, 10, 1, -16),  # the first one
        _i(0x18, 1, 1, 0, table), _i(0, 0),
        _i(0xBF, 2, 10), _i(0x07, 2, k=-8),
        _i(0xBF, 3, 10), _i(0x07, 3, k=-16),
        _i(0xB7, 4, k=1),  # only if nobody was faster
        _i(0x85, k=2),  # bpf_map_update_elem()
        _i(0xB7, 0), _i(0x95),
    ]  # fmt: skip
    return b"".join(code)


def _i(code: int, to: int = 0, source: int = 0, offset: int = 0, k: int = 0) -> bytes:
    """One struct bpf_insn."""
    return struct.pack("=BBhi", code, to | source << 4, offset, k)


def _load(code: bytes) -> int:
    program, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"Apache-2.0")
    where = ctypes.addressof(program), ctypes.addressof(licence)
    return _bpf(_LOAD, struct.pack("=IIQQ", _RAW_TRACEPOINT, len(code) // 8, *where))


def _bpf(command: int, attribute: bytes, *, missing: bool = False) -> int:
    """Raises OSError; with `missing`, -1 for what is not there."""
    held = ctypes.create_string_buffer(attribute.ljust(_ATTRIBUTE, b"\0"), _ATTRIBUTE)
    result = int(_libc.syscall(ctypes.c_long(_BPF), ctypes.c_int(command), held, ctypes.c_uint(_ATTRIBUTE)))
    if result < 0:
        number = ctypes.get_errno()
        if missing and number == errno.ENOENT:
            return -1
        raise OSError(number, os.strerror(number), "bpf")
    return result
