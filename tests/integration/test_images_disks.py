"""Trees and disks of images against the kernel and the tools that will use them."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from bench import process
from bench.errors import HostError, ImageError, UsageError
from bench.images.disks import copy_disk, ext4_template, qcow2_overlay
from bench.images.store import ImageStore
from bench.model import MIB
from tests.unit.image_tars import docker_archive, make_tar, member, tar_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images") / "store")


def debugfs(disk: Path, command: str) -> str:
    return process.run(["debugfs", "-R", command, disk], timeout=20).stdout


# --- the default image -------------------------------------------------------------------------------------------


def test_the_real_default_image_is_the_same_in_two_stores(store: ImageStore, tmp_path: Path) -> None:
    assert ImageStore(tmp_path / "other").build_default() == store.build_default()


def test_skopeo_reads_our_store_and_we_read_what_it_writes(store: ImageStore, tmp_path: Path) -> None:
    image = store.resolve("default")
    other = ImageStore(tmp_path / "other")
    reference = f"oci:{store.disk_path(image, 'x').parent.parent}:default"
    copied = other.resolve(reference)
    assert (copied.name, copied.layers) == (reference, image.layers)  # the digest differs: skopeo compresses
    process.run(["skopeo", "copy", "-q", reference, f"docker-archive:{tmp_path}/saved.tar:web:1"], timeout=60)
    saved = other.resolve(str(tmp_path / "saved.tar"))
    assert (saved.name.rpartition("/")[2], saved.layers) == ("web:1", image.layers)
    assert other.resolve(f"docker-archive:{tmp_path}/saved.tar").layers == image.layers
    with pytest.raises(ImageError, match="skopeo can't get oci:"):
        other.resolve(f"oci:{tmp_path}/nowhere:1")


# --- trees as overlayfs sees them --------------------------------------------------------------------------------

LOW = make_tar(
    [
        (member("keep/both", mode=0o4755, uid=7, gid=8), b"low"),
        (member("keep", tarfile.DIRTYPE, mode=0o751, uid=5, mtime=9), b""),
        (member("gone/deep/file"), b"x"),
        (member("hidden/old"), b"x"),
        (member("file-to-folder"), b"x"),
        (member("folder-to-file/x"), b"x"),
        (member("link", tarfile.SYMTYPE, linkname="keep"), b""),
        (member("dev/null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3), b""),
        (member("ping", mode=0o755), b"#!"),
    ]
)
CAPABILITY = "\x01\x00\x00\x02\x00\x20\x00\x00" + "\x00" * 12  # cap_net_raw=ep
HIGH = make_tar(
    [
        (member(".wh.gone"), b""),
        (member("keep/.wh.nothing"), b""),
        (member("keep/new"), b"y"),
        (member("keep/again", tarfile.LNKTYPE, linkname="keep/new"), b""),
        (member("hidden/.wh..wh..opq"), b""),
        (member("hidden/new"), b"y"),
        (member("file-to-folder/y"), b"y"),
        (member("folder-to-file"), b"y"),
        (member("link/through"), b"y"),
        (member("capable", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": CAPABILITY}), b"#!"),
    ]
)
# A whiteout in a folder that only one layer has is shown by overlayfs as a name without a file: HIGH has one.
OVER_WIPE = tar_of({"keep/new": b"y", "d/.wh..wh..opq": b"", "d/.wh.x": b"", "d/e/.wh.x": b"", "d/new": b"y"})
WIPE = make_tar([(member(".wh..wh..opq"), b""), (member("only"), b"z")])


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """All that a program could see of a tree, inode numbers and sizes of folders left out."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files, "."):
            path = Path(folder, name)
            status = path.lstat()
            what: object = os.readlink(path) if path.is_symlink() else None
            if stat.S_ISREG(status.st_mode):
                what = path.read_bytes()
            links = 0 if path.is_dir() else status.st_nlink
            owner = (status.st_uid, status.st_gid, status.st_mode, status.st_rdev, links, status.st_mtime_ns)
            xattrs = tuple(name for name in os.listxattr(path, follow_symlinks=False) if "selinux" not in name)
            found[str(path.relative_to(root))] = (*owner, what, xattrs)
    return found


@pytest.mark.root
@pytest.mark.parametrize("layers", [[LOW], [LOW, HIGH], [LOW, HIGH, WIPE], [LOW, WIPE, OVER_WIPE]])
def test_a_tree_is_what_overlayfs_shows(tmp_path: Path, layers: list[bytes]) -> None:
    store = ImageStore(tmp_path / "store")
    (tmp_path / "image.tar").write_bytes(docker_archive(layers))
    image = store.resolve(str(tmp_path / "image.tar"))
    tree, mounted = store.tree(image), tmp_path / "mounted"
    mounted.mkdir()
    lower = store.layer_trees(image)
    options = f"lowerdir={':'.join(map(str, [tmp_path / 'empty', *reversed(lower)]))}"
    (tmp_path / "empty").mkdir()
    os.chmod(tmp_path / "empty", lower[-1].stat().st_mode & 0o7777)
    os.utime(tmp_path / "empty", ns=(lower[-1].stat().st_mtime_ns,) * 2)
    process.run(["mount", "-t", "overlay", "-o", options, "none", mounted], timeout=20)
    try:
        shown = listing(mounted)
    finally:
        process.run(["umount", mounted], timeout=20)
    assert listing(tree) == shown
    if len(layers) == 2:
        assert "gone" not in shown
        assert {name for name in shown if name.startswith("hidden/")} == {"hidden/new"}


@pytest.mark.root
def test_root_keeps_owners_devices_and_capabilities(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    (tmp_path / "image.tar").write_bytes(docker_archive([LOW, HIGH]))
    image = store.resolve(str(tmp_path / "image.tar"))
    tree = store.tree(image)
    both = (tree / "keep/both").stat()
    assert (both.st_uid, both.st_gid, stat.S_IMODE(both.st_mode)) == (7, 8, 0o4755)
    assert (tree / "dev/null").stat().st_rdev == os.makedev(1, 3)
    assert "security.capability" in os.listxattr(tree / "capable")
    whiteout = (store.layer_trees(image)[1] / "gone").lstat()
    assert (stat.S_ISCHR(whiteout.st_mode), whiteout.st_rdev) == (True, 0)
    disk = ext4_template(store, image, 16 * MIB)
    assert "User:     7   Group:     8" in debugfs(disk, "stat /keep/both")
    assert "security.capability" in debugfs(disk, "ea_list /capable")


# --- disks -------------------------------------------------------------------------------------------------------


def test_a_template_has_the_size_and_the_image(store: ImageStore) -> None:
    image = store.resolve("default")
    disk = ext4_template(store, image, 64 * MIB)
    assert disk.stat().st_size == 64 * MIB
    assert disk.stat().st_blocks * 512 < 16 * MIB  # holes
    assert process.run(["e2fsck", "-fn", disk], timeout=60, check=False).status == 0
    page = (store.tree(image) / "srv/www/index.html").read_text()
    assert debugfs(disk, "cat /srv/www/index.html") == page
    inode = disk.stat().st_ino
    assert ext4_template(store, image, 64 * MIB).stat().st_ino == inode
    assert ext4_template(store, image, 32 * MIB) != disk


def test_a_template_holds_nothing_that_a_process_wrote_in_the_shared_tree(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    image = store.resolve("default")
    (store.tree(image) / "tmp/dirt").write_bytes(b"x")
    assert "dirt" not in debugfs(ext4_template(store, image, 16 * MIB), "ls /tmp")


def test_sizes_that_can_not_be(store: ImageStore, tmp_path: Path) -> None:
    image = store.resolve("default")
    for size in (0, -4096, 4096, 16 * MIB + 1):
        with pytest.raises(UsageError, match="multiple of 4096"):
            ext4_template(store, image, size)
    big = ImageStore(tmp_path / "store")
    (tmp_path / "big.tar").write_bytes(docker_archive([tar_of({"big": os.urandom(20 * MIB)})]))
    image = big.resolve(str(tmp_path / "big.tar"))
    with pytest.raises(ImageError, match="does not fit on a disk of 16777216 bytes") as caught:
        ext4_template(big, image, 16 * MIB)
    advised = int(str(caught.value.hint).split()[3])
    assert ext4_template(big, image, advised).stat().st_size == advised
    assert os.listdir(tmp_path / "store/tmp") == []


def test_a_copy_is_whole_sparse_and_its_own(store: ImageStore, tmp_path: Path) -> None:
    template = ext4_template(store, store.resolve("default"), 64 * MIB)
    before = template.read_bytes()
    copy = tmp_path / "copy.raw"
    copy.write_bytes(b"left over" * 1000)  # what was there is replaced
    copy_disk(template, copy)
    assert copy.read_bytes() == before
    assert abs(copy.stat().st_blocks - template.stat().st_blocks) < 1024
    assert "shared" not in process.run(["filefrag", "-v", copy], timeout=20, check=False).stdout
    with copy.open("r+b") as file:
        file.write(b"changed")
    assert template.read_bytes() == before


def test_copies_of_holes_and_of_nothing(tmp_path: Path) -> None:
    for size in (0, 8 * MIB):
        with (tmp_path / "hole").open("wb") as file:
            file.truncate(size)
        copy_disk(tmp_path / "hole", tmp_path / "copy")
        assert ((tmp_path / "copy").stat().st_size, (tmp_path / "copy").stat().st_blocks) == (size, 0)


@pytest.mark.root
def test_a_copy_that_does_not_fit_is_removed(store: ImageStore, tmp_path: Path) -> None:
    template = ext4_template(store, store.resolve("default"), 64 * MIB)
    small = tmp_path / "small"
    small.mkdir()
    process.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], timeout=20)
    try:
        with pytest.raises(HostError, match="No space left"):
            copy_disk(template, small / "copy")
        assert os.listdir(small) == []
        with pytest.raises(HostError, match="can't be written"):
            ImageStore(small / "store").resolve("default")
    finally:
        process.run(["umount", small], timeout=20)


def test_an_overlay_names_its_backing_file(store: ImageStore, tmp_path: Path) -> None:
    template = ext4_template(store, store.resolve("default"), 64 * MIB)
    qcow2_overlay(template, tmp_path / "disk.qcow2")
    said = json.loads(process.run(["qemu-img", "info", "--output=json", tmp_path / "disk.qcow2"], timeout=20).stdout)
    assert (said["format"], said["virtual-size"]) == ("qcow2", 64 * MIB)
    assert (said["full-backing-filename"], said["backing-filename-format"]) == (str(template), "raw")
    with pytest.raises(ImageError, match="no such disk"):
        qcow2_overlay(tmp_path / "nowhere", tmp_path / "other.qcow2")
