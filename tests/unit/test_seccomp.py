"""Profiles to cBPF: what the program answers, what is refused, what is kept; and the interpreter that tells."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.container import seccomp
from bench.container.spec import default_seccomp
from bench.container.spec_records import Action, Seccomp, SyscallArg, SyscallRule
from bench.errors import ConfigError
from bench.linux import bpf
from bench.linux import seccomp as kernel
from bench.linux.bpf import Instruction

READ, GETPID, CLONE, PERSONALITY, SOCKET, KEXEC, CLONE3 = 0, 39, 56, 135, 41, 246, 435
ALL = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")


def allow(*names: str, args: Sequence[SyscallArg] = ()) -> SyscallRule:
    return SyscallRule(names, "SCMP_ACT_ALLOW", None, tuple(args))


def profile(*rules: SyscallRule, default: Action = "SCMP_ACT_ERRNO", number: int | None = None) -> Seccomp:
    return Seccomp(default, number, ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"), (), rules)


def answer(program: bytes, number: int, *args: int, arch: int = kernel.ARCH_X86_64) -> str:
    return bpf.describe(bpf.run(program, number, arch, args))


# --- compiling ---------------------------------------------------------------------------------------------------


def test_the_default_profile_answers_by_call_and_arguments() -> None:
    program = seccomp.compile(default_seccomp())
    assert answer(program, READ) == answer(program, READ | kernel.X32_BIT) == "allow"
    assert answer(program, 3, arch=kernel.ARCH_I386) == "allow"  # read, there
    assert answer(program, KEXEC) == "errno EPERM"
    assert answer(program, CLONE3) == answer(program, 599) == "errno ENOSYS"
    assert answer(program, CLONE, 0x1200011) == "allow"
    assert answer(program, CLONE, 0x10000000) == "errno EPERM"
    assert answer(program, PERSONALITY, 0xFFFFFFFF) == "allow"
    assert answer(program, PERSONALITY, 0x40000) == "errno EPERM"
    assert answer(program, READ, arch=0xC00000B7) == "kill_thread"  # AArch64


def test_sockets_of_every_family_but_vsock() -> None:
    program = seccomp.compile(default_seccomp())
    assert [family for family in range(46) if answer(program, SOCKET, family) != "allow"] == [40]
    # Of a word with more than 32 bits the kernel would take the lower half.
    assert {answer(program, SOCKET, family | 1 << 32) for family in range(46)} == {"errno EPERM"}


def test_the_same_profile_is_the_same_program() -> None:
    first = seccomp.compile(default_seccomp())
    seccomp._compiled.cache_clear()
    assert seccomp.compile(default_seccomp()) == first
    assert len(first) % 8 == 0
    assert len(first) <= 4096 * 8


def test_every_action_and_errno() -> None:
    actions: tuple[tuple[Action, str], ...] = (
        ("SCMP_ACT_KILL", "kill_thread"), ("SCMP_ACT_KILL_THREAD", "kill_thread"),
        ("SCMP_ACT_KILL_PROCESS", "kill_process"), ("SCMP_ACT_TRAP", "trap"), ("SCMP_ACT_ERRNO", "errno ENOENT"),
        ("SCMP_ACT_TRACE", "trace"), ("SCMP_ACT_LOG", "log"),
    )  # fmt: skip
    for action, expected in actions:
        program = seccomp.compile(
            profile(SyscallRule(("getpid",), action, 2 if "E" in expected else None), default="SCMP_ACT_ALLOW")
        )
        assert answer(program, GETPID) == expected
        assert answer(program, READ) == "allow"


def test_conditions_on_several_arguments_all_hold_and_on_one_any() -> None:
    both = [SyscallArg(0, 1, "SCMP_CMP_EQ"), SyscallArg(1, 5, "SCMP_CMP_GE")]
    program = seccomp.compile(profile(allow("read", args=both)))
    answers = [answer(program, READ, *args) for args in ((1, 5), (1, 4), (2, 5))]
    assert answers == ["allow", "errno EPERM", "errno EPERM"]
    either = [SyscallArg(0, 1, "SCMP_CMP_EQ"), SyscallArg(0, 7, "SCMP_CMP_EQ")]
    program = seccomp.compile(profile(allow("read", args=either)))
    assert [answer(program, READ, arg) for arg in (1, 7, 2)] == ["allow", "allow", "errno EPERM"]


def test_calls_newer_than_the_profile_are_not_there_unless_it_says_what_refusals_answer() -> None:
    program = seccomp.compile(profile(allow("read", "openat2")))  # 437
    assert answer(program, 436) == "errno EPERM"
    assert answer(program, 438) == answer(program, 438, arch=kernel.ARCH_I386) == "errno ENOSYS"
    assert answer(program, 438 | kernel.X32_BIT) == "errno ENOSYS"
    assert answer(seccomp.compile(profile(allow("read"), number=errno.EACCES)), 438) == "errno EACCES"
    assert answer(seccomp.compile(profile(allow("read"), default="SCMP_ACT_KILL_PROCESS")), 438) == "kill_process"


def test_a_profile_without_architectures_is_about_the_native_one() -> None:
    program = seccomp.compile(msgspec.structs.replace(profile(allow("read")), architectures=()))
    assert answer(program, READ) == "allow"
    assert answer(program, 3, arch=kernel.ARCH_I386) == "kill_thread"
    assert answer(program, READ | kernel.X32_BIT) == "kill_thread"


def test_an_unknown_name_is_left_out_only_where_that_is_stricter() -> None:
    assert answer(seccomp.compile(profile(allow("read", "no_such_call"))), READ) == "allow"
    for action in ("SCMP_ACT_ERRNO", "SCMP_ACT_LOG", "SCMP_ACT_KILL"):
        with pytest.raises(ConfigError, match="no_such_call"):
            seccomp.compile(profile(SyscallRule(("no_such_call",), action), default="SCMP_ACT_ALLOW"))


def test_rules_that_say_what_the_default_says_are_no_mistake() -> None:
    program = seccomp.compile(profile(SyscallRule(("getpid",), "SCMP_ACT_ERRNO", 1), allow("read")))
    assert answer(program, GETPID) == "errno EPERM"


def test_flags_are_the_kernels() -> None:
    flags = ("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG")
    assert seccomp.filter_flags(msgspec.structs.replace(profile(), flags=flags)) == 6


# --- programs on disk --------------------------------------------------------------------------------------------


def _compiling(_: Seccomp) -> bytes:
    raise AssertionError("it is compiled again")


def test_a_kept_program_is_used_without_libseccomp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, folder = profile(allow("read")), tmp_path / "cache"
    kept = seccomp.compile_file(wanted, folder)
    assert kept.read_bytes() == seccomp.compile(wanted)
    monkeypatch.setattr(seccomp, "_compiled", _compiling)
    assert seccomp.compile_file(wanted, folder) == kept
    with pytest.raises(AssertionError):
        seccomp.compile_file(profile(allow("write")), folder)
    monkeypatch.setattr(seccomp, "_library_stamp", lambda: "another libseccomp")
    with pytest.raises(AssertionError):
        seccomp.compile_file(wanted, folder)
    assert list(folder.iterdir()) == [kept]


def test_a_program_is_kept_even_where_its_libseccomp_can_not_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "_library_stamp", lambda: None)
    kept = seccomp.compile_file(profile(allow("read")), tmp_path)
    assert kept.read_bytes() == seccomp.compile(profile(allow("read")))
    monkeypatch.setattr(seccomp, "_compiled", _compiling)
    with pytest.raises(AssertionError):
        seccomp.compile_file(profile(allow("read")), tmp_path)


_DAMAGES = [lambda data: data[:-8], lambda data: b"", lambda data: data[:40] + b"\0" + data[41:]]


@pytest.mark.parametrize("damage", _DAMAGES, ids=["cut", "empty", "changed"])
def test_a_damaged_kept_program_is_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    wanted = profile(allow("read"))
    kept = seccomp.compile_file(wanted, tmp_path)
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert seccomp.compile_file(wanted, tmp_path) == kept
    assert kept.read_bytes() == whole


# --- the interpreter ---------------------------------------------------------------------------------------------

_SOME = [
    Instruction(bpf.LOAD, 0, 0, bpf.NUMBER),
    Instruction(bpf.JEQ, 0, 3, READ),
    Instruction(bpf.LOAD, 0, 0, 16),  # the lower half of the first argument
    Instruction(bpf.AND, 0, 0, 0xF0),
    Instruction(bpf.JSET, 0, 1, 0x30),
    Instruction(bpf.RETURN, 0, 0, kernel.RET_ALLOW),
    Instruction(bpf.RETURN, 0, 0, kernel.RET_ERRNO | errno.EPERM),
]


def test_a_program_by_hand() -> None:
    program = bpf.encode(_SOME)
    assert bpf.decode(program) == _SOME
    assert [answer(program, READ, arg) for arg in (0x10, 0x20, 0x40, 0x01)] == ["allow"] * 2 + ["errno EPERM"] * 2
    assert bpf.answers(program, READ, kernel.ARCH_X86_64) == {kernel.RET_ALLOW, kernel.RET_ERRNO | errno.EPERM}
    assert bpf.argument_constants(program) == {0: {0xF0, 0x30}}


@pytest.mark.parametrize(
    "code",
    [
        [],
        [Instruction(bpf.LOAD, 0, 0, 0)],
        [Instruction(bpf.JUMP, 0, 0, 9), Instruction(bpf.RETURN, 0, 0, 0)],
        [Instruction(0x16, 0, 0, 0)],  # return what is in the accumulator
        [Instruction(bpf.LOAD, 0, 0, 64), Instruction(bpf.RETURN, 0, 0, 0)],
    ],
)
def test_what_is_no_seccomp_program_is_refused(code: list[Instruction]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each says something else
        bpf.run(code, 0, 0)


def test_weaker_is_what_lets_more_through() -> None:
    allowed, refused = kernel.RET_ALLOW, kernel.RET_ERRNO | errno.EPERM
    assert bpf.weaker(allowed, refused)
    assert not bpf.weaker(refused, allowed)
    assert not bpf.weaker(refused, kernel.RET_ERRNO | errno.ENOSYS)
    assert bpf.weaker(kernel.RET_LOG, kernel.RET_KILL_PROCESS)
    assert bpf.describe(0x12340000) == "kill_process"


_NAMES = ("read", "write", "openat", "clone", "socket", "kexec_load", "ioctl", "mmap", "prctl")
_OPERATORS = {
    "SCMP_CMP_NE": lambda value, a, b: value != a, "SCMP_CMP_EQ": lambda value, a, b: value == a,
    "SCMP_CMP_LT": lambda value, a, b: value < a, "SCMP_CMP_GT": lambda value, a, b: value > a,
    "SCMP_CMP_LE": lambda value, a, b: value <= a, "SCMP_CMP_GE": lambda value, a, b: value >= a,
    "SCMP_CMP_MASKED_EQ": lambda value, a, b: value & a == b,
}  # fmt: skip
_WORDS = st.sampled_from([0, 1, 7, 40, 1 << 31, 1 << 32, (1 << 64) - 1])


@given(
    st.lists(st.sampled_from(_NAMES), unique=True, max_size=5),
    st.sampled_from(sorted(_OPERATORS)), st.integers(0, 5), _WORDS, _WORDS, st.lists(_WORDS, min_size=6, max_size=6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_programs_mean_what_their_profile_says(
    names: list[str], operator: str, index: int, value: int, second: int, args: list[int]
) -> None:
    """Against the profile read as plain logic, over both compiler and interpreter."""
    second = second & value if operator == "SCMP_CMP_MASKED_EQ" else 0
    condition = SyscallArg(index, value, operator, second)  # type: ignore[arg-type]
    program = seccomp.compile(profile(*([allow(*names)] if names else []), allow("getpid", args=[condition])))
    import pyseccomp

    for name in _NAMES:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.X86_64, name)
        assert (answer(program, number) == "allow") == (name in names)
        assert len(bpf.answers(program, number, kernel.ARCH_X86_64)) == 1
    holds = _OPERATORS[operator](args[index], value, second)
    assert (answer(program, GETPID, *args) == "allow") == holds


# --- in the kernel -----------------------------------------------------------------------------------------------


def _in_child(action: Callable[[], int]) -> int:
    pid = os.fork()
    if not pid:
        try:
            os._exit(action())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _filtered(program: bytes) -> int:
    """0 if, under the filter, umask works and sched_yield is what is refused."""
    from bench.linux.syscalls import prctl

    prctl(38, 1)  # no_new_privs: the filter then needs no privilege
    kernel.load_filter(program)
    os.umask(0)
    try:
        os.sched_yield()
    except OSError as error:
        return 0 if error.errno == errno.ENODEV else 2
    return 1


def test_the_kernel_takes_the_program_and_does_what_it_says() -> None:
    refusing = profile(SyscallRule(("sched_yield",), "SCMP_ACT_ERRNO", errno.ENODEV), default="SCMP_ACT_ALLOW")
    assert _in_child(lambda: _filtered(seccomp.compile(refusing))) == 0
    assert _in_child(lambda: _filtered(seccomp.compile(profile(default="SCMP_ACT_ALLOW")))) == 1


@pytest.mark.parametrize("program", [b"", b"1234567", bytes(8 * 4097)])
def test_what_is_no_program_never_reaches_the_kernel(program: bytes) -> None:
    with pytest.raises(ValueError, match="no seccomp filter"):
        kernel.load_filter(program)
