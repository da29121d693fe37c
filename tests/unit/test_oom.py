"""Who is spared by the OOM killer, where lowering is allowed and where it is not."""

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
