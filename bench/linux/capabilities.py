"""Capability numbers (linux/capability.h) and the set a container keeps by default."""

from __future__ import annotations

_IN_ORDER = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
NUMBERS = {name: number for number, name in enumerate(_IN_ORDER.split())}

# What engines leave to root in a container unless told otherwise.
_KEPT = """
    CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE
    SETFCAP
"""
CONTAINER_DEFAULT = frozenset(NUMBERS[name] for name in _KEPT.split())


def last_capability() -> int:
    """The highest number this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def permitted() -> frozenset[int]:
    """Numbers of those this process may have."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("CapPrm:"))
    mask = int(line.split()[1], 16)
    return frozenset(number for number in NUMBERS.values() if mask >> number & 1)
