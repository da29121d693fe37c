"""What `bench show RUN --json` says of isolation and neighbours. Its keys are for other programs: they stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.records import Containment, Exposed, Exposure, Finding, Record
from bench.store import RunWriter
from bench.verbs.show import show_run
from tests.unit.fabricated import run_data
from tests.unit.test_exposure import CALLS, GUEST
from tests.unit.test_exposure import record as exposure_record
from tests.unit.test_isolation import THROUGH, ended, finding_record
from tests.unit.test_neighbours import experiments

NEW = {"findings", "exposure", "neighbours"}


class Shown:
    """A run of these records, as the verb prints it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._capsys = folder, capsys

    def of(self, *records: Record) -> dict[str, Any]:
        data = run_data()
        with RunWriter(self._folder, data.info, data.host) as writer:
            for one in records:
                writer.append(one)
        assert show_run(data.info.run, self._folder, as_json=True) == 0
        said: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return said


@pytest.fixture
def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shown:
    return Shown(tmp_path, capsys)


def test_what_a_run_has_not_is_absent(shown: Shown) -> None:
    assert not NEW & set(shown.of(*run_data().records))


def test_findings_are_rows_with_their_evidence_and_control(shown: Shown) -> None:
    guest = {"driver": "vm", "profile": "stock", "trial": "r1-vm:stock"}
    said = shown.of(
        finding_record("a.one", Finding(Containment.CONTAINED, "no"), THROUGH),
        finding_record("a.one", Finding(Containment.ESCAPED, "yes"), THROUGH, round=2, name="k3x9ab-c3"),
        finding_record("a.one", Finding(Containment.CONTAINED, "its own"), THROUGH, **guest),
        finding_record("a.two", Finding(Containment.CONTAINED, "no"), None),
        ended(),
        ended(**guest, accelerator="tcg"),
    )
    assert NEW & set(said) == {"findings"}
    worst, other, unproved = said["findings"]
    assert worst == {
        "driver": "container", "profile": "default", "probe": "a.one", "claim": "A claim.", "severity": "high",
        "outcome": "escaped", "evidence": "yes", "instance": "k3x9ab-c3", "found": 1, "rounds": 2, "counts": True,
        "place": "process", "control": {"outcome": "escaped", "evidence": "it got through"},
    }  # fmt: skip
    assert (other["driver"], other["outcome"], other["accelerator"]) == ("vm", "contained", "tcg")
    assert not unproved["counts"]
    assert "control" not in unproved


def test_exposure_is_a_row_an_axis_and_driver(shown: Shown) -> None:
    facts = Exposure("facts", (Exposed("uptime", "host", "9", "9"),), {"host": 1})
    said = shown.of(
        exposure_record(CALLS), exposure_record(Exposure("calls", (), {"works": 287}), 2), exposure_record(facts),
        exposure_record(Exposure("calls", missing="it would not"), target=GUEST),
    )  # fmt: skip
    assert NEW & set(said) == {"exposure"}
    own = {"driver": "container", "profile": "default", "kernel": "host"}
    counts = {"works": {"low": 286, "high": 287}, "denied": {"low": 97, "high": 97}}
    item = {"name": "uptime", "found": "host", "inside": "9", "host": "9"}
    assert said["exposure"] == [
        {**own, "axis": "calls", "counts": counts},
        {"driver": "vm", "profile": "stock", "kernel": "own", "axis": "calls", "missing": "it would not"},
        {**own, "axis": "facts", "counts": {"host": {"low": 1, "high": 1}}, "items": [item]},
    ]


def test_neighbours_are_losses_and_limits(shown: Shown) -> None:
    said = shown.of(*experiments(), *experiments("vm", "tcg"))
    assert NEW & set(said) == {"neighbours"}
    rows = {(row["driver"], row["aggressor"], row["limits"]): row for row in said["neighbours"]["losses"]}
    raised = rows["container", "cpu", "raised"]
    assert {*raised} == {
        "driver", "profile", "victim", "aggressor", "limits", "n", "samples", "failed", "idle", "polite", "load",
    }  # fmt: skip
    assert (raised["victim"], raised["n"], raised["samples"], raised["failed"]) == ("cpu", 4, 12, 0)
    median = raised["idle"]["median"]
    assert {*median} == {"value", "low", "high", "n", "method"}
    assert median["value"] == pytest.approx(1.01, abs=0.02)
    assert median["low"] < median["value"] < median["high"]
    assert "polite" in rows["container", "polite", "declared"]
    assert rows["vm", "cpu", "raised"]["accelerator"] == "tcg"
    declared, raised = said["neighbours"]["dearest"]  # none of the guests under tcg
    assert (declared["limits"], declared["aggressor"], declared["out_of"], declared["shown"]) == (
        "declared",
        "cpu",
        1,
        True,
    )
    assert {key: raised[key] for key in raised if key != "loss"} == {
        "driver": "container", "profile": "default", "limits": "raised", "victim": "cpu", "aggressor": "cpu",
        "out_of": 2, "shown": True,
    }  # fmt: skip
    assert raised["loss"]["value"] == pytest.approx(median["value"])
    assert raised["loss"]["low"] < median["low"] < median["high"] < raised["loss"]["high"], "it was chosen out of two"
    limits = {(one["driver"], one["limits"]): one for one in said["neighbours"]["limits"]}
    assert limits["container", "declared"] == {
        "driver": "container", "profile": "default", "limits": "declared", "limit": "cpus", "declared": 1.0,
        "mean": pytest.approx(1.04), "most": pytest.approx(1.08), "readings": 20, "honoured": True,
    }  # fmt: skip
    assert limits["container", "raised"]["honoured"] is False
