"""Known truths must come back within their intervals; what a run lacks must be absent; doubts must be raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from bench.analysis import frames, headline, quality, resampling, summarise
from bench.analysis.headline import per_gib, ratios
from bench.analysis.modes import two_modes
from bench.analysis.resampling import (
    Estimate,
    quantile_sample,
    ramp_sample,
    resampled_quantiles,
    tail,
)
from bench.analysis.summary import sample_of
from bench.metrics import METRICS, markdown_table, summary_metrics
from bench.model import GIB, Reading
from bench.records import LaunchRecord, Outcome, StepRecord, TrialRecord
from bench.store import RunData
from bench.summary import Summary, SummaryRow
from tests.unit.fabricated import KIB, TRUTHS, Truth, host, info, run_data

DOCS = Path(__file__).parents[2] / "docs"


def row(summary: Summary, driver: str, metric: str) -> SummaryRow:
    (found,) = [one for one in summary.summary if (one.driver, one.metric) == (driver, metric)]
    return found


def edited(data: RunData, kind: type, **changes: Any) -> RunData:
    """`data` with `changes` to every record of `kind` (a callable gets the record)."""
    records = []
    for record in data.records:
        if isinstance(record, kind):
            values = {name: value(record) if callable(value) else value for name, value in changes.items()}
            record = msgspec.structs.replace(record, **values)
        records.append(record)
    return msgspec.structs.replace(data, records=tuple(records))


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Enough for what is asserted here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "RESAMPLES", 1_000)
        yield


@pytest.fixture(scope="module")
def data() -> RunData:
    return run_data(rounds=6)


@pytest.fixture(scope="module")
def summary(data: RunData) -> Summary:
    return summarise(data)


# --- truths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: truth.driver)
def test_without_noise_the_truth_comes_back(truth: Truth) -> None:
    found = summarise(run_data(noise=0))
    expected = {
        "memory.marginal": truth.marginal, "memory.fixed": truth.fixed, "memory.pss": truth.pss,
        "memory.uss": 0.9 * truth.pss, "memory.kernel": truth.kernel, "memory.cgroup": truth.pss + truth.kernel,
        "memory.residual": truth.marginal - truth.pss - truth.kernel, "disk.marginal": truth.disk,
        "disk.shared": truth.shared, "disk.claimed": truth.disk + truth.shared, "startup.ready": truth.ready,
        "startup.reply": truth.ready + truth.reply, "density.alive": truth.count,
        "launch.rate": 1 / (truth.ready + truth.reply), "launch.cpu": 0.7 * truth.ready,
        "teardown.stopped": 0.3 * truth.ready + 0.001, "teardown.removed": 1.5 * (0.3 * truth.ready + 0.001),
    }  # fmt: skip
    for metric, value in expected.items():
        assert row(found, truth.driver, metric).median == pytest.approx(value, rel=1e-5, abs=1), metric


@pytest.mark.parametrize(("rounds", "least"), [(3, 91), (6, 91), (10, 90)])
def test_marginal_cost_lies_in_its_interval_in_most_runs(rounds: int, least: int) -> None:
    """By Student's t from 3 and from 6 ramps, by bootstrap from 10. Plain percentiles of 3 would hold it in 75 %."""
    truth = changed(TRUTHS[1], count=8)
    hits = 0
    for seed in range(100):
        tables = frames(run_data(rounds=rounds, seed=seed, truths=(truth,)))
        sample = sample_of(tables, tables.series[0], "memory.marginal", seed)
        assert sample is not None
        found = sample.estimate()
        assert found.method == ("t" if rounds < 8 else "bootstrap")
        hits += (found.low or 0) <= truth.marginal <= (found.high or 0)
    assert hits >= least


def test_a_host_that_drifts_between_ramps_does_not_bend_the_slope() -> None:
    """Each ramp has its own level: 200 MiB more used in every round must not show."""
    drift = 200 * 1024 * KIB

    def moved(record: StepRecord) -> tuple[Any, ...]:
        return tuple(
            msgspec.structs.replace(reading, value=reading.value - drift * record.round)
            if reading.metric == "host.memory.available" else reading
            for reading in record.readings
        )  # fmt: skip

    still, moving = (summarise(one) for one in (run_data(), edited(run_data(), StepRecord, readings=moved)))
    for metric in ("memory.marginal", "memory.fixed"):
        assert row(moving, "container", metric).median == pytest.approx(row(still, "container", metric).median)


def test_views_of_memory_add_up(summary: Summary) -> None:
    for truth in TRUTHS:
        whole, *parts = (
            row(summary, truth.driver, f"memory.{part}").median for part in ("marginal", "pss", "kernel", "residual")
        )
        assert whole == pytest.approx(sum(parts))


def test_rows_follow_the_drivers_of_the_run_and_the_glossary(summary: Summary) -> None:
    assert list(dict.fromkeys(one.driver for one in summary.summary)) == ["process", "container", "vm"]
    order = [metric.name for metric in summary_metrics()]
    vm = [order.index(one.metric) for one in summary.summary if one.driver == "vm"]
    assert vm == sorted(vm)
    assert all(METRICS[one.metric].unit == one.unit for one in summary.summary)


def test_n_counts_launches_or_ramps(summary: Summary) -> None:
    assert row(summary, "container", "startup.reply").n == 6 * 64  # warm-ups are not in it
    assert row(summary, "container", "memory.marginal").n == 6
    assert row(summary, "vm", "launch.rate").n == 6


# --- absent, not zero ------------------------------------------------------------------------------------------


def test_what_a_driver_does_not_show_is_absent(summary: Summary) -> None:
    kernels = {one.driver for one in summary.summary if one.metric == "startup.kernel"}
    assert kernels == {"vm"}


def test_one_ramp_has_slopes_without_interval() -> None:
    found = row(summarise(run_data(rounds=1)), "container", "memory.marginal")
    assert found.n == 1
    assert found.median == pytest.approx(TRUTHS[1].marginal, rel=0.1)
    assert (found.low, found.high) == (None, None)


def test_two_launches_of_one_ramp_have_no_interval() -> None:
    found = row(summarise(run_data(rounds=1, truths=(changed(TRUTHS[1], count=2),))), "container", "startup.ready")
    assert (found.n, found.low, found.high) == (2, None, None)


def test_nothing_measured_is_an_empty_summary() -> None:
    empty = RunData(info(), host(), ())
    assert summarise(empty).summary == []
    assert headline(summarise(empty), empty) == []


def test_failed_launches_are_in_no_median(data: RunData) -> None:
    failed = edited(data, LaunchRecord, outcome=Outcome.FAILED, phases={"ready": 10**12})
    assert not [one for one in summarise(failed).summary if one.metric.startswith(("startup.", "launch."))]


def test_an_interrupted_ramp_says_nothing_of_what_fits(data: RunData) -> None:
    cut = edited(data, TrialRecord, outcome=Outcome.INTERRUPTED, limiter="interrupted")
    metrics = {one.metric for one in summarise(cut).summary}
    assert not {"density.alive", "launch.rate"} & metrics
    assert "memory.marginal" in metrics  # its steps are as good as any


def test_a_sum_that_lacks_a_part_is_absent(data: RunData) -> None:
    def without(record: StepRecord) -> tuple[Any, ...]:
        return tuple(reading for reading in record.readings if reading.metric != "instances.memory.kernel")

    metrics = {one.metric for one in summarise(edited(data, StepRecord, readings=without)).summary}
    assert not {"memory.kernel", "memory.residual"} & metrics
    assert "memory.marginal" in metrics


# --- intervals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_quantile_draws_agree_with_resampling_by_hand(share: float) -> None:
    """Walking down by halves must give the distribution of a plain two-stage bootstrap; the ramps differ in size."""
    rng = np.random.default_rng(3)
    groups = [rng.normal(level, 1, size) for level, size in ((0, 31), (0.6, 12), (1.5, 40))]
    fast = resampled_quantiles(groups, share, rng, 20_000)
    slow = []
    for _ in range(4_000):
        chosen = [groups[place] for place in rng.integers(3, size=3)]
        pool = np.sort(np.concatenate([rng.choice(group, len(group)) for group in chosen]))
        place = share * (len(pool) - 1)
        slow.append(pool[int(place) + (rng.random() < place % 1)])
    assert stats.ks_2samp(fast, slow).pvalue > 0.001
    assert stats.ks_2samp(fast + 0.15, slow).pvalue < 0.001  # the test can tell


@pytest.mark.parametrize(("share", "statistic"), [(0.5, np.median), (0.95, lambda x, axis: np.quantile(x, 0.95, axis))])
def test_one_ramp_agrees_with_scipy(share: float, statistic: Callable[..., Any]) -> None:
    values = np.random.default_rng(4).exponential(1, 201)
    ours = quantile_sample([values], share, np.random.default_rng(5)).estimate()
    theirs = stats.bootstrap((values,), statistic, method="percentile", rng=np.random.default_rng(6), vectorized=True)
    theirs = theirs.confidence_interval
    assert ours.method == "launches"
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.06)


def test_few_ramps_agree_with_the_formula_of_student() -> None:
    ramps = np.array([1.0, 2.0, 4.5])
    found = ramp_sample(2.5, 3, ramps, np.random.default_rng(1), positive=False).estimate()
    half = stats.t.ppf(0.975, 2) * ramps.std(ddof=1) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half), abs=0.02 * half)
    logs = ramp_sample(2.5, 3, ramps, np.random.default_rng(1), positive=True).estimate()
    half = stats.t.ppf(0.975, 2) * np.log(ramps).std(ddof=1) / np.sqrt(3)
    assert (logs.low, logs.high) == pytest.approx((2.5 / np.exp(half), 2.5 * np.exp(half)), rel=0.05)


def test_ties_and_constants_are_no_trouble() -> None:
    found = quantile_sample([np.array([4.0, 4.0]), np.array([4.0])], 0.5, np.random.default_rng(1)).estimate()
    assert (found.value, found.low, found.high, found.n) == (4.0, 4.0, 4.0, 3)


@pytest.mark.parametrize(("units", "share"), [(8, 0.0057), (10_000, 0.025)])
def test_percentiles_are_moved_outwards_for_few_units(units: int, share: float) -> None:
    assert tail(units) == pytest.approx(share, abs=1e-4)


def test_the_tail_needs_sixty_launches(summary: Summary) -> None:
    tails = {one.driver: one for one in summary.summary if one.metric == "startup.reply.p95"}
    assert set(tails) == {"process", "container"}, "48 guests are too few"
    assert tails["container"].median > row(summary, "container", "startup.reply").median
    assert tails["container"].n == 6 * 64


def test_the_same_run_gives_the_same_numbers(data: RunData, summary: Summary) -> None:
    assert summarise(data) == summary
    other = summarise(msgspec.structs.replace(data, info=info(seed=8)))
    assert row(other, "vm", "startup.reply").median == row(summary, "vm", "startup.reply").median


# --- headline and doubts ---------------------------------------------------------------------------------------


def test_headline_takes_the_first_reply_and_marks_guests(data: RunData, summary: Summary) -> None:
    process, container, guest = headline(summary, data)
    assert [one.startup_metric for one in (process, container, guest)] == ["startup.reply"] * 3
    assert (process.accelerator, guest.accelerator) == (None, "tcg")
    assert (guest.alive, guest.asked, guest.limiters, guest.ramps) == (8, 8, ("count",), 6)
    assert container.per_gib is not None
    assert container.per_gib.value == pytest.approx(GIB / TRUTHS[1].marginal, rel=0.05)
    assert container.per_gib.low is not None
    assert container.per_gib.low <= container.per_gib.value


@pytest.mark.parametrize("memory", [Estimate(100.0, -1.0, 200.0, 3), Estimate(-5.0, None, None, 1), None])
def test_no_instances_per_gib_from_a_slope_that_may_be_zero(memory: Estimate | None) -> None:
    assert per_gib(memory) is None


def test_ratios_are_against_the_container_and_hold_the_truth(data: RunData) -> None:
    found = {(one.upper.driver, one.lower.driver): one.times for one in ratios(data, ("memory.marginal",))}
    assert set(found) == {("container", "process"), ("vm", "container")}
    times = found["vm", "container"]
    assert times.low is not None
    assert times.high is not None
    assert times.low <= TRUTHS[2].marginal / TRUTHS[1].marginal <= times.high


def doubts(data: RunData, summary: Summary | None = None) -> str:
    return "\n".join(doubt.message for doubt in quality(data, summary or summarise(data)))


@pytest.fixture(scope="module")
def kvm() -> RunData:
    """Six quiet rounds under kvm on a quiet host."""
    quiet = run_data(rounds=6, noise=0.1, truths=tuple(changed(truth, count=min(truth.count, 24)) for truth in TRUTHS))
    return msgspec.structs.replace(quiet, info=info(accelerator="kvm"))


@pytest.fixture(scope="module")
def kvm_summary(kvm: RunData) -> Summary:
    return summarise(kvm)


def test_a_good_run_raises_no_doubt(kvm: RunData, kvm_summary: Summary) -> None:
    assert doubts(kvm, kvm_summary) == ""


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"load1": 1.5}, "busy"), ({"governor": "powersave"}, "governor is powersave"), ({"ksm": True}, "KSM"),
        ({"clocksource": "hpet"}, "hpet"), ({"turbo": True}, "Turbo is on"), ({"thp": "always"}, "huge pages"),
        ({"virtualization": "kvm"}, "itself a virtual machine"),
    ],
)  # fmt: skip
def test_doubts_about_the_host(kvm: RunData, kvm_summary: Summary, facts: dict[str, object], said: str) -> None:
    assert said in doubts(msgspec.structs.replace(kvm, host=host(**facts)), kvm_summary)


@pytest.mark.parametrize(
    ("facts", "said"),
    [({"status": "interrupted"}, "interrupted"), ({"warnings": ("odd",)}, "odd")],
)
def test_doubts_about_the_run(kvm: RunData, kvm_summary: Summary, facts: dict[str, object], said: str) -> None:
    assert said in doubts(msgspec.structs.replace(kvm, info=info(accelerator="kvm", **facts)), kvm_summary)


def test_doubt_about_guests_under_tcg(kvm: RunData, kvm_summary: Summary) -> None:
    assert "say nothing of VMs in general" in doubts(kvm, msgspec.structs.replace(kvm_summary, accelerator="tcg"))


def test_doubt_about_a_torn_file(kvm: RunData, kvm_summary: Summary) -> None:
    assert "torn" in doubts(msgspec.structs.replace(kvm, warnings=("trials.jsonl:9: torn",)), kvm_summary)


def test_doubt_about_few_rounds() -> None:
    assert "3 rounds: intervals assume that ramps scatter about normally" in doubts(run_data(rounds=3))
    assert "One round: slopes and rates get no interval" in doubts(run_data(rounds=1))


def test_doubt_about_a_limiter_and_failed_launches(kvm: RunData) -> None:
    limited = edited(kvm, TrialRecord, limiter=lambda record: "memory" if record.driver == "vm" else "count")
    assert "vm:stock (kvm): 6 of 6 ramps ended early, at 8 of 8 instances: memory" in doubts(limited)

    def outcome(record: LaunchRecord) -> Outcome:
        return Outcome.FAILED if record.driver == "vm" and record.alive == 7 else record.outcome

    assert "vm:stock (kvm): 6 of 48 launches did not succeed" in doubts(edited(kvm, LaunchRecord, outcome=outcome))


def test_doubt_about_a_cold_first_launch(kvm: RunData) -> None:
    def phases(record: LaunchRecord) -> dict[str, int]:
        return {name: at * (3 if record.alive == 0 else 1) for name, at in record.phases.items()}

    cold = edited(kvm, LaunchRecord, phases=phases)
    assert "process:default: the first launch of a ramp takes 3.0 times" in doubts(cold)


def test_doubt_about_start_up_that_grows_with_n(kvm: RunData) -> None:
    def phases(record: LaunchRecord) -> dict[str, int]:
        return {name: int(at * (1 + record.alive / 24)) for name, at in record.phases.items()}

    assert "container:default: start-up depends on N" in doubts(edited(kvm, LaunchRecord, phases=phases))


def test_doubt_about_start_up_that_changes_from_round_to_round(kvm: RunData) -> None:
    def phases(record: LaunchRecord) -> dict[str, int]:
        return {name: int(at * (1 - record.round / 20)) for name, at in record.phases.items()}

    assert "container:default: start-up fell from round to round, by" in doubts(
        edited(kvm, LaunchRecord, phases=phases)
    )


def test_doubt_about_two_modes(kvm: RunData) -> None:
    def phases(record: LaunchRecord) -> dict[str, int]:
        return {name: at * (2 if record.alive % 4 == 1 else 1) for name, at in record.phases.items()}

    said = doubts(edited(kvm, LaunchRecord, phases=phases))
    assert "container:default: start-up has two modes: 25 % of launches take 2.0 times as long" in said


def test_doubt_about_stolen_time(kvm: RunData) -> None:
    def readings(record: StepRecord) -> tuple[Reading, ...]:
        seconds = 100.0 * record.round
        cpu = Reading("host.cpu.steal", 0.03 * seconds, "s"), Reading("host.cpu.total", seconds, "s")
        return (*record.readings, *cpu)

    assert "3 % of the CPU time during the run was taken" in doubts(edited(kvm, StepRecord, readings=readings))


@pytest.mark.parametrize("made", ["normal", "exponential", "uniform"])
def test_one_mode_is_not_two(made: str) -> None:
    rng = np.random.default_rng(2)
    values = {
        "normal": rng.normal(10, 1, 400),
        "exponential": 5 + rng.exponential(1, 400),
        "uniform": 1 + rng.random(400),
    }
    assert two_modes(values[made]) is None
    assert two_modes(np.concatenate([values[made], 4 * values[made][:80]])) is not None


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        (changed(TRUTHS[1], kernel=100 * KIB), "74 % of memory.marginal is in neither PSS nor the cgroups' kernel"),
        (changed(TRUTHS[1], marginal=-10.0 * KIB), "memory.marginal is not positive"),
    ],
)
def test_doubts_about_memory(truth: Truth, said: str) -> None:
    assert f"container:default: {said}" in doubts(run_data(rounds=6, noise=0, truths=(truth,)))


def test_doubt_about_a_slope_that_may_be_zero() -> None:
    """Ramps that swing by 300 KiB an instance around a mean of 10 KiB."""

    def tilted(record: StepRecord) -> tuple[Any, ...]:
        tilt = (-1) ** record.round * 300 * KIB * record.n
        return tuple(
            msgspec.structs.replace(one, value=one.value + tilt) if one.metric == "host.memory.available" else one
            for one in record.readings
        )

    flat = run_data(rounds=6, noise=0, truths=(changed(TRUTHS[1], marginal=10.0 * KIB),))
    swinging = edited(flat, StepRecord, readings=tilted)
    assert "container:default: memory.marginal can't be told from zero" in doubts(swinging)


def test_doubt_about_a_wide_interval() -> None:
    assert "the interval of startup.reply" in doubts(run_data(rounds=6, noise=6))


# --- documents -------------------------------------------------------------------------------------------------


def test_docs_hold_the_glossary() -> None:
    assert markdown_table() in (DOCS / "result-format.md").read_text()


def test_docs_hold_the_schema_of_the_summary(summary: Summary) -> None:
    schema = msgspec.json.decode((DOCS / "summary.schema.json").read_bytes())
    assert schema == msgspec.json.schema(Summary)
    assert msgspec.json.decode(msgspec.json.encode(summary), type=Summary) == summary
