"""The rig's reading of its own log, its command line and its cache; building and booting is what it does itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.rig.guest import judge
from tools.rig.machine import argv
from tools.rig.parts import Parts, _kept, cached
from tools.rig.stages import STAGES, TESTS, summary, verdicts

LOG = """\
rig: prepare starts at 0 s
rig: prepare passed after 3 s
rig: doctor passed after 61 s
bench: error: something
rig: density FAILED with 1 after 250 s
rig: report starts at 314 s
"""
JUNIT = '<testsuites><testsuite tests="9" failures="1" errors="0" skipped="2"/></testsuites>'


def test_a_stage_passes_only_if_the_log_says_so() -> None:
    found = {one.stage: one for one in verdicts(LOG, ("doctor", "density", "report"))}
    assert found["prepare"].passed
    assert found["doctor"].passed
    assert not found["density"].passed
    assert found["report"].said == "did not end"
    assert not found["report"].passed


def test_the_summary_names_each_stage_and_counts_the_tests(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(JUNIT)
    text = summary(verdicts("rig: tests FAILED with 1 after 9 s\n", ("tests",)), 1, 99.6, tmp_path)
    assert "tests      FAILED with 1 (9 s), 9 tests, 1 failures, 0 errors, 2 skipped\n" in text
    assert text.endswith("status 1, 100 s in all\n")
    assert "without a status" in summary([], None, 1.0, tmp_path)


def test_the_job_has_every_stage_and_the_tests_are_there() -> None:
    tree = Path(__file__).parents[2]
    job = (tree / "tools/rig/guest/job.sh").read_text()
    assert all(f"\nstage {name} " in job for name in STAGES)
    assert all((tree / name).is_file() for name in TESTS if not name.startswith("-"))


def test_the_machine_says_what_it_is() -> None:
    parts = Parts(*map(Path, ("vmlinuz", "initrd", "root.img", "venv.img", "cache.img", "job.tar")))
    words = " ".join(argv(parts, Path("/results"), 512))
    assert "product=nested rig" in words
    assert "-accel tcg" in words
    assert "+svm" in words
    assert "file=root.img,if=virtio,snapshot=on" in words, "what the guest writes must not reach the cached part"
    assert "file=venv.img,if=virtio,readonly=on" in words


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("accelerator", "tcg", "not kvm"), ("cgroup", "hybrid", "not v2"), ("virtualization", None, "nested rig")],
)
def test_the_judge_says_what_is_not_as_it_should_be(tmp_path: Path, key: str, value: str | None, said: str) -> None:
    host = {"cgroup": "v2", "virtualization": "QEMU nested rig (emulated)"}
    answers = {"accelerator": "kvm", "host": host, "drivers": {"vm": {"ok": True, "reason": ""}}}
    good = tmp_path / "good.json"
    good.write_text(json.dumps(answers))
    assert list(judge.doctor(str(good))) == []
    (host if key in host else answers)[key] = value  # type: ignore[index]
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(answers))
    (wrong,) = judge.doctor(str(bad))
    assert said in wrong


def test_parts_are_made_once_for_what_they_depend_on(tmp_path: Path) -> None:
    made: list[str] = []

    def make(path: Path) -> None:
        made.append(path.name)
        path.write_text("part")

    first = cached(tmp_path, "part", ".img", ["a"], make)
    assert cached(tmp_path, "part", ".img", ["a"], make) == first
    assert len(made) == 1
    second = cached(tmp_path, "part", ".img", ["b"], make)
    assert second != first
    assert [path.name for path in tmp_path.iterdir()] == [second.name]


def test_half_made_things_and_answers_about_this_host_stay_here(tmp_path: Path) -> None:
    for name in ("images/blobs", "kernels/one", "kernels/.new-two", "accel"):
        (tmp_path / name).mkdir(parents=True)
    assert _kept(tmp_path) == ["images/blobs", "kernels/one"]


def test_a_part_that_fails_is_not_there(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cached(tmp_path, "part", ".img", ["a"], fail)
    assert not list(tmp_path.glob("part-*"))
