"""A seccomp filter made shorter: the same answer to every call, found by ranges of numbers.

A filter from libseccomp compares with each number it knows; most neighbours get the same answer. The kernel copies,
compiles and, for its table of calls that are always let through, walks the filter at every load, so its length is
launch time (docs/runtime.md has what that came to).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.linux.bpf import ARCH, JEQ, JGE, JGT, JUMP, LOAD, NUMBER, RETURN, Instruction, Program, holds

_CLUSTER = 128  # ranges: as many comparisons, and at most as many answers, are within a conditional jump's 255
_HIGHEST = 0xFFFFFFFF
_OTHER = -1  # in the accumulator: neither the number nor the architecture
_COMPARISONS = (JEQ, JGT, JGE)


class Unsuitable(ValueError):
    """This filter looks at a call's number or architecture in a way that ranges can't express."""


class Answer(NamedTuple):
    """What a number gets: the action, or, where arguments decide, the place in the program that looks at them."""

    action: int | None
    place: int = -1


class _Range(NamedTuple):
    first: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class _Goto:
    """Stands for one instruction, a jump to a copied place."""

    place: int


def shorten(program: Program) -> list[Instruction]:
    """A filter that answers every call as `program` does. Raises Unsuitable, ValueError for a program without end."""
    compared = _compared(program)
    sections = [(arch, _ranges(program, arch, compared[NUMBER])) for arch in sorted(compared[ARCH])]
    rest = _ranges(program, _none_of(compared[ARCH]), compared[NUMBER])
    made: list[Instruction | _Goto] = [Instruction(LOAD, 0, 0, ARCH)]
    for arch, ranges in sections:
        if ranges == rest:
            continue
        body = [Instruction(LOAD, 0, 0, NUMBER), *_tree(ranges)]
        made += [Instruction(JEQ, 1, 0, arch), Instruction(JUMP, 0, 0, len(body)), *body]
    if len(rest) > 1:
        made.append(Instruction(LOAD, 0, 0, NUMBER))
    made += _tree(rest)
    return _placed(made, program)


def answer(program: Program, number: int, arch: int) -> Answer:
    """Follow the program as far as no argument matters. Raises Unsuitable, ValueError."""
    known = {NUMBER: number, ARCH: arch}
    value = at = 0
    while at < len(program):
        operation, jt, jf, k = program[at]
        if operation == RETURN:
            return Answer(k)
        if operation == LOAD and k not in known:
            return Answer(None, at)
        at += 1
        if operation == LOAD:
            value = known[k]
        elif operation == JUMP:
            at += k
        elif operation in _COMPARISONS:
            at += jt if holds(operation, value, k) else jf
        else:
            raise Unsuitable(f"instruction {operation:#x} on a call's number or architecture")
    raise ValueError("the program ends without an answer")


def _compared(program: Program) -> Mapping[int, set[int]]:
    """NUMBER and ARCH -> the constants they are compared with on any way through the program."""
    found: dict[int, set[int]] = {NUMBER: set(), ARCH: set(), _OTHER: set()}
    todo, seen = [(0, _OTHER)], set()
    while todo:
        at, holding = state = todo.pop()
        if state in seen or at >= len(program):
            continue
        seen.add(state)
        operation, jt, jf, k = program[at]
        if operation == LOAD:
            todo.append((at + 1, k if k in (NUMBER, ARCH) else _OTHER))
        elif operation in _COMPARISONS:
            if holding == ARCH and operation != JEQ:
                raise Unsuitable("a range of architectures")
            found[holding].add(k)
            todo += [(at + 1 + jt, holding), (at + 1 + jf, holding)]
        elif operation != RETURN:
            todo += [(way, holding) for way in _ways(program, at)]
    return found


def _none_of(constants: set[int]) -> int:
    return next(value for value in range(len(constants) + 1) if value not in constants)


def _ranges(program: Program, arch: int, compared: set[int]) -> list[_Range]:
    """All numbers from 0 on, in ranges with one answer each: it can change only where one is compared."""
    firsts = {0, *compared, *(number + 1 for number in compared if number < _HIGHEST)}
    found: list[_Range] = []
    for first in sorted(firsts):
        said = answer(program, first, arch)
        if not found or found[-1].answer != said:
            found.append(_Range(first, said))
    return found


def _tree(ranges: Sequence[_Range]) -> list[Instruction | _Goto]:
    """Find a number's range: in halves as long as jumps can't pass all of it, then in one cluster."""
    if len(ranges) <= _CLUSTER:
        return _cluster(ranges)
    middle = len(ranges) // 2
    below, above = _tree(ranges[:middle]), _tree(ranges[middle:])
    return [Instruction(JGE, 0, 1, ranges[middle].first), Instruction(JUMP, 0, 0, len(below)), *below, *above]


def _cluster(ranges: Sequence[_Range]) -> list[Instruction | _Goto]:
    """One comparison for each border between ranges, and behind them each answer once."""
    answers = list(dict.fromkeys(one.answer for one in ranges))
    leaves = {said: len(ranges) - 1 + index for index, said in enumerate(answers)}
    nodes: list[Instruction] = []

    def place(low: int, high: int) -> int:
        """Where ranges[low:high] are told apart."""
        if high - low == 1:
            return leaves[ranges[low].answer]
        at, middle = len(nodes), (low + high) // 2
        nodes.append(Instruction(JGE, 0, 0, ranges[middle].first))
        below = place(low, middle)
        above = place(middle, high)
        nodes[at] = Instruction(JGE, above - at - 1, below - at - 1, ranges[middle].first)
        return at

    place(0, len(ranges))
    return [*nodes, *(_Goto(said.place) if said.action is None else Instruction(RETURN, 0, 0, said.action)
                      for said in answers)]  # fmt: skip


def _placed(made: Sequence[Instruction | _Goto], program: Program) -> list[Instruction]:
    """With copies behind it of all places that look at arguments, and jumps to them."""
    reached = _reached(program, {one.place for one in made if isinstance(one, _Goto)})
    new = {old: len(made) + index for index, old in enumerate(reached)}
    heads = [
        Instruction(JUMP, 0, 0, new[one.place] - at - 1) if isinstance(one, _Goto) else one
        for at, one in enumerate(made)
    ]
    return heads + [_moved(program[old], old, new) for old in reached]


def _reached(program: Program, places: set[int]) -> list[int]:
    todo, seen = list(places), set()
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        if at >= len(program):
            raise ValueError("the program ends without an answer")
        seen.add(at)
        todo += _ways(program, at)
    return sorted(seen)


def _ways(program: Program, at: int) -> Iterator[int]:
    """Where it may go on from there."""
    operation, jt, jf, k = program[at]
    if operation == JUMP:
        yield at + 1 + k
    elif operation & 0x07 == 0x05:  # a conditional jump
        yield from (at + 1 + jt, at + 1 + jf)
    elif operation != RETURN:
        yield at + 1


def _moved(instruction: Instruction, old: int, new: Mapping[int, int]) -> Instruction:
    """As it was, its jumps now to where their targets are: no farther than before, for what lay between only went."""
    operation, jt, jf, k = instruction

    def offset(target: int) -> int:
        return new[target] - new[old] - 1

    if operation == JUMP:
        return Instruction(JUMP, jt, jf, offset(old + 1 + k))
    if operation & 0x07 == 0x05:
        return Instruction(operation, offset(old + 1 + jt), offset(old + 1 + jf), k)
    return instruction
