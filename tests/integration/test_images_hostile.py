"""Hostile layers unpacked for real, as root: owners, devices and set-id bits are set, and nothing gets out.

What root makes that would be dangerous elsewhere (set-id programs, device nodes) is kept, as every engine does, because
images need it: it lies in a store's `trees`, which only root may enter, and in a container's root it has the
container's limits. Overlay's own marks can't be smuggled in.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import process
from bench.errors import BenchError, ImageError
from bench.images import stream
from bench.images.layers import LayerMarks, is_mark, unpack
from bench.images.store import ImageStore
from bench.images.stream import LayerReader
from bench.model import MIB
from tests.integration.image_trees import look, overlay
from tests.unit.image_tars import OciFiles, docker_archive, make_tar, member, tar_of

pytestmark = pytest.mark.root


class Field:
    """A folder with a canary on every side of the tree that is unpacked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "in/tree"
        for name in ("secret", "in/beside", "etc/shadow"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"mine")
        self.tree.mkdir()
        self._before = self._outside()

    def unpack(self, data: bytes, **limits: int) -> LayerMarks:
        return unpack(LayerReader(io.BytesIO(data), "layer"), self.tree, privileged=True, **limits)

    def check(self) -> None:
        """No file outside was made, removed, written or described anew, and none has a new name."""
        assert self._outside() == self._before

    def _outside(self) -> dict[str, Any]:
        found = {}
        for where, folders, files in os.walk(self.folder):
            if Path(where) == self.tree.parent and "tree" in folders:
                folders.remove("tree")
            for name in (*folders, *files):
                path = Path(where) / name
                status = path.lstat()
                content = path.read_bytes() if path.is_file() else b""
                found[str(path)] = (status.st_mode, status.st_uid, status.st_nlink, content, os.listxattr(path))
        return found


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Field]:
    made = Field(tmp_path / "field")
    yield made
    made.check()


# --- ways out --------------------------------------------------------------------------------------------------

SPECIAL: dict[str, Any] = {"mode": 0o4777, "uid": 99, "gid": 99}
EVIL = {**SPECIAL, "pax_headers": {"SCHILY.xattr.user.evil": "1"}}  # no fifo or device can have such an attribute


@pytest.mark.parametrize(
    "name", ["../beside", "x/../../beside", "/../secret", "../tree/../beside", "..", "../../secret"]
)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_dots_lead_nowhere(field: Field, name: str, kind: bytes) -> None:
    with pytest.raises(ImageError, match="leads out of the layer"):
        field.unpack(make_tar([(member(name, kind, linkname="x", devmajor=1, devminor=3, **EVIL), b"")]))
    assert os.listdir(field.tree) == []


@pytest.mark.parametrize("target", ["FOLDER", "..", "../..", "/..", "FOLDER/in", "../../../../../../../../FOLDER"])
def test_what_goes_through_a_symlink_stays_inside(field: Field, target: str) -> None:
    link = member("link", tarfile.SYMTYPE, linkname=target.replace("FOLDER", str(field.folder)))
    through = [
        (member("link/secret", **EVIL), b"evil"),
        (member("link/beside", tarfile.LNKTYPE, linkname="link/secret", **EVIL), b""),
        (member("link/etc", tarfile.DIRTYPE, **EVIL), b""),
        (member("link/etc/shadow", tarfile.CHRTYPE, devmajor=1, devminor=3, **SPECIAL), b""),
        (member("link/.wh.in"), b""),
        (member("link/etc/.wh..wh..opq"), b""),
    ]
    field.unpack(make_tar([(link, b""), *through]))
    assert len(list(field.tree.rglob("shadow"))) == 1


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE])
def test_the_name_of_a_symlink_is_replaced_not_followed(field: Field, kind: bytes) -> None:
    what = SPECIAL if kind == tarfile.FIFOTYPE else EVIL
    for target in (field.folder / "secret", field.folder / "etc"):
        link = (member("f", tarfile.SYMTYPE, linkname=str(target), **EVIL), b"")
        field.unpack(make_tar([(member("other"), b"x"), link, (member("f", kind, linkname="other", **what), b"evil")]))
        assert not (field.tree / "f").is_symlink()


@pytest.mark.parametrize("target", ["FOLDER/secret", "../../secret", "link/secret", "link", "/etc/passwd", "dev"])
def test_a_hard_link_is_to_a_file_of_the_layer_only(field: Field, target: str) -> None:
    entries = [
        (member("dev", tarfile.DIRTYPE), b""),
        (member("link", tarfile.SYMTYPE, linkname=str(field.folder)), b""),
        (member("h", tarfile.LNKTYPE, linkname=target.replace("FOLDER", str(field.folder)), **EVIL), b""),
        (member("h", **EVIL), b"evil"),  # written through the link, if there were one
    ]
    with contextlib.suppress(ImageError):
        field.unpack(make_tar(entries))
    assert (field.folder / "secret").stat().st_nlink == 1


def test_the_times_and_owners_of_folders_are_set_on_folders(field: Field) -> None:
    """They are set last: a folder must not have become a symlink by then."""
    entries = [
        (member("d", tarfile.DIRTYPE, **EVIL), b""),
        (member("d", tarfile.SYMTYPE, linkname=str(field.folder)), b""),
        (member("e", tarfile.DIRTYPE, **EVIL), b""),
        (member("e/d", tarfile.DIRTYPE, **EVIL), b""),
        (member("e", tarfile.SYMTYPE, linkname=str(field.folder / "in")), b""),
    ]
    field.unpack(make_tar(entries))
    assert (field.tree / "d").is_symlink()
    assert (field.tree / "e").is_symlink()


def test_an_upper_layer_does_not_write_through_a_lower_ones_symlink(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    low = tar_of({"d": str(tmp_path / "outside"), "f": "/etc/hostname"})
    high = tar_of({"d/evil": b"x", "f": b"new"})
    (tmp_path / "image.tar").write_bytes(docker_archive([low, high], tags=["evil:1"]))
    store = ImageStore(tmp_path / "store")
    image = store.resolve(str(tmp_path / "image.tar"))
    assert (store.tree(image) / "d/evil").read_bytes() == b"x"
    with overlay(store.layer_trees(image), tmp_path / "own") as root:
        assert (root / "d/evil").read_bytes() == b"x"
        assert not (root / "f").is_symlink()
    assert os.listdir(tmp_path / "outside") == []


# --- what is kept, and where it lies ---------------------------------------------------------------------------


def test_set_id_and_devices_are_kept_where_nobody_else_gets(tmp_path: Path) -> None:
    entries = [
        (member("suid", mode=0o6755, uid=0), b"#!/bin/sh\n"),
        (member("disk", tarfile.BLKTYPE, mode=0o666, devmajor=8, devminor=0), b""),
        (member("mem", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=1), b""),
    ]
    (tmp_path / "image.tar").write_bytes(docker_archive([make_tar(entries)], tags=["evil:1"]))
    store = ImageStore(tmp_path / "store")
    image = store.resolve(str(tmp_path / "image.tar"))
    for tree in (store.layer_trees(image)[0], store.tree(image)):
        assert stat.S_IMODE((tree / "suid").stat().st_mode) == 0o6755
        assert (tree / "disk").stat().st_rdev == os.makedev(8, 0)
        for name in ("suid", "disk", "mem"):
            argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "stat", tree / name]
            said = process.run(argv, timeout=10, check=False)
            assert said.status, f"{name} can be reached by anybody"
            assert "Permission denied" in said.stderr
        assert (tree.parent.parent if tree.name == "tree" else tree.parent).parent.stat().st_mode & 0o077 == 0


def test_overlays_marks_can_not_be_smuggled_in(field: Field) -> None:
    steering = {
        f"SCHILY.xattr.{name}": "y"
        for name in ("trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy",
                     "user.overlay.opaque", "user.fuseoverlayfs.opaque", "security.selinux", "system.posix_acl_access")
    }  # fmt: skip
    field.unpack(
        make_tar([(member("d", tarfile.DIRTYPE, pax_headers=steering), b""), (member("f", pax_headers=steering), b"")])
    )
    assert os.listxattr(field.tree / "d") == os.listxattr(field.tree / "f") == []
    with pytest.raises(ImageError, match="whiteout"):
        field.unpack(make_tar([(member("w", tarfile.CHRTYPE), b"")]))


# --- bombs -----------------------------------------------------------------------------------------------------


def gzip_bomb(size: int) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        file.write(member("zeros", size=size).tobuf())
        for _ in range(size // MIB):
            file.write(bytes(MIB))
        file.write(bytes(1024))
    return buffer.getvalue()


def test_a_gzip_bomb_ends_at_the_limit(tmp_path: Path) -> None:
    bomb = gzip_bomb(64 * MIB)
    assert len(bomb) < MIB // 8
    blob = tmp_path / "blob"
    blob.write_bytes(bomb)
    (tmp_path / "tree").mkdir()
    with blob.open("rb") as raw, gzip.GzipFile(fileobj=raw) as unzipped:
        reader = LayerReader(unzipped, "bomb", 4 * MIB)  # type: ignore[arg-type]
        with pytest.raises(ImageError, match=f"more than {4 * MIB} bytes"):
            unpack(reader, tmp_path / "tree", privileged=True)
    assert sum(path.stat().st_size for path in (tmp_path / "tree").iterdir()) <= 4 * MIB


def test_a_bomb_is_refused_on_import_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(raw: Any, label: str) -> LayerReader:
        return LayerReader(raw, label, 4 * MIB)

    monkeypatch.setattr(stream, "LayerReader", limited)
    files = OciFiles()
    bomb = gzip_bomb(64 * MIB)
    layer = gzip.decompress(bomb)
    entry = files.image([layer], compressed=True)
    store = ImageStore(tmp_path / "store")
    with pytest.raises(ImageError, match="bytes, refused"):
        store.resolve(str(files.index(entry).write_folder(tmp_path / "layout")))
    assert store.images() == []


@pytest.mark.parametrize("size", [1 << 33, 1 << 42, (1 << 63) - 1])
def test_a_sparse_bomb_writes_nothing(field: Field, size: int) -> None:
    """Sparse files in the three forms GNU tar has: their holes are in no tar, so no reader sees them go by."""
    old = bytearray(member("hole", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    old[483:495] = b"\x80" + size.to_bytes(11, "big")
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + sum(old[156:]) + 8 * 32)
    new = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)}
    forms = [
        bytes(old) + bytes(1024),
        make_tar([(member("h", pax_headers={"GNU.sparse.size": str(size), "GNU.sparse.map": f"{size},0"}), b"")]),
        make_tar([(member("h", pax_headers=new), f"1\n{size}\n0\n".encode().ljust(512, b"\0"))]),
    ]
    for data in forms:
        with pytest.raises(ImageError, match="more bytes than allowed"):
            field.unpack(data, max_bytes=MIB)
    assert os.listdir(field.tree) == []


def test_a_sparse_file_within_the_limit_is_whole(field: Field) -> None:
    data = make_tar(
        [(member("h", pax_headers={"GNU.sparse.size": "3000", "GNU.sparse.map": "1000,3,2000,2"}), b"abcde")]
    )
    field.unpack(data, max_bytes=4000)
    assert (field.tree / "h").read_bytes() == bytes(1000) + b"abc" + bytes(997) + b"de" + bytes(998)


_MANY = """
import io, resource, sys, tarfile
from pathlib import Path
from bench.images.layers import unpack
from bench.images.stream import LayerReader

class Many(io.RawIOBase):
    "A tar of a given number of entries, never whole in memory."
    def __init__(self, count, kind):
        self.left, self.count, self.kind, self.buffer = count, count, kind, b""
    def read(self, size=-1):
        while len(self.buffer) < size and self.left:
            self.left -= 1
            info = tarfile.TarInfo(f"{self.left % 100}/{self.left}")
            info.type, info.size = self.kind, 1 if self.kind == tarfile.REGTYPE else 0
            self.buffer += info.tobuf() + (b"x" + bytes(511) if info.size else b"")
            if not self.left:
                self.buffer += bytes(1024)
        piece, self.buffer = self.buffer[:size], self.buffer[size:]
        return piece

count, kind, tree = int(sys.argv[1]), sys.argv[2].encode(), Path(sys.argv[3])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unpack(LayerReader(Many(count, kind), "many"), tree, privileged=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_a_hundred_thousand_tiny_entries(tmp_path: Path, kind: bytes) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    argv = [sys.executable, "-c", _MANY, "100000", kind.decode(), tree]
    grown = int(process.run(argv, timeout=120).stdout) * 1024
    assert len(list(tree.glob("*/*"))) == 100_000
    assert grown < 100 * MIB


# --- fuzz ------------------------------------------------------------------------------------------------------

_PARTS = ("a", "b", "link", "..", ".", "", ".wh.a", ".wh..wh..opq", ".wh.", "secret", "n" * 90)
_names = st.lists(st.sampled_from(_PARTS), min_size=1, max_size=4).map("/".join)
_kinds = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"Z"]
)
_values = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from([0, 0o777, 0o6755, 0o7777, 0o2000000]),
        "uid": st.sampled_from([0, 99, 2**31, 2**40, -1]),
        "mtime": st.sampled_from([0, -1, 2**40, 1.5]),
        "devmajor": st.sampled_from([0, 1, 2**20]),
        "devminor": st.sampled_from([0, 3, 2**20]),
        "linkname": st.one_of(_names, st.sampled_from(["/", "/etc", "FOLDER", "FOLDER/in", "../../secret"])),
        "pax_headers": st.sampled_from(
            [
                {"SCHILY.xattr.user.x": "1"},
                {"SCHILY.xattr.": "1"},
                {"mtime": "x"},
                {"path": "../beside"},
                {"size": "99"},
            ]
        ),
    },
)
_entries = st.lists(st.tuples(_names, _kinds, _values), max_size=8)


@given(entries=_entries, damage=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3))
@settings(max_examples=300, deadline=None)
def test_any_tar_is_unpacked_inside_or_refused(
    entries: list[tuple[str, bytes, dict[str, Any]]], damage: list[tuple[int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        field = Field(Path(folder) / "field")
        infos = []
        for name, kind, values in entries:
            link = str(values.get("linkname", "")).replace("FOLDER", str(field.folder))
            infos.append((member(name, kind, **{**values, "linkname": link}), b"evil"))
        data = bytearray(make_tar(infos))
        for place, byte in damage:
            data[place % len(data)] = byte
        with contextlib.suppress(BenchError):
            marks = field.unpack(bytes(data), max_bytes=MIB)
            check_tree(field.tree, marks)
        field.check()


def check_tree(tree: Path, marks: LayerMarks) -> None:
    """What was accepted is what it says: its marks are in it, no others, and overlayfs takes it."""
    found = {path for path, state in look(tree).items() if path not in ("", "links") and is_mark((tree / path).lstat())}
    assert found <= {os.fsdecode(path) for path in marks.whiteouts}
    for path in marks.opaque:
        assert os.getxattr(tree / os.fsdecode(path), "trusted.overlay.opaque") == b"y"
    assert not any(part.startswith(".wh.") for path in tree.rglob("*") for part in path.relative_to(tree).parts)
