"""bench.vm without guests: domain XML against golden files, the initramfs, what the console tells, where things are."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import types
import typing
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from bench.config.profiles import PROFILES
from bench.errors import CommandError, HostError, ImageError, LaunchError, UsageError
from bench.images.build import is_static
from bench.linux.subreaper import Reaper
from bench.model import MIB, Image, InstanceSpec, Limits, Payload, Ready, RunId, VmSettings
from bench.vm import accel, agent, connection, diagnose, domain, elements, groups, initramfs, kernel, reap
from bench.vm.guest_program import guest_program
from bench.vm.sockets import Listener

GOLDEN = Path(__file__).parent.parent / "golden"
RUN = RunId("20261124-033012-density-k3x9ab")
KERNEL = kernel.GuestKernel(
    "/cache/kernels/k/vmlinuz", "/cache/kernels/k/modules", "6.1.0-56-cloud-amd64", "k=6.1.192-2"
)
IMAGE = Image("default", "sha256:00", (), env=("A=from image", "B=kept"), workdir="/srv")
PAYLOAD = Payload("p", ("/bin/sh", "-c", 'echo "it\'s $A"'), Ready(line="ok"), env={"A": 'it\'s "$B" `x`'})
PLACE = domain.Place(
    "/state/disks/k3x9ab-v12.raw", "/state/sockets/12c", "/state/sockets/12p", "/state/sockets/12a",
    bridge="bnk3x9abbr0", address="198.18.0.9", prefix=20, gateway="198.18.0.1",
)  # fmt: skip


def spec(cpus: float = 1.0) -> InstanceSpec:
    return InstanceSpec(RUN, "vm", "stock", 12, IMAGE, PAYLOAD, Limits(256 * MIB, cpus, 64), VmSettings())


def a_domain(name: str) -> domain.Domain:
    """The domains that golden files hold."""
    initrd = "/cache/initramfs/0.cpio"
    profile = name.split("-")[1]
    if profile in ("lean", "micro", "clone"):
        settings = profile_settings(profile)
        memory = domain.Memory("/dev/shm/bench-k3x9ab/0a", 48 * MIB, shared="template" in name)
        return domain.make_domain(
            spec(), settings, "tcg", KERNEL, initrd, PLACE, memory if profile == "clone" else None
        )
    if name == "vm-stock-tcg":
        return domain.make_domain(spec(), VmSettings(), "tcg", KERNEL, initrd, PLACE)
    if name == "vm-stock-kvm":
        return domain.make_domain(spec(2.0), VmSettings(), "kvm", KERNEL, initrd, PLACE)
    if name == "vm-microvm":
        settings = msgspec.structs.replace(profile_settings("micro"), machine="microvm", balloon="default")
        return domain.make_domain(spec(), settings, "tcg", KERNEL, initrd, PLACE)
    if name == "vm-dax":
        settings = msgspec.structs.replace(profile_settings("micro"), storage="shared-dax")
        place = dataclasses.replace(PLACE, disk="/cache/images/disks/0-dax.erofs", size=4 * MIB)
        return domain.make_domain(spec(), settings, "tcg", KERNEL, initrd, place)
    if name == "vm-reporting":
        settings = VmSettings(tb_cache=8 * MIB, ksm=False, devices="minimal", balloon="reporting")
        return domain.make_domain(spec(2.0), settings, "kvm", KERNEL, initrd, PLACE)
    settings = VmSettings(storage="qcow2-backing", network="none")
    alone = domain.Place("/state/disks/k3x9ab-v12.qcow2", PLACE.console, PLACE.payload, PLACE.agent)
    return domain.make_domain(spec(1.5), settings, "tcg", KERNEL, initrd, alone)


def profile_settings(profile: str) -> VmSettings:
    return msgspec.convert(PROFILES[f"vm:{profile}"], VmSettings)


DOMAINS = (
    "vm-stock-tcg", "vm-stock-kvm", "vm-qcow2-alone-quota", "vm-reporting", "vm-lean", "vm-micro",
    "vm-microvm", "vm-clone-template", "vm-clone", "vm-dax",
)  # fmt: skip


# --- domain XML --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOMAINS)
def test_domain_is_as_the_golden_file(name: str) -> None:
    """BENCH_REGENERATE=1 writes the files anew; look at the difference before it is committed."""
    path, text = GOLDEN / f"{name}.xml", a_domain(name).text()
    if os.environ.get("BENCH_REGENERATE") == "1":
        path.write_text(text)
    assert text == path.read_text()


def test_every_field_is_exercised_by_a_golden_file() -> None:
    """A field that no golden file shows could be written anywhere, or nowhere."""
    seen = {place for name in DOMAINS for place in _written(a_domain(name))}
    missing = [
        f"{kind.__name__}.{field}"
        for kind in elements.Element.__subclasses__()
        for field in elements.places(kind)
        if (kind.__name__, field) not in seen
    ]
    assert not missing


def _written(element: elements.Element) -> typing.Iterator[tuple[str, str]]:
    """(class, field) of all that is set in `element` and found in its XML at its place."""
    node = element.xml()
    for field, path in elements.places(type(element)).items():
        value = getattr(element, field)
        if value is None or value == ():
            continue
        if path.endswith("."):
            for child in value if isinstance(value, tuple) else (value,):
                yield from _written(child)
        else:
            assert _at(node, path) == ("" if value is True else str(value)), f"{field} is not at {path}"
        yield type(element).__name__, field


def _at(node: ET.Element, path: str) -> str | None:
    *parents, last = path.split("/")
    found = node.find("/".join(parents)) if parents else node
    assert found is not None, path
    if last.startswith("@"):
        return found.get(last[1:])
    child = found.find(last)
    return None if child is None else child.text or ""


def test_every_class_is_a_frozen_record() -> None:
    for kind in elements.Element.__subclasses__():
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_libvirt_takes_the_domain_and_keeps_what_we_said() -> None:
    """libvirt's test driver parses by the same code as QEMU's: an unknown place would be dropped silently."""
    libvirt = pytest.importorskip("libvirt")
    handle = libvirt.open("test:///default")
    try:
        text = a_domain("vm-stock-tcg").text().replace('type="qemu"', 'type="test"', 1)
        made = handle.defineXML(text)
        kept = ET.fromstring(made.XMLDesc())
        assert kept.findtext("memory") == str(256 * 1024)
        assert kept.findtext("vcpu") == "1"
        assert kept.find("devices/disk/source").get("file") == PLACE.disk
        assert kept.find("devices/interface/source").get("bridge") == "bnk3x9abbr0"
        assert kept.find("devices/interface/target").get("dev") == "bnk3x9abv12"
        assert [node.get("name") for node in kept.findall("devices/channel/target")] == ["bench.payload", "bench.agent"]
        assert kept.find(f"metadata/{{{elements.NAMESPACE}}}run").get("id") == RUN
        assert kept.findtext("on_reboot") == "destroy"
        made.undefine()
    finally:
        handle.close()


def test_command_line_holds_what_differs_between_guests() -> None:
    words = domain.cmdline("k3x9ab-v12", PLACE, VmSettings()).split()
    assert words[-3:] == ["bench.hostname=k3x9ab-v12", "bench.address=198.18.0.9/20", "bench.gateway=198.18.0.1"]
    assert "bench.address" not in domain.cmdline("x", domain.Place("d", "c", "p", "a"), VmSettings())


def test_macs_differ_where_addresses_do() -> None:
    assert domain.mac_of("198.18.0.9") == "52:54:c6:12:00:09"
    assert len({domain.mac_of(f"198.18.{a}.{b}") for a in range(16) for b in range(256)}) == 4096


def test_a_root_that_is_memory_is_beside_the_guest_s_ram() -> None:
    """libvirt rounds RAM up to MiB, and QEMU refuses a maximum that RAM and root do not fit in."""
    settings = VmSettings(storage="shared-dax", memory=48 * MIB + 1)
    place = dataclasses.replace(PLACE, size=4 * MIB)
    made = domain.make_domain(spec(), settings, "tcg", KERNEL, "/i", place)
    assert made.disk is None
    assert made.arguments is not None
    words = [word.value for word in made.arguments.words]
    assert words[:4] == ["-machine", "nvdimm=on", "-m", f"slots=1,maxmem={(49 + 4) * MIB}B"]
    assert "readonly=on" in words[5].split(",")
    assert "bench.root=shared-dax" in made.boot.cmdline.split()


@pytest.mark.parametrize(("cpus", "quota"), [(1.0, None), (2, None), (0.5, 50_000), (1.5, 150_000)])
def test_a_quota_only_for_a_fraction_of_a_cpu(cpus: float, quota: int | None) -> None:
    made = domain.cpu_quota(cpus)
    assert (made.quota if made else None) == quota


# --- initramfs ---------------------------------------------------------------------------------------------------


def entries() -> list[initramfs.Entry]:
    return [
        initramfs.folder("bin"),
        initramfs.file("bin/tool", b"#!x\n" * 3),
        initramfs.symlink("bin/sh", "tool"),
        initramfs.Entry("console", stat.S_IFCHR | 0o600, rdev=(5, 1)),
    ]


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """name -> (mode, data, rdev), by a reader written from the format's description (kernel: buffer-format)."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        body = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], data[body : body + fields[6]], (fields[9], fields[10]))
        at = (body + fields[6] + 3) & ~3


def test_cpio_is_what_the_kernel_reads() -> None:
    found = read_cpio(initramfs.cpio(entries()))
    assert list(found) == ["bin", "bin/tool", "bin/sh", "console"]
    assert found["bin/tool"][1] == b"#!x\n" * 3
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"tool", (0, 0))
    assert found["console"][2] == (5, 1)


def test_cpio_is_reproducible_and_changes_with_its_input(tmp_path: Path) -> None:
    assert initramfs.cpio(entries()) == initramfs.cpio(entries())
    one, two = (initramfs.build(tmp_path, entries()) for _ in range(2))
    other = initramfs.build(tmp_path, [*entries(), initramfs.file("more", b"")])
    assert one == two
    assert one != other
    assert [path.name for path in one.parent.iterdir() if path.name.startswith(".")] == []


def modules_tree(root: Path) -> Path:
    root.mkdir()
    (root / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    (root / "modules.dep").write_text(
        "kernel/virtio_ring.ko:\nkernel/virtio.ko: kernel/virtio_ring.ko\n"
        "kernel/virtio_pci.ko.xz: kernel/virtio.ko kernel/virtio_ring.ko\n"
        "kernel/virtio-blk.ko: kernel/virtio.ko kernel/virtio_ring.ko\n"
    )
    return root


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    root = modules_tree(tmp_path / "m")
    found = [str(path.relative_to(root)) for path in initramfs.module_files(root, ("virtio_pci", "virtio_blk", "ext4"))]
    assert found == ["kernel/virtio_ring.ko", "kernel/virtio.ko", "kernel/virtio_pci.ko.xz", "kernel/virtio-blk.ko"]


def test_a_module_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="virtio_net"):
        initramfs.module_files(modules_tree(tmp_path / "m"), ("virtio_net",))


def test_a_kernel_without_persistent_memory_is_refused(tmp_path: Path) -> None:
    kernel_without = msgspec.structs.replace(KERNEL, modules=str(modules_tree(tmp_path / "m")))
    names = initramfs.ROOT_MODULES["shared-dax"]
    with pytest.raises(HostError, match="no nfit") as caught:
        initramfs.guest_entries(b"", kernel_without, b"", names)
    assert "another vm.storage" in (caught.value.hint or "")


def test_a_payload_is_described_word_for_word() -> None:
    texts = initramfs.payload_description(IMAGE, PAYLOAD).split(b"\0")
    assert texts[:2] == [b"/srv", b"3"]
    assert texts[2:5] == [word.encode() for word in PAYLOAD.command]
    assert b"B=kept" in texts[5:]
    assert texts[-1] == b""
    assert initramfs.payload_description(Image("i", "d", ()), PAYLOAD).startswith(b"/\0")


def test_a_payload_that_no_guest_could_hold_is_refused() -> None:
    many = msgspec.structs.replace(PAYLOAD, command=("x",) * 2000)
    with pytest.raises(ImageError, match="more arguments"):
        initramfs.payload_description(IMAGE, many)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: apt-get install gcc libc6-dev")
def test_the_guest_s_program_compiles_without_a_warning(tmp_path: Path) -> None:
    program = guest_program(tmp_path)
    assert is_static(program)
    assert guest_program(tmp_path) == program


# --- the agent's protocol ----------------------------------------------------------------------------------------


def test_request_keeps_the_arguments() -> None:
    head, _, body = agent.request(3, ["a b", "", "it's", "new\nline"], 1.2).partition(b"\n")
    assert head.split() == [b"run", b"3", b"1200", str(len(body)).encode()]
    assert body == b"a b\0\0it's\0new\nline\0"


@pytest.mark.parametrize("argv", [["a\0b"], ["x"] * 1001, ["x" * (1 << 17)]])
def test_a_command_that_can_t_be_sent_is_refused(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        agent.request(1, argv, 1)


def test_head_of_a_reply() -> None:
    assert agent.parse_head(b"4 7 12 0") == (4, 7, 12, 0)


@pytest.mark.parametrize("broken", [b"", b"4 7 1", b"x y 1 1", b"4 7 -1 0", b"1 2 3 4 5"])
def test_what_is_no_reply_is_refused(broken: bytes) -> None:
    with pytest.raises(LaunchError, match="no answer"):
        agent.parse_head(broken)


def guest_that_says(*replies: bytes) -> agent.Agent:
    ours, theirs = socket.socketpair()

    def serve() -> None:
        theirs.recv(4096)
        for reply in replies:
            theirs.sendall(reply)
        if not replies:
            theirs.close()
        else:
            theirs.recv(1)  # until the other side closes

    threading.Thread(target=serve, daemon=True).start()
    return agent.Agent(ours, "g")


def test_an_answer_to_a_command_given_up_is_skipped() -> None:
    one = guest_that_says(b"0 9 3 2\nout\n\n1 0 2 0\no", b"k")
    assert one.exec(["true"], 5).stdout == "ok"
    one.close()


def test_a_command_without_an_end_and_a_guest_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_GRACE", 0.05)
    silent = guest_that_says(b"still thinking")
    with pytest.raises(CommandError, match="still running"):
        silent.exec(["sleep", "9"], 0.05)
    silent.close()
    with pytest.raises(LaunchError, match="ended while it ran"):
        guest_that_says().exec(["true"], 5)


# --- what is found on the host -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("console", "cause"),
    [
        ("", "said nothing"),
        ("[ 0.0] boot\nbench: init\nbench: failed: no root device /dev/vda\n", "no root device /dev/vda"),
        ("x\nKernel panic - not syncing: VFS: Unable to mount root fs\n", "panicked: VFS: Unable to mount root fs"),
        ("Out of memory: Killed process 1\nKernel panic - not syncing: oom\n", "out of memory"),
        ("bench: init\nbench: payload exited with status 3\n", "exited with status 3"),
        ("Probing EDD (edd=off to disable)... ok\n", "too little memory"),
        ("Initramfs unpacking failed: write error\nKernel panic - not syncing: no init\n", "did not fit"),
    ],
)
def test_likely_cause(console: str, cause: str) -> None:
    assert cause in (diagnose.likely_cause(console) or "")


def test_no_cause_is_guessed_and_the_tail_is_short() -> None:
    assert diagnose.likely_cause("bench: init\nall is well\n") is None
    words = diagnose.last_words("\r\n".join(f"line {n}" for n in range(100)), "")
    assert "line 99" in words
    assert "line 80" not in words


HYBRID = """9:name=systemd:/
4:memory:/machine/qemu-embed-20f2a38d-1-bench-k3x9ab-v1.libvirt-qemu
3:cpuset:/machine/qemu-embed-20f2a38d-1-bench-k3x9ab-v1.libvirt-qemu/emulator
2:cpuacct:/
1:cpu:/machine/qemu-embed-20f2a38d-1-bench-k3x9ab-v1.libvirt-qemu/emulator
0::/machine/qemu-embed-20f2a38d-1-bench-k3x9ab-v1.libvirt-qemu/emulator
"""


def test_groups_are_the_whole_domains_and_only_its_own() -> None:
    mounts = {name: f"/sys/fs/cgroup/{name}" for name in ("memory", "cpu", "cpuacct")}
    found = groups.groups_in(HYBRID, "bench-k3x9ab-v1", mounts, "/sys/fs/cgroup/unified")
    tail = "machine/qemu-embed-20f2a38d-1-bench-k3x9ab-v1.libvirt-qemu"
    assert found == {
        "memory": f"/sys/fs/cgroup/memory/{tail}", "cpu": f"/sys/fs/cgroup/cpu/{tail}",
        "unified": f"/sys/fs/cgroup/unified/{tail}",
    }  # fmt: skip
    assert groups.groups_in(HYBRID, "bench-k3x9ab-v11", mounts, None) == {}


def test_groups_under_systemd() -> None:
    text = "0::/machine.slice/machine-qemu\\x2d1\\x2dbench\\x2dk3x9ab\\x2dv1.scope/libvirt/emulator\n"
    found = groups.groups_in(text, "bench-k3x9ab-v1", {}, "/sys/fs/cgroup")
    assert found == {"unified": "/sys/fs/cgroup/machine.slice/machine-qemu\\x2d1\\x2dbench\\x2dk3x9ab\\x2dv1.scope"}


def test_whose_hypervisor() -> None:
    argv = ["/usr/bin/qemu-system-x86_64", "-name", "guest=bench-k3x9ab-v1,debug-threads=on", "-S"]
    assert reap.domain_of(argv) == "bench-k3x9ab-v1"
    assert reap.domain_of(["/bin/grep", "-name", "guest=bench-k3x9ab-v1"]) is None
    assert reap.domain_of([]) is None


def test_files_of_a_dead_run_are_found_once(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    (tmp_path / "disks/zzzzzz-v1.raw").touch()
    (tmp_path / "container").mkdir()
    run = RunId("20261124-000000-test-zzzzzz")
    assert [(one.kind, Path(one.name).name) for one in reap.reap_guests(run, tmp_path)] == [("file", "zzzzzz-v1.raw")]
    assert reap.reap_guests(run, tmp_path) == []
    assert (tmp_path / "container").is_dir(), "another driver's"


def test_a_listener_leaves_no_file_and_takes_no_long_path(tmp_path: Path) -> None:
    path = Path(os.path.relpath(tmp_path / "s"))
    with Listener(path) as listener:
        other = socket.socket(socket.AF_UNIX)
        other.connect(str(path))
        listener.accept(5).close()
        other.close()
        with pytest.raises(LaunchError):
            listener.accept(0.01)
    assert not path.exists()
    with pytest.raises(HostError, match="too long"):
        Listener(tmp_path / ("x" * 120))


def test_the_reaper_reaps_what_it_was_told_of_and_nothing_else() -> None:
    reaper = Reaper()
    told, other = (subprocess.Popen(["sleep", seconds]) for seconds in ("0.05", "0.05"))
    watched = reaper.watch(told.pid)
    assert watched.gone.wait(5)
    with pytest.raises(ChildProcessError):
        os.waitpid(told.pid, 0)
    assert os.waitpid(other.pid, 0)[0] == other.pid
    assert reaper.watch(told.pid).gone.is_set()
    reaper.close()
    reaper.close()
    told.returncode = other.returncode = 0


def test_the_last_look_is_taken_while_the_corpse_stands() -> None:
    """Who waits until the pid is free, as libvirt does, tidies up after that."""
    guest, stood = subprocess.Popen(["sleep", "60"]), []
    reaper = Reaper()

    def look() -> None:
        state = Path(f"/proc/{guest.pid}/stat")
        stood.append(state.read_text().split()[2] if state.exists() else "gone")

    watched = reaper.watch(guest.pid, look)
    guest.kill()
    assert watched.gone.wait(5)
    assert stood == ["Z"]
    reaper.close()
    guest.returncode = 0


def test_a_hypervisor_that_its_groups_counted_has_a_cause(tmp_path: Path) -> None:
    counter = tmp_path / "memory.oom_control"
    counter.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    last = diagnose.LastLook({"memory": str(tmp_path)})
    guest = subprocess.Popen(["sleep", "60"])
    reaper = Reaper()
    watched = reaper.watch(guest.pid, last.take)
    counter.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")  # the kernel counts, then kills
    guest.kill()
    assert watched.gone.wait(5)
    assert last.cause == "its hypervisor was killed by the OOM killer"
    reaper.close()
    guest.returncode = 0


@pytest.mark.parametrize("counted", ["oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", None])
def test_a_hypervisor_that_nobody_counted_has_no_cause(tmp_path: Path, counted: str | None) -> None:
    """It was killed by somebody else, or its groups were gone before anybody looked."""
    if counted:
        (tmp_path / "memory.oom_control").write_text(counted)
    last = diagnose.LastLook({"memory": str(tmp_path)})
    guest = subprocess.Popen(["sleep", "60"])
    guest.kill()
    reaper = Reaper()
    assert reaper.watch(guest.pid, last.take).gone.wait(5)
    assert last.cause is None
    reaper.close()
    guest.returncode = 0


def test_the_reaper_sweeps_daemons_but_no_child_of_others(tmp_path: Path) -> None:
    """What libvirt forked itself is in our session; a daemonized QEMU that we adopted is not."""
    program = tmp_path / "qemu-fake"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    reaper = Reaper()
    child, daemon = subprocess.Popen([program]), subprocess.Popen([program], start_new_session=True)
    unlike = subprocess.Popen(["true"], start_new_session=True)
    for one in (child, daemon, unlike):
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
    with reaper.sweeping("qemu", 0.01):
        time.sleep(0.2)
    with pytest.raises(ChildProcessError):
        os.waitpid(daemon.pid, 0)
    assert child.wait() == unlike.wait() == 0
    daemon.returncode = 0
    reaper.close()


# --- kernel and accelerator --------------------------------------------------------------------------------------


def test_no_kernel_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    (tmp_path / "kernels/half").mkdir(parents=True)
    with pytest.raises(HostError) as raised:
        kernel.guest_kernel(tmp_path)
    assert raised.value.hint == "bench image build"


def a_kernel(cache: Path) -> kernel.GuestKernel:
    home = cache / "kernels/k"
    (home / "modules").mkdir(parents=True)
    (home / "vmlinuz").touch()
    (home / "modules/modules.dep").touch()
    (home / "package").write_text("k=1\n6.1\n")
    return kernel.guest_kernel(cache)


def test_versioned_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "linux-image-virtual\n  Depends: linux-modules-6.8.0-1\n |Depends: linux-image-6.8.0-1\n  Depends: libc6\n"
    calls = _fake_run(monkeypatch, said)
    assert kernel._versioned(kernel.SOURCES["ubuntu"]) == ["linux-image-6.8.0-1", "linux-modules-6.8.0-1"]
    assert calls == ["apt-cache"]


def test_package_lists_are_fetched_once_if_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _fake_run(monkeypatch, "")
    with pytest.raises(HostError, match="apt knows no"):
        kernel._versioned(kernel.SOURCES["debian"])
    assert calls == ["apt-cache", "apt-get", "apt-cache"]


def _fake_run(monkeypatch: pytest.MonkeyPatch, said: str, status: int = 0, stderr: str = "") -> list[str]:
    from bench.model import Completed

    calls: list[str] = []

    def run(argv: list[str], **_: object) -> Completed:
        calls.append(argv[0])
        return Completed(status, said, stderr)

    monkeypatch.setattr("bench.process.run", run)
    return calls


def test_a_device_alone_is_no_accelerator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = {"kvm": accel.Answer(False, "kvm aborts", 1.0), "tcg": accel.Answer(True, "tcg boots", 3.0)}
    asked = []

    def probe(name: str, *_: object) -> accel.Answer:
        asked.append(name)
        return answers[name]

    monkeypatch.setattr(accel, "probe", probe)
    monkeypatch.setattr(accel, "probe_initramfs", lambda *_: tmp_path)
    monkeypatch.setattr(accel, "qemu_version", lambda: "QEMU 7")
    monkeypatch.setattr(accel.os, "access", lambda *_: True)
    found = accel.accelerator(tmp_path, KERNEL)
    assert (found.name, found.reason) == ("tcg", "kvm aborts; tcg boots")
    with pytest.raises(HostError, match="kvm aborts") as raised:
        accel.accelerator(tmp_path, KERNEL, "kvm")
    assert "accel=auto" in (raised.value.hint or "")
    assert asked == ["kvm", "tcg"], "the answers were cached"
    monkeypatch.setattr(accel, "qemu_version", lambda: "QEMU 8")
    accel.accelerator(tmp_path, KERNEL)
    assert asked == ["kvm", "tcg"] * 2, "another QEMU is asked again"


def test_a_probe_that_proved_nothing_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a day, or at once where kvm is asked for by name; an answer that is a proof is believed for good."""
    asked, now = [], [1e9]
    slow = accel.Answer(False, "too slow", 60.0, proved=False, date=now[0])
    answers = {"kvm": slow, "tcg": accel.Answer(True, "tcg boots", 3.0)}

    def probe(name: str, *_: object) -> accel.Answer:
        asked.append(name)
        return msgspec.structs.replace(answers[name], date=now[0])

    monkeypatch.setattr(accel, "probe", probe)
    monkeypatch.setattr(accel, "probe_initramfs", lambda *_: tmp_path)
    monkeypatch.setattr(accel, "qemu_version", lambda: "QEMU 7")
    monkeypatch.setattr(accel.os, "access", lambda *_: True)
    monkeypatch.setattr(accel.time, "time", lambda: now[0])
    assert "no proof" in accel.accelerator(tmp_path, KERNEL).reason
    assert accel.accelerator(tmp_path, KERNEL).name == "tcg"
    assert asked == ["kvm", "tcg"], "not within the day: each command would wait for it"
    with pytest.raises(HostError, match="too slow"):
        accel.accelerator(tmp_path, KERNEL, "kvm")
    assert asked == ["kvm", "tcg", "kvm"], "asked for by name"
    now[0] += 86401
    answers["kvm"] = accel.Answer(True, "kvm boots", 1.0)
    assert accel.accelerator(tmp_path, KERNEL).name == "kvm"
    now[0] += 1e6
    assert accel.accelerator(tmp_path, KERNEL).name == "kvm"
    assert asked == ["kvm", "tcg", "kvm", "kvm"]


def test_an_answer_of_an_older_form_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In that form a guest that was too slow was written down as one that can't boot."""
    monkeypatch.setattr(accel, "qemu_version", lambda: "QEMU 7")
    new = accel._key(KERNEL)
    monkeypatch.setattr(accel, "_FORM", "1")
    assert accel._key(KERNEL) != new


@pytest.mark.parametrize(
    ("status", "stderr", "proved"),
    [
        (134, "qemu: error: failed to set MSR 0x10a\n", True),
        (137, "", False),
        (1, "qemu: cannot set up guest memory: Cannot allocate memory\n", False),
        (1, "ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy\n", False),
    ],
)
def test_what_may_pass_is_no_proof(monkeypatch: pytest.MonkeyPatch, status: int, stderr: str, proved: bool) -> None:
    _fake_run(monkeypatch, "", status, stderr)
    answer = accel.probe("kvm", KERNEL, Path("i"))
    assert (answer.boots, answer.proved) == (False, proved)


def test_what_a_probe_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_run(monkeypatch, "bench: probe\r\n")
    assert accel.probe("tcg", KERNEL, Path("i")).boots
    _fake_run(monkeypatch, "", 134, "qemu: Assertion failed\n")
    answer = accel.probe("kvm", KERNEL, Path("i"))
    assert not answer.boots
    assert "status 134" in answer.reason
    assert "Assertion failed" in answer.reason


def test_a_probe_that_hangs_is_a_no_but_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise CommandError("still running")

    monkeypatch.setattr("bench.process.run", hang)
    answer = accel.probe("kvm", KERNEL, Path("i"))
    assert "did not boot within 30 s" in answer.reason
    assert not answer.proved


# --- libvirt's errors --------------------------------------------------------------------------------------------


def test_errors_of_libvirt_come_with_a_remedy() -> None:
    said = Exception("invalid argument: Failed to parse user 'libvirt-qemu'")
    error = connection.translate(said, HostError, "can't open")
    assert isinstance(error, HostError)
    assert "useradd" in (error.hint or "")
    assert "libvirt-qemu" in (error.hint or "")
    assert connection.translate(Exception("something new"), LaunchError, "x").hint is None


def test_launches_at_once_do_not_meet_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt's import sets a variable for a moment; once it is there, nobody touches them."""

    class Untouchable(dict[str, str]):
        def setdefault(self, *_: object) -> str:
            raise AssertionError("the environment was changed")

    there = types.ModuleType("libvirt")
    monkeypatch.setitem(sys.modules, "libvirt", there)
    monkeypatch.setattr(connection.os, "environ", Untouchable())
    assert connection._libvirt() is there


@pytest.mark.parametrize(
    ("names", "stays"), [((), False), (("driver.pid",), False), (("bench-x.pid", "driver.pid"), True)]
)
def test_an_embedded_root_stays_only_where_guests_are_in_it(
    tmp_path: Path, names: tuple[str, ...], stays: bool
) -> None:
    runtime = tmp_path / "state/libvirt/run/qemu"
    runtime.mkdir(parents=True)
    for name in names:
        (runtime / name).touch()
    connection.Connection(None, f"qemu:///embed?root={tmp_path}/state/libvirt", runtime, "root").close()
    assert runtime.exists() == stays
    assert (tmp_path / "state").exists() == stays


@pytest.mark.parametrize("uri", ["qemu+tls://far/system", "qemu:///session", "xen:///system"])
def test_other_connections_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="sockets of this host"):
        connection.connect(tmp_path, tmp_path, uri)


def test_qemu_runs_as_root_where_its_user_could_not_reach_the_disks(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert connection._make_root(closed / "root", tmp_path / "cache").startswith("root, because")
    assert 'user = "root"' in (closed / "root/etc/qemu.conf").read_text()


def test_what_libvirt_learned_is_kept_once(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    connection._copy_new(source, target)
    assert not target.exists()
    source.mkdir()
    (source / "x.xml").write_text("old")
    connection._copy_new(source, target)
    (target / "x.xml").write_text("newer")
    os.utime(target / "x.xml", (time.time() + 9, time.time() + 9))
    connection._copy_new(source, target)
    assert (target / "x.xml").read_text() == "newer"
