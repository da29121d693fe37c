"""One tree of several layers, as overlayfs would show them: made from unpacked layers, so all drivers see the same.

Walks the layers lowest first, folder by folder; the tree made has no symlink among the folders it writes in, because
a layer's folder replaces whatever a lower layer has under that name.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from bench.images.layers import LayerMarks, is_mark

_OVERLAY = "trusted.overlay."  # how a layer is stacked, no part of what it holds


def merge(layers: Sequence[tuple[Path, LayerMarks]], target: Path) -> None:
    """Fill the empty folder `target` from unpacked layers, lowest first. Nothing in it is shared with them."""
    for tree, marks in layers:
        _Merger(tree, marks, target).run()


class _Merger:
    """One layer going on top. Paths are relative, as bytes; the root is the empty path."""

    def __init__(self, tree: Path, marks: LayerMarks, target: Path) -> None:
        self._tree = os.fsencode(tree)
        self._target = os.fsencode(target)
        self._opaque = frozenset(marks.opaque)
        self._whiteouts: dict[bytes, list[bytes]] = {}  # by folder
        for path in marks.whiteouts:
            self._whiteouts.setdefault(os.path.dirname(path), []).append(path)
        self._privileged = os.geteuid() == 0
        self._links: dict[tuple[int, int], bytes] = {}  # a file of several names -> the first one copied

    def run(self) -> None:
        folders = []
        todo = [b""]
        while todo:
            folder = todo.pop()
            folders.append(folder)
            self._open_folder(folder)
            for entry in os.scandir(os.path.join(self._tree, folder)):
                path = os.path.join(folder, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(path)
                else:
                    self._copy(path, entry.stat(follow_symlinks=False))
        for folder in reversed(folders):  # after their children, which change the times
            source = os.path.join(self._tree, folder)
            self._describe(source, os.path.join(self._target, folder), os.lstat(source))

    def _open_folder(self, folder: bytes) -> None:
        """Make the folder ready for this layer's files: hide what the layer hides."""
        target = os.path.join(self._target, folder)
        if folder in self._opaque and folder:
            _remove(target)
        if not _is_folder(target):
            _remove(target)
            os.mkdir(target, 0o700)
        if folder in self._opaque and not folder:
            for name in os.listdir(target):
                _remove(os.path.join(target, name))
        for path in self._whiteouts.get(folder, ()):
            _remove(os.path.join(self._target, path))

    def _copy(self, path: bytes, status: os.stat_result) -> None:
        if is_mark(status):
            return
        source, target = os.path.join(self._tree, path), os.path.join(self._target, path)
        _remove(target)
        key = (status.st_dev, status.st_ino)
        if key in self._links:
            os.link(self._links[key], target, follow_symlinks=False)
            return
        if status.st_nlink > 1:
            self._links[key] = target
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(source), target)
        elif stat.S_ISREG(status.st_mode):
            shutil.copyfile(source, target)
        else:
            os.mknod(target, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev)
        self._describe(source, target, status)

    def _describe(self, source: bytes, target: bytes, status: os.stat_result) -> None:
        """Owner first: it clears set-id bits and capabilities."""
        if self._privileged:
            os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(target, stat.S_IMODE(status.st_mode))
        for name in os.listxattr(source, follow_symlinks=False):
            if not name.startswith((_OVERLAY, "security.selinux")):  # a label is the host's own, set by itself
                os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)


def _is_folder(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _remove(path: bytes) -> None:
    """Remove a file or a whole folder, if there is one; a symlink is removed, not followed."""
    try:
        if _is_folder(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return
