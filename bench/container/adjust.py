"""What a user asks for by hand, as texts -> changes of a Spec. Pure: nothing of this host is looked at."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from bench.container.spec import decode_seccomp
from bench.container.spec_check import RLIMITS, sysctl_path, validate
from bench.container.spec_records import (
    BlockIO,
    Capabilities,
    Cpu,
    IdMapping,
    Memory,
    Mount,
    Namespace,
    Pids,
    Process,
    Resources,
    Rlimit,
    Spec,
    User,
)
from bench.errors import UsageError
from bench.linux.capabilities import NUMBERS

_SIZE = re.compile(r"(?P<number>\d+)(?P<unit>[kmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_PERIOD = 100_000  # µs
_INFINITE = 0xFFFFFFFFFFFFFFFF
_VOLUME_OPTIONS = frozenset((
    "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "bind", "rbind", "private", "rprivate", "shared",
    "rshared", "slave", "rslave",
))  # fmt: skip


class Options(Struct, frozen=True, kw_only=True):
    """As on a command line. Absent or empty: as the image, or the bundle, has it."""

    argv: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str | None = None
    user: User | None = None
    terminal: bool = False
    volumes: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ()
    memory: str | None = None
    memory_swap: str | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    pids_limit: int | None = None
    blkio_weight: int | None = None
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    read_only: bool = False
    no_new_privileges: bool = False
    security: tuple[str, ...] = ()
    ulimits: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = ()
    hostname: str | None = None
    userns: tuple[str, ...] = ()

    @property
    def limited(self) -> str | None:
        """The first option that needs a cgroup."""
        wanted = {
            "--memory": self.memory, "--memory-swap": self.memory_swap, "--cpus": self.cpus,
            "--cpu-shares": self.cpu_shares, "--cpuset-cpus": self.cpuset_cpus, "--pids-limit": self.pids_limit,
            "--blkio-weight": self.blkio_weight,
        }  # fmt: skip
        return next((name for name, value in wanted.items() if value is not None), None)


def adjusted(spec: Spec, options: Options, where: str = "the container") -> Spec:
    """Raises UsageError naming the option, ConfigError naming the key."""
    linux = spec.linux
    linux = replace(
        linux,
        resources=_resources(linux.resources, options),
        sysctl={**linux.sysctl, **dict(_sysctls(options.sysctls))},
    )
    made = replace(
        spec,
        process=_process(spec.process, options),
        root=replace(spec.root, readonly=spec.root.readonly or options.read_only),
        mounts=(*spec.mounts, *map(volume, options.volumes), *map(tmpfs, options.tmpfs)),
        hostname=options.hostname or spec.hostname,
        linux=linux,
    )
    made = _secured(_mapped(made, options.userns), options.security)
    validate(made, where)
    return made


# --- the process -------------------------------------------------------------------------------------------------


def _process(process: Process, options: Options) -> Process:
    return replace(
        process,
        args=options.argv or process.args,
        env=with_env(process.env, options.env),
        cwd=process.cwd if options.workdir is None else options.workdir,
        user=options.user or process.user,
        terminal=process.terminal or options.terminal,
        capabilities=capabilities(process.capabilities, options.cap_add, options.cap_drop),
        rlimits=_rlimits(process.rlimits, options.ulimits),
        no_new_privileges=process.no_new_privileges or options.no_new_privileges,
    )


def with_env(env: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """Later entries win. `NAME` alone takes our own value, as engines do. Raises UsageError."""
    found = dict(entry.split("=", 1) for entry in env)
    for entry in more:
        name, equals, value = entry.partition("=")
        if not name:
            raise UsageError(f"-e {entry!r}: not NAME=VALUE")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return tuple(f"{name}={value}" for name, value in found.items())


def capabilities(sets: Capabilities, add: Sequence[str], drop: Sequence[str]) -> Capabilities:
    """Names with or without CAP_, in any case; `ALL` means all. What is dropped first may be added again."""
    added, dropped = _names("--cap-add", add), _names("--cap-drop", drop)

    def changed(names: tuple[str, ...]) -> tuple[str, ...]:
        kept = [name for name in names if name not in dropped]
        return (*kept, *(name for name in added if name not in kept))

    return replace(
        sets, bounding=changed(sets.bounding), effective=changed(sets.effective), permitted=changed(sets.permitted),
        ambient=tuple(name for name in sets.ambient if name not in dropped),
        inheritable=tuple(name for name in sets.inheritable if name not in dropped),
    )  # fmt: skip


def _names(option: str, words: Sequence[str]) -> list[str]:
    found: list[str] = []
    for word in words:
        name = word.upper().removeprefix("CAP_")
        if name == "ALL":
            found += [f"CAP_{one}" for one in NUMBERS]
        elif name in NUMBERS:
            found.append(f"CAP_{name}")
        else:
            raise UsageError(f"{option} {word}: there is no such capability", hint="for example NET_ADMIN, or ALL")
    return list(dict.fromkeys(found))


def _rlimits(before: Sequence[Rlimit], ulimits: Sequence[str]) -> tuple[Rlimit, ...]:
    found = {one.type: one for one in before}
    for text in ulimits:
        name, equals, value = text.partition("=")
        kind = f"RLIMIT_{name.upper()}"
        soft, colon, hard = value.partition(":")
        if kind not in RLIMITS or not equals:
            raise UsageError(f"--ulimit {text}: not understood", hint="NAME=SOFT[:HARD], for example nofile=1024:2048")
        one = _rlimit(text, soft)
        found[kind] = Rlimit(kind, one, _rlimit(text, hard) if colon else one)
    return tuple(found.values())


def _rlimit(text: str, word: str) -> int:
    if word in ("unlimited", "-1"):
        return _INFINITE
    if not word.isdecimal():
        raise UsageError(f"--ulimit {text}: {word!r} is no number", hint="a number, or unlimited")
    return int(word)


# --- mounts ------------------------------------------------------------------------------------------------------


def volume(text: str) -> Mount:
    """`SOURCE:DESTINATION[:OPTION,...]`: a bind mount, past the union file system. Raises UsageError."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0] or not parts[1].startswith("/"):
        raise UsageError(f"-v {text}: not understood", hint="SOURCE:/DESTINATION[:ro,noexec,...]")
    options = parts[2].split(",") if len(parts) == 3 and parts[2] else []
    if unknown := [one for one in options if one not in _VOLUME_OPTIONS]:
        raise UsageError(f"-v {text}: no option {unknown[0]!r}", hint=f"one of {', '.join(sorted(_VOLUME_OPTIONS))}")
    bind = [] if {"bind", "rbind"} & set(options) else ["rbind"]
    return Mount(_clean(text, parts[1]), "bind", str(Path(parts[0]).absolute()), (*bind, *options))


def tmpfs(text: str) -> Mount:
    """`DESTINATION[:OPTION,...]`, as `/scratch:size=16m`. Raises UsageError."""
    destination, _, options = text.partition(":")
    if not destination.startswith("/"):
        raise UsageError(f"--tmpfs {text}: not understood", hint="/DESTINATION[:size=16m,mode=1777,...]")
    given = options.split(",") if options else []
    return Mount(_clean(text, destination), "tmpfs", "tmpfs", ("nosuid", "nodev", "noexec", *given))


def _clean(text: str, path: str) -> str:
    if ".." in path.split("/") or not path.strip("/"):
        raise UsageError(f"{text}: {path} is no place to mount on", hint="an absolute path without '..', and not /")
    return path


# --- limits ------------------------------------------------------------------------------------------------------


def size(option: str, text: str) -> int:
    """`64m` -> bytes; -1: unlimited. Raises UsageError."""
    if text == "-1":
        return -1
    if (found := _SIZE.fullmatch(text)) is None:
        raise UsageError(f"{option} {text}: no size", hint="bytes, or with k, m, g: 64m")
    return int(found["number"]) << _UNITS[found["unit"].lower()]


def _resources(before: Resources, options: Options) -> Resources:
    return replace(
        before,
        memory=_memory(before.memory, options),
        cpu=_cpu(before.cpu, options),
        pids=before.pids if options.pids_limit is None else Pids(options.pids_limit),
        block_io=before.block_io if options.blkio_weight is None else BlockIO(options.blkio_weight),
    )


def _memory(before: Memory | None, options: Options) -> Memory | None:
    wanted = before
    if options.memory is not None:
        wanted = replace(wanted or Memory(), limit=size("--memory", options.memory))
    if options.memory_swap is not None:
        wanted = replace(wanted or Memory(), swap=size("--memory-swap", options.memory_swap))
    return wanted


def _cpu(before: Cpu | None, options: Options) -> Cpu | None:
    wanted = before
    if options.cpus is not None:
        if not 0.01 <= options.cpus <= 10_000:
            raise UsageError(f"--cpus {options.cpus:g}: not from 0.01 to 10000")
        wanted = replace(wanted or Cpu(), quota=round(options.cpus * _PERIOD), period=_PERIOD)
    if options.cpu_shares is not None:
        wanted = replace(wanted or Cpu(), shares=options.cpu_shares)
    if options.cpuset_cpus is not None:
        wanted = replace(wanted or Cpu(), cpus=options.cpuset_cpus)
    return wanted


def _sysctls(entries: Sequence[str]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            raise UsageError(f"--sysctl {entry}: not understood", hint="NAME=VALUE, for example net.ipv4.ip_forward=1")
        sysctl_path(name)
        yield name, value


# --- namespaces and filters --------------------------------------------------------------------------------------


def _mapped(spec: Spec, maps: Sequence[str]) -> Spec:
    """A user namespace with these `INSIDE:OUTSIDE:COUNT`, for users and groups alike."""
    if not maps:
        return spec
    mappings = tuple(map(_mapping, maps))
    others = tuple(one for one in spec.linux.namespaces if one.type != "user")
    linux = replace(spec.linux, namespaces=(*others, Namespace("user")), uid_mappings=mappings, gid_mappings=mappings)
    return replace(spec, linux=linux)


def _mapping(text: str) -> IdMapping:
    words = text.split(":")
    if len(words) != 3 or not all(word.isdecimal() and len(word) < 11 for word in words) or not int(words[2]):
        raise UsageError(f"--userns {text}: not understood", hint="INSIDE:OUTSIDE:COUNT, for example 0:100000:65536")
    return IdMapping(*map(int, words))


def _secured(spec: Spec, words: Sequence[str]) -> Spec:
    for word in words:
        name, _, value = word.partition("=")
        if name != "seccomp" or not value:
            raise UsageError(f"--security {word}: not understood", hint="seccomp=unconfined, or seccomp=FILE")
        seccomp = None if value == "unconfined" else decode_seccomp(Path(value))
        spec = replace(spec, linux=replace(spec.linux, seccomp=seccomp))
    return spec


def with_network(spec: Spec, path: str | None) -> Spec:
    """In the network namespace at `path` instead of a new one; None: in the host's. Its settings are not ours."""
    others = tuple(one for one in spec.linux.namespaces if one.type != "network")
    named = (Namespace("network", path),) if path else ()
    sysctl = {name: value for name, value in spec.linux.sysctl.items() if not name.startswith("net.")}
    return replace(spec, linux=replace(spec.linux, namespaces=(*others, *named), sysctl=sysctl))
