"""What a dead run left of its guests. libvirt is not asked: its embedded driver died with the run, and a hypervisor
is known by the domain's name on its command line. A libvirtd notices by itself when a domain's hypervisor is gone."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from bench.linux import cgroups
from bench.linux.subreaper import Reaper
from bench.model import Leftover, RunId, token_of
from bench.vm import groups
from bench.vm.machine import command_line

FOLDERS = ("disks", "sockets", "templates", "libvirt")
"""Folders of a run's state that are the VM driver's."""


def domain_prefix(run: RunId) -> str:
    """How names of the run's domains begin."""
    return f"bench-{token_of(run)}-"


def memory_folder(run: RunId) -> Path:
    """Where the run keeps memory that clones share: on tmpfs, so that it is never written to a disk."""
    return Path("/dev/shm") / f"bench-{token_of(run)}"


def reap_guests(run: RunId, state: Path) -> list[Leftover]:
    """Kill the run's guests and remove their cgroups, files and sockets; returns what was found. Idempotent."""
    prefix = domain_prefix(run)
    return [*_kill_all(prefix), *_drop_groups(prefix), *_drop_files(state, memory_folder(run))]


def hypervisors(prefix: str) -> Iterator[tuple[int, str]]:
    """(pid, domain) of every QEMU whose domain's name begins with `prefix`."""
    for entry in Path("/proc").iterdir():
        if (
            entry.name.isdigit()
            and (name := domain_of(command_line(int(entry.name)))) is not None
            and name.startswith(prefix)
        ):
            yield int(entry.name), name


def domain_of(argv: list[str]) -> str | None:
    """The domain a command line of libvirt's runs: `-name guest=NAME,debug-threads=on`."""
    if not argv or "qemu" not in argv[0]:
        return None
    for option, value in itertools.pairwise(argv):
        if option == "-name":
            return value.split(",")[0].removeprefix("guest=")
    return None


def _kill_all(prefix: str) -> list[Leftover]:
    reaper = Reaper()
    found = sorted(hypervisors(prefix))
    watched = [reaper.watch(pid) for pid, _ in found]
    for pid, _ in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for one in watched:
        one.gone.wait(10)
    reaper.close()
    processes = [Leftover("process", f"pid {pid} ({name})") for pid, name in found]
    return processes + [Leftover("domain", name) for _, name in found]


def _drop_groups(prefix: str) -> list[Leftover]:
    found = list(groups.leftovers(prefix))
    for path in found:
        cgroups.remove(path)
    groups.drop_empty_parents()
    return [Leftover("cgroup", path) for path in found]


def _drop_files(state: Path, memory: Path) -> list[Leftover]:
    found = []
    for path in (*(state / folder for folder in FOLDERS), memory):
        if path.is_dir():
            found += [Leftover("file", str(entry)) for entry in sorted(path.iterdir())]
            shutil.rmtree(path)
    return found
