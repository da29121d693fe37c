"""Storage of containers: how each gets a root of its own from an image that all share.

| name           | a container's root                                      | shared with the others                  |
| -------------- | ------------------------------------------------------- | --------------------------------------- |
| overlay        | overlayfs over the layers' trees, mounted by the child  | the layers: blocks and page cache       |
| fuse-overlayfs | the same by a FUSE process for each container           | the layers: blocks, not the page cache  |
| copy           | a full copy of the merged tree                          | nothing                                 |
| reflink        | a copy whose files share their blocks (xfs, else btrfs) | blocks until written; not the page cache |
| btrfs          | a snapshot of a subvolume                               | blocks until written; not the page cache |

`reflink` and `btrfs` live on a file system that is made for the run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from bench import process
from bench.container.scratch import release, scratch_filesystem
from bench.errors import HostError, LaunchError, UsageError
from bench.images.changes import Changes, Difference, Upper
from bench.images.merge import merge
from bench.images.oci import hex_of
from bench.images.store import ImageStore
from bench.images.tools import run_tool
from bench.images.writer import LayerWriter
from bench.linux import syscalls
from bench.linux.btrfs import create_subvolume, delete_subvolume, snapshot
from bench.linux.mounts import escaped
from bench.model import GIB, Image, Leftover, Support

SCRATCH_SIZE = 8 * GIB
"""Bytes a scratch file system may grow to; its file is sparse."""
# A folder's rename or a change of mode must copy up here and now, or the upper folder would not hold what changed.
OVERLAY_OPTIONS = ",redirect_dir=off,metacopy=off"
_MAX_LOWER = 3900  # bytes of lowerdir; a page less what else is in the options
_COPY_TIMEOUT = 600.0  # seconds
_STDERR = 2  # standard output is for results
_MOUNT_TIMEOUT = 10.0  # seconds until a FUSE process serves
_HINTS = {"mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs", "fuse-overlayfs": "fuse-overlayfs"}


class Root(Struct, frozen=True):
    """One container's root while it lives."""

    step: tuple[str, ...]  # bench.linux.mounts' action and its arguments that mount it, in the container's own folder
    own: tuple[str, ...]  # Footprint.disk_own
    shared: tuple[str, ...]  # Footprint.disk_shared
    changes: Changes  # what `ImageStore.commit` takes
    pids: tuple[int, ...] = ()  # host pids of helpers that serve it: a part of the instance's footprint


class Storage(Protocol):
    """One way to give containers their roots."""

    name: str

    def prepare(self, images: ImageStore, image: Image) -> None:
        """Unpack and set up what all containers of `image` share; untimed, idempotent.

        Raises ImageError for an image that can't be unpacked, HostError if this host lacks something.
        """
        ...

    def root(self, image: Image, own: Path) -> AbstractContextManager[Root]:
        """A root for one container whose existing folder is `own`, named by its instance; gone afterwards, which is
        for when its processes have ended. Raises HostError or LaunchError."""
        ...

    def used(self) -> int | None:
        """Bytes in use on the file system made for the run; None where none was made."""
        ...


# --- what this host can do -------------------------------------------------------------------------------------


class Abilities(Struct, frozen=True):
    """What storages need of a host."""

    root: bool
    filesystems: frozenset[str]
    programs: frozenset[str]
    devices: frozenset[str]


def abilities(slash: Path = Path("/")) -> Abilities:
    """Of this host; `slash` holds the `proc` and `dev` to look at."""
    path = process.clean_env()["PATH"]
    words = (slash / "proc/filesystems").read_text().split()
    return Abilities(
        root=os.geteuid() == 0,
        filesystems=frozenset(words) - {"nodev"},
        programs=frozenset(name for name in (*_HINTS, "mount", "cp") if shutil.which(name, path=path)),
        devices=frozenset(name for name in ("fuse", "loop-control") if (slash / "dev" / name).exists()),
    )


def support(name: str, host: Abilities) -> Support:
    """Whether storage `name` works here; a no comes with the remedy. Raises UsageError for an unknown name."""
    if name not in STORAGES:
        raise UsageError(f"no storage {name!r}", hint=f"one of: {', '.join(STORAGES)}")
    if not host.root:
        return Support(False, f"storage {name} needs root", "run it with sudo")
    if name == "copy":
        return Support(True)
    if name == "overlay":
        return _has(host, "overlay")
    if name == "fuse-overlayfs":
        return _has(host, "fuse", ("fuse-overlayfs",), "fuse")
    return next((one for one in _scratch_supports(name, host) if one.ok), _scratch_supports(name, host)[0])


def _scratch_supports(name: str, host: Abilities) -> list[Support]:
    return [_has(host, kind, (f"mkfs.{kind}",), "loop-control") for kind in _SCRATCH_KINDS[name]]


def _has(host: Abilities, kind: str, programs: Sequence[str] = (), device: str | None = None) -> Support:
    if kind not in host.filesystems:
        return Support(False, f"this kernel has no {kind}", f"modprobe {kind}, or a kernel with it")
    if device is not None and device not in host.devices:
        return Support(False, f"there is no /dev/{device}", f"modprobe {device.partition('-')[0]}, or let it in here")
    for program in programs:
        if program not in host.programs:
            return Support(False, f"{program} is not installed", f"apt-get install -y {_HINTS[program]}")
    return Support(True)


@contextmanager
def open_storage(name: str, folder: Path, size: int = SCRATCH_SIZE) -> Iterator[Storage]:
    """Storage `name` with its files in `folder`, which goes away with it. Raises UsageError for an unknown name, and
    HostError with the remedy if it does not work here."""
    able = abilities()
    if not (answer := support(name, able)).ok:
        raise HostError(f"storage {name}: {answer.reason}", hint=answer.hint)
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        stack.callback(reap, folder)
        where = folder
        if name in _SCRATCH_KINDS:
            kinds = [
                kind for kind in _SCRATCH_KINDS[name] if kind in able.filesystems and f"mkfs.{kind}" in able.programs
            ]
            where = stack.enter_context(scratch_filesystem(folder / "scratch", kinds[0], size))
        yield STORAGES[name](where)


def reap(folder: Path) -> list[Leftover]:
    """Unmount and remove what a storage made in `folder`, after its process died too; idempotent. A FUSE process ends
    with its mount."""
    found = release(folder)
    if folder.exists():
        found.append(Leftover("file", str(folder)))
        shutil.rmtree(folder)
    return found


# --- union mounts ----------------------------------------------------------------------------------------------


class _Layered:
    """What both overlays share: the layers' trees by image, lowest first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._layers: dict[str, tuple[Path, ...]] = {}
        self._links: dict[Path, Path] = {}

    def prepare(self, images: ImageStore, image: Image) -> None:
        trees = images.layer_trees(image)
        for tree in trees:
            self._link(tree)
        if len(lower := self._lower(trees)) > _MAX_LOWER:
            hint = "a storage that copies, or an image with fewer layers"
            raise HostError(f"image {image.name}: {len(trees)} layers make {len(lower)} bytes of options", hint=hint)
        self._layers[image.digest] = trees

    def _link(self, tree: Path) -> None:
        """Give a layer a short name: all of a mount's options have to fit in one page."""
        if tree not in self._links:
            link = self._folder / str(len(self._links))
            link.symlink_to(tree)
            self._links[tree] = link

    def _lower(self, trees: Sequence[Path]) -> str:
        return lowerdir([self._links[tree] for tree in trees])

    def used(self) -> int | None:
        return None

    def _root(self, image: Image, own: Path, step: tuple[str, ...], changes: Changes, *pids: int) -> Root:
        written = (str(own / "upper"), str(own / "work"))
        return Root(step, written, tuple(map(str, self._layers[image.digest])), changes, pids)


class Overlay(_Layered):
    """The child mounts it itself, in its own mount namespace: nothing is left to take down."""

    name = "overlay"

    @contextmanager
    def root(self, image: Image, own: Path) -> Iterator[Root]:
        step = ("overlay_root", self._lower(self._layers[image.digest]), OVERLAY_OPTIONS)
        yield self._root(image, own, step, Upper(own / "upper"))


class _Flushed:
    """The changes of a FUSE mount: what its open files hold in the page cache is not in the upper folder yet."""

    def __init__(self, root: Path, upper: Path) -> None:
        self._root, self._upper = root, Upper(upper, fuse=True)

    def write(self, layer: LayerWriter) -> None:
        run_tool(["sync", "-f", self._root], timeout=_COPY_TIMEOUT)
        self._upper.write(layer)


class FuseOverlay(_Layered):
    """One process a container serves each of its file operations."""

    name = "fuse-overlayfs"

    @contextmanager
    def root(self, image: Image, own: Path) -> Iterator[Root]:
        upper, work, root = own / "upper", own / "work", own / "root"
        for path in (upper, work, root):
            path.mkdir()
        lower = self._lower(self._layers[image.digest])
        options = f"lowerdir={lower},upperdir={escaped(str(upper))},workdir={escaped(str(work))}"
        with process.spawn(["fuse-overlayfs", "-f", "-o", options, root], stdout=_STDERR) as child:
            try:
                _wait_mounted(root, child.poll)
                yield self._root(image, own, ("bind_root", str(root)), _Flushed(root, upper), child.pid)
            finally:
                with contextlib.suppress(OSError):  # EINVAL: it never came up
                    syscalls.umount2(str(root), syscalls.MNT_DETACH)


def _wait_mounted(root: Path, ended: Callable[[], int | None]) -> None:
    outside = root.parent.stat().st_dev
    deadline = time.monotonic() + _MOUNT_TIMEOUT
    while root.stat().st_dev == outside:
        if (status := ended()) is not None:
            raise LaunchError(f"fuse-overlayfs ended with status {status}", hint=f"what it said is above; df {root}")
        if time.monotonic() > deadline:
            raise LaunchError(f"fuse-overlayfs did not mount {root} in {_MOUNT_TIMEOUT:g} s")
        time.sleep(0.001)


def lowerdir(layers: Sequence[Path]) -> str:
    """Layers, lowest first, as overlay's option takes them."""
    return ":".join(escaped(str(path)) for path in reversed(layers))


# --- trees of their own ----------------------------------------------------------------------------------------


class _Template:
    """What the others share: each image merged into one tree that nobody writes, and copies of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self, images: ImageStore, image: Image) -> None:
        base = self._base(image)
        if base.exists():
            return
        base.parent.mkdir(exist_ok=True)
        half = base.with_suffix(".half")  # of an attempt that failed, or what becomes `base`
        self._remove(half)
        layers = images.unpacked(image)
        with _room(base):
            self._make_base(half)
            merge(layers, half)
            half.rename(base)

    def _make_base(self, base: Path) -> None:
        base.mkdir()

    def _remove(self, path: Path) -> None:
        if path.exists():
            shutil.rmtree(path)

    def _base(self, image: Image) -> Path:
        return self._folder / "images" / hex_of(image.digest, image.name)

    def _root(self, image: Image, root: Path, shared: tuple[str, ...]) -> Root:
        return Root(("bind_root", str(root)), (str(root),), shared, Difference(self._base(image), root))


class Copy(_Template):
    """A full copy, on the file system of the container's folder."""

    name = "copy"

    @contextmanager
    def root(self, image: Image, own: Path) -> Iterator[Root]:
        root = own / "root"
        try:
            _copy_tree(self._base(image), root, "never")
            yield self._root(image, root, ())
        finally:
            self._remove(root)

    def used(self) -> int | None:
        return None


class _OnScratch(_Template, ABC):
    """Roots on the scratch file system, in a folder named by the instance."""

    @contextmanager
    def root(self, image: Image, own: Path) -> Iterator[Root]:
        base, root = self._base(image), self._folder / "instances" / own.name
        root.parent.mkdir(exist_ok=True)
        try:
            with _room(root):
                self._clone(base, root)
            yield self._root(image, root, (str(base),))
        finally:
            self._remove(root)

    @abstractmethod
    def _clone(self, base: Path, root: Path) -> None:
        """Make `root` of `base`, sharing its blocks."""

    def used(self) -> int | None:
        state = os.statvfs(self._folder)
        return (state.f_blocks - state.f_bfree) * state.f_frsize


class Reflink(_OnScratch):
    """A copy file by file, each sharing its blocks with the template's."""

    name = "reflink"

    def _clone(self, base: Path, root: Path) -> None:
        _copy_tree(base, root, "always")


class Btrfs(_OnScratch):
    """A snapshot: one call, however many files there are."""

    name = "btrfs"

    def _make_base(self, base: Path) -> None:
        create_subvolume(base)

    def _clone(self, base: Path, root: Path) -> None:
        snapshot(base, root)

    def _remove(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            delete_subvolume(path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            shutil.rmtree(path)  # the container made subvolumes in it


def _copy_tree(source: Path, target: Path, reflink: str) -> None:
    """Copy a tree with all that cp keeps: owners, modes, times, links, extended attributes, holes."""
    run_tool(["cp", "-a", "-T", f"--reflink={reflink}", source, target], timeout=_COPY_TIMEOUT)


@contextmanager
def _room(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = f"df {path.parent}; a scratch file system holds {SCRATCH_SIZE} bytes unless told otherwise"
        raise HostError(f"{path}: can't be made: {error.strerror}", hint=hint) from error


_SCRATCH_KINDS = {"reflink": ("xfs", "btrfs"), "btrfs": ("btrfs",)}
STORAGES: dict[str, Callable[[Path], Storage]] = {
    "overlay": Overlay, "copy": Copy, "reflink": Reflink, "btrfs": Btrfs, "fuse-overlayfs": FuseOverlay,
}  # fmt: skip
