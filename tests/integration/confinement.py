"""How a process is confined, as the kernel says or as a Spec asks, and in what one is confined less than another."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyseccomp
from msgspec import Struct

from bench.container.mount_options import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, parse
from bench.container.spec_records import Spec
from bench.linux import bpf, seccomp
from bench.linux.capabilities import NUMBERS

CALLS = range(601)
ARCHITECTURES = {
    "x86_64": (seccomp.ARCH_X86_64, 0, pyseccomp.Arch.X86_64),
    "i386": (seccomp.ARCH_I386, 0, pyseccomp.Arch.X86),
    "x32": (seccomp.ARCH_X86_64, seccomp.X32_BIT, pyseccomp.Arch.X32),
}
_SETS = {
    "CapInh": "inheritable", "CapPrm": "permitted", "CapEff": "effective", "CapBnd": "bounding", "CapAmb": "ambient",
}  # fmt: skip
_FLAGS = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}


class Difference(Struct, frozen=True):
    """One thing in which ours is not like theirs."""

    what: str
    ours: str
    theirs: str
    weaker: bool  # ours lets more through

    def __str__(self) -> str:
        return f"{'WEAKER  ' if self.weaker else 'stricter'} {self.what}: {self.ours}, theirs {self.theirs}"


class Confinement(Struct, frozen=True):
    """`capabilities`: bits by set; `mounts`: what is set of ro, nosuid, nodev, noexec, by destination; `devices`: rules
    as in devices.list, None where the kernel does not show them (cgroup v2)."""

    capabilities: Mapping[str, int]
    no_new_privileges: bool
    seccomp_mode: int
    masked: frozenset[str]
    read_only: frozenset[str]
    mounts: Mapping[str, frozenset[str]]
    devices: frozenset[str] | None


# --- where it comes from -----------------------------------------------------------------------------------------


def of_process(pid: int) -> Confinement:
    """What the kernel says of a running process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    mounts = list(_mounts(pid))
    inside = [mount for mount in mounts if mount.path.startswith(("/proc/", "/sys/"))]
    return Confinement(
        capabilities={name: int(status[key], 16) for key, name in _SETS.items()},
        no_new_privileges=status["NoNewPrivs"] == "1",
        seccomp_mode=int(status["Seccomp"]),
        masked=frozenset(mount.path for mount in inside if mount.hides),
        read_only=frozenset(mount.path for mount in inside if mount.frozen),
        mounts={mount.path: mount.options & set(_FLAGS) for mount in mounts if mount.root == "/" and not mount.hides},
        devices=_devices(pid),
    )


def of_spec(spec: Spec) -> Confinement:
    """What a Spec asks for."""
    return Confinement(
        capabilities={name: _bits(getattr(spec.process.capabilities, name)) for name in _SETS.values()},
        no_new_privileges=spec.process.no_new_privileges,
        seccomp_mode=2 if spec.linux.seccomp else 0,
        masked=frozenset(spec.linux.masked_paths),
        read_only=frozenset(spec.linux.readonly_paths),
        mounts={mount.destination: _set(parse(mount.options, mount.type).flags) for mount in spec.mounts},
        devices=frozenset(
            f"{rule.type} {_number(rule.major)}:{_number(rule.minor)} {rule.access}"
            for rule in spec.linux.resources.devices
            if rule.allow
        ),
    )


class _Mount(Struct, frozen=True):
    root: str
    path: str
    options: frozenset[str]
    fstype: str
    data: frozenset[str]  # of the file system

    @property
    def frozen(self) -> bool:
        return self.fstype in ("proc", "sysfs") and "ro" in self.options

    @property
    def hides(self) -> bool:
        """A file behind /dev/null, or a folder behind an empty read-only tmpfs."""
        empty = self.fstype == "tmpfs" and "ro" in self.options and self.root == "/"
        return self.path.startswith(("/proc/", "/sys/")) and (self.root == "/null" or empty)


def _mounts(pid: int) -> Iterator[_Mount]:
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        words, (fstype, _, data) = left.split(), right.split()
        yield _Mount(words[3], words[4], frozenset(words[5].split(",")), fstype, frozenset(data.split(",")))


def _devices(pid: int) -> frozenset[str] | None:
    hierarchies = (mount for mount in _mounts(os.getpid()) if mount.fstype == "cgroup" and "devices" in mount.data)
    top = next((mount.path for mount in hierarchies), None)
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "devices" and top is not None:
            return frozenset(Path(f"{top}{path}/devices.list").read_text().splitlines())
    return None


def _bits(names: tuple[str, ...]) -> int:
    return sum(1 << NUMBERS[name.removeprefix("CAP_")] for name in names)


def _set(flags: int) -> frozenset[str]:
    return frozenset(name for name, bit in _FLAGS.items() if flags & bit)


def _number(value: int | None) -> str:
    return "*" if value is None or value < 0 else str(value)


# --- comparing ---------------------------------------------------------------------------------------------------


def compare(ours: Confinement, theirs: Confinement) -> list[Difference]:
    """All but the filters."""
    return [*_privileges(ours, theirs), *_paths(ours, theirs), *_flags(ours, theirs), *_rules(ours, theirs)]


def _privileges(ours: Confinement, theirs: Confinement) -> Iterator[Difference]:
    for name in _SETS.values():
        mine, other = ours.capabilities[name], theirs.capabilities[name]
        if mine != other:
            yield Difference(f"capabilities, {name}", f"{mine:x}", f"{other:x}", weaker=bool(mine & ~other))
    pairs = (
        ("no_new_privs", ours.no_new_privileges, theirs.no_new_privileges),
        ("Seccomp", ours.seccomp_mode, theirs.seccomp_mode),
    )
    for what, mine, other in pairs:
        if mine != other:
            yield Difference(what, str(mine), str(other), weaker=mine < other)


def _paths(ours: Confinement, theirs: Confinement) -> Iterator[Difference]:
    for path in sorted(ours.masked ^ theirs.masked):
        mine, other = _treatment(ours, path), _treatment(theirs, path)
        yield Difference(path, mine, other, weaker=path in theirs.masked)
    for path in sorted(ours.read_only ^ theirs.read_only):
        if path not in ours.masked:
            yield Difference(path, _treatment(ours, path), _treatment(theirs, path), weaker=path in theirs.read_only)


def _treatment(confinement: Confinement, path: str) -> str:
    return "masked" if path in confinement.masked else "read-only" if path in confinement.read_only else "open"


def _flags(ours: Confinement, theirs: Confinement) -> Iterator[Difference]:
    for path in sorted((ours.mounts.keys() & theirs.mounts.keys()) - {"/"}):
        mine, other = ours.mounts[path], theirs.mounts[path]
        if mine != other:
            yield Difference(f"mount {path}", str(sorted(mine)), str(sorted(other)), weaker=bool(other - mine))


def _rules(ours: Confinement, theirs: Confinement) -> Iterator[Difference]:
    if ours.devices is None or theirs.devices is None:
        return
    for rule in sorted(ours.devices ^ theirs.devices):
        mine, other = rule in ours.devices, rule in theirs.devices
        weaker = mine and not any(_covers(wider, rule) for wider in theirs.devices)
        yield Difference(f"device {rule}", "allowed" if mine else "refused", "allowed" if other else "refused", weaker)


def _covers(wider: str, rule: str) -> bool:
    kind, numbers, access = wider.split()
    wanted_kind, wanted_numbers, wanted_access = rule.split()
    pairs = zip(numbers.split(":"), wanted_numbers.split(":"), strict=True)
    same = all(have in ("*", want) for have, want in pairs)
    return kind in ("a", wanted_kind) and same and set(wanted_access) <= set(access)


# --- filters -----------------------------------------------------------------------------------------------------


def compare_filters(ours: bytes, theirs: bytes) -> list[Difference]:
    """Every call 0-600 of three architectures; where a filter looks at arguments, the numbers it compares with, their
    neighbours, each single bit, and all that with a bit above the 32 that the kernel takes of an int."""
    tried = [*_tried(ours, theirs)]
    return [
        found
        for architecture in ARCHITECTURES
        for number in CALLS
        for found in _compare_call(ours, theirs, architecture, number, tried)
    ]


Args = tuple[int, ...]


def _compare_call(ours: bytes, theirs: bytes, architecture: str, number: int, tried: list[Args]) -> list[Difference]:
    arch, base, _ = ARCHITECTURES[architecture]
    name = f"{architecture} {_name(architecture, number)}"
    mine, other = (_answers(program, number | base, arch) for program in (ours, theirs))
    if len(mine) == len(other) == 1:
        return _summed({(min(mine), min(other)): [()]}, name)
    answers: dict[tuple[int, int], list[Args]] = {}
    for args in tried:
        mine_here, other_here = (bpf.run(_decoded(program), number | base, arch, args) for program in (ours, theirs))
        answers.setdefault((mine_here, other_here), []).append(args)
    return _summed(answers, name)


_decoded = functools.cache(bpf.decode)


@functools.cache
def _answers(program: bytes, number: int, arch: int) -> frozenset[int]:
    return bpf.answers(_decoded(program), number, arch)


def _tried(ours: bytes, theirs: bytes) -> Iterator[Args]:
    """One argument at a time, the others 0."""
    mine, other = bpf.argument_constants(ours), bpf.argument_constants(theirs)
    for index in sorted(mine.keys() | other.keys()):
        for value in _interesting(mine.get(index, frozenset()) | other.get(index, frozenset())):
            yield (*[0] * index, value)


def _interesting(constants: frozenset[int]) -> list[int]:
    near = {value + step for value in constants for step in (-1, 0, 1) if value + step >= 0}
    small = near | {1 << bit for bit in range(32)} | set(range(64))
    return sorted(small | {value | 1 << 32 for value in small})


def _summed(answers: Mapping[tuple[int, int], list[Args]], name: str) -> list[Difference]:
    """One line for each kind of difference, with the first arguments that show it and how many others do."""
    found = []
    for (ours, theirs), args in answers.items():
        if ours != theirs:
            shown = f"({', '.join(f'{value:#x}' for value in args[0])}) and {len(args) - 1} more" if args[0] else ""
            weaker = bpf.weaker(ours, theirs)
            found.append(Difference(f"{name}{shown}", bpf.describe(ours), bpf.describe(theirs), weaker))
    return found


def _name(architecture: str, number: int) -> str:
    arch, base = ARCHITECTURES[architecture][2], ARCHITECTURES[architecture][1]
    try:
        return str(pyseccomp.resolve_syscall(arch, number | base).decode())
    except ValueError:
        return f"call {number}"
