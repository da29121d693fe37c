"""Which recipes a child can carry out in the launcher's own memory (`linux.borrowing`), and which need a fork.

Whatever may end or leave the child in the middle of its set-up, forks in it, or needs the launcher awake meanwhile
takes the longer way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.linux import bpf, seccomp
from bench.linux.borrowing import SUPPORTED

_FORKING = frozenset(("hold", "reaper", "hook", "start_hook", "terminal", "rlimit"))
_UNDER_IT = frozenset(("capabilities", "ambient_set"))
_CALLS = {
    "mmap": 9, "munmap": 11, "brk": 12, "rt_sigprocmask": 14, "madvise": 28, "execve": 59, "exit": 60, "capset": 126,
    "prctl": 157, "futex": 202, "exit_group": 231,
}  # fmt: skip
"""What a child may call between its filter and exec, by their numbers on x86-64."""


def possible(fields: Mapping[str, Any]) -> bool:
    """For the fields of an `init.Recipe`."""
    names = [step[0] for step in fields["steps"]]
    needs_parent = fields["uid_map"] or fields["joins"] or fields["unified"] or fields["hooks"] or fields["terminal"]
    if not SUPPORTED or os.geteuid() or needs_parent or _FORKING & set(names):
        return False
    if any(name == "user" and values[0] for name, *values in fields["steps"]):
        return False  # on its last steps an ordinary user of that number could kill it, and with it all others
    if "seccomp" not in names:
        return True
    at = names.index("seccomp")
    return _UNDER_IT.issuperset(names[at + 1 :]) and _lets_go_on(fields["steps"][at])


def _lets_go_on(step: Sequence[Any]) -> bool:
    """Whether the filter of a `seccomp` step lets the child become the payload."""
    program = bpf.decode(Path(step[1]).read_bytes())
    passing = {seccomp.RET_ALLOW, seccomp.RET_LOG}
    return all(bpf.answers(program, number, seccomp.ARCH_X86_64) <= passing for number in _CALLS.values())
