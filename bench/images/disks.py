"""Guest disks: file systems from an image's tree (ext4; erofs to be read only), and what each guest gets of it."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from pathlib import Path

from bench.errors import CommandError, HostError, ImageError, UsageError
from bench.images import pmem
from bench.images.layout import publish
from bench.images.merge import merge
from bench.images.store import ImageStore
from bench.images.tools import run_tool
from bench.model import MIB, Image

_BLOCK = 4096
_UUID = "62656e63-6820-4000-8000-726f6f746673"  # fixed, and the seed of directory hashes: same image, same disk
_LABEL = "bench-root"
_FICLONE = 0x40049409
_STEP = 16 * MIB  # sizes we advise are multiples of it


def ext4_template(store: ImageStore, image: Image, size: int) -> Path:
    """A raw ext4 file system of exactly `size` bytes with the image in it, made once for each image and size.

    It belongs to the store: give each guest a copy or an overlay. Raises UsageError for a size that is no multiple of
    4 KiB, ImageError if the image does not fit, HostError without mkfs.ext4.
    """
    if size < MIB or size % _BLOCK:
        raise UsageError(f"a disk of {size} bytes: expected a multiple of {_BLOCK}, at least {MIB}")
    path = store.disk_path(image, f"{size}.ext4")
    if path.exists():
        return path
    layers = store.unpacked(image)  # before `writing`: it takes the lock as well
    with store.writing() as scratch:
        if not path.exists():  # another process may have made it while we waited
            tree, made = scratch / "tree", scratch / "disk"
            tree.mkdir()
            merge(layers, tree)  # not `store.tree`: bare processes write in that one
            _format(tree, made, size, image)
            publish(made, path)
    return path


def erofs_image(store: ImageStore, image: Image, *, dax: bool = False) -> Path:
    """A read-only erofs file system with the image in it, made once for each image; all guests read the same file.

    Not compressed: pages are read as they are. With `dax` it is a guest's persistent memory: behind the head of such,
    and no file's end lies beside its inode, where it could not be mapped. Raises HostError without mkfs.erofs.
    """
    path = store.disk_path(image, "erofs.pmem" if dax else "erofs")
    if path.exists():
        return path
    layers = store.unpacked(image)
    with store.writing() as scratch:
        if not path.exists():
            tree, made = scratch / "tree", scratch / "disk"
            tree.mkdir()
            merge(layers, tree)
            plain = ["-Enoinline_data"] if dax else []
            run_tool(["mkfs.erofs", "--quiet", "-T0", "-U", _UUID, *plain, made, tree], timeout=600)
            if dax:
                pmem.as_memory(made, scratch / "memory", uuid.UUID(_UUID).bytes)
                made = scratch / "memory"
            made.chmod(0o644)  # QEMU may run as another user, and nobody of libvirt's changes a shared file's owner
            publish(made, path)
    return path


def _format(tree: Path, disk: Path, size: int, image: Image) -> None:
    with disk.open("xb") as file:
        file.truncate(size)
    argv: list[str | Path] = [
        "mkfs.ext4", "-q", "-F", "-b", str(_BLOCK), "-m", "0", "-L", _LABEL, "-U", _UUID,
        "-E", f"hash_seed={_UUID},lazy_itable_init=0,lazy_journal_init=0",
        "-d", tree, disk,
    ]  # fmt: skip
    done = run_tool(argv, timeout=600, check=False)
    if done.status:
        raise _refused(done.stderr.strip() or done.stdout.strip(), tree, size, image)
    with disk.open("rb") as file:
        os.fsync(file.fileno())


def _refused(said: str, tree: Path, size: int, image: Image) -> ImageError | CommandError:
    needed = _needed(tree)
    if needed > size or "Could not allocate" in said or "No space left" in said:
        hint = f"set vm.disk to {needed if needed > size else size + _STEP} bytes or more"
        return ImageError(f"image {image.name} does not fit on a disk of {size} bytes", hint=hint)
    return CommandError(f"mkfs.ext4 failed for image {image.name}: {said}")


def _needed(tree: Path) -> int:
    """Bytes a disk needs for `tree`, a fifth more than its blocks for inodes, journal and room to start, rounded up."""
    used, files = 0, 0
    for folder, folders, names in os.walk(tree):
        for name in (*folders, *names):
            used += -(-os.lstat(os.path.join(folder, name)).st_size // _BLOCK) * _BLOCK
            files += 1
    needed = (used + files * 512) * 6 // 5 + 8 * MIB
    return -(-needed // _STEP) * _STEP


def copy_disk(template: Path, target: Path) -> None:
    """Give `target` a full copy of its own: holes stay holes, data is written anew.

    Not by copy_file_range: on btrfs and xfs it shares the blocks, and the copy would cost nothing. Raises HostError if
    the disk is full; what was copied is removed.
    """
    source = os.open(template, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _copy_data(source, copy)
        finally:
            os.close(copy)
    except OSError as error:
        if target.is_file():
            target.unlink()
        message = f"{target}: can't copy {template} there: {error.strerror}"
        raise HostError(message, hint=f"df {target.parent}") from error
    finally:
        os.close(source)


def reflink_disk(template: Path, target: Path) -> None:
    """Give `target` a copy that shares the template's blocks until one of them is written.

    Raises HostError where the file system can't, or the two lie on different ones.
    """
    with template.open("rb") as source, target.open("xb") as copy:
        try:
            fcntl.ioctl(copy, _FICLONE, source.fileno())
        except OSError as error:
            target.unlink()
            hint = "put BENCH_STATE and BENCH_CACHE on one btrfs or xfs, or set vm.storage to copy or qcow2-backing"
            raise HostError(f"{target}: can't share blocks of {template}: {error.strerror}", hint=hint) from error


def _copy_data(source: int, copy: int) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(copy, size)
    start = 0
    while start < size:
        try:
            start = os.lseek(source, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(copy, start, os.SEEK_SET)
        while start < end:
            copied = os.sendfile(copy, source, start, end - start)
            if not copied:
                raise OSError(errno.EIO, "it became shorter meanwhile")
            start += copied


def qcow2_overlay(backing: Path, target: Path) -> None:
    """Make an empty qcow2 disk over the raw disk `backing`, which must not change while it is in use."""
    if not backing.is_file():
        raise ImageError(f"{backing}: no such disk")
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing.absolute(), target], timeout=60)
