"""KSM as a condition: settled by watching scans, its cost known, and the host's own settings put back in any case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from bench.analysis import frames, summarise
from bench.config.loader import load_scenario
from bench.errors import HostError
from bench.ksm import NOTE, Ksm, put_back
from bench.linux import procfs
from bench.metrics import METRICS
from bench.model import MIB, Leftover, Reading
from bench.plan import make_plan
from bench.records import StepRecord
from tests.unit.fabricated import TRUTHS, run_data

PAGE = procfs._PAGE
HOST = {"run": "0", "pages_to_scan": "100", "sleep_millisecs": "20", "full_scans": "7", "pages_shared": "0",
        "pages_sharing": "0"}  # fmt: skip


class Kernel:
    """/sys/kernel/mm/ksm, ksmd, a clock that goes on while one sleeps: a full scan takes a second, then charged."""

    def __init__(self, root: Path, pages: Iterator[tuple[int, int]]) -> None:
        self.folder, self.proc, self.note = root / "ksm", root / "proc", root / "state/abc123" / NOTE
        self.pages, self.now = pages, 0.0
        for folder in (self.folder, self.proc / "37", self.proc / "40", self.note.parent):
            folder.mkdir(parents=True)
        for name, value in HOST.items():
            (self.folder / name).write_text(value)
        (self.proc / "40/comm").write_text("other")
        (self.proc / "37/comm").write_text("ksmd\n")
        self._cpu()

    def ksm(self) -> Ksm:
        return Ksm(self.note, self.folder, self.proc, lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if int(self.now) > int(self.now - seconds):
            self.set("full_scans", int(self.get("full_scans")) + 1)
            shared, sharing = next(self.pages)
            self.set("pages_shared", shared)
            self.set("pages_sharing", sharing)
            self._cpu()

    def _cpu(self) -> None:
        ticks = int(self.now * 25)  # a quarter of a CPU
        (self.proc / "37/stat").write_text(f"37 (ksmd) S 2 0 0 0 -1 0 0 0 0 0 0 {ticks} 0 0 25 5 1 0 5")

    def get(self, name: str) -> str:
        return (self.folder / name).read_text()

    def set(self, name: str, value: object) -> None:
        (self.folder / name).write_text(str(value))

    def settings(self) -> tuple[str, ...]:
        return tuple(self.get(name) for name in ("run", "pages_to_scan", "sleep_millisecs"))


Make = Callable[..., Kernel]


@pytest.fixture
def kernel(tmp_path: Path) -> Make:
    return lambda *pages: Kernel(tmp_path, iter(pages))


def values(readings: tuple[Reading, ...]) -> dict[str, float]:
    return {one.metric.removeprefix("host.ksm."): one.value for one in readings}


def test_merging_is_through_when_the_pages_stay_the_same(kernel: Make) -> None:
    host = kernel((0, 0), (0, 0), (50, 400), (100, 1000), (100, 1005), (100, 1009), (9, 9))
    merging = host.ksm()
    merging.switch("on")
    assert host.settings() == ("1", "20000", "10")
    found = values(merging.settle())
    assert found["settled"] == pytest.approx(6, abs=0.1)
    assert found["cpu"] == pytest.approx(1.5, abs=0.05)
    assert (found["shared"], found["sharing"]) == (100 * PAGE, 1009 * PAGE)


def test_its_readings_are_in_the_glossary(kernel: Make) -> None:
    merging = kernel(*[(0, 0)] * 9).ksm()
    merging.switch("on")
    found = {one.metric: one.unit for one in merging.settle()}
    wanted = {name: metric.unit for name, metric in METRICS.items() if name.startswith("host.ksm.")}
    assert found == wanted


def test_nothing_to_merge_is_known_after_three_scans(kernel: Make) -> None:
    host = kernel(*[(0, 0)] * 9)
    merging = host.ksm()
    merging.switch("on")
    found = values(merging.settle())
    assert found["settled"] == pytest.approx(3, abs=0.1), "one was under way, and a page merges at its second"


def test_merging_without_end_is_not_said_to_be_through(kernel: Make, caplog: pytest.LogCaptureFixture) -> None:
    host = kernel(*[(1, 1000), (2, 3000)] * 200)
    merging = host.ksm()
    merging.switch("on")
    found = values(merging.settle())
    assert "settled" not in found
    assert found["sharing"] > 0
    assert "still merges after 300 s" in caplog.text


def test_off_unmerges_and_waits_for_nothing(kernel: Make) -> None:
    host = kernel()
    merging = host.ksm()
    merging.switch("off")
    assert host.settings() == ("2", "100", "20")
    assert merging.settle() == ()
    assert host.now == 0


def test_left_alone_nothing_is_written(kernel: Make) -> None:
    host = kernel()
    host.folder.chmod(0o500)
    merging = host.ksm()
    merging.switch("as-is")
    assert merging.settle() == ()
    assert not host.note.exists()
    assert host.settings() == ("0", "100", "20")


@pytest.mark.parametrize("run", ["0", "1"])
def test_the_host_s_settings_come_back_also_from_another_process(kernel: Make, run: str) -> None:
    host = kernel()
    host.set("run", run)
    merging = host.ksm()
    for mode in ("on", "off", "on"):
        merging.switch(mode)
    assert host.settings() != (run, "100", "20")
    assert put_back(host.note, host.folder) == [Leftover("sysctl", f"{host.folder}/run put back to {run}")]
    assert host.settings() == (run, "100", "20")
    assert put_back(host.note, host.folder) == []


def test_switching_back_within_a_run(kernel: Make) -> None:
    host = kernel()
    merging = host.ksm()
    merging.switch("on")
    merging.switch("as-is")
    assert host.settings() == ("0", "100", "20")
    assert not host.note.exists()


def test_merged_pages_of_others_are_left_alone(kernel: Make) -> None:
    host = kernel()
    host.set("pages_sharing", 12)
    with pytest.raises(HostError, match="12 pages of other programs are merged") as caught:
        host.ksm().switch("off")
    assert caught.value.hint is not None
    assert "--set ksm=as-is" in caught.value.hint
    assert not host.note.exists()
    assert host.settings() == ("0", "100", "20")


def test_two_runs_do_not_both_switch(kernel: Make, tmp_path: Path) -> None:
    host = kernel()
    other = tmp_path / "state/def456"
    other.mkdir()
    (other / NOTE).write_text("{}")
    with pytest.raises(HostError, match="the run def456 has switched KSM"):
        host.ksm().switch("on")


def test_a_kernel_without_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "state/a").mkdir(parents=True)
    with pytest.raises(HostError, match="this kernel has no"):
        Ksm(tmp_path / "state/a" / NOTE, tmp_path / "none").switch("on")


# --- as a condition


def test_off_and_on_are_conditions_of_every_driver() -> None:
    scenario = load_scenario(Path(__file__).parents[2] / "scenarios/memory.toml")
    plan = make_plan(scenario, 1)
    found = {(trial.driver, trial.condition.get("ksm")) for trial in plan.trials}
    assert found == {(driver, mode) for driver in ("process", "container", "vm") for mode in ("off", "on")}


def test_a_single_mode_is_a_condition_too(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('schema = 1\nname = "x"\n')
    conditions = {
        override: {trial.condition.get("ksm") for trial in make_plan(load_scenario(path, overrides=override), 1).trials}
        for override in ((), ("ksm=on",), ("ksm=as-is",))
    }
    assert conditions == {(): {None}, ("ksm=on",): {"on"}, ("ksm=as-is",): {None}}


def test_what_merging_took_and_spared_is_summed_up() -> None:
    truth = TRUTHS[2]

    def merged(record: StepRecord) -> tuple[Reading, ...]:
        more = {"settled": 2.0, "cpu": 0.5}
        sharing = Reading("host.ksm.sharing", 30.0 * MIB * record.n, "bytes")
        return (*record.readings, sharing, *(Reading(f"host.ksm.{name}", one, "s") for name, one in more.items()))

    data = run_data(rounds=2, noise=0, truths=(truth,))
    records = tuple(
        msgspec.structs.replace(one, readings=merged(one)) if isinstance(one, StepRecord) else one
        for one in data.records
    )
    data = msgspec.structs.replace(data, records=records)
    steps = len(frames(data).steps) / 2
    found = {row.metric: row.median for row in summarise(data).summary}
    assert found["memory.merged"] == pytest.approx(30 * MIB)
    assert (found["ksm.time"], found["ksm.cpu"]) == (2.0 * steps, 0.5 * steps)
