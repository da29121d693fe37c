"""Cgroups of an ordinary user: below which group his containers' groups may be made, and what must be done for it.

A group is delegated where its folder and the files through which processes come in may be written by him, as systemd's
`Delegate=` and `user@UID.service` have it, or root's `chown`. On v1 that is asked of our own group, a controller at a
time. On v2 it is the nearest from our own group upwards: the kernel moves a process only for one who may write the
group that is above both places.

A v2 group that processes are in hands no controller down. Where these are only we, we step aside, into a group
`bench-TOKEN-self` below it, and come back at the end; where others are in it, it is not taken: they are not ours to
move.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.container.groups import CONTROLLERS, CgroupLayout, reap_groups, run_group
from bench.linux import cgroups, membership
from bench.linux.membership import Hierarchy
from bench.model import Leftover, RunId

_V1 = ("memory", "cpu", "cpuacct", "cpuset", "pids", "blkio", "freezer")  # the rules of `devices` are root's to write
_V1_FILES = ("tasks", "cgroup.procs")
_V2_FILES = ("cgroup.procs", "cgroup.subtree_control")
_WANTED = ("memory", "cpu", "pids")
_FILE = "delegation.json"


class Delegation(Struct, frozen=True):
    """What is delegated to us. `host`: with the delegated groups as tops of its hierarchies; None: see `reason`."""

    host: CgroupLayout | None = None
    reason: str = ""
    lacks: tuple[str, ...] = ()  # of what containers usually have: controllers that are not delegated
    hands: tuple[str, ...] = ()  # controllers that the v2 group is still to hand down
    aside: tuple[int, ...] = ()  # our processes that keep it from that


class _Held(Struct, frozen=True):
    """What is to be undone, as `reap` reads it."""

    run: RunId
    host: CgroupLayout
    hands: tuple[str, ...]
    aside: str  # the group that we stepped aside into; empty: we did not


# --- what is there -----------------------------------------------------------------------------------------------


def _may_write(path: str) -> bool:
    return os.access(path, os.W_OK, effective_ids=True)


def find(
    found: Sequence[Hierarchy], movable: Collection[int], *,
    controllers: Sequence[str] = CONTROLLERS, may_write: Callable[[str], bool] = _may_write,
) -> Delegation:  # fmt: skip
    """The delegation to a process that is in these groups. `movable`: pids that may be moved aside. Changes nothing."""
    v1 = {
        name: one.own
        for one in found
        for name in one.controllers
        if name in _V1 and all(may_write(path) for path in (one.own, *(f"{one.own}/{file}" for file in _V1_FILES)))
    }
    if v1:
        lacks = tuple(name for name in (*_WANTED, "freezer") if name not in v1)
        return Delegation(CgroupLayout(v1, None, delegated=True), lacks=lacks)
    unified = next((one for one in found if not one.controllers), None)
    if unified is None:
        return Delegation(reason="none of your own groups is yours to write")
    return _nearest(unified, movable, controllers, may_write)


def _nearest(
    unified: Hierarchy, movable: Collection[int], wanted: Sequence[str], may_write: Callable[[str], bool]
) -> Delegation:
    """The first one with controllers; else the first at all, which can freeze and counts CPU time."""
    reason, bare = f"neither {unified.own} nor a group above it is yours to write", None
    for group in _upwards(unified.own, unified.top):
        if not _delegated(group, may_write):
            continue
        there, handed = _words(f"{group}/cgroup.controllers"), _words(f"{group}/cgroup.subtree_control")
        hands = tuple(name for name in wanted if name in there and name not in handed)
        inside = {int(pid) for pid in _words(f"{group}/cgroup.procs")}
        if hands and (others := sorted(inside.difference(movable))):
            reason = f"{group} is yours, but hands nothing down while processes {_some(others)} are in it"
            continue
        lacks = tuple(name for name in _WANTED if name not in there)
        made = Delegation(
            CgroupLayout({}, group, delegated=True), "", lacks, hands, tuple(sorted(inside)) if hands else ()
        )
        if any(name in there for name in wanted):
            return made
        bare = bare or made
    return bare or Delegation(reason=reason)


def _upwards(own: str, top: str) -> Iterator[str]:
    while own.startswith(top) and own != "/":
        yield own
        own = os.path.dirname(own)


def _delegated(group: str, may_write: Callable[[str], bool]) -> bool:
    """A threaded one takes in threads, not processes; the root of all has no type."""
    ours = all(may_write(path) for path in (group, *(f"{group}/{file}" for file in _V2_FILES)))
    return ours and _words(f"{group}/cgroup.type") in ([], ["domain"])


def _words(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:  # gone meanwhile, or a file this group has not
        return []


def _some(pids: Sequence[int]) -> str:
    return ", ".join(map(str, pids[:3])) + (" and others" if len(pids) > 3 else "")


# --- taking it ---------------------------------------------------------------------------------------------------


@contextmanager
def taken(
    run: RunId, home: Path, beside: Sequence[int] = (), *, controllers: Sequence[str] = CONTROLLERS
) -> Iterator[Delegation]:
    """Ready for the run's groups while the context lives. Before the launcher starts, which is to be where we are.

    `home`: the run's folder, where is kept what `reap` needs. `beside`: pids that may be moved aside with us.
    """
    found = find(membership.current(), {os.getpid(), *beside}, controllers=controllers)
    if found.host is None:
        yield found
        return
    aside = f"{found.host.v2}/{run_group(run)}-self" if found.aside else ""
    held = _Held(run, found.host, found.hands, aside)
    (home / _FILE).write_bytes(msgspec.json.encode(held))
    try:
        yield _settled(found, held)
    finally:
        _give_back(held)
        (home / _FILE).unlink(missing_ok=True)


def _settled(found: Delegation, held: _Held) -> Delegation:
    """Step aside and have the controllers handed down; without a delegation if the kernel refuses it after all."""
    try:
        if held.aside:
            os.makedirs(held.aside, exist_ok=True)
            for pid in found.aside:
                with suppress(ProcessLookupError):  # it has ended
                    cgroups.attach(held.aside, pid)
        _change(held, "+")
    except OSError as error:
        return Delegation(reason=f"{error.filename}: {error.strerror}")
    return found


def _change(held: _Held, sign: str) -> None:
    """In one write: all of them or none."""
    if held.hands:
        words = " ".join(f"{sign}{name}" for name in held.hands)
        cgroups.write(f"{held.host.v2}/cgroup.subtree_control", words)


def _give_back(held: _Held) -> None:
    """As it was. Where others use by now what we had handed down, that stays, and so do we, where we are, to our end;
    whoever comes back last finds the empty group."""
    top = str(held.host.v2)
    with suppress(OSError):
        _change(held, "-")
        for pid in cgroups.pids(held.aside) if held.aside else ():
            with suppress(ProcessLookupError):
                cgroups.attach(top, pid)
    for group in Path(top).glob("bench-*-self") if held.host.v2 else ():
        with suppress(OSError):  # somebody is in it
            group.rmdir()


def reap(home: Path) -> list[Leftover]:
    """Undo what a process that was killed did: its containers, their groups. `home`: the run's folder. Idempotent."""
    try:
        held = msgspec.json.decode((home / _FILE).read_bytes(), type=_Held)
    except (FileNotFoundError, msgspec.MsgspecError):  # none was delegated; or torn, when nothing was done yet
        return []
    found = reap_groups(held.run, held.host)
    if held.aside and os.path.isdir(held.aside):
        found.append(Leftover("cgroup", held.aside))
    _give_back(held)  # whoever else is in there was started by what was killed, but is no container: it lives on
    (home / _FILE).unlink()
    return found
