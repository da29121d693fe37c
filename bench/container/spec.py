"""OCI runtime-spec bundles in and out: config.json <-> Spec, and the default container as one.

A Spec that came from here is valid: everything this runtime can't do was refused by its key, nothing is ignored.
"""

from __future__ import annotations

import functools
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.container import profile
from bench.container.spec_check import validate
from bench.container.spec_records import (
    Capabilities,
    Cpu,
    DeviceRule,
    Linux,
    Memory,
    Mount,
    Namespace,
    Pids,
    Process,
    Resources,
    Root,
    Seccomp,
    Spec,
    SyscallArg,
    SyscallRule,
    User,
)
from bench.errors import ConfigError
from bench.linux.capabilities import CONTAINER_DEFAULT, NUMBERS
from bench.model import Limits

VERSION = "1.0.2"
"""ociVersion of what is written: the oldest that says it all, for runtimes of any age."""

_MAX_BYTES = 4 << 20
_PERIOD = 100_000  # µs, the kernel's default
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<key>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"Object (?P<fault>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)


def load(folder: Path) -> Spec:
    """The bundle's config.json. Raises ConfigError naming the file and the key."""
    path = folder / "config.json"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path} is not a file")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} can't be read: {error.strerror}", hint="a bundle is a folder with config.json and a root"
        ) from error
    return decode(data, str(path))


def decode(data: bytes, where: str = "config.json") -> Spec:
    """The Spec that the text of a config.json says. Raises ConfigError naming `where` and the key."""
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{where} is larger than {_MAX_BYTES} bytes")
    try:
        spec = msgspec.json.decode(data, type=Spec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_said(str(error))}", hint="docs/runtime.md lists what is supported") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    validate(spec, where)
    return spec


def decode_seccomp(path: Path) -> Seccomp:
    """A filter on its own, as `linux.seccomp` has it. Raises ConfigError naming the file and the key."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Seccomp)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_said(str(error))}", hint="docs/runtime.md lists what is supported") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def _said(text: str) -> str:
    """msgspec's words with the key path in front, as everywhere else."""
    place = _PLACE.match(text)
    what, key = (place["what"], (place["key"] or "").lstrip(".")) if place else (text, "")
    if fault := _FIELD.fullmatch(what):
        key = f"{key}.{fault['name']}".lstrip(".")
        what = "is missing" if fault["fault"].startswith("missing") else "is not supported, or no key of this format"
    return f"{key or 'the document'}: {what}"


def encode(spec: Spec) -> bytes:
    """config.json, readable by other runtimes too; the same bytes for the same spec."""
    return msgspec.json.format(msgspec.json.encode(spec, order="deterministic"), indent=2) + b"\n"


# --- the default container ---------------------------------------------------------------------------------------

DEFAULT_DEVICE_RULES = (
    DeviceRule(False, "rwm"),
    DeviceRule(True, "m", "c"),
    DeviceRule(True, "m", "b"),
    *(DeviceRule(True, "rwm", "c", major, minor) for major, minor in profile.USABLE_DEVICES),
)
"""Nothing may be opened but the standard devices; mknod may make any node, which then can't be opened."""


def default_spec(
    argv: Sequence[str],
    *,
    root: str,
    env: Sequence[str] = (f"PATH={profile.PATH}",),
    cwd: str = "/",
    hostname: str = "",
    user: User | None = None,
    readonly: bool = False,
    network: str = "",
    cgroups_path: str = "",
    resources: Resources | None = None,
    mounts: Sequence[Mount] = (),
) -> Spec:
    """What Docker makes of an image by default, as a bundle for `root`; tests/integration/test_docker_parity.py lists
    the differences. `network`: path of the network namespace to join, empty for a new one. `mounts` come after the
    default ones, device rules of `resources` likewise. Raises ConfigError if an argument makes an invalid spec.
    """
    wanted = resources or Resources()
    linux = Linux(
        namespaces=tuple(Namespace(kind, network if kind == "network" else "") for kind in profile.NAMESPACES),
        cgroups_path=cgroups_path,
        resources=msgspec.structs.replace(wanted, devices=(*DEFAULT_DEVICE_RULES, *wanted.devices)),
        seccomp=default_seccomp(),
        sysctl={} if network else dict(profile.SYSCTLS),
        masked_paths=(*profile.MASKED, *_per_cpu()),
        readonly_paths=profile.READ_ONLY,
    )
    process = Process(
        user=user or User(0, 0), args=tuple(argv), cwd=cwd, env=tuple(env), capabilities=default_capabilities(),
        oom_score_adj=profile.OOM_SCORE_ADJ,
    )  # fmt: skip
    spec = Spec(
        oci_version=VERSION, process=process, root=Root(root, readonly), linux=linux, hostname=hostname,
        mounts=(*default_mounts(), *mounts),
    )  # fmt: skip
    validate(spec, "the default container")
    return spec


def default_capabilities() -> Capabilities:
    """Of root. Not inheritable: a program with file capabilities would give them to whoever runs it."""
    names = tuple(f"CAP_{name}" for name, number in NUMBERS.items() if number in CONTAINER_DEFAULT)
    return Capabilities(bounding=names, effective=names, permitted=names)


def default_mounts() -> tuple[Mount, ...]:
    return tuple(
        Mount(destination, fstype, source, tuple(options.split()))
        for destination, fstype, source, options in profile.MOUNTS
    )


@functools.cache
def default_seccomp() -> Seccomp:
    """The allow-list of `profile` for every kind of program an x86-64 kernel runs."""
    allowed = (SyscallRule(tuple(names.split()), "SCMP_ACT_ALLOW") for names in profile.SYSCALLS.values())
    return Seccomp(
        default_action="SCMP_ACT_ERRNO",
        architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
        syscalls=(
            *allowed,
            _allow("clone", SyscallArg(0, profile.NAMESPACE_FLAGS, "SCMP_CMP_MASKED_EQ", 0)),
            *(_allow("personality", SyscallArg(0, value, "SCMP_CMP_EQ")) for value in profile.PERSONALITIES),
            _allow("socket", SyscallArg(0, profile.SOCKET_FAMILIES_BELOW, "SCMP_CMP_LT")),
            *(_allow("socket", SyscallArg(0, family, "SCMP_CMP_EQ")) for family in profile.SOCKET_FAMILIES),
            SyscallRule(profile.ABSENT, "SCMP_ACT_ERRNO", 38),  # ENOSYS
        ),
    )


def _allow(name: str, *args: SyscallArg) -> SyscallRule:
    return SyscallRule((name,), "SCMP_ACT_ALLOW", None, args)


@functools.cache
def _per_cpu() -> tuple[str, ...]:
    return tuple(str(path) for path in sorted(Path("/sys").glob(profile.MASKED_PER_CPU)))


def resources_of(limits: Limits) -> Resources:
    """The declared size of an instance as resources. Swap is left alone, as in `container.groups`."""
    return Resources(
        memory=Memory(limit=limits.memory),
        cpu=Cpu(quota=int(limits.cpus * _PERIOD), period=_PERIOD),
        pids=Pids(limits.pids),
    )
