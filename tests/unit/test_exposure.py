"""What is open to an instance: how answers are parsed and classed, and the tables people read."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from bench.analysis.exposure import exposures
from bench.analysis.tables import table
from bench.config.find import find_scenario
from bench.config.loader import load_scenario
from bench.drivers.base import Instance
from bench.errors import CommandError
from bench.linux.calls import LAST, NAMES
from bench.linux.http_load import Answer
from bench.model import Completed, HttpCheck
from bench.plan import BATTERY_ROOM, make_plan
from bench.probes.exposure import calls, facts, functions, hostcalls, setup
from bench.probes.exposure.facts import Fact, Read
from bench.probes.exposure.setup import State
from bench.records import Exposed, Exposure, ExposureRecord, Outcome, Record, TrialRecord
from bench.report.build import render
from bench.store import RunData
from bench.verbs.show_exposure import print_exposures
from tests.fakes import FakeInstance
from tests.unit.fabricated import run_data

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")

# --- calls -----------------------------------------------------------------------------------------------------------


def said(**changed: str) -> str:
    """Of all numbers; `n165="returned 1"` changes one."""
    words = {f"n{number}": "returned 22" for number in range(LAST + 1)} | changed
    return "".join(f"{name[1:]} {how}\n" for name, how in words.items())


@pytest.mark.parametrize(
    ("number", "how", "found", "shown"),
    [
        (39, "returned 0", calls.WORKS, "done"),
        (3, f"returned {errno.EBADF}", calls.WORKS, "EBADF"),
        (165, f"returned {errno.EPERM}", calls.DENIED, "EPERM"),
        (161, f"returned {errno.EACCES}", calls.DENIED, "EACCES"),
        (435, f"returned {errno.ENOSYS}", calls.ABSENT, "ENOSYS"),
        (165, "signal 31", calls.KILLED, "SIGSYS"),
        (15, "signal 11", calls.WORKS, "SIGSEGV"),  # rt_sigreturn without a frame
        (0, "signal 11", calls.KILLED, "SIGSEGV"),
        (60, "exited 42", calls.WORKS, "exited"),
        (34, "blocked 0", calls.WORKS, "blocked"),
        (57, "unborn 11", calls.UNTRIED, "no process for it"),
    ],
)
def test_how_a_call_ended_is_its_class(number: int, how: str, found: str, shown: str) -> None:
    one = calls.parse(said(**{f"n{number}": how}))[number]
    assert (one.found, one.said) == (found, shown)


def test_a_trial_that_ended_early_or_talks_nonsense_is_no_result() -> None:
    with pytest.raises(CommandError, match="7 was not tried"):
        calls.parse("".join(line + "\n" for line in said().splitlines() if not line.startswith("7 ")))
    with pytest.raises(CommandError, match="no answer"):
        calls.parse("Segmentation fault\n")
    with pytest.raises(CommandError, match="exit status 139"):
        calls.tried(lambda words: Completed(139, said(), "killed"))


def test_calls_are_counted_by_class_and_numbers_without_a_call_are_not() -> None:
    inside = calls.parse(said(n165="returned 1", n166="signal 31", n435="returned 38", n400="returned 1"))
    found = calls.exposure(inside, calls.parse(said(n400="returned 38")))
    assert found.counts == {
        "works": len(NAMES) - 3, "denied": 1, "killed": 1, "not implemented": 1,
        "missing inside, there on the host": 1, "works on the host": len(NAMES),
    }  # fmt: skip
    assert Exposed("mount", "denied", "EPERM", "EINVAL") in found.items
    assert Exposed("400", "denied", "EPERM", "ENOSYS") in found.items


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers here: apt-get install linux-libc-dev")
def test_names_of_calls_are_the_kernels() -> None:
    theirs = {int(number): name for name, number in re.findall(r"__NR_(\w+) (\d+)", HEADER.read_text())}
    ours = {number: NAMES.get(number) for number in theirs if number <= LAST}
    assert ours == {number: name for number, name in theirs.items() if number <= LAST}


# --- facts -----------------------------------------------------------------------------------------------------------


def test_the_catalogue_is_large_and_names_each_fact_once() -> None:
    names = [fact.name for fact in facts.CATALOGUE]
    assert len(set(names)) == len(names) >= 25


@pytest.mark.parametrize("fact", facts.CATALOGUE, ids=lambda fact: fact.name.replace(" ", "-"))
def test_an_empty_text_shows_nothing(fact: Fact) -> None:
    assert facts.exposure([Read("")], [Read("")], [Read(None)], [fact]).items[0].found == facts.NONE


def test_answers_are_read_as_they_were_written() -> None:
    assert facts.parse("ok a\\nb\\\\n\nno 13\nok \n", 3) == [Read("a\nb\\n"), Read(None, 13), Read("")]
    with pytest.raises(CommandError, match="2 answers to 3 questions"):
        facts.parse("ok a\nno 13\n", 3)
    with pytest.raises(CommandError, match="no answer"):
        facts.parse("sh: not found\n", 1)


PLAIN = Fact("plain", "file:/x")


@pytest.mark.parametrize(
    ("fact", "inside", "host", "found"),
    [
        (PLAIN, Read("a\n"), Read("a"), facts.SAME),
        (PLAIN, Read("b"), Read("a"), facts.DIFFERENT),
        (PLAIN, Read(None, errno.EACCES), Read("a"), facts.HIDDEN),
        (PLAIN, Read("a"), Read(None, errno.ENOENT), facts.NONE),
        (Fact("near", "file:/x", near=0.1), Read("105"), Read("100"), facts.SAME),
        (Fact("near", "file:/x", near=0.1), Read("120"), Read("100"), facts.DIFFERENT),
        (Fact("near", "file:/x", near=0.1), Read("0"), Read("100"), facts.DIFFERENT),
        (Fact("near", "file:/x", near=0.1), Read("0"), Read("0"), facts.NONE),  # two idle machines have that in common
        (Fact("near", "file:/x", near=0.1), Read(""), Read("100"), facts.HIDDEN),
        (Fact("near", "file:/x", near=0.0, least=2), Read("102"), Read("100"), facts.SAME),
        (Fact("most", "file:/x", alike="most"), Read("a\nb"), Read("a\nb\nc"), facts.SAME),
        (Fact("most", "file:/x", alike="most"), Read("a"), Read("a\nb\nc"), facts.DIFFERENT),
        (Fact("some", "file:/x", alike="some"), Read("a\nz"), Read("a\nb\nc\nd"), facts.SAME),
        (Fact("some", "file:/x", alike="some"), Read("z"), Read("a\nb"), facts.DIFFERENT),
    ],
)
def test_a_fact_is_the_hosts_its_own_or_hidden(fact: Fact, inside: Read, host: Read, found: str) -> None:
    looked = facts.exposure([host], [inside], [host], [fact])
    assert looked.items[0].found == found
    assert looked.counts["looked for"] == (found != facts.NONE)


def test_a_host_that_moves_meanwhile_is_still_itself() -> None:
    words, figure = Fact("words", "file:/x"), Fact("figure", "file:/x", near=0.01)
    assert facts.exposure([Read("a")], [Read("b")], [Read("b")], [words]).items[0].found == facts.SAME
    assert facts.exposure([Read("100")], [Read("150")], [Read("200")], [figure]).items[0].found == facts.SAME
    assert facts.exposure([Read("100")], [Read("250")], [Read("200")], [figure]).items[0].found == facts.DIFFERENT
    assert facts.exposure([Read("a")], [Read("c")], [Read("b")], [words]).items[0].found == facts.DIFFERENT


def test_of_a_private_fact_no_record_holds_the_value() -> None:
    looked = facts.exposure([Read("secret")], [Read("secret")], [Read("secret")], [Fact("id", "file:/x", private=True)])
    assert "secret" not in str(looked)
    assert looked.items[0].inside == looked.items[0].host


def view(name: str, text: str) -> str | None:
    return next(fact for fact in facts.CATALOGUE if fact.name == name).view(text)


@pytest.mark.parametrize(
    ("name", "text", "seen"),
    [
        ("time of boot", "cpu  1 2\nctxt 7\nbtime 1795528070\n", "1795528070"),
        ("cpu model", "processor\t: 0\nmodel name\t: AMD EPYC\n", "AMD EPYC"),
        ("cpu count", "processor : 0\n\nprocessor : 1\n", "2"),
        ("memory", "MemTotal:       24684100 kB\n", "24684100"),
        ("memory by zones", "Node 0\n        managed  3\n  managed  4\n", "7"),
        ("tasks", "0.1 0.2 0.3 2/216 99\n", "216"),
        ("load", "0.1 0.2 0.30 2/216 99\n", "0.30"),
        ("disk activity", "7 0 loop0 0 0\n254 0 vda 40 2\n254 1 vda1 2 0\n", "42"),
        ("partitions", "major minor  #blocks  name\n\n 254 0 100 vda\n", "vda 100"),
        ("kernel symbols' addresses", "0000000000000000 T _text\n", None),
        ("kernel symbols' addresses", "ffffffff81000000 T _text\n", "ffffffff81000000 _text"),
        ("map of the address space", "00000000-00000000 : Reserved\n  00000000-00000000 : RAM\n", None),
        ("kernel log", "cut\n<6>[    0.000000] BIOS\n<6>[   12.5] eth0 up\ncut", "<6>[   12.5] eth0 up"),
        ("ports listened on", "sl local\n 0: 0100007F:1F90 00000000:0000 0A\n 1: A:1 B:2 01\n", "0100007F:1F90"),
        ("processes", "1\n22\nself\nmeminfo\n", "2"),
        ("uptime in the list of timers", "Timer List Version: v0.10\nnow at 5000000000 nsecs\n", "5.0"),
        ("memory pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\nfull total=3\n", "7"),
    ],
)  # fmt: skip
def test_what_in_a_text_is_the_fact(name: str, text: str, seen: str | None) -> None:
    assert view(name, text) == seen


# --- set-up ----------------------------------------------------------------------------------------------------------

ALL = "000001ffffffffff"
HOST = State(
    {name: f"{name}:[1]" for name in setup.NAMESPACES},
    {"Uid": "0\t0\t0\t0", "Gid": "0\t0\t0\t0", "Groups": "0", "CapEff": ALL, "CapBnd": ALL, "Seccomp": "0",
     "Seccomp_filters": "0", "NoNewPrivs": "0"},
    "         0          0 4294967295", "", ("/",), len(NAMES),
)  # fmt: skip


def confined(**changes: str) -> State:
    status = {"CapEff": "0", "CapBnd": "0", "Seccomp": "2", "Seccomp_filters": "1", "NoNewPrivs": "1",
              "Uid": "9\t9\t9\t9"}  # fmt: skip
    names = {name: f"{name}:[2]" for name in setup.NAMESPACES}
    return State(names, {**HOST.status, **status, **changes}, "0 1000 1", "bench (enforce)", (), 100)


def items(found: Exposure) -> dict[str, Exposed]:
    return {one.name: one for one in found.items}


def test_a_process_without_confinement_is_as_the_host_in_everything() -> None:
    found = setup.exposure([HOST], HOST)
    assert {one.found for one in found.items} == {setup.SHARED}
    assert found.counts["namespaces shared"] == len(setup.NAMESPACES)
    assert found.counts["capabilities"] == 41


def test_a_confined_process_shares_nothing_and_one_that_is_not_among_several_is_what_counts() -> None:
    found = setup.exposure([confined()], HOST)
    assert {one.found for one in found.items} == {setup.CONFINED}
    assert found.counts == {
        "namespaces shared": 0, "capabilities": 0, "capabilities to be had": 0, "writable host paths": 0,
        "calls that filters let through": 100,
    }  # fmt: skip
    both = setup.exposure([confined(), HOST], HOST)
    assert {one.found for one in both.items} == {setup.SHARED}


def test_capabilities_in_a_user_namespace_do_not_count_against_the_host() -> None:
    one = items(setup.exposure([confined(CapEff=ALL)], HOST))["capabilities effective"]
    assert (one.found, one.inside) == (setup.CONFINED, "all (in a user namespace)")


def test_what_a_kernel_does_not_tell_is_not_known() -> None:
    old = {name: value for name, value in HOST.status.items() if not name.startswith("Seccomp")}
    found = setup.exposure([State(HOST.namespaces, old, HOST.uid_map, "", (), None)], HOST)
    assert items(found)["seccomp filters"].found == setup.UNKNOWN
    assert "calls that filters let through" not in found.counts


def test_mounts_of_the_hosts_file_systems_are_told_from_the_instances_own() -> None:
    host = "1 0 254:0 / / rw - ext4 /dev/vda rw\n2 1 0:5 / /proc rw - proc proc rw\n"
    own = (
        "9 8 0:77 / / rw - overlay overlay rw\n10 9 254:0 /etc/hosts /etc/my\\040hosts rw - ext4 /dev/vda rw\n"
        "11 9 254:0 /srv /srv ro - ext4 /dev/vda rw\n12 9 0:5 / /proc rw - proc proc ro\n"
    )
    assert setup.host_mounts(own, host) == ["/etc/my hosts"]
    assert setup.host_mounts(host, host) == ["/", "/tmp", "/var/tmp", "/dev/shm", "/proc"]


def test_who_may_write_is_told_by_owner_group_mode_and_capability(tmp_path: Path) -> None:
    found = tmp_path.stat()
    nobody = confined(Uid="7\t7\t7\t4000000").status | {"Gid": "7\t7\t7\t4000000", "Groups": ""}
    owner = nobody | {"Uid": f"7\t7\t7\t{found.st_uid}"}
    member = nobody | {"Groups": f"3 {found.st_gid}"}
    tmp_path.chmod(0o700)
    assert setup.may_write(owner, "0 1 1", tmp_path)
    assert not setup.may_write(nobody, "0 1 1", tmp_path)
    assert setup.may_write(HOST.status, HOST.uid_map, tmp_path)
    over = nobody | {"CapEff": "2"}  # CAP_DAC_OVERRIDE
    assert setup.may_write(over, HOST.uid_map, tmp_path)
    assert not setup.may_write(over, "0 1000 1", tmp_path), "of a user namespace only"
    tmp_path.chmod(0o720)
    assert setup.may_write(member, "0 1 1", tmp_path)
    tmp_path.chmod(0o702)
    assert setup.may_write(nobody, "0 1 1", tmp_path)
    assert not setup.may_write(HOST.status, HOST.uid_map, Path("/dev/null")), "nothing of the host's is behind it"


def test_the_state_of_this_process_is_read() -> None:
    one = setup.state(os.getpid())
    assert one.namespaces["uts"].startswith("uts:[")
    assert one.status["Seccomp"] in "012"


# --- host calls ------------------------------------------------------------------------------------------------------

IDLE = hostcalls.Window(1.0, {7: 100, 1: 2})


def test_the_idle_background_is_taken_off() -> None:
    load = hostcalls.Window(2.0, {7: 210, 0: 50, 1: 40})
    found = items(hostcalls.exposure([IDLE, hostcalls.Window(1.0, {})], load, 100, 100))
    assert found["read"] == Exposed("read", hostcalls.USED, per_second=25.0)
    assert found["poll"] == Exposed("poll", hostcalls.BACKGROUND, per_second=100.0)  # 210 is within 200 + 3 sigmas
    assert found["write"].per_second == 18.0


def test_a_run_whose_load_was_not_executed_is_rejected() -> None:
    load = hostcalls.Window(2.0, {0: 50})
    with pytest.raises(CommandError, match="94 of 100 requests were answered"):
        hostcalls.exposure([IDLE], load, 94, 100)
    with pytest.raises(CommandError, match="none of the instance's processes"):
        hostcalls.exposure([IDLE], hostcalls.Window(2.0, {}), 100, 100)


def test_calls_of_others_are_not_the_instances() -> None:
    before, after = {(5, 0): 10}, {(5, 0): 15, (6, 0): 99, (5, 1): 2, (5, 3): 0}
    assert hostcalls.during(before, after, {5}) == {0: 5, 1: 2}


class Counter:
    """Every reading counts one more call of process 5."""

    def __init__(self) -> None:
        self.calls = 0

    def read(self) -> dict[tuple[int, int], int]:
        self.calls += 1
        return {(5, 0): self.calls}


def served(share: float) -> hostcalls.Watched:
    def ask(check: HttpCheck, addresses: Sequence[str], order: Sequence[int], rate: float, most: float) -> list[Answer]:
        return [Answer(0, 0.1 if at < share * len(order) else None) for at in range(len(order))]

    class Served(FakeInstance):
        def __init__(self) -> None:
            self.address = "192.0.2.1"

        def footprint(self):  # type: ignore[no-untyped-def]
            from bench.model import Footprint

            return Footprint("a", (5,))

    instance: Instance = Served()
    return hostcalls.Watched(Counter(), instance, ask, lambda seconds: None)  # type: ignore[arg-type]


def test_the_load_has_to_be_answered_and_an_instance_without_a_server_has_none() -> None:
    found = hostcalls.measured(served(1.0), HttpCheck(port=80))
    assert found.counts["requests answered"] == 150
    with pytest.raises(CommandError, match="rejected: 75 of 150"):
        hostcalls.measured(served(0.5), HttpCheck(port=80))
    with pytest.raises(CommandError, match="nothing can be asked"):
        hostcalls.measured(served(1.0), None)


def test_functions_are_not_measured_and_the_reason_is_this_hosts() -> None:
    refused = functions.exposure(lambda: Completed(1, "", "mount: x\nhead: Operation not permitted\n"))
    assert refused.missing == "function tracing is refused by this host: head: Operation not permitted"
    assert "slows down" in (functions.exposure(lambda: Completed(0, "_", "")).missing or "")


# --- the tables ------------------------------------------------------------------------------------------------------


DEFAULT = {"driver": "container", "profile": "default", "kernel": "host"}


def record(exposure: Exposure, number: int = 1, target: Mapping[str, str] = DEFAULT) -> ExposureRecord:
    name = f"r{number}-{target['driver']}:{target['profile']}"
    fields = dict(trial=name, payload="httpd", round=number, date=0.0, instance="a", exposure=exposure, **target)
    return ExposureRecord(**fields)  # type: ignore[arg-type]


def shown(*records: Record) -> RunData:
    return msgspec.structs.replace(run_data(), records=records)


CALLS = Exposure("calls", (Exposed("mount", "denied", "EPERM", "EFAULT"),), {"works": 286, "denied": 97})
GUEST = {"driver": "vm", "profile": "stock", "kernel": "own"}
DONE = TrialRecord(
    trial="r1-vm:stock", driver="vm", profile="stock", payload="idle", round=1, date=0.0, outcome=Outcome.SUCCEEDED,
    alive=2, asked=2, limiter="count", launching_ns=0, battery=True, accelerator="tcg",
)  # fmt: skip


def test_a_record_comes_back_from_the_file_as_it_was() -> None:
    one = record(CALLS)
    assert msgspec.json.decode(msgspec.json.encode(one), type=Record) == one


def test_over_several_rounds_a_count_is_a_span_and_what_was_not_measured_has_its_reason() -> None:
    more = Exposure("calls", (), {"works": 287})
    refused = Exposure("calls", missing="it would not")
    [found] = exposures(shown(record(CALLS), record(more, 2), record(refused, target=GUEST)))
    [default, guest] = found.targets
    assert found.cell(found.counts[0], default) == "286 to 287"
    assert found.cell(found.counts[0], guest) == "not measured"
    assert found.reasons == {"it would not": "vm:stock"}
    assert exposures(run_data()) == []


def test_show_keeps_axes_apart_and_says_whose_kernel_answers(capsys: pytest.CaptureFixture[str]) -> None:
    setting = Exposure("setup", (Exposed("namespace pid", setup.CONFINED),), {"namespaces shared": 2})
    missing = Exposure("functions", missing="refused")
    data = shown(record(CALLS), record(CALLS, target=GUEST), record(setting), record(missing), DONE)
    print_exposures(exposures(data), items=True)
    text = capsys.readouterr().out
    assert "vm:stock (tcg, own)" in text
    assert "namespace pid" in text
    assert "not measured for container:default: refused" in text
    assert text.index("reachable") < text.index("kernel\n") < text.index("Set-up")


def test_the_report_and_the_query_table_hold_every_item() -> None:
    data = shown(record(CALLS), record(Exposure("functions", missing="see <this>")), DONE)
    page = render(data)
    assert "System calls reachable" in page
    assert "Not measured for container:default: see &lt;this&gt;" in page
    rows = table(data, "exposure")
    assert list(rows["axis"]) == ["calls", "functions"]
    assert list(rows[["item", "found", "inside", "host"]].iloc[0]) == ["mount", "denied", "EPERM", "EFAULT"]
    assert rows["item"].isna().tolist() == [False, True]


def test_the_instance_that_is_looked_at_has_a_number_of_its_own() -> None:
    plan = make_plan(load_scenario(find_scenario("isolation")), seed=1)
    firsts = [trial.first for trial in plan.trials]
    looked_at = [first + BATTERY_ROOM for first in firsts]
    taken = {first + place for first in firsts for place in range(BATTERY_ROOM)}
    assert len(firsts) > 1
    assert not taken & set(looked_at)
