"""A run killed at any instant goes on: what ended stays, what was under way is done again, nothing counts twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.config.options import with_options
from bench.config.scenario import Scenario, payload_for
from bench.config.written import effective_toml
from bench.errors import HostError, UsageError
from bench.plan import Plan, make_plan
from bench.records import LaunchRecord, Outcome, Record, RunInfo, StepRecord, TeardownRecord, TrialRecord
from bench.runner import Runner
from bench.store import ResumedWriter, RunWriter, find_run, list_runs, read_info, read_past, read_run, writer
from bench.store.resume import REDONE, finished
from bench.verbs import resume, session
from bench.verbs.interrupts import Interrupts
from bench.verbs.registry import Entry, registered
from bench.verbs.run import Options
from bench.verbs.same import require_same_accelerators, require_same_host
from bench.verbs.session import bury
from tests import fakes
from tests.unit import in_memory
from tests.unit.fabricated import info as fabricated_info
from tests.unit.hosts import facts

SEED = 1
NOTHING = Options(None, None, None, None, None, None, ())


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """That a line is made durable is not what these tests are about."""
    with in_memory.folder() as path:
        yield path


def scenario(tmp_path: Path) -> Scenario:
    made = fakes.scenario(tmp_path, drivers="['container', 'container:pooled']", rounds=2)
    return with_options(made, count=2)


def info(chosen: Scenario) -> RunInfo:
    made = fabricated_info(status="running")
    return msgspec.structs.replace(
        made, run=fakes.RUN, seed=SEED, scenario_toml=effective_toml(chosen), plan=make_plan(chosen, SEED).order,
        payload=payload_for(chosen), image=fakes.IMAGE, ended=None, warnings=(),
    )  # fmt: skip


def measure(chosen: Scenario, plan: Plan, writer: RunWriter) -> None:
    driver = fakes.FakeDriver()
    recorder = fakes.Recorder(driver)
    runner = Runner(replace(fakes.job(driver, recorder, chosen), plan=plan))
    runner.prepare()
    runner.run(writer, [])


def undisturbed(tmp_path: Path) -> Path:
    """A whole run, as a process that is killed before it ends the run leaves it."""
    chosen = scenario(tmp_path)
    with RunWriter(tmp_path / "whole", info(chosen), facts()) as kept:
        measure(chosen, make_plan(chosen, SEED), kept)
    return kept.path


def resumed(tmp_path: Path, path: Path) -> list[str]:
    """Go on with the run in `path`; the trials that were done."""
    chosen, past = scenario(tmp_path), read_past(path)
    left = make_plan(chosen, SEED).without({one.trial for one in past.done})
    with ResumedWriter(past) as kept:
        measure(chosen, left, kept)
        kept.finish("done", 2.0)
    return list(left.order)


def said(records: Sequence[Record]) -> list[tuple[object, ...]]:
    """All of the records that does not depend on when they were written."""
    found: list[tuple[object, ...]] = []
    for one in records:
        if isinstance(one, LaunchRecord):
            found.append(("launch", one.trial, one.instance, one.alive, one.warmup, one.outcome, one.phases))
        elif isinstance(one, StepRecord):
            found.append(("step", one.trial, one.n, one.readings))
        elif isinstance(one, TeardownRecord):
            found.append(("teardown", one.trial, one.instance, one.warmup, sorted(one.phases)))
        elif isinstance(one, TrialRecord):
            found.append(("trial", one.trial, one.outcome, one.alive, one.limiter))
    return found


def test_killed_after_any_record_or_within_it_a_run_goes_on_to_the_same_records(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path)
    data = read_run(whole)
    lines = (whole / "trials.jsonl").read_bytes().splitlines(keepends=True)
    ends = [place for place, one in enumerate(data.records, start=1) if isinstance(one, TrialRecord)]
    assert len(ends) == 4
    for cut in range(len(lines) + 1):
        for torn in (b"", lines[cut][:-1], lines[cut][:9]) if cut < len(lines) else (b"",):
            path = tmp_path / "cut" / whole.name
            shutil.copytree(whole, path)
            (path / "trials.jsonl").write_bytes(b"".join(lines[:cut]) + torn)
            there = cut + (len(torn) > 9)  # a line that lacks its end only is whole
            done = sum(end <= there for end in ends)
            assert resumed(tmp_path, path) == list(data.info.plan[done:])
            back = read_run(path)
            assert said(back.records) == said(data.records)
            assert back.warnings == ()
            assert back.info.status == "done"
            assert f"resumed: {done} of 4 trials had ended" in back.info.warnings[-1]
            assert any("torn" in text for text in back.info.warnings) == (len(torn) == 9)
            under_way = there - ([0, *ends][done])
            redone = (path / REDONE).read_bytes().splitlines(keepends=True) if under_way else []
            assert b"".join(redone) == b"".join(lines[there - under_way : there]), "what it had measured is not lost"
            assert (path / REDONE).exists() == bool(under_way)
            shutil.rmtree(path.parent)


def test_killed_while_a_file_was_replaced(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path)
    expected = said(read_run(whole).records)
    (whole / ".run.json.123.tmp").write_bytes(b'{"run":')
    resumed(tmp_path, whole)
    assert said(read_run(whole).records) == expected
    assert not list(whole.glob(".*"))


def test_killed_again_while_it_goes_on(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path)
    expected = said(read_run(whole).records)
    trials = whole / "trials.jsonl"
    lines = trials.read_bytes().splitlines(keepends=True)
    trials.write_bytes(b"".join(lines[:3]))
    with ResumedWriter(read_past(whole)) as kept:
        for line in lines[:5]:
            kept.append(msgspec.json.decode(line, type=Record))
    assert read_info(whole).status == "running", "it can be seen that nobody ended it"
    assert len(resumed(tmp_path, whole)) == 4
    assert said(read_run(whole).records) == expected
    assert (whole / REDONE).read_bytes().count(b"\n") == 3 + 5


def test_logs_of_what_is_done_again_are_set_aside_too(tmp_path: Path) -> None:
    path = undisturbed(tmp_path)
    lines = (path / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (path / "trials.jsonl").write_bytes(b"".join(lines[: len(lines) // 4 + 2]))  # one trial and a bit
    for name in ("abc123-c1.xml", "abc123-c3.payload.log", "abc123-c4.payload.log", "abc123-c9.argv", "bench.log"):
        (path / "logs" / name).write_text(name)
    with ResumedWriter(read_past(path)):
        found = {str(file.relative_to(path / "logs")) for file in path.glob("logs/**/*") if file.is_file()}
    again = {"redone/abc123-c4.payload.log", "redone/abc123-c9.argv"}
    assert found == {"abc123-c1.xml", "abc123-c3.payload.log", "bench.log"} | again


def test_numbers_of_instances_do_not_depend_on_what_is_left(tmp_path: Path) -> None:
    plan = make_plan(scenario(tmp_path), SEED)
    assert [trial.first for trial in plan.trials] == [1, 4, 7, 10]
    assert [trial.first for trial in plan.without(plan.order[:3]).trials] == [10]
    assert plan.without(plan.order).trials == ()


def test_trials_that_broke_are_missing(tmp_path: Path) -> None:
    record = next(one for one in read_run(undisturbed(tmp_path)).records if isinstance(one, TrialRecord))

    def kept(**changes: object) -> bool:
        return bool(finished([msgspec.structs.replace(record, **changes)]))

    assert kept()
    assert kept(outcome=Outcome.FAILED, limiter="launch"), "that is a result"
    assert kept(limiter="memory")
    assert not kept(outcome=Outcome.INTERRUPTED, limiter="interrupted")
    assert not kept(outcome=Outcome.FAILED, limiter="error")


def test_a_ramp_that_breaks_on_an_error_of_ours_does_not_look_like_one_that_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, footprints: object) -> None:
        raise OSError("planted")

    monkeypatch.setattr(fakes.Recorder, "read", broken)
    chosen = scenario(tmp_path)
    with RunWriter(tmp_path / "r", info(chosen), facts()) as kept, pytest.raises(OSError, match="planted"):
        measure(chosen, make_plan(chosen, SEED), kept)
    last = read_run(kept.path).records[-1]
    assert isinstance(last, TrialRecord)
    assert (last.outcome, last.limiter) == (Outcome.FAILED, "error")


def test_a_folder_with_a_run_json_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the folder is made: either it can be resumed, or it is no run, and nothing was measured."""

    class Killed(BaseException): ...

    chosen, real = scenario(tmp_path), writer.write_atomic
    files = ("trials.jsonl", "host.json", "run.json", None)
    for dies_at in files:

        def write(path: Path, data: bytes, dies_at: str | None = dies_at) -> None:
            if path.name == dies_at:
                raise Killed
            real(path, data)

        results = tmp_path / f"before-{dies_at}"
        with monkeypatch.context() as patch:
            patch.setattr(writer, "write_atomic", write)
            with pytest.raises(Killed), RunWriter(results, info(chosen), facts()):
                raise Killed
        runs = list_runs(results)
        assert len(runs) == (dies_at is None)
        assert [len(resumed(tmp_path, path)) for path in runs] == [4] * len(runs)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_STATE", str(tmp_path / "state"))
    path = undisturbed(tmp_path)
    lines = (path / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (path / "trials.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    return path


def ask(path: Path, options: Options = NOTHING, name: str | None = None) -> resume.session.Request:
    return resume.request("abc123", name, options, path.parent, None)


def test_what_is_missing_is_asked_for_with_the_run_s_own_scenario_and_seed(cut_short: Path, tmp_path: Path) -> None:
    request = ask(cut_short)
    assert request.scenario == scenario(tmp_path)
    assert request.plan.seed == SEED
    assert request.plan.order == read_info(cut_short).plan[len(read_past(cut_short).done) :] != ()
    assert request.past is not None
    assert find_run(cut_short.parent, "latest") == request.past.path


def test_the_same_said_again_is_allowed(cut_short: Path) -> None:
    options = Options("container,container:pooled", 2, 2, SEED, None, None, ("settle=0", "payload=idle"))
    assert ask(cut_short, options) == ask(cut_short)
    assert ask(cut_short, options, "density").plan == ask(cut_short).plan


@pytest.mark.parametrize(
    ("options", "name", "found"),
    [
        (msgspec.structs.replace(NOTHING, count=3), None, "default = 3"),
        (msgspec.structs.replace(NOTHING, seed=SEED + 1), None, "seed = 2"),
        (msgspec.structs.replace(NOTHING, overrides=("limits.pids=65",)), None, "pids = 65"),
        (NOTHING, "density", "rounds = 3"),
    ],
)
def test_another_scenario_is_refused(cut_short: Path, options: Options, name: str | None, found: str) -> None:
    before = (cut_short / "trials.jsonl").read_bytes()
    with pytest.raises(UsageError, match="is of another scenario") as caught:
        ask(cut_short, options, name)
    assert found in caught.value.message
    assert (cut_short / "trials.jsonl").read_bytes() == before


@pytest.mark.parametrize("field", ["plan", "payload"])
def test_a_bench_that_would_do_otherwise_is_refused(cut_short: Path, field: str) -> None:
    had = read_info(cut_short)
    other = {"plan": had.plan[::-1], "payload": msgspec.structs.replace(had.payload, command=("/bin/other",))}
    (cut_short / "run.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(had, **{field: other[field]})))
    with pytest.raises(UsageError, match=f"can't be resumed here: the {field} was"):
        ask(cut_short)


def test_a_run_that_is_alive_is_refused(cut_short: Path) -> None:
    with registered(Entry(fakes.RUN, 1234, str(cut_short.parent), None)):
        for refused in (lambda: ask(cut_short), lambda: bury(fakes.RUN)):
            with pytest.raises(UsageError, match=r"abc123 is alive \(pid 1234\)"):
                refused()
    assert ask(cut_short).plan.trials


def test_what_the_dead_process_changed_is_put_back_before_the_host_is_compared(
    cut_short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have switched KSM on, which a run must find as it was when it began."""
    order: list[str] = []
    before = read_past(cut_short).host
    monkeypatch.setattr(session, "bury", lambda run: order.append(f"bury {run}"))
    monkeypatch.setattr(session, "host_facts", lambda: msgspec.structs.replace(before, ksm=not order))
    monkeypatch.setattr(session, "supports", lambda *_: (_ for _ in ()).throw(HostError("far enough")))
    with pytest.raises(HostError, match="far enough"):
        session.run(ask(cut_short), fakes.Recorder(fakes.FakeDriver()), Interrupts())
    assert order == [f"bury {fakes.RUN}"]


def test_a_dead_run_s_connection_is_taken_again(cut_short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "entries", lambda: [Entry(fakes.RUN, 1, "", "qemu:///system")])
    assert ask(cut_short).connect == "qemu:///system"
    assert resume.request("abc123", None, NOTHING, cut_short.parent, "qemu:///embed").connect == "qemu:///embed"


@pytest.mark.parametrize(
    "change", [{"hostname": "other"}, {"kernel": "6.2"}, {"governor": "powersave"}, {"memory_total": 23 << 30}]
)
def test_another_host_is_refused(change: dict[str, object]) -> None:
    require_same_host(facts(), facts(load1=7.0, memory_available=1 << 30, memory_total=facts().memory_total + 4096))
    with pytest.raises(UsageError, match=f"can't be resumed here: {next(iter(change))} was"):
        require_same_host(facts(), facts(**change))


def test_guests_under_another_accelerator_are_refused() -> None:
    was = {"vm:stock": {"accelerator": "tcg"}, "process:default": {}}
    require_same_accelerators(was, {"vm:stock": {"accelerator": "tcg"}, "process:default": {"root": "chroot"}})
    require_same_accelerators(was, {"vm:stock": {}})
    with pytest.raises(UsageError, match="vm:stock's accelerator was tcg and is kvm"):
        require_same_accelerators(was, {"vm:stock": {"accelerator": "kvm"}})


# --- the command line ----------------------------------------------------------------------------------------------


def test_nothing_missing_is_said_and_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_STATE", str(tmp_path / "state"))
    path = undisturbed(tmp_path)
    assert resumed(tmp_path, path) == []
    before = {file: file.read_bytes() for file in path.iterdir() if file.is_file()}
    done = CliRunner().invoke(cli, ["run", "--resume", "abc123", "--results", str(path.parent)])
    assert (done.exit_code, done.exception) == (0, None)
    assert "nothing is missing" in done.output
    assert {file: file.read_bytes() for file in path.iterdir() if file.is_file()} == before


def test_a_dry_run_shows_what_is_missing(cut_short: Path) -> None:
    words = ["run", "--resume", "abc123", "--results", str(cut_short.parent), "--dry-run", "--json"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    missing = [trial["id"] for trial in msgspec.json.decode(done.output)["trials"]]
    assert missing == list(ask(cut_short).plan.order)
