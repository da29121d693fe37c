"""OCI linux.seccomp -> the cBPF program that `bench.linux.seccomp.load_filter` loads, through libseccomp.

libseccomp is imported only to compile: the import alone takes longer than a launch. Programs are kept, in memory and on
disk.
"""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import importlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from bench.container.spec_records import Architecture, Seccomp, SyscallArg, SyscallRule
from bench.errors import ConfigError, HostError
from bench.linux import bpf_ranges
from bench.linux import seccomp as kernel
from bench.linux.bpf import ARCH, JEQ, JGE, JGT, LOAD, NUMBER, RETURN, Instruction, decode, encode

_ARCHITECTURES: dict[Architecture, str] = {"SCMP_ARCH_X86_64": "X86_64", "SCMP_ARCH_X86": "X86", "SCMP_ARCH_X32": "X32"}
_SEEN: dict[Architecture, int] = {  # as what a filter sees calls of it
    "SCMP_ARCH_X86_64": kernel.ARCH_X86_64,
    "SCMP_ARCH_X86": kernel.ARCH_I386,
    "SCMP_ARCH_X32": kernel.ARCH_X86_64,
}
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": kernel.FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": kernel.FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": kernel.FLAG_SPEC_ALLOW,
}
_LIBRARIES = tuple(f"{folder}/libseccomp.so.2" for folder in ("/lib/*", "/lib64", "/usr/lib", "/usr/local/lib"))
_FORMAT = 2  # of the programs on disk: raise it when this module makes other programs of the same profile
_BINARY_TREE = 2  # log(n) comparisons a call instead of n; the kernel tries every call when it loads the filter
_UNKNOWN = -1  # libseccomp's number for a name it never heard of; others below 0 are names of other architectures


def compile(seccomp: Seccomp) -> bytes:
    """The filter as an array of struct sock_filter, the same bytes for the same profile and libseccomp.

    Raises ConfigError for a profile that can't be compiled, HostError without libseccomp.
    """
    return _compiled(seccomp)


def compile_file(seccomp: Seccomp, folder: Path) -> Path:
    """A file that holds what `compile` returns. It stays, so that libseccomp is not needed again for the same profile.

    `folder` is this program's own; a damaged file in it is replaced. Raises OSError if it can't be written.
    """
    name = _name(seccomp)
    if name is not None and (kept := _kept(folder, name)) is not None:
        return kept
    return _keep(folder, name or "unnamed", compile(seccomp))


def filter_flags(seccomp: Seccomp) -> int:
    """The profile's flags as `load_filter` takes them."""
    return sum({_FLAGS[name] for name in seccomp.flags})


# --- compiling ---------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _compiled(seccomp: Seccomp) -> bytes:
    library = _libseccomp()
    try:
        made = _filter(library, seccomp)
        with tempfile.TemporaryFile() as file:
            made.export_bpf(file)
            file.seek(0)
            program = file.read()
    except OSError as error:
        raise ConfigError(f"linux.seccomp: libseccomp refuses it: {error.strerror}") from error
    program = _shortened([*_newer_calls(library, seccomp), *decode(program)])
    if len(program) > kernel.MAX_INSTRUCTIONS * kernel.INSTRUCTION:
        raise ConfigError(f"linux.seccomp: it takes more than the kernel's {kernel.MAX_INSTRUCTIONS} instructions")
    return program


def _shortened(program: list[Instruction]) -> bytes:
    try:
        return encode(bpf_ranges.shorten(program))
    except bpf_ranges.Unsuitable:  # a mask on the number, say: right as it is, and longer
        return encode(program)


def _libseccomp() -> ModuleType:
    try:
        module: ModuleType = importlib.import_module("pyseccomp")
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: the binding is there, the library is not
        raise HostError(
            f"seccomp filters can't be compiled: {error}", hint="apt-get install libseccomp2; pip install pyseccomp"
        ) from error
    return module


def _filter(library: ModuleType, seccomp: Seccomp) -> Any:
    default = _action(library, seccomp.default_action, seccomp.default_errno_ret)
    made = library.SyscallFilter(default)
    made.set_attr(library.Attr.CTL_OPTIMIZE, _BINARY_TREE)
    for architecture in seccomp.architectures:
        if not _native(library, architecture):
            made.add_arch(getattr(library.Arch, _ARCHITECTURES[architecture]))
    for rule in seccomp.syscalls:
        action = _action(library, rule.action, rule.errno_ret)
        if action != default:  # libseccomp takes a rule that changes nothing for a mistake
            for name in rule.names:
                _add(library, made, rule, name, action)
    return made


def _native(library: ModuleType, name: Architecture) -> bool:
    return bool(getattr(library.Arch, _ARCHITECTURES[name]) == library.system_arch())


def _action(library: ModuleType, name: str, number: int | None) -> int:
    word = name.removeprefix("SCMP_ACT_")
    if word in ("ERRNO", "TRACE"):
        return int(getattr(library, word)(errno.EPERM if number is None else number))
    return int(getattr(library, word))


def _add(library: ModuleType, made: Any, rule: SyscallRule, name: str, action: int) -> None:
    number = library.resolve_syscall(library.Arch.NATIVE, name)
    if number == _UNKNOWN:
        # Without its allow rule the call gets the default action, which is stricter. A refusal must not get lost so.
        if rule.action != "SCMP_ACT_ALLOW":
            raise ConfigError(
                f"linux.seccomp: this libseccomp does not know {name!r}, which is to be answered with {rule.action}",
                hint="take the name out if it is misspelt, or install a newer libseccomp2",
            )
        return
    for args in _alternatives(rule.args):
        made.add_rule(action, number, *(_condition(library, arg) for arg in args))


def _alternatives(args: Sequence[SyscallArg]) -> Iterable[Sequence[SyscallArg]]:
    """libseccomp takes one condition an argument. Several on the same one mean "any of these" to other runtimes too."""
    if len({arg.index for arg in args}) == len(args):
        return [args]
    return [[arg] for arg in args]


def _condition(library: ModuleType, arg: SyscallArg) -> Any:
    return library.Arg(arg.index, getattr(library, arg.op.removeprefix("SCMP_CMP_")), arg.value, arg.value_two)


def _newer_calls(library: ModuleType, seccomp: Seccomp) -> list[Instruction]:
    """Calls newer than the newest one the profile names get ENOSYS, not EPERM: its author can't have meant them, and C
    libraries fall back to an older call on ENOSYS only. Left out where the profile says itself what refusals answer.
    """
    if seccomp.default_action != "SCMP_ACT_ERRNO" or seccomp.default_errno_ret is not None:
        return []
    found = []
    for name, arch in _SEEN.items():
        if name in seccomp.architectures or _native(library, name):
            numbers = _numbers(library, seccomp, _ARCHITECTURES[name])
            if numbers:
                found += _above(arch, max(numbers))
    return found


def _numbers(library: ModuleType, seccomp: Seccomp, architecture: str) -> list[int]:
    arch = getattr(library.Arch, architecture)
    names = {name for rule in seccomp.syscalls for name in rule.names}
    return [number for name in names if (number := library.resolve_syscall(arch, name)) >= 0]


def _above(arch: int, newest: int) -> list[Instruction]:
    """ENOSYS for numbers above `newest` on `arch`. x32's, far above, are no such numbers of x86-64's."""
    beyond = 0xFFFFFFFF if newest >= kernel.X32_BIT else kernel.X32_BIT
    return [
        Instruction(LOAD, 0, 0, ARCH),
        Instruction(JEQ, 0, 4, arch),
        Instruction(LOAD, 0, 0, NUMBER),
        Instruction(JGE, 2, 0, beyond),
        Instruction(JGT, 0, 1, newest),
        Instruction(RETURN, 0, 0, kernel.RET_ERRNO | errno.ENOSYS),
    ]


# --- programs on disk --------------------------------------------------------------------------------------------


def _name(seccomp: Seccomp) -> str | None:
    """Of the profile, the libseccomp that would compile it, and this module; None if the second can't be told."""
    library = _library_stamp()
    if library is None:
        return None
    return hashlib.sha256(msgspec.json.encode([_FORMAT, library, seccomp])).hexdigest()[:32]


@functools.cache
def _library_stamp() -> str | None:
    """Which libseccomp would compile, told without loading it; None if it is in no usual place."""
    for pattern in _LIBRARIES:
        for path in sorted(glob.glob(pattern)):
            real = os.path.realpath(path)
            found = os.stat(real)
            return f"{real} {found.st_size} {found.st_mtime_ns}"
    return None


def _file(folder: Path, name: str, program: bytes) -> Path:
    """Its name tells what is in it: a filter that lost its end, or a bit, might let more through."""
    return folder / f"seccomp-{name}-{hashlib.sha256(program).hexdigest()[:32]}.bpf"


def _kept(folder: Path, name: str) -> Path | None:
    for path in sorted(folder.glob(f"seccomp-{name}-*.bpf")):
        if _file(folder, name, path.read_bytes()) == path:
            return path
    return None


def _keep(folder: Path, name: str, program: bytes) -> Path:
    """Under another name first: a second process may be reading, or writing the same."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = _file(folder, name, program)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".seccomp-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(program)
    os.replace(temporary, path)
    return path
