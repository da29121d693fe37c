"""Commits of real overlays: what a container did is in the new image, all of it and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import process
from bench.errors import ImageError
from bench.images.changes import Changes, Difference, Upper
from bench.images.layers import LayerMarks, is_mark
from bench.images.merge import merge
from bench.images.store import ImageStore
from tests.integration.image_trees import fuse, layer_of, look, overlay, unpacked
from tests.unit.image_tars import docker_archive, make_tar, member

pytestmark = pytest.mark.root

CAPABILITY = b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0"  # cap_net_bind_service, as the kernel stores it: not UTF-8
LOW = make_tar(
    [
        (member("a", tarfile.DIRTYPE, mode=0o751, uid=5, gid=6, mtime=9), b""),
        (member("a/a", mode=0o4755, uid=7), b"set-id"),
        (member("a/b"), b"b" * 5000),
        (member("a/c", tarfile.DIRTYPE, mode=0o1777), b""),
        (member("a/c/a"), b"deep"),
        (member("b"), b"file"),
        (member("c", tarfile.SYMTYPE, linkname="a/b"), b""),
    ]
)
HIGH = make_tar([(member("a/c/b"), b"more"), (member("a/.wh.b"), b""), (member("b", tarfile.DIRTYPE), b"")])


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    for number, data in enumerate((LOW, HIGH)):
        unpacked(data, tmp_path / "layers" / str(number))
    return [tmp_path / "layers/0", tmp_path / "layers/1"]


# --- as a user sees it -----------------------------------------------------------------------------------------


def test_a_deleted_file_is_hidden_and_the_image_does_not_shrink(tmp_path: Path, store: ImageStore) -> None:
    (tmp_path / "image.tar").write_bytes(docker_archive([LOW], tags=["base:1"]))
    image = store.resolve(str(tmp_path / "image.tar"))
    with overlay(store.layer_trees(image), tmp_path / "one") as root:
        (root / "a/b").unlink()
    made = store.commit(image, Upper(tmp_path / "one/upper"), "less:1")
    with overlay(store.layer_trees(made), tmp_path / "two") as root:
        assert sorted(os.listdir(root / "a")) == ["a", "c"]
    assert not (store.tree(made) / "a/b").exists()
    assert made.size > image.size
    blobs = [one.size for one in store.details("less:1").layers]
    assert sum(blobs) >= sum(one.size for one in store.details("base:1").layers)
    assert (store.layer_trees(made)[0] / "a/b").read_bytes() == b"b" * 5000  # it is still there, below


def test_a_folder_removed_and_made_anew_is_opaque(tmp_path: Path, store: ImageStore) -> None:
    (tmp_path / "image.tar").write_bytes(docker_archive([LOW, HIGH], tags=["base:1"]))
    image = store.resolve(str(tmp_path / "image.tar"))
    with overlay(store.layer_trees(image), tmp_path / "one") as root:
        shutil.rmtree(root / "a")
        (root / "a").mkdir()
        (root / "a/new").write_bytes(b"")
    made = store.commit(image, Upper(tmp_path / "one/upper"), "anew:1")
    assert b"a" in store.unpacked(made)[-1][1].opaque
    with overlay(store.layer_trees(made), tmp_path / "two") as root:
        assert os.listdir(root / "a") == ["new"]
    assert os.listdir(store.tree(made) / "a") == ["new"]


def test_what_is_special_about_a_file_is_kept(tmp_path: Path, layers: list[Path]) -> None:
    with overlay(layers, tmp_path / "one") as root:
        (root / "suid").write_bytes(b"#!")
        os.chown(root / "suid", 12, 3_000_000)
        (root / "suid").chmod(0o6711)
        os.setxattr(root / "suid", "security.capability", CAPABILITY)
        os.setxattr(root / "suid", "user.bytes", b"\xff\0=\n")
        os.link(root / "suid", root / "a/linked")
        os.link(root / "a/a", root / "upper-link-of-a-lower-file")
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
        os.mkfifo(root / "pipe")
        os.symlink("x" * 200, root / "long")
        os.symlink("/etc", root / os.fsdecode(b"caf\xe9"))
        (root / ("n" * 255)).write_bytes(b"")
        (root / "a/c").chmod(0o7755)
        os.utime(root / "a/c", ns=(0, 1_234_567_890_123_456_789))
        seen = look(root)
    assert seen["suid"][6] == {"security.capability": CAPABILITY, "user.bytes": b"\xff\0=\n"}
    assert seen["links"] == [["a/a", "upper-link-of-a-lower-file"], ["a/linked", "suid"]]
    made = layer_of(Upper(tmp_path / "one/upper"))
    assert made == layer_of(Upper(tmp_path / "one/upper"))
    unpacked(made, tmp_path / "new")
    with overlay([*layers, tmp_path / "new"], tmp_path / "two") as root:
        assert {**look(root), "": seen[""]} == seen  # an upper folder's own state hides the root's


def test_tar_itself_can_read_a_layer(tmp_path: Path, layers: list[Path]) -> None:
    with overlay(layers, tmp_path / "one") as root:
        (root / "a/c/file").write_bytes(b"hello")
        (root / "b").rmdir()
        os.utime(root / "a/c/file", ns=(0, 1_500_000_000))
    (tmp_path / "layer.tar").write_bytes(layer_of(Upper(tmp_path / "one/upper")))
    said = process.run(["tar", "-tvf", tmp_path / "layer.tar", "--full-time"], timeout=20)
    assert said.stderr == ""
    names = [line.split()[-1] for line in said.stdout.splitlines()]
    assert names == ["./", "a/", "a/c/", "a/c/file", ".wh.b"]
    assert "1970-01-01 00:00:01" in said.stdout


def test_an_upper_folder_that_does_not_hold_everything_is_refused(tmp_path: Path) -> None:
    for mark in ("redirect", "metacopy"):
        upper = tmp_path / mark
        (upper / "d").mkdir(parents=True)
        (upper / "f").write_bytes(b"")
        where = "d" if mark == "redirect" else "f"
        os.setxattr(upper / where, f"trusted.overlay.{mark}", b"/x")
        with pytest.raises(ImageError, match=f"'{where}': has trusted.overlay.{mark}") as caught:
            layer_of(Upper(upper))
        assert caught.value.hint == "mount the overlay with redirect_dir=off,metacopy=off"


def test_a_renamed_folder_is_copied_up_whole(tmp_path: Path, layers: list[Path]) -> None:
    with overlay(layers, tmp_path / "one") as root:
        with pytest.raises(OSError, match="cross-device"):  # redirect_dir=off: programs copy instead
            (root / "a").rename(root / "z")
        shutil.move(root / "a", root / "z")
        seen = look(root)
    unpacked(layer_of(Upper(tmp_path / "one/upper")), tmp_path / "new")
    with overlay([*layers, tmp_path / "new"], tmp_path / "two") as root:
        assert {**look(root), "": seen[""]} == seen


def test_a_whiteout_made_by_hand_in_a_copied_tree_is_refused(tmp_path: Path) -> None:
    for name in ("base", "now"):
        (tmp_path / name).mkdir()
    os.mknod(tmp_path / "now/x", stat.S_IFCHR, os.makedev(0, 0))
    with pytest.raises(ImageError, match="character device 0:0"):
        layer_of(Difference(tmp_path / "base", tmp_path / "now"))


# --- whatever is done ------------------------------------------------------------------------------------------

names = st.sampled_from("abc")
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
_numbers = st.integers(0, 7)


def _write(path: Path, number: int) -> None:
    if path.exists() and not path.is_file():  # a fifo would wait for ever, a device is the host's
        return
    with path.open("ab" if number % 2 else "wb") as file:
        file.write(b"x" * number)


def _remove(path: Path, _: int) -> None:
    if path.is_dir():  # rmtree opens what it is given: a fifo would wait for ever
        shutil.rmtree(path)


def _again(path: Path, number: int) -> None:
    """Remove a folder and make it anew, with something in it."""
    _remove(path, number)
    path.mkdir()
    if number % 2:
        (path / "a").write_bytes(b"new")


ALONE: dict[str, Callable[[Path, int], object]] = {
    "write": _write,
    "unlink": lambda path, _: path.unlink(),
    "mkdir": lambda path, number: path.mkdir(0o700 + number),
    "rmtree": _remove,
    "again": _again,
    "chmod": lambda path, number: os.chmod(path, 0o755 | number << 9),
    "chown": lambda path, number: os.lchown(path, number, 100 + number),
    "xattr": lambda path, number: os.setxattr(path, f"user.{number % 2}", bytes([number, 255])),
    "fifo": lambda path, _: os.mkfifo(path),
    "device": lambda path, number: os.mknod(path, stat.S_IFCHR | 0o600 | number, os.makedev(1, 3)),
    "utime": lambda path, number: os.utime(path, ns=(0, number * 1_000_000_007), follow_symlinks=False),
}
PAIRS: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda one, two: os.link(one, two, follow_symlinks=False),
    "symlink": lambda one, two: two.symlink_to(one.name),
    "rename": lambda one, two: one.rename(two),
    "move": lambda one, two: shutil.move(one, two),
}
Operation = tuple[str, str, int] | tuple[str, str, str]
operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(sorted(ALONE)), paths, _numbers),
        st.tuples(st.sampled_from(sorted(PAIRS)), paths, paths),
    ),
    max_size=14,
)


def perform(root: Path, todo: list[Operation]) -> None:
    """Do it inside a chroot's view: symlinks made here are relative and lead nowhere else."""
    for name, path, other in todo:
        with contextlib.suppress(OSError, shutil.Error):
            if isinstance(other, int):
                ALONE[name](root / path, other)
            else:
                PAIRS[name](root / path, root / other)


_bounded = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@given(todo=operations, more=operations)
@_bounded
def test_mount_commit_mount_gives_the_same_tree(
    tmp_path: Path, layers: list[Path], todo: list[Operation], more: list[Operation]
) -> None:
    """Twice in a row: the second time on what the first made."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        stack = list(layers)
        parts = [(layers[0], marks_of(LOW, folder, "0")), (layers[1], marks_of(HIGH, folder, "1"))]
        for number, operations in enumerate((todo, more)):
            here = Path(folder) / f"round{number}"
            with overlay(stack, here / "one") as root:
                perform(root, operations)
                seen = look(root)
            parts.append((here / "new", unpacked(layer_of(Upper(here / "one/upper")), here / "new")))
            stack.append(here / "new")
            with overlay(stack, here / "two") as root:
                assert {**look(root), "": seen[""]} == seen
            (here / "merged").mkdir()
            merge(parts, here / "merged")
            assert look(here / "merged") == seen  # for drivers that copy, and for guests' disks


@given(todo=operations)
@settings(_bounded, max_examples=25)
def test_what_fuse_overlayfs_wrote_is_the_same_tree_in_the_kernels(
    tmp_path: Path, layers: list[Path], todo: list[Operation]
) -> None:
    if not shutil.which("fuse-overlayfs"):
        pytest.skip("no fuse-overlayfs; remedy: apt-get install -y fuse-overlayfs")
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        here = Path(folder)
        with fuse(layers, here / "one") as root:
            perform(root, todo)
            seen = look(root)
        unpacked(layer_of(Upper(here / "one/upper", fuse=True)), here / "new")
        with overlay([*layers, here / "new"], here / "two") as root:
            assert timeless(look(root)) == timeless(seen)


def timeless(seen: dict[str, Any]) -> dict[str, Any]:
    """Without times: those of a FUSE mount with a write-back cache settle when it is unmounted. The root is apart."""
    states = {path: (*state[:3], *state[4:]) for path, state in seen.items() if path not in ("", "links")}
    return {**states, "links": seen["links"]}


def marks_of(data: bytes, folder: str, name: str) -> LayerMarks:
    return unpacked(data, Path(folder) / "marks" / name)


@given(todo=operations)
@_bounded
def test_the_difference_of_two_trees_makes_one_of_the_other(
    tmp_path: Path, layers: list[Path], todo: list[Operation]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        base, now, made = (Path(folder) / name for name in ("base", "now", "made"))
        parts = [(layers[0], marks_of(LOW, folder, "0")), (layers[1], marks_of(HIGH, folder, "1"))]
        for tree in (base, now):
            tree.mkdir()
            merge(parts, tree)
        perform(now, todo)
        seen = look(now)
        marks = unpacked(layer_of(Difference(base, now)), Path(folder) / "new")
        made.mkdir()
        merge([*parts, (Path(folder) / "new", marks)], made)
        assert look(made) == seen
        with overlay([*layers, Path(folder) / "new"], Path(folder) / "mount") as root:
            assert {**look(root), "": seen[""]} == seen
        assert _same_difference(Difference(base, now), Difference(base, made))


def _same_difference(one: Changes, two: Changes) -> bool:
    return layer_of(one) == layer_of(two)


def test_whiteouts_of_an_upper_folder_are_the_kernels(tmp_path: Path, layers: list[Path]) -> None:
    """What we take for a removal is what this kernel writes for one."""
    with overlay(layers, tmp_path / "one") as root:
        (root / "c").unlink()
        shutil.rmtree(root / "a/c")
        (root / "a/c").mkdir()
    upper = tmp_path / "one/upper"
    assert is_mark((upper / "c").lstat())
    assert os.getxattr(upper / "a/c", "trusted.overlay.opaque") == b"y"
