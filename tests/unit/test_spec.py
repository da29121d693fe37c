"""OCI runtime-spec bundles: what is read, what is refused and by which key; nothing else comes out of a bad one."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.container import mount_options, spec, spec_check
from bench.container.mount_options import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC
from bench.container.spec_records import Capabilities, Memory, Mount, Pids, Resources, User
from bench.errors import ConfigError
from bench.linux.capabilities import CONTAINER_DEFAULT
from bench.model import MIB, Limits

IDS = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
FULL: dict[str, Any] = {
    "ociVersion": "1.0.2-dev",
    "process": {
        "terminal": True,
        "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4]},
        "args": ["/bin/sh", "-c", "true"],
        "env": ["PATH=/bin", "EMPTY="],
        "cwd": "/tmp",
        "capabilities": {
            "bounding": ["CAP_KILL", "CAP_CHOWN"],
            "effective": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"],
            "permitted": ["CAP_KILL", "CAP_CHOWN"],
            "ambient": ["CAP_KILL", "CAP_CHOWN"],
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 2**64 - 1}],
        "noNewPrivileges": True,
        "oomScoreAdj": -5,
        "apparmorProfile": "",
        "selinuxLabel": "",
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "a",
    "domainname": "b",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/data", "source": "data", "options": ["rbind", "ro", "rslave"]},
    ],
    "hooks": {
        name: [{"path": "/bin/hook", "args": ["hook"], "env": ["A=b"], "timeout": 5}]
        for name in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    },
    "annotations": {"com.example": "x"},
    "linux": {
        "namespaces": [
            *({"type": name} for name in ("pid", "mount", "ipc", "uts", "user", "cgroup")),
            {"type": "network", "path": "/run/netns/x"},
        ],
        "uidMappings": IDS,
        "gidMappings": IDS,
        "devices": [{"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0}],
        "cgroupsPath": "/bench/x",
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "access": "r"}],
            "memory": {"limit": 2, "reservation": 1, "swap": 2, "swappiness": 60, "disableOOMKiller": False},
            "cpu": {"shares": 0, "quota": -1, "period": 100_000, "cpus": "0-1,3", "mems": "0"},
            "pids": {"limit": -1},
            "blockIO": {"weight": 0},
        },
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {
                    "names": ["personality"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 2**64 - 1, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 8}],
                },
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            ],
        },
        "sysctl": {"kernel.shmmax": "1", "fs.mqueue.msg_max": "1", "kernel.domainname": "x"},
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "rootfsPropagation": "rslave",
        "mountLabel": "",
    },
}


def changed(path: str, value: Any) -> bytes:
    """FULL with `value` at `path`; the last part may be new."""
    document = copy.deepcopy(FULL)
    *parents, last = [int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", path.rstrip("]"))]
    place: Any = document
    for part in parents:
        place = place[part]
    place[last] = value
    return json.dumps(document).encode()


def refused(data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        spec.decode(data, "bundle/config.json")
    assert caught.value.message.startswith("bundle/config.json")
    assert caught.value.hint or "JSON" in caught.value.message
    return caught.value.message


# --- what is read ------------------------------------------------------------------------------------------------


def test_every_supported_key_is_read_and_written_again() -> None:
    read = spec.decode(json.dumps(FULL).encode())
    assert read.process.rlimits[0].hard == 2**64 - 1
    assert read.hooks.create_runtime[0].timeout == 5
    assert read.linux.resources.block_io is not None
    assert read.process.capabilities.raised == ("CAP_KILL",)  # CAP_CHOWN is not inheritable
    assert spec.decode(spec.encode(read)) == read
    written = json.loads(spec.encode(read))
    assert written["linux"]["devices"] == FULL["linux"]["devices"]
    assert written["linux"]["seccomp"] == FULL["linux"]["seccomp"]
    assert written["process"]["user"] == FULL["process"]["user"]


def test_a_bundle_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FULL))
    assert spec.load(tmp_path).hostname == "a"


@pytest.mark.parametrize("kind", ["missing", "folder", "too large"])
def test_a_bundle_without_a_usable_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "too large":
        with path.open("wb") as file:
            file.truncate(5 << 20)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        spec.load(tmp_path)


# --- what is refused, and by which key ---------------------------------------------------------------------------

REFUSED = {
    "linux.intelRdt": {"closID": "x"},
    "linux.personality": {"domain": "LINUX32"},
    "linux.timeOffsets": {},
    "linux.mountLabel": "system_u:object_r:x",
    "linux.resources.unified": {"memory.high": "1"},
    "linux.resources.hugepageLimits": [],
    "linux.resources.memory.kernel": 1,
    "linux.resources.cpu.realtimeRuntime": 1,
    "linux.resources.memory.disableOOMKiller": True,
    "linux.resources.memory.limit": -2,
    "linux.resources.memory.swap": 1,
    "linux.resources.memory.reservation": 3,
    "linux.resources.cpu.quota": 1,
    "linux.resources.cpu.shares": 1,
    "linux.resources.cpu.period": -1,
    "linux.resources.cpu.cpus": "0-",
    "linux.resources.blockIO.weight": 5,
    "linux.resources.devices[1].access": "x",
    "linux.seccomp.listenerPath": "/x",
    "linux.seccomp.defaultAction": "SCMP_ACT_NOTIFY",
    "linux.seccomp.architectures[0]": "SCMP_ARCH_ARM",
    "linux.seccomp.flags[0]": "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    "linux.seccomp.syscalls[0].errnoRet": 1,
    "linux.seccomp.syscalls[0].names": [],
    "linux.seccomp.syscalls[0].args[0].op": "SCMP_CMP_GE",
    "linux.seccomp.syscalls[0].args[0].value": 2**64,
    "linux.seccomp.syscalls[0].args[0].index": 6,
    "linux.sysctl.net.ipv4.ip_forward": "1",  # the network namespace is joined, not new
    "linux.sysctl.kernel.panic": "1",
    "linux.sysctl.vm.swappiness": "1",
    "linux.sysctl.kernel": "1",
    "linux.sysctl.net..ipv4": "1",
    "linux.namespaces[0].type": "time",
    "linux.namespaces[0]": {"type": "mount"},
    "linux.namespaces[6].path": "run/netns/x",
    "linux.devices[0].path": "dev/fuse",
    "linux.devices[0].major": None,
    "linux.uidMappings": [],
    "linux.uidMappings[0].hostID": 2**32 - 5,
    "linux.maskedPaths[0]": "proc/kcore",
    "linux.readonlyPaths[0]": "proc/sys",
    "linux.cgroupsPath": "/../x",
    "linux.rootfsPropagation": "private,shared",
    "process.apparmorProfile": "docker-default",
    "process.selinuxLabel": "x",
    "process.ioPriority": {},
    "process.args": [],
    "process.cwd": "tmp",
    "process.env[0]": "=x",
    "process.user.uid": 70_000,
    "process.user.additionalGids[1]": 70_000,
    "process.user.username": "root",
    "process.oomScoreAdj": 1001,
    "process.capabilities.bounding": ["CAP_EVERYTHING"],
    "process.capabilities.effective": ["CAP_SYS_ADMIN"],
    "process.rlimits[0].type": "RLIMIT_FILES",
    "process.rlimits[0].hard": 9,
    "root.path": "",
    "mounts[0].destination": "proc",
    "mounts[1].destination": "//",
    "mounts[1].options": ["rbind", "rro"],
    "mounts[1].source": "",
    "mounts[0].uidMappings": IDS,
    "hooks.poststop[0].path": "hook",
    "hooks.createRuntime[0].timeout": 0,
    "hostname": "x" * 65,
    "domainname": "a\0b",
    "annotations.com": "\0",
    "ociVersion": "2.0.0",
    "windows": {},
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_supported_or_makes_no_sense_is_refused_by_its_key(key: str) -> None:
    if key.startswith("linux.sysctl."):
        data = changed("linux.sysctl", {key.removeprefix("linux.sysctl."): REFUSED[key]})
    else:
        data = changed(key, REFUSED[key])
    named = refused(data).split(": ")[1]
    # Where two keys do not fit each other, either may be named: soft and hard, a mapping and its list.
    assert key.startswith(named) or named.startswith(key) or named.rpartition(".")[0] == key.rpartition(".")[0]


def test_names_need_a_new_uts_namespace() -> None:
    for namespaces in ([{"type": "mount"}], [{"type": "mount"}, {"type": "uts", "path": "/proc/1/ns/uts"}]):
        document = copy.deepcopy(FULL)
        document["linux"].update(namespaces=namespaces, uidMappings=[], gidMappings=[], sysctl={})
        assert "hostname" in refused(json.dumps(document).encode())


def test_mappings_need_a_new_user_namespace_and_a_root_its_mount_namespace() -> None:
    without = [entry for entry in FULL["linux"]["namespaces"] if entry["type"] != "user"]
    assert "linux.uidMappings" in refused(changed("linux.namespaces", without))
    assert "mount namespace" in refused(changed("linux.namespaces[1].path", "/proc/1/ns/mnt"))


def test_a_network_sysctl_is_taken_with_a_new_network_namespace() -> None:
    document = json.loads(changed("linux.namespaces[6]", {"type": "network"}))
    document["linux"]["sysctl"] = {"net.ipv4.conf.eth0/1.forwarding": "1"}
    read = spec.decode(json.dumps(document).encode())
    assert [spec_check.sysctl_path(key) for key in read.linux.sysctl] == ["net/ipv4/conf/eth0.1/forwarding"]
    for key in ("net/../kernel/panic", "net.//.x", "net", ""):
        with pytest.raises(ConfigError):
            spec_check.sysctl_path(key)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"x":' + b"[" * 100_000, b"\xff", b'{"ociVersion": "\\ud800"}'])
def test_what_is_no_config_json_at_all_is_refused(text: bytes) -> None:
    refused(text)


# --- mount options -----------------------------------------------------------------------------------------------


def test_mount_options_become_flags_propagation_and_data() -> None:
    parsed = mount_options.parse(["ro", "nosuid", "mode=755", "rprivate", "size=64k", "rw", "ro"])
    assert parsed == mount_options.MountOptions(MS_RDONLY | MS_NOSUID, 0, (MS_PRIVATE | MS_REC,), "mode=755,size=64k")
    assert mount_options.parse(["rbind", "rw", "exec"]) == mount_options.MountOptions(
        MS_BIND | MS_REC, MS_RDONLY | MS_NOEXEC
    )
    assert mount_options.parse([], "bind").bind
    assert mount_options.parse(["dev"]).cleared == MS_NODEV


@pytest.mark.parametrize("options", [["bind", "size=1"], ["rro"], ["idmap"], ["x" * 5000]])
def test_mount_options_that_would_be_ignored_are_refused(options: list[str]) -> None:
    with pytest.raises(ConfigError):
        mount_options.parse(options)


# --- the default container ---------------------------------------------------------------------------------------


def test_the_default_container() -> None:
    made = spec.default_spec(["/bin/x"], root="/r", hostname="h", resources=Resources(memory=Memory(limit=MIB)))
    assert spec.decode(spec.encode(made)) == made
    assert len(made.process.capabilities.effective) == len(CONTAINER_DEFAULT) == 14
    assert made.process.capabilities.ambient == made.process.capabilities.inheritable == ()
    assert made.linux.resources.devices[0] == spec.DEFAULT_DEVICE_RULES[0]
    assert not made.linux.resources.devices[0].allow
    assert made.linux.resources.memory == Memory(limit=MIB)
    assert {namespace.type for namespace in made.linux.namespaces if not namespace.path} == {
        "mount", "network", "uts", "pid", "ipc", "cgroup",
    }  # fmt: skip


def test_the_default_container_in_a_network_that_is_there() -> None:
    made = spec.default_spec(
        ["/bin/x"], root="/r", network="/run/netns/x", user=User(5, 5), mounts=[Mount("/data", "bind", "/srv")]
    )
    assert not made.linux.new("network")
    assert not made.linux.sysctl  # they would change the network of others
    assert made.mounts[-1].destination == "/data"
    with pytest.raises(ConfigError, match=r"process\.cwd"):
        spec.default_spec(["/bin/x"], root="/r", cwd="x")


def test_declared_limits_become_resources() -> None:
    made = spec.resources_of(Limits(memory=64 * MIB, cpus=0.5, pids=9))
    assert (made.memory, made.pids) == (Memory(limit=64 * MIB), Pids(9))
    assert made.cpu is not None
    assert (made.cpu.quota, made.cpu.period) == (50_000, 100_000)


def test_capabilities_that_are_absent_are_none() -> None:
    document = copy.deepcopy(FULL)
    del document["process"]["capabilities"]
    assert spec.decode(json.dumps(document).encode()).process.capabilities == Capabilities()


# --- whatever comes in -------------------------------------------------------------------------------------------

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=4),
    st.sampled_from(["\0", "\ud800", "/", "..", "mount", "CAP_KILL", "x" * 200]),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*path, key), *_places(inner, (*path, key)))]


_MUTATION = st.tuples(st.sampled_from(_places(FULL)), _VALUES, st.sampled_from(["set", "drop", "add"]))


@given(st.lists(_MUTATION, max_size=3))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_mutated_config_is_a_spec_or_a_config_error(mutations: list[tuple[tuple[Any, ...], Any, str]]) -> None:
    document: Any = copy.deepcopy(FULL)
    for path, value, how in mutations:
        place = document
        try:
            for part in path[:-1]:
                place = place[part]
            if how == "set":
                place[path[-1]] = value
            elif how == "drop":
                del place[path[-1]]
            else:
                place["x" if isinstance(place, dict) else slice(0, 0)] = [value]
        except (KeyError, IndexError, TypeError):  # an earlier mutation took the place away
            continue
    try:
        read = spec.decode(json.dumps(document).encode())
    except ConfigError:
        return
    assert spec.decode(spec.encode(read)) == read


@given(st.binary(max_size=60), st.integers(0, 3000), st.integers(0, 8))
@settings(max_examples=80, deadline=None)
def test_a_damaged_file_is_a_spec_or_a_config_error(noise: bytes, at: int, cut: int) -> None:
    text = json.dumps(FULL).encode()
    with contextlib.suppress(ConfigError):
        spec.decode(text[:at] + noise + text[at + cut :])
