"""Device rules: what v1 is told, and what the v2 program answers, against the rules read one by one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.container.groups import CgroupLayout
from bench.container.limits import refuse_idle
from bench.container.spec_records import BlockIO, DeviceRule, Memory, Resources
from bench.errors import HostError
from bench.linux.devices import Rule, compile_rules, v1_lines

NONE, ALL = Rule(False, "a", None, None, "rwm"), Rule(True, "a", None, None, "rwm")

numbers = st.none() | st.integers(0, 2)
rules = st.lists(
    st.builds(
        Rule, st.booleans(), st.sampled_from("abc"), numbers, numbers, st.sampled_from(("r", "w", "m", "rw", "rwm"))
    ),
    max_size=6,
)


def test_v1_starts_from_nothing() -> None:
    wanted = [NONE, Rule(True, "c", 1, 3, "rw"), Rule(True, "b", 7, None, "m"), Rule(False, "c", 1, 3, "w")]
    assert v1_lines(wanted) == [
        (False, "a"), (False, "a"), (True, "c 1:3 rw"), (True, "b 7:* m"), (False, "c 1:3 w"),
    ]  # fmt: skip
    assert v1_lines([ALL])[-1] == (True, "a")


def test_a_part_of_all_devices_is_both_kinds_to_v1() -> None:
    """`a` alone would mean every access."""
    assert v1_lines([Rule(True, "a", None, None, "r")])[1:] == [(True, "b *:* r"), (True, "c *:* r")]


@pytest.mark.parametrize(
    "wanted",
    [
        [Rule(True, "c", None, None, "rw"), Rule(False, "c", 1, 3, "w")],
        [ALL, Rule(False, "c", 1, None, "rw"), Rule(True, "c", 1, 3, "r")],
        [Rule(True, "c", 1, 3, "r"), Rule(False, "c", 1, None, "r")],
    ],
)
def test_what_v1_would_take_no_notice_of_is_refused(wanted: list[Rule]) -> None:
    with pytest.raises(ValueError, match="is a part of"):
        v1_lines(wanted)


def test_v1_does_not_mind_what_does_not_overlap() -> None:
    v1_lines([Rule(True, "c", None, None, "m"), Rule(False, "c", 1, 3, "rw"), Rule(False, "b", None, None, "m")])


_LETTERS = {1: "m", 2: "r", 4: "w"}


def expected(wanted: list[Rule], kind: str, major: int, minor: int, access: int) -> bool:
    """Each kind of access asked for: the last rule about it."""
    for bit, letter in _LETTERS.items():
        about = (
            rule for rule in reversed(wanted)
            if letter in rule.access
            and rule.kind in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor)
        )  # fmt: skip
        last = next(about, None)
        if access & bit and not (last and last.allow):
            return False
    return True


def answer(program: bytes, kind: int, major: int, minor: int, access: int) -> int:
    """An interpreter of the few instructions used."""
    registers, at = [0] * 11, 0
    context = {0: access << 16 | kind, 4: major, 8: minor}
    code = list(struct.iter_unpack("=BBhi", program))
    while True:
        operation, pair, offset, value = code[at]
        target, source = pair & 15, pair >> 4
        at += 1
        if operation == 0x95:
            return registers[0]
        if operation == 0x61:
            registers[target] = context[offset]
        elif operation == 0xBF:
            registers[target] = registers[source]
        elif operation == 0xB7:
            registers[target] = value
        elif operation == 0x57:
            registers[target] &= value
        elif operation == 0x77:
            registers[target] >>= value
        elif (
            operation == 0x05
            or (operation == 0x55 and registers[target] != value)
            or (operation == 0x45 and registers[target] & value)
        ):
            at += offset
        else:
            assert operation in (0x55, 0x45), operation


@settings(max_examples=60, deadline=None)
@given(rules, st.sampled_from("bc"), st.integers(0, 3), st.integers(0, 3), st.integers(1, 7))
def test_the_v2_program_answers_as_the_rules_say(
    wanted: list[Rule], kind: str, major: int, minor: int, access: int
) -> None:
    program = compile_rules(wanted)
    assert answer(program, {"b": 1, "c": 2}[kind], major, minor, access) == expected(wanted, kind, major, minor, access)


# --- in the groups of instances ------------------------------------------------------------------------------------


def _folder(*rules: DeviceRule) -> str:
    layout = CgroupLayout({}, "/c")
    return layout.groups("p", Resources(devices=rules), ruled=True).parents["unified"]


def test_on_v2_instances_with_the_same_rules_share_a_group_above() -> None:
    zero, full = DeviceRule(False, "r", "c", 1, 5), DeviceRule(False, "r", "c", 1, 7)
    assert _folder(zero).startswith("/c/p/rules-")
    assert _folder(zero) == _folder(zero) != _folder(full)
    assert CgroupLayout({}, "/c").groups("p", Resources()).parents["unified"] == "/c/p"


def test_what_would_have_no_effect_is_refused(tmp_path: Path) -> None:
    queue = tmp_path / "sys/block/vda/queue"
    queue.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/swaps").write_text("Filename Type Size Used Priority\n")
    weighted, swapping = Resources(block_io=BlockIO(weight=100)), Resources(memory=Memory(limit=1, swap=2))
    (queue / "scheduler").write_text("none [mq-deadline] bfq\n")
    for wanted, said in ((weighted, "bfq"), (swapping, "no swap")):
        with pytest.raises(HostError, match=said):
            refuse_idle(wanted, tmp_path)
    (queue / "scheduler").write_text("none mq-deadline [bfq]\n")
    (tmp_path / "proc/swaps").write_text("Filename Type Size Used Priority\n/swap file 1 0 -2\n")
    for wanted in (weighted, swapping):
        refuse_idle(wanted, tmp_path)
    refuse_idle(Resources(memory=Memory(limit=1, swap=1)), tmp_path)
