"""The report: one file, nothing from outside, every guest marked, no number that is none."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace as changed
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from bench import process
from bench.analysis import Estimate, resampling
from bench.errors import ResultsError
from bench.records import LaunchRecord, NoteRecord, Outcome, StepRecord, TrialRecord
from bench.report import format
from bench.report.build import build_report, render
from bench.report.figures import disk, memory, startup
from bench.store import RunData
from tests.unit.fabricated import TRUTHS, host, info, run_data

NBSP = "\N{NO-BREAK SPACE}"


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Enough for what is asserted here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "RESAMPLES", 1_000)
        yield


@pytest.fixture(scope="module")
def data() -> RunData:
    return run_data()


@pytest.fixture(scope="module")
def page(data: RunData) -> str:
    return render(data)


class Page(HTMLParser):
    """Text outside <style>, tags with attributes, and whether every tag is closed in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text.append(text)


def test_nothing_comes_from_outside(page: str) -> None:
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"@import|url\((?!#)|<script|<link|<iframe|<img", page)
    for tag, attributes in Page(page).tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)


def test_links_and_ids_fit(page: str) -> None:
    tags = Page(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for name in ("href", "xlink:href"):
            if name in attributes:
                assert str(attributes[name]).removeprefix("#") in ids
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids


def test_no_number_is_none_or_not_a_number(page: str) -> None:
    text = " ".join(Page(page).text)
    assert not re.search(r"\b(nan|NaN|None(?!:)|inf|undefined)\b", text)


def test_figures_say_their_finding_and_n(page: str) -> None:
    drawings = [attributes for tag, attributes in Page(page).tags if tag == "svg"]
    assert len(drawings) == 12  # six, wide and narrow
    assert all(one["role"] == "img" and one["aria-labelledby"] for one in drawings)
    descriptions = re.findall(r"<desc[^>]*>(.*?)</desc>", page, re.DOTALL)
    assert len(descriptions) == 12
    assert all(re.search(r"\d", text) for text in descriptions)
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL):
        assert "n = " in caption


def test_colours_follow_the_page(page: str) -> None:
    for figure in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert "currentColor" in figure
        assert not re.search(r"(fill|stroke)[:=\" ]+#[0-9a-f]{6}", figure)
        assert "var(--s" in figure


def test_every_guest_is_marked(page: str) -> None:
    """Wherever vm:stock stands in prose, tables or figures, tcg stands beside it."""
    shown = page[page.index("<body>") : page.index('<h2 id="method">')]
    shown = re.sub(r' aria-label="[^"]*"', "", shown)
    for match in re.finditer(r"vm:stock", shown):
        around = shown[match.end() : match.end() + 120]
        assert "tcg" in around, shown[match.start() - 80 : match.end() + 80]
    (guest,) = re.findall(r"<tr>\s*<th scope=\"row\">(?:(?!</tr>).)*?vm:stock.*?</tr>", page, re.DOTALL)[:1]
    cells = re.findall(r"<td.*?</td>", guest, re.DOTALL)
    assert len(cells) == 5
    assert all('class="accel tcg"' in cell for cell in cells)


def test_kvm_is_no_tcg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.build.figures", lambda scene: [memory(scene)])
    trials = [
        msgspec.structs.replace(r, accelerator="kvm") if isinstance(r, TrialRecord) else r
        for r in run_data(truths=TRUTHS[2:]).records
    ]
    page = render(RunData(info(accelerator="kvm"), host(), tuple(trials)))
    body = page[page.index("<body>") :]
    assert "tcg" not in body
    assert "vm:stock (kvm)" in body


def test_the_answer_is_made_from_the_numbers(page: str) -> None:
    (answer,) = re.findall(r'<p class="answer">(.*?)</p>', page, re.DOTALL)
    (times,) = re.findall(r"vm:stock \(tcg\) takes (\d+) times \(95 %: \d+ to \d+\) as long to reply", answer)
    truth = (TRUTHS[2].ready + TRUTHS[2].reply) / (TRUTHS[1].ready + TRUTHS[1].reply)
    assert int(times) == pytest.approx(truth, rel=0.1)
    assert "emulates the CPU in software" in answer


def test_sections_come_in_order(page: str) -> None:
    order = ["headline", "figure-memory", "figure-startup", "figure-startup-n", "figure-disk", "figure-phases",
             "figure-capacity", "summary", "disk-taken", "reconciled", "doubts", "trials", "host", "drivers", "method",
             "again"]  # fmt: skip
    places = [page.index(f'<h2 id="{name}"') for name in order]
    assert places == sorted(places)


def test_what_the_run_says_is_escaped_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.build.figures", lambda _: [])  # they show none of it, and take their time
    evil = "<script>alert(1)</script> & $x^2$"
    records = tuple(
        msgspec.structs.replace(r, outcome=Outcome.FAILED, phases={}, error=evil)
        if isinstance(r, LaunchRecord) and r.driver == "vm"
        else msgspec.structs.replace(r, limiter="memory", evidence=evil, alive=3, outcome=Outcome.FAILED)
        if isinstance(r, TrialRecord) and r.driver == "vm" else r
        for r in run_data(rounds=1, truths=TRUTHS[1:]).records
    )  # fmt: skip
    note = NoteRecord(date=1.0, level="warning", text=evil)
    page = render(RunData(info(warnings=(evil,), scenario_toml=evil), host(cpu_model=evil), (*records, note)))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6
    assert "vm:stock (tcg) reached 3 of 8 instances, limited by memory." in page
    Page(page)


@pytest.mark.parametrize(
    "records",
    [
        (),
        run_data(rounds=1, truths=(changed(TRUTHS[0], count=4),)).records,
        tuple(r for r in run_data(rounds=1, truths=TRUTHS[1:2]).records if isinstance(r, StepRecord)),
        tuple(r for r in run_data(rounds=1, truths=TRUTHS[1:2]).records if isinstance(r, LaunchRecord)),
    ],
    ids=["nothing", "one driver, one round", "only steps", "only launches"],
)
def test_a_run_that_holds_little_is_reported_too(records: tuple[object, ...]) -> None:
    page = render(RunData(info(status="interrupted", ended=None), host(), records))  # type: ignore[arg-type]
    assert "did not finish" in page
    text = " ".join(Page(page).text)
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    if not records:
        assert "Nothing was measured" in text


def test_the_same_run_gives_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.build.figures", lambda scene: [startup(scene), disk(scene)])  # points, hatches
    small = run_data(rounds=3, truths=TRUTHS[2:])
    assert render(small) == render(small)


def test_written_in_one_piece_into_a_new_folder(
    tmp_path: Path, data: RunData, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.report.build.render", lambda _: page)
    target = tmp_path / "reports" / "run.html"
    build_report(data, target)
    assert target.read_text() == page
    assert list(target.parent.iterdir()) == [target]


def test_a_target_that_cannot_be_written_is_named(
    tmp_path: Path, data: RunData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.report.build.render", lambda _: "")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultsError, match="file") as caught:
        build_report(data, tmp_path / "file" / "run.html")
    assert caught.value.exit_code == 2


def test_a_report_needs_no_driver_and_no_libvirt() -> None:
    code = (
        "import sys, bench.report; "
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'libvirt' or m.startswith("
        "('bench.drivers', 'bench.runner', 'bench.vm', 'bench.container', 'bench.linux', 'matplotlib.pyplot'))))"
    )
    assert process.run([sys.executable, "-c", code], timeout=60).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (949_689.5, "bytes", "927 KiB"), (4096, "bytes", "4 KiB"), (-2048.0, "bytes", "-2 KiB"), (0, "bytes", "0 B"),
        (0.0069280435, "s", "6.93 ms"), (2.807, "s", "2.81 s"), (0.000_69, "s", "690 µs"), (64.0, "instances", "64"),
        (1130.62, "instances", "1,131"), (0.3567, "1/s", "0.357/s"), (None, "s", "–"),  # noqa: RUF001
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(value: float | None, unit: str, text: str) -> None:
    assert format.quantity(value, unit).replace(NBSP, " ") == text


def test_an_interval_is_in_the_unit_of_its_value() -> None:
    assert format.interval(Estimate(0.99, 0.9, 1.2, 3), "s").replace(NBSP, " ") == "900 to 1,200 ms"
    assert format.interval(Estimate(1.0, None, None, 1), "s") == ""
    found = Estimate(6.93e-3, 6.74e-3, 7.08e-3, 3)
    assert format.estimate(found, "s").replace(NBSP, " ") == "6.93 ms (6.74 to 7.08 ms)"
