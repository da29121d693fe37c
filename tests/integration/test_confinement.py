"""Our running default container beside what we declare, beside Docker's running one, and beside the host."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bench.container import borrow, profile, seccomp
from bench.container.spec import default_seccomp
from bench.drivers.base import Driver
from bench.drivers.launched import LaunchedInstance
from bench.linux import bpf
from bench.model import InstanceSpec, PhaseLog
from bench.process import run
from tests.integration.boxes import Box, Boxes, sh
from tests.integration.confinement import Difference, compare, compare_filters, of_process, of_spec
from tests.integration.test_docker_parity import Reference, reference  # noqa: F401  (a fixture)

pytestmark = pytest.mark.root

SPEC = sh("echo up; exec sleep 600")
KINDS = ("mnt", "net", "uts", "pid", "ipc", "cgroup")


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes.open() as made:
        yield made


@pytest.fixture(scope="module")
def box(boxes: Boxes) -> Iterator[Box]:
    with boxes.running(SPEC) as made:
        made.wait_for("up")
        yield made


def listed(title: str, found: list[Difference]) -> list[Difference]:
    """Shown by pytest -s, and whenever an assertion about them fails."""
    print(f"{title}: {len(found)} differences", *found, sep="\n  ")
    return found


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


# --- as declared ---------------------------------------------------------------------------------------------------


def test_what_runs_is_what_was_declared(box: Box) -> None:
    declared, running = of_spec(SPEC), of_process(box.pid)
    there = {path for path in declared.masked | declared.read_only if os.path.exists(path)}
    expected = replace(declared, masked=declared.masked & there, read_only=declared.read_only & there)
    assert listed("running, against declared", compare(running, expected)) == []


def test_the_filter_in_force_is_the_compiled_default(box: Box) -> None:
    assert bpf.installed_filters(box.pid) == [seccomp.compile(default_seccomp())]
    assert status(box.pid)["Seccomp"] == "2"
    assert status(box.pid)["Seccomp_filters"] == "1"


def test_a_process_that_joins_is_confined_alike(box: Box) -> None:
    script = "grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/self/status; cat /proc/self/cgroup; ls /proc/self/ns -l"
    joined = [line for line in box.exec("/bin/sh", "-c", script).stdout.splitlines() if "->" not in line]
    first = [
        line for line in box.exec("/bin/sh", "-c", script.replace("self", "1")).stdout.splitlines() if "->" not in line
    ]
    assert joined == first
    assert len(joined) > 8


_VARYING = ("Pid", "Tgid", "NSpid", "NStgid", "NSpgid", "NSsid", "PPid", "Vm", "Rss", "Hugetlb", "voluntary", "nonvol")


def _seen(pid: int, name: str) -> dict[str, object]:
    """What one way of launching must give like the other."""
    folder = Path(f"/proc/{pid}")
    mounts = [line.split()[3:] for line in (folder / "mountinfo").read_text().splitlines()]
    groups = sorted((folder / "cgroup").read_text().replace(name, "NAME").splitlines())
    return {
        "status": {key: value for key, value in status(pid).items() if not key.startswith(_VARYING)},
        "descriptors": {fd: os.readlink(folder / "fd" / fd).partition(":")[0] for fd in os.listdir(folder / "fd")},
        "mounts": [(at, [field for field in rest if not field.startswith("lowerdir")]) for _, at, *rest in mounts],
        "groups": groups,
        "texts": [(folder / file).read_bytes() for file in ("environ", "cmdline", "limits", "oom_score_adj", "comm")],
        "links": [os.readlink(folder / link) for link in ("root", "cwd", "exe")],
        "rules": of_process(pid).devices,
        "filters": bpf.installed_filters(pid),
    }


def test_a_child_that_borrows_becomes_what_a_forked_one_does(boxes: Boxes) -> None:
    found: dict[bool, dict[str, object]] = {}

    def chosen(fields: dict[str, Any]) -> None:
        assert borrow.possible(fields)
        fields["borrows"] = borrows

    for borrows in (True, False):
        with boxes.running(replace(SPEC, hostname="same"), tamper=chosen) as made:
            made.wait_for("up")
            while status(made.pid)["State"][0] != "S" or status(made.pid)["Name"] != "sleep":
                time.sleep(0.01)
            found[borrows] = _seen(made.pid, made.folder.name)
    assert found[True] == found[False]


def test_no_namespace_is_the_hosts(box: Box) -> None:
    for kind in KINDS:
        assert os.readlink(f"/proc/{box.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def test_no_setting_of_the_kernel_can_be_written(box: Box) -> None:
    """Every file below /proc/sys is opened for writing; nothing would be written."""
    script = (
        "find /proc/sys -type f | while read f; do ( : >> $f ) 2>/dev/null && echo $f; done; find /proc/sys | wc -l"
    )
    *writable, count = box.exec("/bin/sh", "-c", script, timeout=60).stdout.splitlines()
    assert writable == []
    assert int(count) > 100


def test_root_and_mounts_are_its_own(box: Box) -> None:
    lines = Path(f"/proc/{box.pid}/mountinfo").read_text().splitlines()
    kinds = {line.split()[4]: line.partition(" - ")[2].split()[0] for line in lines}
    assert kinds["/"] == "overlay"
    assert set(kinds.values()) <= {"overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue"}
    assert not [line for line in lines if "shared:" in line or "master:" in line]
    assert {mount[0] for mount in profile.MOUNTS} <= kinds.keys()


def test_the_driver_s_container_is_the_same(
    driver_of: Callable[[str], Driver], make_spec: Callable[..., InstanceSpec], box: Box
) -> None:
    driver = driver_of("container")
    spec = make_spec("container")
    driver.prepare(spec)
    with driver.launch(spec, PhaseLog()) as instance:
        instance.wait_ready(10)
        assert isinstance(instance, LaunchedInstance)
        assert listed("driver, against spec", compare(of_process(instance.pid), of_process(box.pid))) == []
        assert bpf.installed_filters(instance.pid) == bpf.installed_filters(box.pid)


def test_a_set_id_program_made_inside_is_out_of_reach_of_the_hosts_users(
    driver_of: Callable[[str], Driver], make_spec: Callable[..., InstanceSpec]
) -> None:
    """Container and user together would be root on the host."""
    driver = driver_of("container")
    spec = make_spec("container")
    driver.prepare(spec)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "test", "-x"]
    with driver.launch(spec, PhaseLog()) as instance:
        made = instance.exec(["/bin/sh", "-c", "cp /bin/busybox /raised && chmod 4755 /raised"], timeout=10)
        assert made.status == 0, made
        [raised] = (path for own in instance.footprint().disk_own for path in Path(own).rglob("raised"))
        assert raised.stat().st_mode & 0o7777 == 0o4755
        assert run([*nobody, raised], timeout=10, check=False).status == 1
        with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
            os.chmod(name, 0o755)
            shutil.copy(raised, f"{name}/raised")
            assert run([*nobody, f"{name}/raised"], timeout=10, check=False).status == 0


# --- beside Docker's -----------------------------------------------------------------------------------------------


def test_nowhere_weaker_than_docker_s(box: Box, reference: Reference) -> None:  # noqa: F811
    found = listed("kernel's view", compare(of_process(box.pid), of_process(reference.pid)))
    assert [one for one in found if one.weaker] == []


def test_the_filter_in_force_is_nowhere_weaker(box: Box, reference: Reference) -> None:  # noqa: F811
    ours, theirs = (bpf.installed_filters(pid)[0] for pid in (box.pid, reference.pid))
    assert [one for one in listed("filters", compare_filters(ours, theirs)) if one.weaker] == []


FIELDS = (
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Groups",
    "Uid",
    "Gid",
    "Umask",
)


def test_status_fields_are_docker_s(box: Box, reference: Reference) -> None:  # noqa: F811
    ours, theirs = status(box.pid), status(reference.pid)
    differing = {name: (ours.get(name), theirs.get(name)) for name in FIELDS if ours.get(name) != theirs.get(name)}
    print("status:", differing)
    assert set(differing) <= {"Groups"}, differing  # theirs come from the image's /etc/group


def test_every_namespace_docker_makes_is_made(box: Box, reference: Reference) -> None:  # noqa: F811
    for kind in KINDS:
        apart = os.readlink(f"/proc/{reference.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        assert not apart or os.readlink(f"/proc/{box.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind


def _planted(boxes: Boxes, **changes: Any) -> list[Difference]:
    from tests.integration.boxes import changed

    with boxes.running(changed(SPEC, **changes)) as weak, boxes.running(SPEC) as sound:
        weak.wait_for("up")
        sound.wait_for("up")
        return [one for one in compare(of_process(weak.pid), of_process(sound.pid)) if one.weaker]


def test_a_weakness_of_a_running_container_would_be_seen(boxes: Boxes) -> None:
    assert {one.what for one in _planted(boxes, masked_paths=())} >= {"/proc/keys"}
    assert {one.what for one in _planted(boxes, readonly_paths=())} >= {"/proc/sys"}
    assert {one.what for one in _planted(boxes, seccomp=None)} == {"Seccomp"}
