"""State folders of runs: found whenever their process was killed, and never those of others."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import click.testing
import msgspec
import pytest

from bench.analysis.quality import quality
from bench.analysis.summary import summarise
from bench.cli import cli
from bench.errors import HostError, StopError
from bench.model import RunId
from bench.records import DISTURBED, NoteRecord
from bench.store import RunWriter, read_run
from bench.verbs import session
from bench.verbs.neighbours import Neighbours
from bench.verbs.registry import Entry, alive, beside, claimed, entries, registered
from tests.unit.fabricated import run_data

ENTRY = Entry(RunId("20261124-000000-test-abc123"), 1, "results", None)
OTHER = Entry(RunId("20261124-000001-test-xyz789"), 2, "results", None)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_STATE", str(tmp_path))
    return tmp_path


def test_a_live_run_is_found_and_held_and_goes(state: Path) -> None:
    with registered(ENTRY) as folder:
        assert entries() == [ENTRY]
        assert alive(ENTRY.run) == ENTRY
        assert folder == state / "abc123"
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("torn", [None, b"", b'{"run":"2026'])
def test_one_killed_before_it_said_who_it_is_is_found_by_its_token(state: Path, torn: bytes | None) -> None:
    (state / "abc123").mkdir()
    if torn is not None:
        (state / "abc123" / "run.json").write_bytes(torn)
    (found,) = entries()
    assert found.run == "abc123"
    with claimed(found) as claim:
        assert claim == state / "abc123"


def test_what_is_no_runs_is_left_alone(state: Path) -> None:
    (state / "abc123" / "c1").mkdir(parents=True)
    (state / "abc123" / "c1" / "record.json").write_text("{}")
    (state / "cache-of-others").mkdir()
    (state / "readme").write_text("six letters, no folder")
    assert entries() == []


def test_a_state_folder_that_can_not_be_written(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(HostError, match="No space left"), registered(ENTRY):
        pass


def test_runs_at_the_same_time_know_of_each_other() -> None:
    with registered(ENTRY) as one:
        assert beside(one) == []
        with registered(OTHER) as other:
            assert beside(other) == [ENTRY.run]
            assert beside(one) == [OTHER.run]
        assert beside(one) == [OTHER.run], "also after it has ended"


def test_a_dead_run_disturbs_nobody(state: Path) -> None:
    (state / "xyz789").mkdir()
    (state / "xyz789" / "run.json").write_text("{}")
    with registered(ENTRY) as one:
        assert beside(one) == []


def test_a_lock_held_by_someone_else_is_a_live_run(state: Path) -> None:
    (state / "xyz789").mkdir()
    fd = os.open(state / "xyz789" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with registered(ENTRY) as one:
        assert beside(one) == ["xyz789"], "it has not said yet who it is"
    os.close(fd)


def test_each_other_run_is_noted_once(tmp_path: Path) -> None:
    data = run_data(rounds=1)
    with registered(ENTRY) as state, RunWriter(tmp_path / "results", data.info, data.host) as kept:
        neighbours = Neighbours(kept, state)
        neighbours.append(data.records[0])
        neighbours.sync()
        with registered(OTHER):
            neighbours.sync()
        neighbours.sync()
    told = DISTURBED + OTHER.run
    assert neighbours.said == [told]
    back = read_run(kept.path)
    assert [one.text for one in back.records if isinstance(one, NoteRecord)] == [told]
    assert back.records[0] == data.records[0]


def test_a_run_that_was_disturbed_and_killed_is_doubted_all_the_same() -> None:
    data = run_data(rounds=1)
    note = NoteRecord(date=1.0, level="warning", text=DISTURBED + OTHER.run)
    noted = msgspec.structs.replace(data, records=(*data.records, note))
    doubts = [one for one in quality(noted, summarise(noted)) if one.message.startswith(DISTURBED)]
    assert [one.remedy for one in doubts] == ["run one at a time"]
    assert not [one for one in quality(data, summarise(data)) if DISTURBED in one.message]


def test_what_can_not_be_ended_keeps_the_folder_for_clean(state: Path) -> None:
    with pytest.raises(StopError), registered(ENTRY):
        raise StopError("pid 7 stays")
    assert entries() == [ENTRY]
    with claimed(ENTRY) as claim:
        assert claim is not None, "and its lock is free"


def test_clean_takes_the_draft_of_a_run_that_never_had_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    draft, other = results / f".{ENTRY.run}.tmp", results / f".{OTHER.run}.tmp"
    for folder in (draft, other):
        (folder / "logs").mkdir(parents=True)
    entry = msgspec.structs.replace(ENTRY, results=str(results))
    monkeypatch.setenv("BENCH_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(session, "driver_names", list)  # theirs is root's to find
    with pytest.raises(StopError), registered(entry):
        raise StopError("its folder stays, as a killed one's does")
    done = click.testing.CliRunner().invoke(cli, ["clean", entry.run])
    assert (done.exit_code, done.output) == (
        0, f"{entry.run}: removed its state folder and 1 leftovers\n  file {draft}\n"
    )  # fmt: skip
    assert list(results.iterdir()) == [other], "of a run that may live"
