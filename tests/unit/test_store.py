"""The run folder: written, read back, torn, from another version, found by what a person types."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import process
from bench.analysis import frames, headline, summarise
from bench.errors import ResultsError
from bench.model import HostFacts, RunId, to_json
from bench.records import SCHEMA, NoteRecord
from bench.store import RunData, RunWriter, find_run, give_to_caller, list_runs, migrations, read_info, read_run, reader
from bench.store.files import drop_draft
from tests.unit.fabricated import RUN, host, info, run_data

NOTE = NoteRecord(date=1.0, level="info", text="hello")

OLD = {  # a run folder as version 1 wrote it, in its smallest form: must be readable for ever
    "run.json": json.dumps({
        "run": "20200101-000000-density-old001", "scenario": "density", "title": "t", "started": 1.0, "ended": None,
        "status": "running", "seed": 1, "command": ["bench"], "scenario_toml": "", "plan": [],
        "image": {"name": "i", "digest": "sha256:0", "layers": []},
        "payload": {"name": "idle", "command": ["/bin/sleep"], "ready": {"line": "ready"}},
        "limits": {"memory": 1, "cpus": 1.0, "pids": 1}, "drivers": {}, "accelerator": None, "versions": {},
        "a_field_of_a_later_minor_version": 1,
    }),
    "host.json": to_json(host()).decode(),
    "trials.jsonl": '{"kind":"note","date":1.0,"level":"info","text":"old","schema":1}\n',
}  # fmt: skip


def written(results: Path, data: RunData | None = None, *, finish: bool = True) -> Path:
    data = data or run_data(rounds=1)
    started = msgspec.structs.replace(data.info, status="running", ended=None, accelerator=None)
    with RunWriter(results, started, data.host) as writer:
        for record in data.records:
            writer.append(record)
        writer.sync()
        if finish:
            writer.finish("done", data.info.ended or 0.0, ["mind this"])
    return writer.path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    data = run_data(rounds=2)
    back = read_run(written(tmp_path / "made" / "results", data))
    assert back.records == data.records
    assert back.host == data.host
    assert back.info == msgspec.structs.replace(data.info, warnings=("mind this",))
    assert back.warnings == ()
    assert (tmp_path / "made" / "results" / RUN / "logs").is_dir()


def test_a_record_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    with RunWriter(tmp_path, info(status="running"), host()) as writer:
        writer.append(NOTE)
        assert read_run(writer.path).records == (NOTE,)
    assert read_info(writer.path).status == "running"  # not finished: as after a crash


class Killed:
    """An audit hook that ends its process, as SIGKILL does, before its `last`-th change of a file system."""

    def __init__(self, last: int) -> None:
        self._left = last

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ("os.mkdir", "os.rename") or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def killed(results: Path, last: int) -> bool:
    """Make a run folder in a process that ends so; whether it came to that."""
    if pid := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL)
        return status != 0
    try:
        sys.addaudithook(Killed(last))
        with RunWriter(results, info(status="running"), host()):
            os._exit(0)
    finally:
        os._exit(1)


def test_whenever_it_is_killed_there_is_a_whole_folder_or_none(tmp_path: Path) -> None:
    seen = []
    for last in itertools.count(1):
        results = tmp_path / str(last)
        results.mkdir()
        died = killed(results, last)
        seen.append(len(found := list_runs(results)))
        assert all(read_run(path).records == () for path in found)
        left = [path for path in results.iterdir() if path not in found]
        dropped = drop_draft(results / RUN)
        assert left == ([dropped] if dropped else []), "nothing but what clean takes away"
        assert list(results.iterdir()) == found
        if not died:
            break
    assert seen == sorted(seen), "once it is there it stays"
    assert seen.count(0) > 5, "a process that is never killed before the end proves nothing"


def test_a_folder_that_can_not_be_filled_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.fsync

    def full(fd: int) -> None:
        if "host.json" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        plain(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsError, match="No space left"), RunWriter(tmp_path, info(), host()):
        pass
    assert list(tmp_path.iterdir()) == []


def test_only_the_draft_of_that_run_is_dropped(tmp_path: Path) -> None:
    folder = written(tmp_path)
    other = tmp_path / ".20200101-000000-density-aaaaaa.tmp"
    other.mkdir()
    link = tmp_path / ".20200101-000000-density-bbbbbb.tmp"
    link.symlink_to(folder)
    assert drop_draft(folder) is None
    assert drop_draft(tmp_path / "20200101-000000-density-bbbbbb") is None
    assert sorted(tmp_path.iterdir()) == [other, link, folder]


def test_a_torn_last_line_is_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = written(tmp_path)
    trials = folder / "trials.jsonl"
    whole = len(read_run(folder).records)
    trials.write_bytes(trials.read_bytes()[:-20])
    back = read_run(folder)
    assert len(back.records) == whole - 1
    assert len(back.warnings) == 1
    assert f"{trials}:{whole}" in back.warnings[0]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path)
    trials = folder / "trials.jsonl"
    lines = trials.read_bytes().split(b"\n")
    lines[4] = lines[4].replace(b'"round":1', b'"round":"one"')
    trials.write_bytes(b"\n".join(lines))
    with pytest.raises(ResultsError, match=r"trials\.jsonl:5: .*round"):
        read_run(folder)


@pytest.mark.parametrize("name", ["run.json", "host.json"])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path)
    (folder / name).write_bytes(b'{"run": ')
    with pytest.raises(ResultsError, match=name):
        read_run(folder)
    (folder / name).unlink()
    with pytest.raises(ResultsError, match=f"{name}: is missing"):
        read_run(folder)


def test_a_folder_of_version_1_is_read(tmp_path: Path) -> None:
    for name, text in OLD.items():
        (tmp_path / name).write_text(text)
    back = read_run(tmp_path)
    assert isinstance(back.host, HostFacts)
    assert back.info.schema == SCHEMA, "brought up to date"
    assert [record.text for record in back.records if isinstance(record, NoteRecord)] == ["old"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", '{"schema": 99, "unknown": {}}'),
        ("trials.jsonl", '{"kind":"note","date":1.0,"level":"info","text":"x","schema":99}\n'),
        ("trials.jsonl", '{"kind":"hologram","schema":99}\n'),  # also a kind we do not know, on the last line
    ],
)
def test_a_newer_version_is_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    for file, old in OLD.items():
        (tmp_path / file).write_text(text if file == name else old)
    with pytest.raises(ResultsError, match="version 99") as caught:
        read_run(tmp_path)
    assert name in caught.value.message
    assert caught.value.hint


def test_a_run_is_written_once(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(ResultsError, match="is there already") as caught, RunWriter(tmp_path, info(), host()):
        pass
    assert caught.value.hint


@pytest.mark.parametrize("at_once", [1, 700, 5_000])
def test_records_do_not_depend_on_how_much_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    data = run_data(rounds=1)
    trials = written(tmp_path, data) / "trials.jsonl"
    lines = trials.read_bytes().splitlines(keepends=True)
    monkeypatch.setattr(reader, "_AT_ONCE", at_once)
    assert read_run(trials.parent).records == data.records
    trials.write_bytes(b"".join(lines)[:-1])
    assert read_run(trials.parent).records == data.records, "only the end of the last line is missing"
    for torn in (b"".join(lines[:20]) + lines[20][:30], b"".join(lines)[:-9]):
        trials.write_bytes(torn)
        back = read_run(trials.parent)
        assert back.records == data.records[: len(back.records)]
        assert len(back.records) == torn.count(b"\n")
        assert "torn" in back.warnings[0]
    for place in (0, 20, len(lines) - 1):
        trials.write_bytes(b"".join((*lines[:place], b"\n", *lines[place:])))
        with pytest.raises(ResultsError, match=f"jsonl:{place + 1}:"):
            read_run(trials.parent)


def test_results_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultsError, match="file") as caught, RunWriter(tmp_path / "file" / "results", info(), host()):
        pass
    assert "--results" in (caught.value.hint or "")


def test_a_full_disk_is_one_clear_error() -> None:
    with pytest.raises(ResultsError, match="No space left"):
        _append_to(Path("/dev/full"))


def _append_to(device: Path) -> None:
    writer = RunWriter(Path(), info(), host())
    with device.open("ab", buffering=0) as file:
        writer._file = file
        writer.append(NOTE)  # closing has nothing left to write, and so nothing to fail with


def test_a_line_that_does_not_fit_is_not_torn(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunWriter(tmp_path, info(), host()) as kept:
        kept.append(NOTE)
        trials = kept.path / "trials.jsonl"
        whole = trials.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limit[1]))  # room for a part of the next
        try:
            with pytest.raises(ResultsError, match="File too large"):
                kept.append(NOTE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert trials.read_bytes() == whole
        kept.append(NOTE)
    assert read_run(kept.path).records == (NOTE, NOTE)


def test_find_run_takes_what_people_type(tmp_path: Path) -> None:
    first = _named(tmp_path, "20200101-000000-density-aaaaaa")
    second = _named(tmp_path, "20200102-000000-startup-bbbbbb")
    (tmp_path / "not-a-run").mkdir()
    assert list_runs(tmp_path) == [first, second]
    assert find_run(tmp_path, first.name) == first
    assert find_run(tmp_path, "20200102") == second
    assert find_run(tmp_path, "aaaaaa") == first
    assert find_run(tmp_path, "latest") == second
    assert find_run(tmp_path / "elsewhere", str(first)) == first


@pytest.mark.parametrize("text", ["2020", "zzzzzz", "not-a-run", "", "aaaaa"])
def test_find_run_lists_what_there_is(tmp_path: Path, text: str) -> None:
    names = [_named(tmp_path, f"2020010{day}-000000-density-aaaaa{day}").name for day in (1, 2)]
    with pytest.raises(ResultsError) as caught:
        find_run(tmp_path, text)
    said = caught.value.message + str(caught.value.hint)
    assert all(name in said for name in names)


def test_find_run_without_runs_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ResultsError) as caught:
        find_run(tmp_path / "none", "latest")
    assert "bench run" in (caught.value.hint or "")
    assert list_runs(tmp_path / "none") == []


def test_files_belong_to_the_user_behind_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, **_: given.__setitem__(Path(path).name, (uid, gid)))
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "5678")
    results = tmp_path / "results"
    with RunWriter(results, info(), host()) as writer:
        (writer.logs / "console.log").write_text("by a driver")
    assert {"results", RUN, "logs", "console.log", "trials.jsonl", "run.json"} <= set(given)
    assert set(given.values()) == {(1234, 5678)}
    assert tmp_path.name not in given  # was there before us


def test_without_sudo_nothing_is_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setattr(os, "chown", lambda *_, **__: pytest.fail("chown"))
    give_to_caller(tmp_path)
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "5678")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    give_to_caller(tmp_path)


@pytest.fixture(scope="module")
def timings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("results"), run_data(rounds=2)) / "startup.pyperf.json"


@pytest.mark.parametrize("verb", ["stats", "check"])
def test_pyperf_reads_the_timings(timings: Path, verb: str) -> None:
    said = process.run([sys.executable, "-m", "pyperf", verb, timings], timeout=60).stdout
    assert "container:default httpd reply" in said
    if verb == "stats":
        assert "Number of benchmarks: 20" in said
        assert "Number of run with values: 2" in said
        assert "Number of warmup per run: 1" in said


def test_timings_hold_the_launches_and_their_labels(timings: Path) -> None:
    import pyperf

    suite = pyperf.BenchmarkSuite.load(str(timings))
    assert {"process:default httpd ready", "vm:stock httpd kernel", "vm:stock httpd removed"} <= set(
        suite.get_benchmark_names()
    )
    guest = suite.get_benchmark("vm:stock httpd reply")
    assert guest.get_nvalue() == 16
    assert guest.get_metadata()["accelerator"] == "tcg"
    assert "accelerator" not in suite.get_benchmark("container:default httpd reply").get_metadata()
    assert guest.median() == pytest.approx(2.8, rel=0.2)


def test_no_timings_without_a_launch(tmp_path: Path) -> None:
    folder = written(tmp_path, RunData(info(run=RunId("20200101-000000-density-empty0")), host(), (NOTE,)))
    assert not (folder / "startup.pyperf.json").exists()
    assert read_info(folder).status == "done"


def _named(results: Path, name: str) -> Path:
    folder = results / name
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    return folder


# --- versions ------------------------------------------------------------------------------------------------------

SAMPLES = Path(__file__).parent / "data" / "runs"


def test_every_version_keeps_a_sample() -> None:
    assert {path.name for path in SAMPLES.iterdir()} == {f"v{version}" for version in range(1, SCHEMA + 1)}
    assert set(migrations.STEPS) == set(range(1, SCHEMA)), "each older version has a step to the next"


@pytest.mark.parametrize("version", range(1, SCHEMA + 1))
def test_the_sample_of_a_version_gives_the_numbers_it_gave(version: int) -> None:
    data = read_run(SAMPLES / f"v{version}")
    assert data.warnings == ()
    found = {(row.driver, row.metric): row.median for row in summarise(data).summary}
    assert found["container", "disk.marginal"] == 24576
    assert found["vm", "startup.ready"] == pytest.approx(2.7473013745)
    assert found["vm", "memory.marginal"] == pytest.approx(168546190.01921654)
    assert [row.accelerator for row in headline(summarise(data), data)] == [None, "tcg"]


def test_samples_say_what_was_varied() -> None:
    """Version 1 had no conditions; the sample of version 2 has one for its containers."""
    conditions = [{one.condition for one in frames(read_run(SAMPLES / name)).series} for name in ("v1", "v2")]
    assert conditions == [{""}, {"", "payload.touch_mib=16"}]


def test_an_older_version_is_brought_up_to_date_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted next version: it calls `level` of a note `weight`, and `hostname` in capitals, in file and in lines."""
    (old := tmp_path / "old").mkdir()
    for name, text in OLD.items():
        (old / name).write_text(text.replace('"level"', '"weight"'))

    def step(raw: dict[str, Any]) -> dict[str, Any]:
        renamed = {"level" if key == "weight" else key: value for key, value in raw.items()}
        return {**renamed, "hostname": raw["hostname"].upper()} if "hostname" in raw else renamed

    with pytest.raises(ResultsError, match="level"):
        read_run(old)
    monkeypatch.setattr(reader, "SCHEMA", SCHEMA + 1)
    monkeypatch.setattr(migrations, "STEPS", {**migrations.STEPS, SCHEMA: step})
    data = read_run(old)
    assert data.host.hostname == "FABRICATED"
    assert [(record.text, record.level) for record in data.records if isinstance(record, NoteRecord)] == [
        ("old", "info")
    ]
    assert '"weight"' in (old / "trials.jsonl").read_text(), "the file is as it was"


def test_host_facts_carry_their_version(tmp_path: Path) -> None:
    assert json.loads((written(tmp_path) / "host.json").read_text())["schema"] == SCHEMA


def test_power_cut_at_any_byte_loses_at_most_the_line_in_flight(tmp_path: Path) -> None:
    folder = written(tmp_path, finish=False)
    trials = folder / "trials.jsonl"
    whole = trials.read_bytes()[:2000]
    for cut in range(0, len(whole), 37):
        trials.write_bytes(whole[:cut])
        data = read_run(folder)
        complete = whole[:cut].count(b"\n")
        assert len(data.records) in (complete, complete + 1), "a line may lack its end of line only"
        assert bool(data.warnings) == (len(data.records) == complete and not whole[:cut].endswith(b"\n") and cut > 0)
