"""The kernel layer as data: what is packed, parsed and described, without a kernel that allows it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.linux import cgroups, netlink
from bench.linux.lines import LineHub

HYBRID = """\
30 1 0:25 / /sys/fs/cgroup rw - tmpfs cgroup rw
31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_mounts_of_a_hybrid_host() -> None:
    assert cgroups.v1_mounts(HYBRID) == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
    }
    assert cgroups.v2_mount(HYBRID) == "/sys/fs/cgroup/unified"


def test_mounts_of_a_pure_v2_host() -> None:
    text = "30 1 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
    assert cgroups.v1_mounts(text) == {}
    assert cgroups.v2_mount(text) == "/sys/fs/cgroup"


def test_netlink_attributes_are_padded_to_four_bytes() -> None:
    packed = netlink.attribute(3, b"abc")
    assert len(packed) == 8
    assert struct.unpack("=HH", packed[:4]) == (7, 3)


def test_netlink_address_has_its_broadcast() -> None:
    body = netlink.address(2, "198.18.0.5", 20)
    assert bytes([198, 18, 15, 255]) in body


def test_the_child_imports_next_to_nothing() -> None:
    """The launcher's heap is copied by every launch: its modules are fixed here, and a new one needs a reason."""
    code = (
        "import sys; before = set(sys.modules)\n"
        f"sys.path.insert(0, {str(Path.cwd())!r})\n"
        "import bench.container.launcher\n"
        "print(' '.join(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    allowed = {
        "__future__", "_collections_abc", "_ctypes", "_socket", "_stat", "_struct", "bench", "ctypes", "errno", "gc",
        "genericpath", "os", "posixpath", "select", "stat", "struct", "types",
    }  # fmt: skip
    assert set(done.stdout.split()) <= allowed


# --- the reader of lines -----------------------------------------------------------------------------------------


def test_lines_are_stamped_logged_and_remembered(tmp_path: Path) -> None:
    read, write = os.pipe()
    with LineHub() as hub:
        stream = hub.watch(read, marks=("ready", "never"), log=tmp_path / "log")
        before = time.monotonic_ns()
        os.write(write, b"hello\nall rea")
        os.write(write, b"dy now\nmore")
        at = stream.wait("ready", 5)
        assert before <= at <= time.monotonic_ns()
        assert stream.first_byte is not None
        assert stream.first_byte <= at
        assert stream.stamp("never") is None
        with pytest.raises(TimeoutError):
            stream.wait("never", 0.05)
        os.close(write)
        with pytest.raises(EOFError):
            stream.wait("never", 5)
        assert stream.tail().endswith("more")
    assert (tmp_path / "log").read_bytes() == b"hello\nall ready now\nmore"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)


def test_a_mark_in_a_last_line_without_newline_counts_when_the_stream_ends() -> None:
    read, write = os.pipe()
    with LineHub() as hub:
        stream = hub.watch(read, marks=("ready",))
        os.write(write, b"ready")
        os.close(write)
        assert stream.wait("ready", 5)


def test_a_mark_may_come_with_what_to_do() -> None:
    read, write = os.pipe()
    done: list[str] = []
    with LineHub() as hub:
        stream = hub.watch(
            read, marks={"never": lambda: done.append("never"), "up": None, "end": lambda: done.append("end")}
        )
        os.write(write, b"up\nthe end\nthe end\nlast\n")
        os.close(write)
        assert stream.wait_end(5)
    assert stream.stamp("up") is not None
    assert done == ["end"], "once"


def test_closing_the_hub_ends_its_thread_and_closes_descriptors() -> None:
    before = threading.active_count()
    read, write = os.pipe()
    hub = LineHub()
    hub.watch(read)
    assert threading.active_count() == before + 1
    hub.close()
    hub.close()
    assert threading.active_count() == before
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)


@pytest.mark.parametrize(
    ("name", "text"),
    [("memory.events", "low 0\noom 3\noom_kill 2\n"), ("memory.oom_control", "oom_kill_disable 0\noom_kill 2\n")],
)
def test_whom_the_oom_killer_took_is_counted_by_the_group(tmp_path: Path, name: str, text: str) -> None:
    assert cgroups.oom_kills(str(tmp_path)) == 0
    (tmp_path / name).write_text(text)
    assert cgroups.oom_kills(str(tmp_path)) == 2
