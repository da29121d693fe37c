"""Unpacking one layer's tar into a tree, safely: the tar may come from anybody.

The tree holds what the layer adds. What it removes from layers below is in `LayerMarks`, and, when unpacked as root,
also in the tree in overlayfs' own form: a whiteout is a character device 0:0, an opaque directory has
trusted.overlay.opaque=y. Nothing else writes in the tree meanwhile, so looking before each step is no race.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tarfile
from pathlib import Path
from typing import BinaryIO, cast

from msgspec import Struct

from bench.errors import HostError, ImageError
from bench.images.stream import CHUNK, MAX_LAYER, LayerReader

MAX_ENTRIES = 500_000
"""Files of one layer; more are taken for a bomb (the bytes of the tar are limited by the reader)."""
MAX_DEPTH = 200  # components of a path; far below what PATH_MAX and recursion in the standard library bear
_MAX_LINKS = 40  # symlinks in one path, as in the kernel
_MAX_REPLACED = 100  # folders that a later entry replaces: each costs a look at all that is known
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."  # its own bookkeeping, without a meaning outside it
XATTR = "SCHILY.xattr."
_STEERING = ("user.overlay.", "user.fuseoverlayfs.")
_TAR_BUGS = (ValueError, LookupError, RecursionError)  # what tarfile lets out of headers made to break it
_DIR_MODE = 0o755  # of parents that the tar does not list
_NANO = 1_000_000_000
_SECONDS = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9})\d{0,20})?")


class LayerMarks(Struct, frozen=True):
    """What a layer removes (`whiteouts`), the directories whose lower contents it hides (`opaque`), and what could not
    be unpacked without root and harms nobody (`skipped`). Paths inside the tree, as bytes: names need not be UTF-8."""

    whiteouts: tuple[bytes, ...] = ()
    opaque: tuple[bytes, ...] = ()
    skipped: tuple[bytes, ...] = ()


class _Metadata(Struct, frozen=True):
    """What is set on a file when its content is there. Of 10^5 folders until the end: smaller than their TarInfo."""

    mode: int
    uid: int
    gid: int
    moment: int  # nanoseconds
    xattrs: tuple[tuple[str, str], ...]


def unpack(
    reader: LayerReader, tree: Path, *, privileged: bool, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_LAYER
) -> LayerMarks:
    """Unpack a layer into the empty folder `tree`: at most `max_entries` files with `max_bytes` of content.

    Raises ImageError if the tar is broken, unsafe or too large, HostError if the disk is full.
    """
    unpacker = _Unpacker(tree, privileged=privileged, left=max_bytes)
    count = 0
    try:
        with tarfile.open(fileobj=cast(BinaryIO, reader), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # undocumented; it would keep them all
                count += 1
                if count > max_entries:
                    raise ImageError(f"more than {max_entries} files, refused")
                unpacker.add(tar, member)
    except (tarfile.TarError, *_TAR_BUGS) as error:
        raise ImageError(f"not a valid tar: {error}") from error
    if reader.last.strip(b"\0"):  # tarfile takes a header it can't read for the end
        raise ImageError(f"not a valid tar: unreadable header before byte {reader.size}")
    return unpacker.finish()


class _Unpacker:
    """The state of one unpacking. Paths are relative to the tree, joined by `/`; the tree itself is the empty path."""

    def __init__(self, tree: Path, *, privileged: bool, left: int) -> None:
        self._left = left  # bytes of content it may still write: a sparse file's holes are in no tar
        self._tree = tree
        self._privileged = privileged
        self._whiteouts: set[str] = set()
        self._opaque: set[str] = set()
        self._skipped: set[str] = set()
        self._replaced = 0
        self._directories: dict[str, _Metadata] = {}  # metadata set at the end: children change the mtime

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        try:
            self._add(tar, member)
        except OSError as error:
            raise _explain(error, member.name) from error
        except (OverflowError, ValueError) as error:  # an owner or a time out of range, a NUL in a name
            raise ImageError(f"{member.name!r}: {error}") from error

    def finish(self) -> LayerMarks:
        """Set the directories' metadata, deepest first, and write overlayfs' marks."""
        try:
            if self._privileged:
                self._write_marks()
            for path in sorted(self._directories, key=lambda path: path.count("/"), reverse=True):
                self._describe(path, self._directories[path], 0o700)
        except (OSError, OverflowError, ValueError) as error:
            raise _explain(error, "directories") from error
        return LayerMarks(_encoded(self._whiteouts), _encoded(self._opaque), _encoded(self._skipped))

    # --- where ---------------------------------------------------------------------------------------------

    def _parts(self, name: str) -> list[str]:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise ImageError(f"{name!r}: leads out of the layer, refused")
        if len(parts) > MAX_DEPTH:
            raise ImageError(f"{name[:60]!r}...: more than {MAX_DEPTH} folders deep, refused")
        return parts

    def _locate(self, name: str) -> str:
        """The path `name` means: parents made if missing, symlinks among them followed inside the tree only."""
        parts = self._parts(name)
        if any(part.startswith(WHITEOUT) for part in parts[:-1]):
            raise ImageError(f"{name!r}: inside a whiteout, refused")
        return _join(self._enter(name, parts[:-1]), parts[-1]) if parts else ""

    def _enter(self, name: str, parts: list[str]) -> str:
        todo, here, links = parts[::-1], "", 0
        while todo:
            part = todo.pop()
            if part == "..":
                here = here.rpartition("/")[0]
            elif part not in ("", "."):
                path = _join(here, part)
                if path.count("/") >= MAX_DEPTH:
                    raise ImageError(f"{name!r}: leads more than {MAX_DEPTH} folders deep, refused")
                if (target := self._target(path, name)) is None:
                    here = path
                    continue
                links += 1
                if links > _MAX_LINKS:
                    raise ImageError(f"{name!r}: too many symlinks, refused")
                here = "" if target.startswith("/") else here
                todo += target.split("/")[::-1]
        return here

    def _target(self, path: str, name: str) -> str | None:
        """Where a parent leads if it is a symlink, None if it is a directory; a missing one is made."""
        status = self._status(path)
        if status is None:
            self._make_directory(path)
            return None
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(self._tree / path)
        if stat.S_ISDIR(status.st_mode):
            return None
        raise ImageError(f"{name!r}: its parent {path!r} is not a folder")

    def _status(self, path: str) -> os.stat_result | None:
        try:
            return os.lstat(self._tree / path)
        except FileNotFoundError:
            return None

    # --- what ----------------------------------------------------------------------------------------------

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._locate(member.name)
        parent, _, base = path.rpartition("/")
        if base == OPAQUE:
            self._opaque.add(parent)
        elif base.startswith(WHITEOUT):
            self._white_out(parent, base, member.name)
        elif member.isdir():
            self._add_directory(path, member)
        elif not path:
            raise ImageError(f"{member.name!r}: takes the place of the root folder")
        else:
            self._add_file(tar, path, member)

    def _white_out(self, parent: str, base: str, name: str) -> None:
        hidden = base.removeprefix(WHITEOUT)
        if base.startswith(_AUFS):
            return
        if hidden in ("", ".", ".."):
            raise ImageError(f"{name!r}: a whiteout of nothing")
        path = _join(parent, hidden)
        status = self._status(path)
        if status is None:
            self._whiteouts.add(path)
        elif stat.S_ISDIR(status.st_mode):  # this layer's own stays, what is below it goes
            self._opaque.add(path)

    def _add_directory(self, path: str, member: tarfile.TarInfo) -> None:
        status = self._status(path)
        if status is None or not stat.S_ISDIR(status.st_mode):
            if status is not None:
                self._remove(path, status)
                self._opaque.add(path)  # the file it replaces had hidden what is below
            self._make_directory(path)
        self._directories[path] = _metadata(member)

    def _make_directory(self, path: str) -> None:
        (self._tree / path).mkdir()
        (self._tree / path).chmod(_DIR_MODE)  # whatever the umask is
        if path in self._whiteouts:
            self._whiteouts.remove(path)
            self._opaque.add(path)

    def _add_file(self, tar: tarfile.TarFile, path: str, member: tarfile.TarInfo) -> None:
        source = self._link_source(member) if member.islnk() else ""
        if member.islnk() and source == path:
            return
        if (status := self._status(path)) is not None:
            self._remove(path, status)
        if self._skip(path, member):
            return
        self._whiteouts.discard(path)
        target = self._tree / path
        if member.islnk():
            os.link(self._tree / source, target, follow_symlinks=False)
        elif member.issym():
            target.symlink_to(member.linkname)
            self._describe(path, _metadata(member), None)
        else:
            self._create(tar, target, member)
            self._describe(path, _metadata(member), 0o400)

    def _create(self, tar: tarfile.TarFile, target: Path, member: tarfile.TarInfo) -> None:
        if member.isreg():
            self._left -= member.size
            if self._left < 0:
                raise ImageError(f"{member.name!r}: with it the layer holds more bytes than allowed, refused")
            content = cast(BinaryIO, tar.extractfile(member))  # None only for what is no regular file
            with content, target.open("xb") as file:
                shutil.copyfileobj(content, file, CHUNK)
        elif member.isfifo():
            os.mkfifo(target)
        elif member.ischr() or member.isblk():
            os.mknod(target, 0o600 | _device_type(member), os.makedev(member.devmajor, member.devminor))
        else:
            raise ImageError(f"{member.name!r}: entry of unknown type {member.type!r}")

    def _skip(self, path: str, member: tarfile.TarInfo) -> bool:
        """Whether it has to be left out without root: device nodes under dev/, which every driver mounts over."""
        if not (member.ischr() or member.isblk()):
            return False
        if member.ischr() and not member.devmajor and not member.devminor:
            raise ImageError(f"{member.name!r}: a device that overlayfs takes for a whiteout, refused")
        if self._privileged:
            return False
        if not path.startswith("dev/"):
            raise ImageError(f"{member.name!r}: only root can unpack a device node", hint="run it with sudo")
        self._skipped.add(path)
        return True

    def _link_source(self, member: tarfile.TarInfo) -> str:
        source = self._locate(member.linkname)
        status = self._status(source)
        if not source or status is None or stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{member.name!r}: hard link to {member.linkname!r}, which is no file of this layer")
        return source

    def _remove(self, path: str, status: os.stat_result) -> None:
        """Make room for a later entry of the same name."""
        if not stat.S_ISDIR(status.st_mode):
            (self._tree / path).unlink()
            return
        self._replaced += 1
        if self._replaced > _MAX_REPLACED:
            raise ImageError(f"{path!r}: more than {_MAX_REPLACED} folders replaced by later entries, refused")
        shutil.rmtree(self._tree / path)
        inside = f"{path}/"
        for marks in (self._whiteouts, self._opaque):
            marks -= {mark for mark in marks if mark == path or mark.startswith(inside)}
        for known in [known for known in self._directories if known == path or known.startswith(inside)]:
            del self._directories[known]

    # --- metadata ------------------------------------------------------------------------------------------

    def _describe(self, path: str, known: _Metadata, least: int | None) -> None:
        """Owner first (it clears set-id bits and capabilities), then mode, xattrs and times.

        `least`: the bits without which we, not being root, could neither read nor remove it; None for a symlink.
        """
        target = self._tree / path
        if self._privileged:
            os.chown(target, known.uid, known.gid, follow_symlinks=False)
        if least is not None:
            target.chmod(known.mode if self._privileged else known.mode | least)
            self._set_xattrs(path, known)
        os.utime(target, ns=(known.moment, known.moment), follow_symlinks=False)

    def _set_xattrs(self, path: str, known: _Metadata) -> None:
        for name, value in known.xattrs:
            if name.startswith("security.") and not self._privileged:
                self._skipped.add(path)  # the program runs as us, without its capability
                continue
            try:
                os.setxattr(self._tree / path, name, value.encode("utf-8", "surrogateescape"))
            except OSError as error:
                if error.errno != errno.ENOTSUP or not name.startswith("user."):
                    raise
                self._skipped.add(path)

    def _write_marks(self) -> None:
        for path in self._whiteouts:
            if not self._below_opaque(path):
                os.mknod(self._tree / path, stat.S_IFCHR, os.makedev(0, 0))
        for path in self._opaque:
            os.setxattr(self._tree / path, "trusted.overlay.opaque", b"y")

    def _below_opaque(self, path: str) -> bool:
        """Whether nothing can be left to hide: overlayfs lists a whiteout in a folder that only one layer has."""
        while path:
            path = path.rpartition("/")[0]
            if path in self._opaque:
                return True
        return False


def is_mark(status: os.stat_result) -> bool:
    """Whether a file of an unpacked tree is overlayfs' whiteout."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def wanted_xattr(xattr: str) -> bool:
    """Capabilities and users' own. Not labels of another host's policy, and never what steers an overlay."""
    return xattr == "security.capability" or (xattr.startswith("user.") and not xattr.startswith(_STEERING))


def _metadata(member: tarfile.TarInfo) -> _Metadata:
    named = ((key.removeprefix(XATTR), value) for key, value in member.pax_headers.items() if key.startswith(XATTR))
    xattrs = tuple((name, value) for name, value in named if wanted_xattr(name))
    return _Metadata(member.mode & 0o7777, member.uid, member.gid, _moment(member), xattrs)


def _moment(member: tarfile.TarInfo) -> int:
    """The time in nanoseconds, exactly if the tar says so in decimals: tarfile's own float has too few digits."""
    said = _SECONDS.fullmatch(member.pax_headers.get("mtime", ""))
    if said is None:
        return int(member.mtime * _NANO)
    moment = int(said[2]) * _NANO + int((said[3] or "").ljust(9, "0"))
    return -moment if said[1] else moment


def _device_type(member: tarfile.TarInfo) -> int:
    return stat.S_IFCHR if member.ischr() else stat.S_IFBLK


def _join(parent: str, base: str) -> str:
    return f"{parent}/{base}" if parent else base


def _encoded(paths: set[str]) -> tuple[bytes, ...]:
    return tuple(sorted(os.fsencode(path) for path in paths))


def _explain(error: Exception, name: str) -> ImageError | HostError:
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room, or set BENCH_CACHE to a folder on another file system"
        return HostError(f"disk full while unpacking {name!r}", hint=hint)
    reason = os.strerror(code) if code else str(error)
    return ImageError(f"can't unpack {name!r}: {reason}")
