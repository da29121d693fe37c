"""Whom the OOM killer spares, where lowering is allowed and where it is not; and whom it took."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.linux import oom


def proc(root: Path, value: int) -> Path:
    file = root / "proc/self/oom_score_adj"
    file.parent.mkdir(parents=True)
    file.write_text(f"{value}\n")
    return file


def test_it_is_lowered_and_put_back(tmp_path: Path) -> None:
    file = proc(tmp_path, 100)
    with oom.spared(-500, tmp_path) as value:
        assert (value, file.read_text()) == (-500, "-500")
    assert file.read_text() == "100"


def test_what_is_lower_already_stays(tmp_path: Path) -> None:
    file = proc(tmp_path, -900)
    with oom.spared(-500, tmp_path) as value:
        assert (value, int(file.read_text())) == (-900, -900)


def test_where_lowering_is_refused_it_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = proc(tmp_path, 0)

    def refuse(self: Path, text: str) -> int:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    with oom.spared(-500, tmp_path) as value:
        assert (value, int(file.read_text())) == (0, 0)
    assert not oom.adjust("self", 500, tmp_path)


def test_one_that_is_gone_cannot_be_adjusted(tmp_path: Path) -> None:
    assert not oom.adjust(1, 500, tmp_path)


EVENTS = "low 0\nhigh 0\nmax 7\noom {limit}\noom_kill {kills}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"
TAKEN = "killed by the OOM killer"


@pytest.mark.parametrize(
    ("kills", "limit", "cause"),
    [(0, 0, None), (0, 3, None), (1, 0, TAKEN), (1, 3, f"{TAKEN}, at its memory limit")],
)
@pytest.mark.parametrize("version", ["memory", "unified"])
def test_a_cause_is_what_the_group_counted(
    tmp_path: Path, version: str, kills: int, limit: int, cause: str | None
) -> None:
    """A limit that was met and survived is no cause; a kill without one was the host's."""
    if version == "memory":
        (tmp_path / "memory.oom_control").write_text(CONTROL.format(kills=kills))
        (tmp_path / "memory.failcnt").write_text(f"{limit}\n")
    else:
        (tmp_path / "memory.events").write_text(EVENTS.format(limit=limit, kills=kills))
    assert oom.cause({"pids": "/elsewhere", version: str(tmp_path)}) == cause


def test_without_a_counter_there_is_no_cause(tmp_path: Path) -> None:
    """A group that is gone, a kernel that does not count, no memory group at all."""
    assert oom.cause({"memory": str(tmp_path / "gone")}) is None
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
    assert oom.cause({"memory": str(tmp_path)}) is None
    assert oom.cause({"pids": str(tmp_path)}) is None
    assert oom.cause({}) is None
