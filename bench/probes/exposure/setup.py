"""How an instance's host processes are set up, as the host's /proc tells: what would be left to who took one over."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from bench.errors import LaunchError
from bench.linux import bpf, procfs, seccomp
from bench.linux.calls import NAMES
from bench.linux.capabilities import NUMBERS
from bench.linux.mountinfo import unescaped
from bench.records import Exposed, Exposure

SHARED, CONFINED, UNKNOWN = "as on the host", "confined", "not known"
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time")
_MODES = {0: "none", 1: "strict", 2: "filter"}
_WHOLE = 0xFFFFFFFF  # ids that the first user namespace maps, one to one
_UNCONFINED = ("", "unconfined", "kernel")
_HARMLESS = frozenset(os.makedev(*one) for one in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0)))
"""null, zero, full, random, urandom, tty: device nodes that reach nothing of the host's."""
_OPEN_TO_ALL = ("/tmp", "/var/tmp", "/dev/shm")


class State(Struct, frozen=True):
    """One process, by its /proc/PID/*. `writable`: host paths it may write; `let_through`: calls its filters allow,
    None if they can't be read."""

    namespaces: dict[str, str]
    status: dict[str, str]
    uid_map: str
    label: str
    writable: tuple[str, ...]
    let_through: int | None = None


def state(pid: int, proc: Path = Path("/proc")) -> State:
    """Raises LaunchError if the process has ended."""
    folder = proc / str(pid)
    text = procfs.read(folder / "status")
    if text is None:
        raise LaunchError(f"process {pid} has ended")
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    own = procfs.read(folder / "mountinfo") or ""
    host = procfs.read(proc / "self/mountinfo") or ""
    shared = _link(folder / "ns/mnt") == _link(proc / "self/ns/mnt")
    uid_map = procfs.read(folder / "uid_map") or ""
    points = host_mounts(host if shared else own, host)
    root = proc / "self/root" if shared else folder / "root"
    writable = tuple(point for point in points if may_write(status, uid_map, root / point.lstrip("/")))
    return State(
        {name: link for name in NAMESPACES if (link := _link(folder / "ns" / name))}, status, uid_map,
        procfs.read(folder / "attr/current") or "", writable, _let_through(pid, status),
    )  # fmt: skip


def host_mounts(own: str, host: str) -> list[str]:
    """Mount points of `own` that are of a file system which the host has mounted too, and not read-only. Both are
    texts of a mountinfo. With them the folders that everybody may write, where they are of such a file system."""
    devices = {line.split()[2] for line in host.splitlines()}
    found: dict[str, None] = {}
    for line in own.splitlines():
        words, _, rest = line.partition(" - ")
        fields, rights = words.split(), rest.split()
        if fields[2] not in devices:
            continue
        writable = "rw" in fields[5].split(",") and "rw" in rights[-1].split(",")
        point = unescaped(fields[4])
        if writable:
            found[point] = None
        if point == "/" and writable:
            found |= dict.fromkeys(_OPEN_TO_ALL)
    return list(found)


def may_write(status: Mapping[str, str], uid_map: str, path: Path) -> bool:
    """By owner and mode; ACLs are not looked at. Root of a user namespace has no say over others' files."""
    try:
        found = path.stat()
    except OSError:
        return False
    if stat.S_ISCHR(found.st_mode) and found.st_rdev in _HARMLESS:
        return False
    uid, gid = (int(status[name].split()[3]) for name in ("Uid", "Gid"))  # of file system accesses
    overrides = int(status["CapEff"], 16) >> NUMBERS["DAC_OVERRIDE"] & 1
    if overrides and is_whole(uid_map):
        return True
    if uid == found.st_uid:
        return bool(found.st_mode & stat.S_IWUSR)
    if found.st_gid in {gid, *map(int, status["Groups"].split())}:
        return bool(found.st_mode & stat.S_IWGRP)
    return bool(found.st_mode & stat.S_IWOTH)


def is_whole(uid_map: str) -> bool:
    """Whether ids inside are the host's."""
    return uid_map.split() == ["0", "0", str(_WHOLE)]


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:  # no such namespace on this kernel, or a process that has ended
        return None


def _let_through(pid: int, status: Mapping[str, str]) -> int | None:
    """How many of the calls that have a name all filters may allow, with the right arguments."""
    if status.get("Seccomp", "0") != "2":
        return len(NAMES) if status.get("Seccomp") == "0" else None
    try:
        programs = [bpf.decode(program) for program in bpf.installed_filters(pid)]
    except OSError:  # may not be asked here: see there
        return None
    return sum(all(_allows(program, number) for program in programs) for number in NAMES)


def _allows(program: bpf.Program, number: int) -> bool:
    found = bpf.answers(program, number, seccomp.ARCH_X86_64)
    return any(answer & ~seccomp.RET_DATA in (seccomp.RET_ALLOW, seccomp.RET_LOG) for answer in found)


# --- several processes, against the host ------------------------------------------------------------------------------


def exposure(states: Sequence[State], host: State) -> Exposure:
    """Of all host processes of an instance the weakest says each item. `host`: a process without confinement."""
    items = [_namespace(states, host, name) for name in NAMESPACES if name in host.namespaces]
    items += [_capabilities(states, host, "CapEff", "effective"), _capabilities(states, host, "CapBnd", "bounding")]
    items += [_mode(states), _filters(states), _privileges(states), _user(states), _map(states), _label(states)]
    paths = sorted({path for one in states for path in one.writable})
    items.append(Exposed("writable host paths", SHARED if paths else CONFINED, ", ".join(paths) or "none"))
    let = [one.let_through for one in states]
    through = max((one for one in let if one is not None), default=None) if None not in let else None
    if through is not None:
        free = through == len(NAMES)
        said = f"{through} of {len(NAMES)}"
        items.append(Exposed("calls that filters let through", SHARED if free else CONFINED, said, str(len(NAMES))))
    counts = {
        "namespaces shared": sum(one.found == SHARED and one.name.startswith("namespace ") for one in items),
        "capabilities": _mask(states, "CapEff").bit_count(),
        "capabilities to be had": _mask(states, "CapBnd").bit_count(),
        "writable host paths": len(paths),
        **({} if through is None else {"calls that filters let through": through}),
    }
    return Exposure("setup", tuple(items), counts)


def _namespace(states: Sequence[State], host: State, name: str) -> Exposed:
    links = [one.namespaces.get(name) for one in states]
    shared = next((link for link in links if link == host.namespaces[name]), None)
    found = SHARED if shared else CONFINED if all(links) else UNKNOWN
    return Exposed(f"namespace {name}", found, shared or links[0], host.namespaces[name])


def _mask(states: Sequence[State], field: str) -> int:
    mask = 0
    for one in states:
        mask |= int(one.status[field], 16)
    return mask


def _capabilities(states: Sequence[State], host: State, field: str, word: str) -> Exposed:
    """As on the host only if those count against the host: root of a user namespace of its own has none there."""
    mask, whole = _mask(states, field), int(host.status[field], 16)
    mapped = not any(is_whole(one.uid_map) for one in states)
    found = SHARED if mask & whole == whole and not mapped else CONFINED
    named = [name for name, number in NUMBERS.items() if mask >> number & 1]
    said = ("all" if mask & whole == whole else ", ".join(named) or "none") + " (in a user namespace)" * mapped
    return Exposed(f"capabilities {word}", found, said, str(whole.bit_count()))


def _mode(states: Sequence[State]) -> Exposed:
    modes = [one.status.get("Seccomp") for one in states]
    if None in modes:
        return Exposed("seccomp mode", UNKNOWN)
    weakest = min(int(mode) for mode in modes if mode is not None)
    return Exposed("seccomp mode", CONFINED if weakest else SHARED, _MODES.get(weakest, str(weakest)))


def _filters(states: Sequence[State]) -> Exposed:
    counts = [one.status.get("Seccomp_filters") for one in states]
    if None in counts:  # Linux before 5.9
        return Exposed("seccomp filters", UNKNOWN)
    fewest = min(int(count) for count in counts if count is not None)
    return Exposed("seccomp filters", CONFINED if fewest else SHARED, str(fewest))


def _privileges(states: Sequence[State]) -> Exposed:
    held = all(one.status.get("NoNewPrivs") == "1" for one in states)
    return Exposed("no new privileges", CONFINED if held else SHARED, "yes" if held else "no")


def _user(states: Sequence[State]) -> Exposed:
    uids = sorted({one.status["Uid"].split()[1] for one in states}, key=int)
    return Exposed("user on the host", SHARED if "0" in uids else CONFINED, ", ".join(uids), "0")


def _map(states: Sequence[State]) -> Exposed:
    maps = [" ".join(one.uid_map.split()) for one in states]
    whole = any(is_whole(text) for text in maps)
    return Exposed("user id map", SHARED if whole else CONFINED, "the host's" if whole else maps[0], "the host's")


def _label(states: Sequence[State]) -> Exposed:
    labels = [one.label.strip("\0\n ") for one in states]
    weakest = next((label for label in labels if label.split(" ")[0] in _UNCONFINED), None)
    if weakest is not None:
        return Exposed("label of a security module", SHARED, weakest or "none")
    return Exposed("label of a security module", CONFINED, labels[0])
