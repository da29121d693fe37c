"""Where libvirt put a guest's hypervisor: its cgroups, named after the domain, and so findable by run token."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from bench.linux import cgroups, procfs


def groups_of(pid: int, domain: str) -> dict[str, str]:
    """Controller -> folder of the whole domain (libvirt makes folders for emulator and vCPUs below it).

    Only folders that carry the domain's name: a controller that libvirt does not use is absent.
    """
    text = procfs.read(f"/proc/{pid}/cgroup") or ""
    return groups_in(text, domain, *cgroups.current_mounts())


def groups_in(text: str, domain: str, v1: Mapping[str, str], v2: str | None) -> dict[str, str]:
    """The same, from the text of /proc/PID/cgroup and the mount points."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if (inside := _domain_part(path, domain)) is None:
            continue
        for controller in controllers.split(","):
            mount = v1.get(controller) if controller else v2
            if mount is not None:
                found[controller or "unified"] = mount + inside
    return found


def _domain_part(path: str, domain: str) -> str | None:
    parts = PurePosixPath(path).parts
    for number, part in enumerate(parts):
        if carries(part, domain):
            return str(PurePosixPath(*parts[: number + 1]))
    return None


def carries(name: str, text: str) -> bool:
    """Whether a group's name holds `text`; systemd writes a dash in a scope's name as \\x2d."""
    plain = name.replace("\\x2d", "-")
    return (
        text in plain
        if text.endswith("-")
        else any(plain.endswith(text + end) for end in ("", ".libvirt-qemu", ".scope"))
    )


def leftovers(text: str) -> Iterator[str]:
    """Folders under all cgroup mounts whose name holds `text` (a prefix of domain names, `bench-TOKEN-`)."""
    for root in _roots():
        for folder, names, _ in os.walk(root):
            matching = [name for name in names if carries(name, text)]
            yield from (os.path.join(folder, name) for name in matching)
            names[:] = [name for name in names if name not in matching]


def _roots() -> list[str]:
    """Mount points of every hierarchy: libvirt uses more controllers than we read."""
    text = procfs.read("/proc/self/mountinfo") or ""
    mounts = [line.split(" - ") for line in text.splitlines()]
    return sorted({left.split()[4] for left, right in mounts if right.split()[0] in ("cgroup", "cgroup2")})


def drop_empty_parents() -> None:
    """Remove the folders libvirt keeps all domains in, where none is left; it makes them again."""
    for root in _roots():
        with contextlib.suppress(OSError):  # in use, or not there
            os.rmdir(os.path.join(root, "machine"))
