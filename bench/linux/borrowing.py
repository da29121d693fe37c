"""A child that runs in our own memory until it becomes another program, as vfork's does.

A forked child gets a copy of every page table and, page by page, of all it changes, and exec throws that away again:
0.7 ms from a Python of 3 MiB (docs/runtime.md says how it was measured). This child borrows instead: it runs a Python
function on a stack of its own, in this interpreter, while the kernel holds us (CLONE_VM, CLONE_VFORK); then it becomes
the program.

The function has to return before exec, for the interpreter's state is ours as well. So what the child runs is a chain
of contexts (makecontext(3)), each going on to the next when it returns: the function, execve, and where that fails a
note of its errno, then _exit. What the function does to the process (namespaces, credentials, descriptors, folders)
is the child's alone; what it does to memory, whether it can be dumped included, is done to us.

A child that is killed before its function returned leaves the interpreter in the middle of a call that nobody
finishes: `Broken`, after which the only safe thing to do is to end. The kernel's OOM killer spares such children.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.linux.program import Exec

_CLONE_VM, _CLONE_VFORK, _CLONE_PARENT_SETTID, _SIGCHLD = 0x100, 0x4000, 0x100000, 17
_LINK, _STACK, _STACK_SIZE = 1, 2, 4  # 64-bit words of glibc's ucontext_t: uc_link, uc_stack.ss_sp, uc_stack.ss_size
_ROOM = 2048  # more than sizeof(ucontext_t)
_ALIGNED = 64

_libc = ctypes.PyDLL(None, use_errno=True)  # the child goes on in the interpreter, and must own its lock
_POINTER = ctypes.c_void_p

SUPPORTED = sys.version_info < (3, 14) and hasattr(_libc, "makecontext")
"""From 3.14 on the interpreter looks whether it is on the stack it knows; and musl has no makecontext."""


class Broken(Exception):
    """The child was killed in the middle of its function: this interpreter must not go on."""


class _Context:
    """A function to call on a stack of its own, and the context that goes on when it returns."""

    def __init__(self, size: int, following: _Context | None = None) -> None:
        self._fields = ctypes.create_string_buffer(_ROOM + _ALIGNED)
        self._stack = ctypes.create_string_buffer(size)
        self.at = ctypes.addressof(self._fields) + _ALIGNED & -_ALIGNED
        self._link, self._size = following.at if following else 0, size

    def set(self, function: int, *arguments: int) -> None:
        """To run once: it leaves its stack used."""
        _libc.getcontext(_POINTER(self.at))
        words = (ctypes.c_uint64 * 5).from_address(self.at)
        words[_LINK], words[_STACK], words[_STACK_SIZE] = self._link, ctypes.addressof(self._stack), self._size
        _libc.makecontext(_POINTER(self.at), _POINTER(function), len(arguments), *map(_POINTER, arguments))


def _address(function: str) -> int:
    return ctypes.cast(getattr(_libc, function), _POINTER).value or 0


class Borrowing:
    """Starts such children, one at a time. Only for a process with one thread.

    Of the last child: `born`, when it came to life (monotonic ns), and what went wrong before it was the program.
    """

    def __init__(self) -> None:
        kind = ctypes.CFUNCTYPE(None, use_errno=True)
        self._callbacks = kind(self._run), kind(self._exec_failed)  # C knows only their addresses
        self._run_at, self._failed_at = (ctypes.cast(one, _POINTER).value or 0 for one in self._callbacks)
        self._exit = _Context(1 << 14)
        self._note = _Context(1 << 17, self._exit)
        self._exec = _Context(1 << 14, self._note)
        self._first = _Context(1 << 20, self._exec)
        self._bottom = ctypes.create_string_buffer(1 << 14)  # where clone(2) starts, before the first context
        self._top = ctypes.addressof(self._bottom) + (1 << 14) - _ALIGNED & -_ALIGNED
        self._exit_at, self._execve_at, self._switch_at = map(_address, ("_exit", "execve", "setcontext"))
        self._pid = ctypes.c_int()
        self._used = True
        self.born, self._returned = 0, False
        self.failure: OSError | None = None
        self._fault: BaseException | None = None
        self._arm()

    def _arm(self) -> None:
        if self._used:  # contexts of the bad end run once
            self._exit.set(self._exit_at, 127)
            self._note.set(self._failed_at)
            self._used = False

    def spawn(self, namespaces: int, work: Callable[[int], object], execve: Exec) -> int:
        """A child with new `namespaces` that calls `work` with its pid, as we see it, and then makes `execve`.

        Returns its pid when it is that program. If it never became it: raises OSError, of `work` or of execve, when
        it has ended; it is still to be waited for, as `pid`. Raises Broken.
        """
        self.born, self._work, self._execve = 0, work, execve
        self._pid.value = 0
        self._returned, self.failure, self._fault = False, None, None
        self._arm()
        self._first.set(self._run_at)
        self._exec.set(self._exit_at, 127)  # until all has worked
        flags = namespaces | _CLONE_VM | _CLONE_VFORK | _CLONE_PARENT_SETTID | _SIGCHLD
        pid = _libc.clone(
            _POINTER(self._switch_at), _POINTER(self._top), ctypes.c_ulong(flags), _POINTER(self._first.at),
            ctypes.byref(self._pid),
        )  # fmt: skip
        if pid < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "clone")
        if not self._returned:
            raise Broken(f"{pid} was killed before it became {execve[1]!r}")
        if self._fault is not None:
            sys.excepthook(type(self._fault), self._fault, self._fault.__traceback__)
        if self.failure is not None:
            raise self.failure
        return int(pid)

    @property
    def pid(self) -> int:
        """Of the last child; 0 if there was none."""
        return self._pid.value

    def _run(self) -> None:
        """In the child."""
        self.born = time.monotonic_ns()
        self.failure = OSError(errno.EPROTO, "its set-up ended in a fault of bench: see the traceback above")
        finders, sys.meta_path = sys.meta_path, []  # what is imported now would come from the child's root, into us
        try:
            self._work(self._pid.value)
            _, path, argv, env = self._execve
            self._exec.set(self._execve_at, _at(path), ctypes.addressof(argv), ctypes.addressof(env))
            self.failure = None
        except OSError as error:
            self.failure = error
        except BaseException as fault:  # told by us: the child would read its source lines, from its own root
            self._fault = fault
        finally:
            sys.meta_path = finders
            self._returned = True

    def _exec_failed(self) -> None:
        """In the child: execve came back."""
        self._used = True
        number = ctypes.get_errno()
        self.failure = OSError(number, os.strerror(number))


def _at(text: bytes) -> int:
    """Where the bytes object has its text; it must outlive the use."""
    return ctypes.cast(ctypes.c_char_p(text), _POINTER).value or 0
