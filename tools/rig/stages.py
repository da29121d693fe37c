"""What the rig's job goes through, and reading its log: pure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

STAGES = ("doctor", "density", "report", "tests")
TESTS = (
    *(
        f"tests/integration/test_{name}.py"
        for name in (
            "groups_v2", "rootless_groups", "limits", "spec_mounts", "lifecycle", "confinement", "spec_features",
            "escapes", "samplers_real", "host_costs", "driver_contract",
        )
    ),
    "-k 'not vm and not docker and not filter_in_force and not borrows and not who_joins and not full_ramp'",
)  # fmt: skip
"""Where cgroups can make a difference. What is left out, and why: docs/testing.md."""

_LINE = re.compile(r"^rig: (\w+) (passed|FAILED with \d+) after (\d+) s$", re.MULTILINE)


class Verdict(Struct, frozen=True):
    """How a stage ended, in the job's own words; `seconds` are the guest's, and emulated."""

    stage: str
    said: str
    seconds: int | None = None

    @property
    def passed(self) -> bool:
        return self.said == "passed"


def verdicts(text: str, stages: Sequence[str]) -> list[Verdict]:
    """One for each stage of `stages`, and for the preparation; those the log does not tell of did not end."""
    said = {match[1]: Verdict(match[1], match[2], int(match[3])) for match in _LINE.finditer(text)}
    return [said.get(name, Verdict(name, "did not end")) for name in ("prepare", *stages)]


def summary(found: Sequence[Verdict], status: int | None, seconds: float, out: Path) -> str:
    """A few lines for people."""
    lines = [f"{one.stage:10} {one.said}" + _after(one) + _counts(one, out) for one in found]
    end = "the guest was killed, or ended without a status" if status is None else f"status {status}"
    return "\n".join([*lines, f"{end}, {seconds:.0f} s in all", ""])


def _after(one: Verdict) -> str:
    return "" if one.seconds is None else f" ({one.seconds} s)"


def _counts(one: Verdict, out: Path) -> str:
    path = out / "tests.xml"
    if one.stage != "tests" or not path.exists():
        return ""
    suite = ET.parse(path).getroot().find("testsuite")
    if suite is None:
        return ""
    return "".join(f", {suite.get(name)} {name}" for name in ("tests", "failures", "errors", "skipped"))
