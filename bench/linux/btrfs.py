"""Subvolumes of btrfs by ioctl: a program started for each would cost more than the snapshot itself."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_SNAPSHOT = 0x50009401  # BTRFS_IOC_SNAP_CREATE
_CREATE = 0x5000940E  # BTRFS_IOC_SUBVOL_CREATE
_DESTROY = 0x5000940F  # BTRFS_IOC_SNAP_DESTROY
_ARGS = struct.Struct("q4088s")  # struct btrfs_ioctl_vol_args: a descriptor, a name


def create_subvolume(path: Path) -> None:
    """Raises OSError; ENOTTY where the file system is not btrfs."""
    _call(path, _CREATE, 0)


def snapshot(source: Path, path: Path) -> None:
    """Make the writable snapshot `path` of the subvolume `source`: both share all blocks until one is written."""
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _call(path, _SNAPSHOT, fd)
    finally:
        os.close(fd)


def delete_subvolume(path: Path) -> None:
    """Raises OSError; ENOTEMPTY if it has subvolumes of its own, which any user can make in it."""
    _call(path, _DESTROY, 0)


def _call(path: Path, request: int, fd: int) -> None:
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A bytearray: of bytes, ioctl takes 1024 at most.
        fcntl.ioctl(parent, request, bytearray(_ARGS.pack(fd, os.fsencode(path.name))))
    finally:
        os.close(parent)
