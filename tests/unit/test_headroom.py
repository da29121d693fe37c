"""What the host has left: read from a recorded /proc, held against a reserve, and named."""

from __future__ import annotations

import errno
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from bench.container.network import Bridge
from bench.drivers.network import RunNetwork
from bench.errors import AddressesError, HostError, LaunchError, ReadyTimeoutError
from bench.headroom import HostHeadroom, Kept, Levels, Used, open_descriptors, shortage
from bench.limiters import LIMITERS, as_launch_error, limiter_of
from bench.model import MIB, Limits, RunId

LIMITS = Limits(memory=256 * MIB, pids=64)
PLENTY = Levels(
    memory=1 << 40, pressure=0.0, disk=1 << 40, pids=Used(100, 32768), descriptors=Used(10, 1024),
    files=Used(1000, 100_000), ports=500,
)  # fmt: skip
KEPT = Kept(memory=1 << 30, pressure=0.1, disk=1 << 30, pids=1024, descriptors=512)


def files(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        path = root / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def host(root: Path, **more: object) -> HostHeadroom:
    return HostHeadroom(KEPT, [root / "not" / "yet"], list, root=root, **more)  # type: ignore[arg-type]


def test_plenty_stops_nothing_and_what_is_not_there_neither() -> None:
    assert shortage(PLENTY, KEPT, LIMITS) is None
    assert shortage(Levels(), KEPT, LIMITS) is None


@pytest.mark.parametrize(
    ("enough", "short", "limiter", "says"),
    [
        (
            {"memory": (1 << 30) + 256 * MIB},
            {"memory": (1 << 30) + 256 * MIB - 1},
            "memory",
            "the reserve is 1073741824",
        ),
        ({"pressure": 0.1}, {"pressure": 0.101}, "pressure", "10.1 % of the last 10 s"),
        ({"disk": 1 << 30}, {"disk": (1 << 30) - 1}, "disk", "1073741823 bytes are free"),
        ({"pids": Used(31680, 32768)}, {"pids": Used(31681, 32768)}, "pids", "31681 of 32768 process ids"),
        ({"descriptors": Used(512, 1024)}, {"descriptors": Used(513, 1024)}, "descriptors", "513 of 1024 descriptors"),
        ({"files": Used(488, 1000)}, {"files": Used(489, 1000)}, "descriptors", "489 of 1000 files"),
        ({"ports": 1}, {"ports": 0}, "ports", "no bridge port"),
    ],
)
def test_each_shortage_has_its_word_and_its_numbers(
    enough: dict[str, object], short: dict[str, object], limiter: str, says: str
) -> None:
    def levels(changes: dict[str, object]) -> Levels:
        return Levels(**{**{name: getattr(PLENTY, name) for name in PLENTY.__struct_fields__}, **changes})

    assert shortage(levels(enough), KEPT, LIMITS) is None, "exactly enough is enough"
    stop = shortage(levels(short), KEPT, LIMITS)
    assert stop is not None
    assert (stop.limiter, says in stop.evidence) == (limiter, True), stop
    assert limiter in LIMITERS


def test_levels_are_read_from_proc(tmp_path: Path) -> None:
    texts = {
        "meminfo": "MemTotal: 100 kB\nMemAvailable:   2048 kB\n",
        "pressure/memory": "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00 avg60=0 avg300=0 total=1",
        "loadavg": "0.1 0.2 0.3 3/417 99\n",
        "sys/kernel/pid_max": "32768\n",
        "sys/fs/file-nr": "20211\t0\t2466190\n",
        "self/fd/0": "",
        "net/stat/arp_cache": "entries  allocs table_fulls\n000003ff 1 00000002\n000003ff 1 00000003\n",
        "sys/net/ipv4/neigh/default/gc_thresh3": "1024\n",
    }
    files(tmp_path, texts)
    levels = host(tmp_path, ports=lambda: 12).levels()
    assert (levels.memory, levels.pressure, levels.ports) == (2 << 20, 0.125, 12)
    assert (levels.pids, levels.files) == (Used(417, 32768), Used(20211, 2466190))
    assert levels.descriptors is not None
    assert levels.disk is not None
    assert levels.disk > 0
    said = str(levels)
    for part in ("MemAvailable 2097152 bytes", "avg10 12.5 %", "pids 417 of 32768", "bridge ports left 12"):
        assert part in said
    assert (levels.neighbours, levels.overflows) == (Used(1023, 1024), 0)
    looking = host(tmp_path)
    files(tmp_path, {"net/stat/arp_cache": "entries  allocs table_fulls\n00000400 1 00000009\n00000400 1 00000003\n"})
    assert looking.levels().overflows == 7
    assert "neighbours 1024 of 1024, times the neighbour table was full" in looking.said()
    stop = host(tmp_path).stop(LIMITS)
    assert stop is not None
    assert stop.limiter == "memory"


def test_a_host_without_pressure_and_networks_has_neither(tmp_path: Path) -> None:
    levels = host(files(tmp_path, {"meminfo": "MemAvailable: 1 kB\n"})).levels()
    assert (levels.pressure, levels.pids, levels.files, levels.ports) == (None, None, None, None)
    assert "pressure" not in str(levels)


def test_descriptors_of_this_process_are_counted(tmp_path: Path) -> None:
    before = open_descriptors("self")
    with open(tmp_path / "one", "w"), open(tmp_path / "two", "w"):
        now = open_descriptors("self")
    assert before is not None
    assert now == before + 2
    assert open_descriptors("0") is None


@pytest.mark.parametrize(
    ("error", "limiter"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "descriptors"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (LaunchError("clone: refused", errno=errno.EAGAIN), "pids"),
        (LaunchError("clone: refused", errno=errno.ENOMEM), "memory"),
        (LaunchError("veth: full", errno=errno.EXFULL), "ports"),
        (AddressesError("every subnet is in use"), "ports"),
        (ReadyTimeoutError("not ready"), "timeout"),
        (LaunchError("it said last"), "launch"),
        (LaunchError("exec: no such file", errno=errno.ENOENT), "launch"),
        (HostError("no kernel"), "launch"),
    ],
)
def test_what_a_failed_launch_was_limited_by(error: LaunchError | HostError | OSError, limiter: str) -> None:
    found = as_launch_error("k3x9ab-c12", error)
    assert limiter_of(found) == limiter
    assert limiter in LIMITERS
    if not isinstance(error, LaunchError):
        assert found.message.startswith("k3x9ab-c12: ")


def test_ports_are_those_of_the_bridges_there_and_of_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    network = RunNetwork(RunId("20261124-000000-test-abc123"), ports=2)
    assert network.room() is None, "nobody asked for a network"
    bridge = Bridge("b0", IPv4Network("198.18.0.0/20"), 1, ports=2)
    network.network("bridge").bridges.append(bridge)
    for left in (2, 1):
        assert network.room() == left
        assert bridge.take()
    routed: list[IPv4Network] = []
    monkeypatch.setattr("bench.linux.interfaces.routed", lambda: routed)
    assert network.room() == 2, "another subnet is free"
    routed.append(IPv4Network("198.18.0.0/15"))
    assert network.room() == 0
