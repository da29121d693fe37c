"""The default container's root file system: what is mounted, masked and made read-only, in order, as data."""

from __future__ import annotations

from collections.abc import Sequence

from bench.linux import syscalls as sys
from bench.linux.mounts import Device, Mask, PivotRoot, Propagation, ReadOnly, Step, Symlink, filesystem, overlay

_SAFE = sys.MS_NOSUID | sys.MS_NODEV | sys.MS_NOEXEC
_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("/proc/self/fd", "fd"), ("/proc/self/fd/0", "stdin"), ("/proc/self/fd/1", "stdout"), ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
)  # fmt: skip
# Files of /proc and /sys that are the host's, not the container's: what engines hide or freeze by default.
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
    "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def default_steps(layers: Sequence[str], folder: str) -> list[Step]:
    """Steps for the image's `layers` (lowest first) with the instance's own `folder` for what it writes."""
    root = f"{folder}/root"
    return [
        Propagation(),
        overlay(layers, f"{folder}/upper", f"{folder}/work", root),
        filesystem("proc", f"{root}/proc", _SAFE),
        filesystem("sysfs", f"{root}/sys", _SAFE | sys.MS_RDONLY),
        *_dev(f"{root}/dev"),
        PivotRoot(root),
        *(ReadOnly(path) for path in READ_ONLY),
        *(Mask(path) for path in MASKED),
    ]


def _dev(dev: str) -> list[Step]:
    return [
        filesystem("tmpfs", dev, sys.MS_NOSUID, "mode=755,size=65536k"),
        *(Device(major, minor, f"{dev}/{name}") for name, major, minor in _DEVICES),
        filesystem("devpts", f"{dev}/pts", sys.MS_NOSUID | sys.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"),
        filesystem("tmpfs", f"{dev}/shm", _SAFE, "mode=1777,size=65536k"),
        filesystem("mqueue", f"{dev}/mqueue", _SAFE),
        *(Symlink(source, f"{dev}/{name}") for source, name in _LINKS),
    ]
