"""Everything on this host that carries a run's token, found without asking bench: the referee of "nothing is left"."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bench.model import RunId, token_of


def traces(run: RunId) -> list[str]:
    """`kind name` of processes, mounts, cgroups, network devices, files in /var/lib/bench and /run."""
    token = token_of(run)
    return [*_processes(token), *_mounts(token), *_cgroups(token), *_netdevs(token), *_files(token), *_loops(token)]


def untold(temporary: Path) -> list[str]:
    """What a program of ours left that carries no run's token: in its folder for temporary files, or as a group."""
    groups = [path for top in Path("/sys/fs/cgroup").iterdir() for path in top.glob("bench*")]
    strange = [path for path in groups if not re.fullmatch("bench-[a-z0-9]{6}", path.name)]
    return [*(f"file {path}" for path in temporary.iterdir()), *(f"cgroup {path}" for path in strange)]


def _processes(token: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if _awaits_adopter(entry):
                    continue
                text = (entry / "cmdline").read_bytes() + (entry / "cgroup").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if token.encode() in text and b"pytest" not in text:
                found.append(f"process {entry.name}")
    return found


def _awaits_adopter(entry: Path) -> bool:
    """Ended, and adopted by pid 1 or by these tests (the vm driver made them a subreaper): it holds nothing any more,
    and when it is reaped is not for the run under test to decide."""
    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
    return state == "Z" and int(parent) in (1, os.getpid())


def _mounts(token: str) -> list[str]:
    return [f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if token in line]


def _cgroups(token: str) -> list[str]:
    return [f"cgroup {path}" for path, _, _ in os.walk("/sys/fs/cgroup") if token in path]


def _netdevs(token: str) -> list[str]:
    return [f"netdev {name}" for name in os.listdir("/sys/class/net") if token in name]


def _files(token: str) -> list[str]:
    roots = [Path(os.environ.get("BENCH_STATE", "/var/lib/bench")), Path("/var/lib/bench-test"), Path("/run")]
    return [f"file {path}" for root in roots if root.is_dir() for path in root.glob(f"*{token}*")]


def _loops(token: str) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        if token in path.read_text():
            found.append(f"loop {path}")
    return found
