"""What the VM profiles are made of, without guests: a clone's record, huge pages, the kernel's configuration."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import process
from bench.config.loader import load_scenario
from bench.config.profiles import PROFILES
from bench.errors import ConfigError, HostError, LaunchError, UsageError
from bench.images import disks
from bench.linux import hugepages
from bench.model import MIB, Completed, VmSettings
from bench.vm import clocks, clone, domain, identity, kernel_build, supplies
from bench.vm.accel import Accel
from bench.vm.identity import Identity
from bench.vm.kernel import GuestKernel

SCENARIO = 'schema = 1\nname = "s"\ndrivers = ["vm:lean", "vm:clone"]\n'


def scenario(tmp_path: Path, *overrides: str) -> Any:
    path = tmp_path / "s.toml"
    path.write_text(SCENARIO)
    return load_scenario(path, overrides=overrides)


# --- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PROFILES if name.startswith("vm:")])
def test_a_profile_sets_only_keys_there_are(name: str) -> None:
    msgspec.convert(PROFILES[name], VmSettings)


def test_clones_of_a_disk_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'vm\.storage.*"shared-ro"'):
        scenario(tmp_path, "vm.storage=copy")


def test_microvm_with_a_kernel_that_wants_pci_is_refused() -> None:
    with pytest.raises(UsageError, match="PCI"):
        domain.check(VmSettings(machine="microvm"))
    domain.check(VmSettings(machine="microvm", kernel="micro"))


def test_what_a_root_that_is_memory_does_not_go_with(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shared-dax") as caught:
        domain.check(VmSettings(machine="microvm", kernel="micro", storage="shared-dax"))
    assert "vm.machine=q35" in (caught.value.hint or "")
    for kernel in ("micro", "distribution"):
        domain.check(msgspec.convert({"kernel": kernel, "storage": "shared-dax"}, VmSettings))
    made = scenario(tmp_path, "vm.storage=shared-ro,shared-dax")
    assert made.sweep == {"vm.storage": ("shared-ro", "shared-dax")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vm.memory=1 KiB", "out of range"),
        ("vm.tb_cache=4 GiB", "out of range"),
        ("vm.kernel=own", '"distribution" or "micro"'),
        ("vm.cpu_query=never", '"each" or "sets"'),
        ("vm.thp=perhaps", "true or false"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(tmp_path, text)
    assert said in str(caught.value)


def test_what_is_stored_tells_profiles_apart() -> None:
    kernel = GuestKernel("/k/vmlinux", "", "6.1", "source")
    made = supplies.Supplies(kernel, "/i", "/r", Accel("tcg", "", 0.0), saved=clone.Saved("/m", "/s", 1, 2.0))
    settings = msgspec.convert(PROFILES["vm:clone"], VmSettings)
    told = supplies.describe("clone", made, settings)
    assert json.loads(told["clone: settings"])["start"] == "clone"
    assert "64 fresh bytes" in told["clone: clones' new seed"]
    assert "cpu-unavailable-features" in told["clone: deviation"]
    stock = supplies.describe("stock", msgspec.structs.replace(made, saved=None), VmSettings())
    assert not set(told) & set(stock)
    assert "stock: deviation" not in stock
    dax = supplies.describe("stock", made, VmSettings(storage="shared-dax"))
    assert "-device nvdimm" in dax["stock: deviation"]
    assert "bench.root=shared-dax" in dax["stock: kernel command line"]
    assert "/r" in supplies.shared_files(made, VmSettings(storage="shared-dax"))


# --- a clone's record --------------------------------------------------------------------------------------------


def test_record_is_laid_out_as_the_guest_s_program_has_it(tmp_path: Path) -> None:
    """A C compiler's offsets against ours."""
    source = (Path(identity.__file__).parent / "guest/clone.c").read_text()
    struct = source[source.index("struct record {") : source.index("};", source.index("struct record {")) + 2]
    fields = ("flags", "mac", "address", "mask", "gateway", "seed", "hostname", "text")
    offsets = ", ".join(f"(int)offsetof(struct record, {field})" for field in fields)
    program = f"""#include <stddef.h>\n#include <stdio.h>\n#define SEED 64\n{struct}
    int main(void) {{ int all[] = {{ {offsets}, sizeof(struct record) }};
    for (int i = 0; i < {len(fields) + 1}; i++) printf("%d\\n", all[i]); }}"""
    subprocess.run(["gcc", "-x", "c", "-o", tmp_path / "a", "-"], input=program.encode(), check=True)
    said = subprocess.run([tmp_path / "a"], capture_output=True, text=True, check=True).stdout.split()
    *at, size = map(int, said)
    one = Identity("k3x9ab-v7", b"s" * 64, "52:54:c6:12:00:09", "198.18.0.9", 20, "198.18.0.1").packed()
    assert len(one) == size
    values = {
        "flags": b"\3\0\0\0", "mac": b"\x52\x54\xc6\x12\x00\x09", "address": bytes([198, 18, 0, 9]),
        "mask": bytes([255, 255, 240, 0]), "gateway": bytes([198, 18, 0, 1]), "seed": b"s" * 64,
        "hostname": b"k3x9ab-v7\0", "text": b"198.18.0.9\0",
    }  # fmt: skip
    for field, offset in zip(fields, at, strict=True):
        assert one[offset : offset + len(values[field])] == values[field], field


def test_a_record_without_seed_or_network_says_so() -> None:
    assert Identity("h", None).packed()[8:12] == b"\0\0\0\0"
    assert Identity("h", b"x" * 64).packed()[8:12] == b"\1\0\0\0"


# --- saving ------------------------------------------------------------------------------------------------------


def test_a_restore_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"query-status": {"status": "internal-error"}}
    monkeypatch.setattr(clone, "monitor", lambda domain, command, **_: said.get(command, {}))
    (tmp_path / "state").touch()
    with pytest.raises(LaunchError, match="internal-error"):
        clone.restore(None, tmp_path / "state")


def test_a_clone_does_not_announce_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def monitor(domain: object, command: str, **arguments: object) -> dict[str, str]:
        asked[command] = arguments
        return {"status": "paused"}

    monkeypatch.setattr(clone, "monitor", monitor)
    (tmp_path / "state").touch()
    clone.restore(None, tmp_path / "state")
    assert asked["migrate-set-parameters"] == {"announce-rounds": 0}
    assert list(asked).index("migrate-set-parameters") < list(asked).index("migrate-incoming")


def test_a_save_waits_until_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["setup", "active", "completed"])
    asked = []

    def monitor(domain: object, command: str, **_: object) -> dict[str, str]:
        asked.append(command)
        return {"status": next(answers)} if command == "query-migrate" else {}

    monkeypatch.setattr(clone, "monitor", monitor)
    clone.save(None, tmp_path / "state")
    assert asked.count("query-migrate") == 3
    assert asked.index("migrate-set-capabilities") < asked.index("migrate")


# --- huge pages --------------------------------------------------------------------------------------------------

_SHOW = "import re; print(re.search('THP_enabled:\\\\s(\\\\d)', open('/proc/self/status').read())[1])"


def child_has_them() -> bool:
    return subprocess.run([sys.executable, "-c", _SHOW], capture_output=True, text=True).stdout.strip() == "1"


def test_children_inherit_and_the_flag_is_put_back() -> None:
    before = hugepages.allowed_here()
    with hugepages.children_may_have(False):
        assert not child_has_them()
    assert hugepages.allowed_here() == before
    with hugepages.children_may_have(True):
        assert child_has_them() == before


def test_who_wants_it_otherwise_waits() -> None:
    inside, seen = threading.Event(), []

    def other() -> None:
        with hugepages.children_may_have(True):
            seen.append(hugepages.allowed_here())

    with hugepages.children_may_have(False):
        thread = threading.Thread(target=other)
        thread.start()
        with hugepages.children_may_have(False):  # the same way: at once
            inside.set()
        thread.join(0.1)
        assert inside.is_set()
        assert not seen
    thread.join(5)
    assert len(seen) == 1


# --- the small kernel --------------------------------------------------------------------------------------------


def test_lines_that_kconfig_dropped_are_found() -> None:
    wanted = "# why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=y\nCONFIG_D=n\nCONFIG_H=0x2\n"
    made = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_D=y\nCONFIG_H=0x1\n"
    assert kernel_build.unmet(wanted, made) == ["CONFIG_C=y", "CONFIG_D=n", "CONFIG_H=0x2"]


def test_no_small_kernel_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        kernel_build.micro_kernel(tmp_path)
    assert "bench kernel build" in (caught.value.hint or "")


def test_a_built_one_is_found_by_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_build, "micro_config", lambda: "CONFIG_A=y\n")
    source = tmp_path / "linux-source-6.1.tar.xz"
    source.write_bytes(b"x")
    monkeypatch.setattr(kernel_build, "_SOURCES", tmp_path)

    def build(source: Path, config: str, scratch: Path) -> None:
        (scratch / "ready").mkdir()
        (scratch / "ready/vmlinux").write_text(config)
        (scratch / "ready/package").write_text("p\n6.1.9\n")

    monkeypatch.setattr(kernel_build, "_build", build)
    monkeypatch.setattr(kernel_build, "_check_tools", lambda: None)
    made = kernel_build.build_micro(tmp_path)
    assert made == kernel_build.micro_kernel(tmp_path) == kernel_build.build_micro(tmp_path)
    assert made.release == "6.1.9"
    source.unlink()
    assert kernel_build.build_micro(tmp_path) == made, "what is built needs no source"
    monkeypatch.setattr(kernel_build, "micro_config", lambda: "CONFIG_B=y\n")
    with pytest.raises(HostError):
        kernel_build.micro_kernel(tmp_path)


def test_newest_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_build, "_SOURCES", tmp_path)
    with pytest.raises(HostError, match="no kernel source"):
        kernel_build.kernel_source()
    for version in ("6.1", "6.12", "6.9"):
        (tmp_path / f"linux-source-{version}.tar.xz").touch()
    assert kernel_build.kernel_source().name == "linux-source-6.12.tar.xz"


# --- disks -------------------------------------------------------------------------------------------------------


def test_blocks_that_cant_be_shared_are_told_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template, target = tmp_path / "t", tmp_path / "d"
    template.write_bytes(b"x" * MIB)

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(disks.fcntl, "ioctl", refuse)
    with pytest.raises(HostError, match="not supported") as caught:
        disks.reflink_disk(template, target)
    assert "btrfs or xfs" in (caught.value.hint or "")
    assert not target.exists()


# --- clocks ------------------------------------------------------------------------------------------------------


def test_a_guest_is_told_its_clocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clocks, "tsc_khz", lambda cache: 2_596_123)
    one = clocks.told(tmp_path, "q35", 1)
    assert one[0] == "tsc_early_khz=2596123"
    assert "nolapic_timer" in one
    # the other vCPUs have no other timer, and microvm has no HPET
    assert "nolapic_timer" not in (*clocks.told(tmp_path, "q35", 2), *clocks.told(tmp_path, "microvm", 1))


@pytest.mark.parametrize("said", ["", "0\n", "99\n", "fast\n", "999999999999\n"])
def test_a_counter_that_can_t_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str) -> None:
    monkeypatch.setattr(clocks, "compiled_path", lambda *_: "/bin/true")
    monkeypatch.setattr(process, "run", lambda *_, **__: Completed(0, said, ""))
    with pytest.raises(HostError, match="time stamp counter"):
        clocks.tsc_khz(tmp_path)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: apt-get install gcc libc6-dev")
def test_the_counter_of_this_host_is_read_twice_the_same(tmp_path: Path) -> None:
    one, two = (clocks.tsc_khz(tmp_path) for _ in range(2))
    assert abs(one - two) < one / 1000
