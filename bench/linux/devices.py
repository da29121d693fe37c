"""Which devices a cgroup's processes may open or make: v1's lists, and a program of bpf(2)'s on a v2 group.

Both start from nothing allowed; later rules win.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple


class Rule(NamedTuple):
    """`kind`: a (both), b or c; numbers None: any; `access`: letters of rwm (read, write, mknod)."""

    allow: bool
    kind: str
    major: int | None
    minor: int | None
    access: str


# --- cgroup v1 -----------------------------------------------------------------------------------------------------

Key = tuple[str, int | None, int | None]


def v1_lines(rules: Sequence[Rule]) -> list[tuple[bool, str]]:
    """(allow, what to write to devices.allow or devices.deny), in order.

    Raises ValueError for a rule that takes part of an earlier, wider one back: v1 would take no notice of it.
    """
    lines, turned, listed = [(False, "a")], False, dict[Key, set[str]]()
    for rule in rules:
        if rule.kind == "a" and set(rule.access) == set("rwm"):
            lines.append((rule.allow, "a"))
            turned, listed = rule.allow, {}
            continue
        for kind in "bc" if rule.kind == "a" else rule.kind:
            key = (kind, rule.major, rule.minor)
            if rule.allow == turned:
                _refuse_partial(key, set(rule.access), listed)
                listed.get(key, set()).difference_update(rule.access)
            else:
                listed.setdefault(key, set()).update(rule.access)
            lines.append((rule.allow, f"{kind} {_number(rule.major)}:{_number(rule.minor)} {rule.access}"))
    return lines


def _refuse_partial(key: Key, access: set[str], listed: dict[Key, set[str]]) -> None:
    """The kernel removes an exception only by its very numbers."""
    for other, theirs in listed.items():
        overlap = all(None in pair or len(set(pair)) == 1 for pair in zip(key, other, strict=True))
        if other != key and access & theirs and overlap:
            raise ValueError(f"{_said(key)} is a part of {_said(other)}, ruled the other way before")


def _said(key: Key) -> str:
    return f"{key[0]} {_number(key[1])}:{_number(key[2])}"


def _number(value: int | None) -> str:
    return "*" if value is None else str(value)


# --- cgroup v2 -----------------------------------------------------------------------------------------------------

_LOAD_WORD, _COPY, _SET, _AND, _SHIFT_RIGHT = 0x61, 0xBF, 0xB7, 0x57, 0x77  # opcodes of eBPF, 64 bits
_JUMP, _JUMP_UNEQUAL, _JUMP_ANY_BIT, _EXIT = 0x05, 0x55, 0x45, 0x95
_ANSWER, _CONTEXT, _TYPE, _ASKED, _MAJOR, _MINOR = range(6)  # registers, as the program uses them
_KINDS = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}


def compile_rules(rules: Sequence[Rule]) -> bytes:
    """The eBPF program: from the last rule to the first, until each kind of access asked for has got its answer."""
    code = [
        _op(_LOAD_WORD, _TYPE, _CONTEXT, offset=0),
        _op(_COPY, _ASKED, _TYPE),
        _op(_AND, _TYPE, value=0xFFFF),
        _op(_SHIFT_RIGHT, _ASKED, value=16),
        _op(_LOAD_WORD, _MAJOR, _CONTEXT, offset=4),
        _op(_LOAD_WORD, _MINOR, _CONTEXT, offset=8),
    ]
    for rule in reversed(rules):
        code += _block(rule)
    return b"".join((*code, *_answer(0)))


def _block(rule: Rule) -> list[bytes]:
    access = sum(_ACCESS[letter] for letter in set(rule.access))
    if rule.allow:
        body = [_op(_AND, _ASKED, value=~access), _op(_JUMP_UNEQUAL, _ASKED, offset=2, value=0), *_answer(1)]
    else:
        body = [_op(_JUMP_ANY_BIT, _ASKED, offset=1, value=access), _op(_JUMP, offset=2), *_answer(0)]
    wanted = [(_TYPE, _KINDS.get(rule.kind)), (_MAJOR, rule.major), (_MINOR, rule.minor)]
    tests = [(register, value) for register, value in wanted if value is not None]
    size = len(body) + len(tests) - 1
    return [
        *(_op(_JUMP_UNEQUAL, register, offset=size - at, value=value) for at, (register, value) in enumerate(tests)),
        *body,
    ]


def _answer(value: int) -> list[bytes]:
    return [_op(_SET, _ANSWER, value=value), _op(_EXIT)]


def _op(code: int, target: int = 0, source: int = 0, *, offset: int = 0, value: int = 0) -> bytes:
    """struct bpf_insn."""
    return struct.pack("=BBhi", code, target | source << 4, offset, value)


_SYS_BPF = 321  # x86-64; the set-up refuses other architectures
_PROG_LOAD, _PROG_ATTACH, _PROG_QUERY = 5, 8, 16
_TYPE_CGROUP_DEVICE, _AT_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI = 2  # the program of a group above has its say as well
_QUERY = struct.Struct("=IIIIQI4x")
_libc = ctypes.CDLL(None, use_errno=True)


def attach(folder: str, rules: Sequence[Rule]) -> None:
    """Put the v2 group `folder` and all below it under these rules, as long as it lives, unless it has some already.

    Raises OSError: EPERM without CAP_BPF and CAP_NET_ADMIN or CAP_SYS_ADMIN, EINVAL where the kernel has no such
    programs.
    """
    with _opened(folder) as group:
        if _attached(group):
            return
        program = _load(compile_rules(rules))
        try:
            _bpf(_PROG_ATTACH, struct.pack("=IIIII", group, program, _AT_CGROUP_DEVICE, _ALLOW_MULTI, 0))
        finally:
            os.close(program)


def attached(folder: str) -> int:
    """How many such programs the v2 group itself has."""
    with _opened(folder) as group:
        return _attached(group)


@contextmanager
def _opened(folder: str) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _attached(group: int) -> int:
    attributes = ctypes.create_string_buffer(_QUERY.pack(group, _AT_CGROUP_DEVICE, 0, 0, 0, 0))
    _bpf(_PROG_QUERY, attributes)
    return int(_QUERY.unpack(attributes.raw[: _QUERY.size])[5])


def _load(code: bytes) -> int:
    """A descriptor of the program."""
    text, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    return _bpf(_PROG_LOAD, struct.pack(
        "=IIQQ", _TYPE_CGROUP_DEVICE, len(code) // 8, ctypes.addressof(text), ctypes.addressof(licence)
    ))  # fmt: skip


def _bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    result = int(_libc.syscall(_SYS_BPF, command, attributes, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"bpf {command}")
    return result
