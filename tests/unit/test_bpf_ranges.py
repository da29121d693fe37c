"""Filters made shorter: the same answer to every call, whatever the program was."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.container import seccomp
from bench.container.spec import default_seccomp
from bench.linux import bpf, bpf_ranges
from bench.linux import seccomp as kernel
from bench.linux.bpf import Instruction

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
ARCHES = (0, 3, 4, kernel.ARCH_I386, kernel.ARCH_X86_64)
ARGUMENTS = ((), (3,), (4 << 32,), (8, 3), (0xFFFFFFFF, 0))
OFFSETS = (bpf.NUMBER, bpf.ARCH, 16, 20, 24)

short = st.integers(0, 4)
constant = st.sampled_from((*NUMBERS, *ARCHES))
load = st.builds(Instruction, st.just(bpf.LOAD), st.just(0), st.just(0), st.sampled_from(OFFSETS))
compare = st.builds(Instruction, st.sampled_from((bpf.JEQ, bpf.JEQ, bpf.JGT, bpf.JGE)), short, short, constant)
instruction = st.one_of(
    load,
    *[compare] * 5,
    st.builds(Instruction, st.just(bpf.JUMP), st.just(0), st.just(0), short),
    st.builds(Instruction, st.just(bpf.RETURN), st.just(0), st.just(0), st.integers(0, 3)),
    st.builds(Instruction, st.sampled_from((bpf.AND, bpf.JSET)), st.just(0), st.just(0), constant),
)
ENDS = [Instruction(bpf.RETURN, 0, 0, 9 + at) for at in range(6)]  # no jump passes it


def ret(action: int) -> Instruction:
    return Instruction(bpf.RETURN, 0, 0, action)


@settings(max_examples=300)
@given(load, st.lists(instruction, min_size=1, max_size=24))
def test_any_program_answers_as_before(first: Instruction, body: list[Instruction]) -> None:
    program = [first, *body, *ENDS]
    try:
        made = bpf_ranges.shorten(program)
    except bpf_ranges.Unsuitable:
        return
    for number, arch, args in product(NUMBERS, ARCHES, ARGUMENTS):
        assert bpf.run(made, number, arch, args) == bpf.run(program, number, arch, args), (number, arch, args)


def test_the_default_profile_answers_as_libseccomp_s_program(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = bpf.decode(seccomp.compile(default_seccomp()))
    monkeypatch.setattr(seccomp, "_shortened", bpf.encode)
    seccomp._compiled.cache_clear()
    theirs = bpf.decode(seccomp.compile(default_seccomp()))
    seccomp._compiled.cache_clear()
    assert len(ours) < len(theirs) / 3
    arguments = [(value, 0, value) for found in bpf.argument_constants(theirs).values() for value in found]
    for arch in (kernel.ARCH_X86_64, kernel.ARCH_I386, 5):
        for number in (*range(600), *range(kernel.X32_BIT, kernel.X32_BIT + 600), 0xFFFFFFFF):
            said = bpf_ranges.answer(theirs, number, arch)
            assert bpf_ranges.answer(ours, number, arch).action == said.action
            for args in arguments if said.action is None else ():
                assert bpf.run(ours, number, arch, args) == bpf.run(theirs, number, arch, args), (number, arch, args)


def test_more_ranges_than_a_jump_can_pass() -> None:
    program = [Instruction(bpf.LOAD, 0, 0, bpf.NUMBER)]
    for number in range(0, 1200, 2):
        program += [Instruction(bpf.JEQ, 0, 1, number), ret(number)]
    program.append(ret(9999))
    made = bpf_ranges.shorten(program)
    for number in range(1210):
        assert bpf.run(made, number, kernel.ARCH_X86_64) == (9999 if number % 2 or number >= 1200 else number)
    assert max(max(one.jt, one.jf) for one in made) <= 255
    bpf.encode(made)


def test_neighbours_with_one_answer_cost_one_comparison() -> None:
    program = [Instruction(bpf.LOAD, 0, 0, bpf.NUMBER)]
    for number in range(100):
        program += [Instruction(bpf.JEQ, 0, 1, number), ret(1)]
    program.append(ret(2))
    assert len(bpf_ranges.shorten(program)) == 5  # load the architecture, the number; compare; two answers


def test_what_ranges_cannot_express_is_refused_and_compiled_as_it_was() -> None:
    masked = [
        Instruction(bpf.LOAD, 0, 0, bpf.NUMBER),
        Instruction(bpf.AND, 0, 0, 0xF0),
        Instruction(bpf.JEQ, 0, 1, 0x10),
        ret(1),
        ret(2),
    ]
    with pytest.raises(bpf_ranges.Unsuitable):
        bpf_ranges.shorten(masked)
    assert seccomp._shortened(masked) == bpf.encode(masked)
    with pytest.raises(bpf_ranges.Unsuitable, match="architectures"):
        bpf_ranges.shorten([Instruction(bpf.LOAD, 0, 0, bpf.ARCH), Instruction(bpf.JGE, 0, 0, 7), ret(1)])


def test_a_program_without_end() -> None:
    with pytest.raises(ValueError, match="without an answer"):
        bpf_ranges.shorten([Instruction(bpf.LOAD, 0, 0, bpf.NUMBER)])
    with pytest.raises(ValueError, match="without an answer"):
        bpf_ranges.shorten([Instruction(bpf.LOAD, 0, 0, 16), Instruction(bpf.JUMP, 0, 0, 4), ret(1)])
