"""Findings: how an attack's answer is judged, what a battery records, and the matrix people read."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import msgspec
import pytest

from bench.analysis.isolation import changes, contrasts, matrix
from bench.battery import Battery, Control, Kit
from bench.config.find import find_scenario
from bench.config.loader import load_scenario
from bench.errors import CommandError, ConfigError, LaunchError
from bench.model import Completed, InstanceSpec, Limits, ProcessSettings
from bench.plan import make_plan
from bench.probes import PROBES
from bench.probes.attacks import Attack, asks, reads
from bench.probes.base import Answer, Held, Probe, Scene, World
from bench.probes.judges import by_kernel, by_secret
from bench.probes.program import attack, parse
from bench.probes.unchanged import Snapshot, differences
from bench.records import Containment, Finding, FindingRecord, Outcome, TrialRecord
from bench.report.build import render
from bench.store import RunData
from bench.verbs.show_isolation import print_matrix
from tests.fakes import IMAGE, RUN, FakeDriver, FakeInstance
from tests.unit.fabricated import run_data

SECRET = "0123456789abcdef"
HELD = Held(
    secret=SECRET, folder="/canary", pid=1, address="0x1", descriptor=3, loopback=1, everywhere=2, segment=0, key=1,
    socket="s", handle_type=1, handle="00",
)  # fmt: skip
ESCAPED, CONTAINED, DEGRADED = Containment.ESCAPED, Containment.CONTAINED, Containment.DEGRADED
YES = Answer(True, 0, "open", "done")


class FakeWorld:
    """A host with the files of `files`."""

    held = HELD
    sees = False
    ended = False
    addresses: Sequence[str] = ()

    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        self.files = dict(files or {})

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def write(self, path: str, text: str) -> None:
        self.files[path] = text

    def damage(self) -> Sequence[str]:
        return ["the canary has ended"] if self.ended else ()

    def lists(self, mark: str) -> bool:
        return self.sees

    def greeting(self, port: int) -> str:
        return ""

    def leaking(self, words: Sequence[str]) -> Answer:
        return YES

    def bare(self, words: Sequence[str], timeout: float) -> Answer:
        return YES


class Inside(FakeInstance):
    """Answers every attack with what its driver says."""

    def exec(self, argv: Sequence[str], *, timeout: float) -> Completed:
        assert isinstance(self.driver, Attacked)
        said = self.driver.answer(argv[1], self.spec)
        return Completed(0, msgspec.json.encode(said).decode() + "\n", "")


class Attacked(FakeDriver):
    def __init__(self, answer: Callable[[str, InstanceSpec], Answer]) -> None:
        super().__init__()
        self.answer = answer

    @contextmanager
    def launch(self, spec: InstanceSpec, phases: object) -> Iterator[Inside]:
        with super().launch(spec, phases):  # type: ignore[arg-type]
            yield Inside(self, spec, phases)  # type: ignore[arg-type]


def spec_of(number: int) -> InstanceSpec:
    from bench.config.scenario import BUILTIN_PAYLOADS

    return InstanceSpec(
        RUN, "container", "default", number, IMAGE, BUILTIN_PAYLOADS["idle"], Limits(), ProcessSettings()
    )


def scene(same_kernel: bool = True, files: Mapping[str, str] | None = None) -> Scene:
    driver = Attacked(lambda name, spec: YES)
    instance = Inside(driver, spec_of(1), None)  # type: ignore[arg-type]
    return Scene(instance, None, FakeWorld(files), "/attack", Limits(), same_kernel, False, 1.0)


# --- judging ---------------------------------------------------------------------------------------------------------


def test_only_the_canary_s_secret_proves_an_escape() -> None:
    assert by_secret(scene(), Answer(True, 0, "read", f"x {SECRET}")).outcome is ESCAPED
    assert by_secret(scene(), Answer(True, 0, "read", "another file")).outcome is CONTAINED
    assert by_secret(scene(), Answer(False, errno.EPERM, "open", "")).evidence == "open: EPERM"


@pytest.mark.parametrize(
    ("answer", "same", "expected"),
    [
        (YES, True, ESCAPED),
        (YES, False, CONTAINED),
        (Answer(False, errno.EPERM, "call", ""), True, CONTAINED),
        (Answer(False, errno.ENOSYS, "call", ""), True, Containment.UNAVAILABLE),
        (Answer(False, errno.ENOENT, "open", ""), True, CONTAINED),
    ],
)
def test_a_call_counts_where_the_kernel_is_the_hosts(answer: Answer, same: bool, expected: Containment) -> None:
    assert by_kernel(scene(same, {"/there": "1"}), answer, ESCAPED, "/there").outcome is expected


def test_what_the_host_has_not_is_unavailable_and_what_is_hidden_is_contained() -> None:
    missing = Answer(False, errno.ENOENT, "open", "")
    assert by_kernel(scene(), missing, ESCAPED, "/nowhere").outcome is Containment.UNAVAILABLE
    assert by_kernel(scene(files={"/here": "x"}), missing, ESCAPED, "/here").outcome is CONTAINED


def test_an_attack_that_says_nothing_is_an_error_not_a_containment() -> None:
    with pytest.raises(CommandError, match="exit status 137"):
        parse(["/attack", "x"], Completed(137, "", ""))


# --- the catalogue ---------------------------------------------------------------------------------------------------


def test_at_least_forty_probes_each_explained() -> None:
    assert len(PROBES) >= 40
    assert len({one.id for one in PROBES}) == len(PROBES)
    for one in PROBES:
        family, _, name = one.id.partition(".")
        assert family
        assert name
        assert one.claim.endswith(".")


def test_what_could_harm_a_host_is_controlled_in_a_guest() -> None:
    """Module, kexec, reboot, SysRq, settings, mounts, clock, raw devices, host name, memory bomb, panic."""
    harmful = ("mount.", "kernel.", "file.disk", "file.memory-device", "destroy.memory", "destroy.kernel")
    only_read = {"kernel.log", "kernel.uptime"}
    wrong = [
        one.id for one in PROBES if one.id.startswith(harmful) and one.place != "guest" and one.id not in only_read
    ]
    assert wrong == []


def test_the_documentation_lists_every_probe() -> None:
    text = Path("docs/isolation.md").read_text()
    missing = [one.id for one in PROBES if f"| `{one.id}` | {one.severity} | {one.place} | {one.claim} |" not in text]
    assert missing == []
    assert text.count("\n| `") - 5 - 3 == len(PROBES), "five outcomes and three profiles beside the probes"


@pytest.mark.parametrize(("key", "value"), [("drivers", "['container:pooled']"), ("to_limit.on", "true")])
def test_what_is_for_ramps_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match="ramp"):
        load_scenario(find_scenario("isolation"), overrides=[f"{key}={value}"])


def test_the_scenario_is_one_battery_a_driver() -> None:
    plan = make_plan(load_scenario(find_scenario("isolation")), seed=1)
    assert {(trial.driver, trial.kind) for trial in plan.trials} == {
        ("process", "battery"),
        ("container", "battery"),
        ("vm", "battery"),
    }


# --- a battery -------------------------------------------------------------------------------------------------------

READS = reads("file.read", "A file can't be read.", "critical", lambda scene: ("read-file", "/canary/file"))
ASKS = asks("kernel.module", "No module can be loaded.", "critical", "module")


def run_battery(
    inside: Callable[[str, InstanceSpec], Answer],
    bare: Callable[[str, InstanceSpec], Answer],
    probes: Sequence[Probe] = (READS, ASKS),
    sees: bool = False,
    damage: Sequence[str] = (),
) -> tuple[list[FindingRecord], Attacked]:
    """`inside`: what attacks say in the instance; `bare`: in the controls; `sees`: the host sees its processes."""
    target, control = Attacked(inside), Attacked(bare)
    kept: list[FindingRecord] = []

    @contextmanager
    def unchanged() -> Iterator[list[str]]:
        yield []

    def world() -> contextmanager[World]:  # type: ignore[valid-type]
        made = FakeWorld()
        made.sees, made.ended = sees, bool(damage)
        return nullcontext(made)

    kit = Kit(
        probes=probes, program="/attack", world=world, guest_world=lambda guest: FakeWorld(), ask=attack,
        mounts="mnt:[1]", kernel="host", differences=unchanged,
        controls={"process": Control(control, spec_of), "guest": Control(control, spec_of)},
        limits=Limits(), shield=nullcontext, timeout=1.0, patience=1.0,
    )  # fmt: skip

    def record(probe: Probe, name: str, finding: Finding, control: Finding | None, seconds: float) -> FindingRecord:
        return finding_record(probe.id, finding, control, name=name)

    trial = make_plan(load_scenario(find_scenario("isolation")), seed=1).trials[0]
    assert Battery(kit).run(trial, target, spec_of, record, kept.append, lambda text: None) == [*damage]
    assert target.alive == control.alive == set()
    return kept, target


def finding_record(probe: str, finding: Finding, control: Finding | None, **changes: object) -> FindingRecord:
    name = changes.pop("name", "k3x9ab-c1")
    fields = dict(
        trial="r1-container:default", driver="container", profile="default", payload="idle", round=1, date=0.0,
        instance=name, probe=probe, claim="A claim.", severity="high", finding=finding, place="process",
        control=control,
    )  # fmt: skip
    return FindingRecord(**{**fields, **changes})  # type: ignore[arg-type]


def where(text: str) -> Answer:
    return Answer(True, 0, "where", text)


def gets_through(name: str, spec: InstanceSpec) -> Answer:
    return where("host mnt:[1]") if name == "where" else Answer(True, 0, name, SECRET)


def is_refused(name: str, spec: InstanceSpec) -> Answer:
    if name == "linger":
        return YES
    return where("host mnt:[2]") if name == "where" else Answer(False, errno.EPERM, name, "")


def test_a_boundary_that_holds_is_contained_and_its_controls_count() -> None:
    kept, _ = run_battery(is_refused, gets_through)
    assert [one.finding.outcome for one in kept] == [CONTAINED, CONTAINED]
    assert all(one.counts for one in kept)


def test_a_boundary_with_a_hole_is_seen() -> None:
    def leaky(name: str, spec: InstanceSpec) -> Answer:
        return gets_through(name, spec) if name == "module" else is_refused(name, spec)

    kept, _ = run_battery(leaky, gets_through)
    assert [one.finding.outcome for one in kept] == [CONTAINED, ESCAPED]


def test_a_canary_that_did_not_survive_is_a_change_of_the_host() -> None:
    run_battery(is_refused, gets_through, damage=["the canary has ended"])


def test_a_probe_whose_control_fails_does_not_count() -> None:
    kept, _ = run_battery(is_refused, is_refused)
    assert not any(one.counts for one in kept)


def test_nothing_that_could_harm_the_host_is_tried_where_there_is_no_boundary() -> None:
    tried: list[str] = []

    def bare(name: str, spec: InstanceSpec) -> Answer:
        tried.append(name)
        return gets_through(name, spec)

    kept, _ = run_battery(bare, gets_through)
    assert "module" not in tried
    assert "read-file" in tried
    assert kept[1].finding.outcome is ESCAPED
    assert "in a disposable guest" in kept[1].finding.evidence


def test_a_kernel_of_its_own_contains_what_is_done_in_it() -> None:
    def guest(name: str, spec: InstanceSpec) -> Answer:
        return where("another mnt:[1]") if name == "where" else Answer(True, 0, name, "done")

    kept, _ = run_battery(guest, gets_through)
    assert kept[1].finding.outcome is CONTAINED
    assert "in a kernel of its own" in kept[1].finding.evidence


@pytest.mark.parametrize("said", ["another mnt:[2]", None])
def test_a_kernel_that_hides_who_it_is_passes_for_the_hosts(said: str | None) -> None:
    """Its boot id is faked, or can't be read: nothing that would end the host's kernel may be tried."""

    def masked(name: str, spec: InstanceSpec) -> Answer:
        if name == "where":
            return where(said) if said else Answer(False, errno.EACCES, "where", "Permission denied")
        return Answer(True, 0, name, "done")

    kernels: list[bool] = []

    def looks(scene: Scene) -> Finding:
        kernels.append(scene.same_kernel)
        return Finding(CONTAINED, "")

    run_battery(masked, gets_through, (Attack("a.b", "It.", "low", "process", looks),), sees=said is not None)
    assert kernels[1:] == [True]  # the first is the control's


def test_who_dies_of_an_attack_is_launched_again_and_the_battery_goes_on() -> None:
    def dies(scene: Scene) -> Finding:
        if scene.instance.id.endswith("c1"):
            scene.instance.kill()
            raise LaunchError("it ended\nwith much to say")
        return Finding(CONTAINED, scene.instance.id)

    killer = Attack("destroy.it", "It lives.", "high", "process", dies)
    follower = Attack("after.it", "It lives.", "high", "process", dies)
    kept, target = run_battery(is_refused, gets_through, (killer, follower))
    assert kept[0].finding.outcome is Containment.ERROR
    assert kept[1].finding.outcome is CONTAINED
    assert kept[1].instance != kept[0].instance
    assert len([one for one in target.events if one.startswith("launch")]) == 3


# --- the matrix ------------------------------------------------------------------------------------------------------


def run_of(*records: FindingRecord | TrialRecord) -> RunData:
    return msgspec.structs.replace(run_data(), records=records)


def ended(**changes: object) -> TrialRecord:
    fields = dict(
        trial="r1-container:default", driver="container", profile="default", payload="idle", round=1, date=0.0,
        outcome=Outcome.SUCCEEDED, alive=2, asked=2, limiter="count", launching_ns=0, battery=True,
    )  # fmt: skip
    return TrialRecord(**{**fields, **changes})  # type: ignore[arg-type]


THROUGH = Finding(ESCAPED, "it got through")


def test_the_worst_of_several_rounds_is_shown_and_nothing_that_does_not_count_is_counted() -> None:
    found = matrix(
        run_of(
            finding_record("a.one", Finding(CONTAINED, "no"), THROUGH),
            finding_record("a.one", Finding(ESCAPED, "yes"), THROUGH, round=2, trial="r2-container:default"),
            finding_record("a.two", Finding(ESCAPED, "yes"), Finding(CONTAINED, "the control failed")),
            finding_record("a.three", Finding(ESCAPED, "yes"), None),
            ended(),
        )
    )
    assert found is not None
    [target] = found.targets
    cell = found.rows[0].cells[target.name]
    assert (cell.finding.evidence, cell.found, cell.rounds) == ("yes", 1, 2)
    assert found.counted == 1
    assert found.tally(target)[ESCAPED] == 1
    assert matrix(run_data()) is None


def test_show_marks_tcg_what_does_not_count_and_gives_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    found = matrix(
        run_of(
            finding_record("a.one", Finding(ESCAPED, "seen with own eyes"), THROUGH, driver="vm", profile="stock"),
            finding_record("a.two", Finding(CONTAINED, "no"), None, driver="vm", profile="stock"),
            ended(driver="vm", profile="stock", accelerator="tcg"),
        )
    )
    assert found is not None
    print_matrix(found, evidence=True)
    said = capsys.readouterr().out
    assert "vm:stock (tcg)" in said
    assert "ESCAPED" in said
    assert "(contained)" in said
    assert "1 of 2 controls" in said
    assert "seen with own eyes" in said


def test_what_a_vm_buys_is_what_differs_and_counts() -> None:
    guest = {"driver": "vm", "profile": "stock"}
    found = matrix(
        run_of(
            finding_record("a.one", Finding(ESCAPED, "yes"), THROUGH),
            finding_record("a.one", Finding(CONTAINED, "no"), THROUGH, **guest),
            finding_record("a.two", Finding(CONTAINED, "no"), THROUGH),
            finding_record("a.two", Finding(CONTAINED, "no"), THROUGH, **guest),
            finding_record("a.three", Finding(ESCAPED, "yes"), None),
            finding_record("a.three", Finding(CONTAINED, "no"), None, **guest),
            ended(),
        )
    )
    assert found is not None
    [buys] = contrasts(found)
    assert buys.title == "What a VM buys here"
    assert [row.probe for row in buys.rows] == ["a.one"]


@pytest.mark.parametrize(
    ("before", "after", "control", "weaker"),
    [
        (CONTAINED, ESCAPED, THROUGH, [True]),
        (DEGRADED, ESCAPED, THROUGH, [True]),
        (ESCAPED, CONTAINED, THROUGH, [False]),
        (CONTAINED, Containment.UNAVAILABLE, THROUGH, [False]),
        (CONTAINED, CONTAINED, THROUGH, []),
        (CONTAINED, ESCAPED, None, []),
    ],
)
def test_a_weaker_finding_than_in_an_earlier_run_is_a_regression(
    before: Containment, after: Containment, control: Finding | None, weaker: list[bool]
) -> None:
    old, new = (
        matrix(run_of(finding_record("a.one", Finding(one, "seen"), control), ended())) for one in (before, after)
    )
    assert [one.weaker for one in changes(old, new)] == weaker
    assert changes(None, new) == changes(old, None) == []


def test_every_cell_of_the_report_leads_to_its_evidence() -> None:
    page = render(run_of(finding_record("a.one", Finding(DEGRADED, "see <this>"), THROUGH), ended()))
    assert 'href="#finding-a.one-container-default"' in page
    assert 'id="finding-a.one-container-default"' in page
    assert "see &lt;this&gt;" in page
    assert 'id="headline"' not in page, "no start-up was measured"


def test_findings_survive_the_file() -> None:
    record = finding_record("a.one", THROUGH, None)
    raw = json.loads(msgspec.json.encode(record))
    assert raw["kind"] == "probe"
    assert raw["finding"] == {"outcome": "escaped", "evidence": "it got through"}
    assert msgspec.convert(raw, FindingRecord) == record


# --- the host afterwards ---------------------------------------------------------------------------------------------


def test_what_changed_on_the_host_is_named() -> None:
    before = Snapshot({"/proc/sys/kernel/hostname": "a\n"}, {"/": "ext4 /dev/vda ro", "/gone": "tmpfs x rw"}, 10.0)
    mounts = {"/": "ext4 /dev/vda rw", "/mnt": "tmpfs attack rw", "/another": "tmpfs somebody rw"}
    after = Snapshot({"/proc/sys/kernel/hostname": "b\n"}, mounts, 13.0)
    assert differences(before, before) == []
    assert differences(before, after) == [
        "/proc/sys/kernel/hostname: 'a' became 'b'",
        "mount /: ext4 /dev/vda ro became ext4 /dev/vda rw",
        "mounted by an attack: /mnt",
        "the clock was moved by +3.000 s",
    ]


def test_the_sources_of_the_attacks_are_in_the_package() -> None:
    from bench.images import attacks

    folder = Path(attacks.__file__).parent / "attacks"
    assert {f"{part}.c" for part in attacks._PARTS} == {path.name for path in folder.glob("*.c")}
