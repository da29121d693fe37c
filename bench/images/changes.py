"""What a container changed, as entries of a layer: read from an overlay's upper folder, or by comparing two trees."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from bench.errors import ImageError
from bench.images.layers import is_mark, wanted_xattr
from bench.images.stream import CHUNK
from bench.images.writer import LayerWriter, changed, check_depth, in_a_layer, opened

_OVERLAY = "trusted.overlay."
_ELSEWHERE = (f"{_OVERLAY}redirect", f"{_OVERLAY}metacopy")  # what it says is not in the upper folder alone
_FUSE_OPAQUE = frozenset({".wh..opq", ".wh..wh..opq"})  # beside the attribute, or where there can be none
_VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)

Inode = tuple[int, int]  # device, number
Names = dict[str, frozenset[str]]  # a file of several names -> all of them


class Changes(Protocol):
    """The difference between an image and what a container made of it."""

    def write(self, layer: LayerWriter) -> None:
        """Write all of it in an order that depends on nothing else.

        Raises ImageError for what no layer can hold, or if it changed meanwhile in a way that was noticed.
        """
        ...


class Upper:
    """An overlay's upper folder: it holds the changes themselves. With `fuse` it is fuse-overlayfs' (run as root),
    which marks opaque folders by files too; it lets no container make such a file, the kernel's overlayfs does.

    Sockets are left out; what they hide stays hidden.
    """

    def __init__(self, folder: Path, *, fuse: bool = False) -> None:
        self._top = folder
        self._marks = _FUSE_OPAQUE if fuse else frozenset()

    def write(self, layer: LayerWriter) -> None:
        try:
            with _tree(self._top) as fd:
                self._folder(layer, fd, "")
        except OSError as error:
            raise _explained(error, self._top) from error

    def _folder(self, layer: LayerWriter, fd: int, path: str) -> None:
        names = set(os.listdir(fd))
        layer.folder(path, fd, opaque=self._opaque(fd, path, names))
        for name in sorted(names - self._marks):
            child = f"{path}/{name}" if path else name
            status = os.lstat(name, dir_fd=fd)
            if is_mark(status) or not in_a_layer(status):
                layer.whiteout(child)
            elif stat.S_ISDIR(status.st_mode):
                with opened(name, fd, os.O_DIRECTORY) as inner:
                    self._folder(layer, inner, child)
            else:
                self._refuse_elsewhere(fd, name, child, status)
                layer.file(child, fd, name, status)

    def _opaque(self, fd: int, path: str, names: set[str]) -> bool:
        xattrs = os.listxattr(fd)
        _check_here(xattrs, path)
        by_attribute = f"{_OVERLAY}opaque" in xattrs and os.getxattr(fd, f"{_OVERLAY}opaque") == b"y"
        return by_attribute or not names.isdisjoint(self._marks)

    def _refuse_elsewhere(self, folder: int, name: str, path: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            with opened(name, folder) as fd:
                _check_here(os.listxattr(fd), path)


class Difference:
    """What turns the tree `base` into the tree `now`; a file that only looks the same is read to the end.

    Of extended attributes, those that layers keep are compared. `base` must not change meanwhile.
    """

    def __init__(self, base: Path, now: Path) -> None:
        self._base, self._now = base, now
        self._links: tuple[Names, Names] = ({}, {})
        self._parents: list[tuple[str, int]] = []  # open folders above, not written yet

    def write(self, layer: LayerWriter) -> None:
        try:
            with _tree(self._base) as old, _tree(self._now) as new:
                self._links = (_several_names(old), _several_names(new))
                self._parents = []
                self._folder(layer, old, new, "")
        except OSError as error:
            raise _explained(error, self._now) from error

    def _folder(self, layer: LayerWriter, old: int, new: int, path: str) -> None:
        self._parents.append((path, new))
        # The root is always listed: its mode would be that of any new folder in a layer that does not.
        if not path or _described(os.fstat(old)) != _described(os.fstat(new)) or _xattrs(old) != _xattrs(new):
            self._write_parents(layer)
        before, after = set(os.listdir(old)), set(os.listdir(new))
        for name in sorted(before | after):
            child = f"{path}/{name}" if path else name
            was = os.lstat(name, dir_fd=old) if name in before else None
            if name in after:
                self._entry(layer, old, new, name, child, was)
            else:
                self._removed(layer, child)
        if self._parents and self._parents[-1] == (path, new):
            self._parents.pop()

    def _entry(self, layer: LayerWriter, old: int, new: int, name: str, path: str, was: os.stat_result | None) -> None:
        status = os.lstat(name, dir_fd=new)
        if not in_a_layer(status):
            if was is not None and in_a_layer(was):
                self._removed(layer, path)
        elif stat.S_ISDIR(status.st_mode):
            with opened(name, new, os.O_DIRECTORY) as inner:
                if was is not None and stat.S_ISDIR(was.st_mode):
                    with opened(name, old, os.O_DIRECTORY) as below:
                        self._folder(layer, below, inner, path)
                else:
                    self._write_parents(layer)
                    self._added(layer, inner, path)
        elif was is None or self._differs(old, new, name, path, was, status):
            self._write_parents(layer)
            layer.file(path, new, name, status)

    def _added(self, layer: LayerWriter, fd: int, path: str) -> None:
        layer.folder(path, fd)
        for name in sorted(os.listdir(fd)):
            child = f"{path}/{name}"
            status = os.lstat(name, dir_fd=fd)
            if stat.S_ISDIR(status.st_mode):
                with opened(name, fd, os.O_DIRECTORY) as inner:
                    self._added(layer, inner, child)
            elif in_a_layer(status):
                layer.file(child, fd, name, status)

    def _removed(self, layer: LayerWriter, path: str) -> None:
        self._write_parents(layer)
        layer.whiteout(path)

    def _write_parents(self, layer: LayerWriter) -> None:
        """A layer has to list the folders above a change: one that it does not list would be made anew."""
        for path, fd in self._parents:
            layer.folder(path, fd)
        self._parents = []

    def _differs(self, old: int, new: int, name: str, path: str, was: os.stat_result, status: os.stat_result) -> bool:
        if _described(was) != _described(status) or was.st_rdev != status.st_rdev:
            return True
        if self._links[0].get(path) != self._links[1].get(path):
            return True
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(name, dir_fd=old) != os.readlink(name, dir_fd=new)
        return stat.S_ISREG(status.st_mode) and _content_differs(old, new, name, path)


def _tree(top: Path) -> AbstractContextManager[int]:
    return opened(str(top), None, os.O_DIRECTORY)


def _explained(error: OSError, top: Path) -> Exception:
    """A file that is gone, or another one, since it was listed; anything else stays what it is."""
    if error.errno in _VANISHED:
        return changed(str(error.filename or top))
    return error


def _check_here(xattrs: list[str], path: str) -> None:
    if found := [name for name in _ELSEWHERE if name in xattrs]:
        hint = "mount the overlay with redirect_dir=off,metacopy=off"
        raise ImageError(f"{path!r}: has {found[0]}: its content is not in the upper folder", hint=hint)


def _described(status: os.stat_result) -> tuple[int, ...]:
    """What of a file's status a layer keeps; a folder's size is the file system's own affair."""
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, size)


def _xattrs(fd: int) -> dict[str, bytes]:
    return {name: os.getxattr(fd, name) for name in os.listxattr(fd) if wanted_xattr(name)}


def _content_differs(old: int, new: int, name: str, path: str) -> bool:
    with opened(name, old) as before, opened(name, new) as after:
        if not stat.S_ISREG(os.fstat(after).st_mode):
            raise changed(path)
        if _xattrs(before) != _xattrs(after):
            return True
        while True:
            one, two = os.read(before, CHUNK), os.read(after, CHUNK)
            if one != two:
                return True
            if not one:
                return False


def _several_names(top: int) -> Names:
    found: dict[Inode, list[str]] = {}
    _collect_names(top, "", found)
    return {path: frozenset(paths) for paths in found.values() for path in paths}


def _collect_names(fd: int, prefix: str, found: dict[Inode, list[str]]) -> None:
    check_depth(prefix)
    for name in os.listdir(fd):
        status = os.lstat(name, dir_fd=fd)
        if stat.S_ISDIR(status.st_mode):
            with opened(name, fd, os.O_DIRECTORY) as inner:
                _collect_names(inner, f"{prefix}{name}/", found)
        elif status.st_nlink > 1:
            found.setdefault((status.st_dev, status.st_ino), []).append(f"{prefix}{name}")
