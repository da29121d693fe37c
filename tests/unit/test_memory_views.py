"""Guest RAM is told apart by its mapping, the views of memory account for what the host lost, and a bend is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.analysis import frames, quality, summarise
from bench.analysis.reconcile import reconcile
from bench.linux import procfs
from bench.model import MIB, Footprint, GuestRam, Reading
from bench.records import StepRecord
from bench.samplers.memory import MemorySampler
from bench.store import RunData
from bench.vm.ram import located
from tests.unit.fabricated import KIB, TRUTHS, run_data
from tests.unit.guests import GUEST, OVERHEAD, RAM, guest

# --- guest RAM


def values(root: Path, *footprints: Footprint) -> dict[str, float]:
    return {reading.metric: reading.value for reading in MemorySampler(root).read(footprints)}


@pytest.mark.parametrize("split", [True, False])
def test_guest_ram_is_what_the_hypervisor_says_it_is(tmp_path: Path, split: bool) -> None:
    found = values(tmp_path, guest(tmp_path, split=split))
    assert found["instances.memory.guest"] == GUEST * KIB, "not the other mapping of the same size"
    assert found["instances.memory.touched"] == (GUEST + 100 * (1 + split)) * KIB
    assert found["instances.memory.overhead"] == OVERHEAD * KIB
    assert found["instances.memory.pss"] == found["instances.memory.guest"] + found["instances.memory.overhead"]


@pytest.mark.parametrize(
    ("ram", "beyond"),
    [(None, False), (RAM, True), (GuestRam(RAM.pid, 0x1000, MIB), False), (GuestRam(78, RAM.start, RAM.size), False)],
    ids=["not told", "a mapping that reaches beyond it", "nothing there", "the process has ended"],
)
def test_ram_that_can_not_be_told_apart_is_absent(tmp_path: Path, ram: GuestRam | None, beyond: bool) -> None:
    found = values(tmp_path, guest(tmp_path, ram, beyond=beyond))
    assert found["instances.memory.pss"] == (GUEST + OVERHEAD) * KIB
    assert not {"instances.memory.guest", "instances.memory.touched", "instances.memory.overhead"} & found.keys()


def test_a_sum_needs_all_guests_and_no_others(tmp_path: Path) -> None:
    one = guest(tmp_path)
    assert "instances.memory.guest" in values(tmp_path, one, Footprint("has ended"))
    assert "instances.memory.guest" not in values(tmp_path, one, Footprint("no guest", pids=(1,)))
    assert "instances.memory.guest" not in values(tmp_path)


def test_an_empty_smaps_maps_nothing() -> None:
    assert procfs.mapped([], 0, 1 << 47) is None


def test_nothing_is_read_beyond_the_ram(tmp_path: Path) -> None:
    guest(tmp_path)
    lines = iter((tmp_path / f"proc/{RAM.pid}/smaps").read_text().splitlines())
    assert procfs.mapped(lines, RAM.start, RAM.size) is not None
    assert next(lines).startswith("Size:"), "of the mapping behind it"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Host virtual address for 0x0 (pc.ram) is 0x7f5400000000\r\n", (0x7F5400000000, 256 * MIB)),
        ("Host virtual address for 0x0 (bench-ram) is 0x7f5400000000\r\n", None),  # no backend of that name
        ("Memory at address 0x0 is not RAM\r\n", None),
        ("unknown command: 'gpa2hva'\r\n", None),
    ],
)
def test_the_backend_is_the_one_that_qemu_names(said: str, found: tuple[int, int] | None) -> None:
    assert located(said, {"pc.ram": 256 * MIB, "other": 256 * MIB}) == found


# --- the views side by side


def edited(data: RunData, change: Any) -> RunData:
    """`data` with the readings that `change` makes of each step."""
    records = (
        msgspec.structs.replace(record, readings=tuple(change(record))) if isinstance(record, StepRecord) else record
        for record in data.records
    )
    return msgspec.structs.replace(data, records=tuple(records))


def with_parts(record: StepRecord) -> list[Reading]:
    """Guest RAM is nine tenths of a guest's PSS; slab holds 100 KiB an instance."""
    pss = next(one.value for one in record.readings if one.metric == "instances.memory.pss")
    host = {"slab": 7 * MIB + 100 * KIB * record.n, "pagetables": 5.0, "kernelstack": 5.0, "percpu": 5.0}
    more = [Reading(f"host.memory.{name}", float(value), "bytes") for name, value in host.items()]
    if record.driver == "vm" and record.n:
        more += [Reading("instances.memory.guest", 0.9 * pss, "bytes")]
        more += [Reading("instances.memory.overhead", 0.1 * pss, "bytes")]
    return [*record.readings, *more]


def test_every_step_accounts_for_what_the_host_lost() -> None:
    found = {
        (one.series.driver, one.n): one for one in reconcile(frames(edited(run_data(rounds=2, noise=0), with_parts)))
    }
    for truth in TRUTHS:
        for n in (1, 2, truth.count):
            one = found[truth.driver, n]
            assert one.ramps == 2
            assert one.lost == pytest.approx(truth.fixed + truth.marginal * n)
            assert one.pss == pytest.approx(truth.pss * n)
            assert one.kernel == pytest.approx(truth.kernel * n)
            assert one.residual == pytest.approx(truth.fixed + (truth.marginal - truth.pss - truth.kernel) * n)
            assert one.host_kernel == pytest.approx(100 * KIB * n)
            if truth.driver != "vm":
                assert (one.guest, one.overhead) == (None, None)
            else:
                assert one.pss is not None
                assert one.guest is not None
                assert one.overhead is not None
                assert one.guest + one.overhead == pytest.approx(one.pss)
    assert (TRUTHS[0].driver, 0) not in found


def test_rows_add_up_with_noise_too() -> None:
    for one in reconcile(frames(run_data(rounds=3))):
        assert one.pss is not None
        assert one.kernel is not None
        assert one.residual is not None
        assert one.lost == pytest.approx(one.pss + one.kernel + one.residual)


def test_a_view_that_was_not_read_is_absent_and_so_is_the_residual() -> None:
    def without(record: StepRecord) -> list[Reading]:
        return [one for one in record.readings if one.metric != "instances.memory.kernel"]

    for one in reconcile(frames(edited(run_data(rounds=2), without))):
        assert (one.kernel, one.residual, one.host_kernel) == (None, None, None)
        assert one.pss is not None


def test_a_ramp_without_its_start_accounts_for_nothing() -> None:
    data = run_data(rounds=1)
    records = [one for one in data.records if not (isinstance(one, StepRecord) and one.n == 0)]
    assert reconcile(frames(msgspec.structs.replace(data, records=tuple(records)))) == []


# --- doubts


def said(data: RunData) -> str:
    return "\n".join(doubt.message for doubt in quality(data, summarise(data)))


def bent_by(share: float) -> Any:
    """Containers whose cost an instance changes: at N it has changed by `share` of what it is at the start."""

    def change(record: StepRecord) -> list[Reading]:
        more = 0.5 * share * TRUTHS[1].marginal * record.n**2 / TRUTHS[1].count if record.driver == "container" else 0.0
        return [
            msgspec.structs.replace(one, value=one.value - more) if one.metric == "host.memory.available" else one
            for one in record.readings
        ]

    return change


@pytest.mark.parametrize(
    ("share", "words"), [(1.0, "below one, each instance costs more and more"), (-0.5, "above one, each instance")]
)
def test_doubt_about_memory_that_is_no_line(share: float, words: str) -> None:
    text = said(edited(run_data(rounds=4, noise=0.3), bent_by(share)))
    assert "container:default: memory over N is no line" in text
    assert words in text
    assert "process:default: memory over N" not in text


def test_a_small_bend_and_a_single_ramp_are_no_doubt() -> None:
    assert "is no line" not in said(edited(run_data(rounds=4, noise=0.3), bent_by(0.05)))
    assert "is no line" not in said(edited(run_data(rounds=1, noise=0), bent_by(1.0)))


def counted(off: float) -> Any:
    """A file system that says `off` times as much of one more as was counted; 40 MiB were in use before."""

    def change(record: StepRecord) -> list[Reading]:
        disk = next(one.value for one in record.readings if one.metric == "instances.disk.own")
        used = Reading("scratch.disk.used", 40 * MIB + off * disk, "bytes")
        return [*record.readings, used, Reading("scratch.disk.counted", disk, "bytes")]

    return change


@pytest.mark.parametrize(("off", "words"), [(1.05, "is in no file"), (0.95, "was counted too much")])
def test_doubt_about_disk_that_was_miscounted_by_five_percent(off: float, words: str) -> None:
    truths = tuple(replace(truth, disk=33 * MIB) for truth in TRUTHS)
    text = said(edited(run_data(rounds=2, truths=truths), counted(off)))
    assert f"vm:stock (tcg): disk of one more is not what its file system says (disk.used): 5 % of it {words}" in text


@pytest.mark.parametrize("off", [1.015, 1.0, 0.985])
def test_disk_that_agrees_within_two_percent_is_no_doubt(off: float) -> None:
    assert "disk.used" not in said(edited(run_data(rounds=2), counted(off)))
