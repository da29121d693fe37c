"""Unpacking and merging layers: what is in the tree, what never gets out of it, and what is refused."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError, ImageError
from bench.images.layers import LayerMarks, unpack
from bench.images.merge import merge
from bench.images.stream import LayerReader
from tests.unit import in_memory
from tests.unit.image_tars import make_tar, member, tar_of


def unpacked(data: bytes, tree: Path, **options: Any) -> LayerMarks:
    tree.mkdir(exist_ok=True)
    return unpack(LayerReader(io.BytesIO(data), "layer"), tree, privileged=False, **options)


# --- against a model -------------------------------------------------------------------------------------------

Node = bytes | dict[str, Any] | None  # a file, a folder (its own ".opaque" may be set), or a whiteout

names = st.sampled_from(["a", "b", "c"])
leaves = st.one_of(st.binary(max_size=3), st.none())
nodes = st.recursive(
    leaves,
    lambda inner: st.dictionaries(names, inner, max_size=3).flatmap(
        lambda folder: st.booleans().map(lambda opaque: {**folder, ".opaque": opaque})
    ),
    max_leaves=8,
)
layers = st.dictionaries(names, nodes, max_size=3)


def entries_of(folder: dict[str, Any], prefix: str = "") -> list[tuple[tarfile.TarInfo, bytes]]:
    found: list[tuple[tarfile.TarInfo, bytes]] = []
    for name, node in folder.items():
        if name == ".opaque":
            found += [(member(f"{prefix}.wh..wh..opq"), b"")] if node else []
        elif node is None:
            found.append((member(f"{prefix}.wh.{name}"), b""))
        elif isinstance(node, bytes):
            found.append((member(prefix + name), node))
        else:
            found.append((member(f"{prefix}{name}", tarfile.DIRTYPE), b""))
            found += entries_of(node, f"{prefix}{name}/")
    return found


def applied(lower: Node, upper: Node) -> Node:
    """What the image specification says of `upper` over `lower`."""
    if not isinstance(upper, dict):
        return upper
    below = lower if isinstance(lower, dict) and not upper.get(".opaque") else {}
    result = {name: node for name, node in below.items() if name != ".opaque"}
    for name, node in upper.items():
        if name != ".opaque":
            result[name] = applied(below.get(name), node)
    return {name: node for name, node in result.items() if node is not None}


def tree_of(folder: Path) -> dict[str, Any]:
    return {path.name: tree_of(path) if path.is_dir() else path.read_bytes() for path in folder.iterdir()}


@given(st.lists(layers, min_size=1, max_size=3), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_layers_merge_as_the_specification_says(stack: list[dict[str, Any]], random: Any) -> None:
    with in_memory.folder() as root:
        expected, parts = {}, []
        for number, layer in enumerate(stack):
            entries = entries_of(layer)
            random.shuffle(entries)  # the order in a layer has no meaning
            tree = root / str(number)
            parts.append((tree, unpacked(make_tar(entries), tree)))
            expected = applied(expected, layer)
        merged = root / "merged"
        merged.mkdir()
        merge(parts, merged)
        assert tree_of(merged) == expected


# --- hostile -----------------------------------------------------------------------------------------------------

_SAMPLE = make_tar(
    [
        (member("d", tarfile.DIRTYPE), b""),
        (member("d/f", pax_headers={"SCHILY.xattr.user.x": "1", "comment": "x" * 200}), b"content" * 100),
        (member("l", tarfile.SYMTYPE, linkname="/d"), b""),
        (member("l/" + "n" * 150), b"x"),
        (member("h", tarfile.LNKTYPE, linkname="d/f"), b""),
        (member("p", tarfile.FIFOTYPE), b""),
        (member(".wh.gone"), b""),
    ]
)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_tar_is_unpacked_inside_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(_SAMPLE)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    with in_memory.folder() as folder:
        with contextlib.suppress(BenchError):
            unpacked(bytes(damaged[:cut]), Path(folder) / "tree")
        assert os.listdir(folder) == ["tree"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/../evil", ".."])
def test_a_path_out_of_the_layer_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="leads out of the layer"):
        unpacked(tar_of({name: b"x"}), tmp_path / "tree")
    assert os.listdir(tmp_path) == ["tree"]


def test_an_absolute_path_is_meant_inside(tmp_path: Path) -> None:
    unpacked(tar_of({f"{tmp_path}/f": b"x"}), tmp_path / "tree")
    assert (tmp_path / "tree" / str(tmp_path)[1:] / "f").read_bytes() == b"x"


@pytest.mark.parametrize("target", ["ABSOLUTE", "../outside", "../../../../outside"])
def test_a_symlinked_parent_leads_inside_only(tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = target.replace("ABSOLUTE", str(outside))
    unpacked(tar_of({"link": target, "link/f": b"x", "link/.wh..wh..opq": b""}), tmp_path / "tree")
    assert os.listdir(outside) == []
    assert len(list((tmp_path / "tree").rglob("f"))) == 1


def test_a_file_replaces_a_symlink_and_is_not_written_through_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    entries = [(member("f", tarfile.SYMTYPE, linkname=str(secret)), b""), (member("f"), b"new")]
    unpacked(make_tar(entries), tmp_path / "tree")
    assert secret.read_bytes() == b"mine"
    assert (tmp_path / "tree/f").read_bytes() == b"new"


def test_metadata_of_a_symlink_stays_its_own(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"")
    before = secret.stat()
    xattr = {"SCHILY.xattr.user.x": "1"}
    entry = member("f", tarfile.SYMTYPE, linkname=str(secret), mode=0o4777, mtime=1, pax_headers=xattr)
    unpacked(make_tar([(entry, b"")]), tmp_path / "tree")
    after = secret.stat()
    assert (after.st_mode, after.st_mtime_ns, os.listxattr(secret)) == (before.st_mode, before.st_mtime_ns, [])


@pytest.mark.parametrize("target", ["SECRET", "link/secret", "nothing", "folder", "../secret", ""])
def test_a_hard_link_to_what_is_no_file_of_the_layer_is_refused(tmp_path: Path, target: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    entries = [
        (member("folder", tarfile.DIRTYPE), b""),
        (member("link", tarfile.SYMTYPE, linkname=str(tmp_path)), b""),
        (member("h", tarfile.LNKTYPE, linkname=target.replace("SECRET", str(secret))), b""),
    ]
    with pytest.raises(ImageError):
        unpacked(make_tar(entries), tmp_path / "tree")
    assert secret.stat().st_nlink == 1


def test_a_hard_link_to_a_symlink_links_the_symlink(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    symlink = member("s", tarfile.SYMTYPE, linkname=str(secret))
    entries = [(symlink, b""), (member("h", tarfile.LNKTYPE, linkname="s"), b"")]
    unpacked(make_tar(entries), tmp_path / "tree")
    assert (tmp_path / "tree/h").is_symlink()
    assert secret.stat().st_nlink == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "b", "b": "a", "a/f": b""}, "too many symlinks"),
        ({"f": b"", "f/g": b""}, "not a folder"),
        ({".wh.": b""}, "whiteout of nothing"),
        ({".wh...": b""}, "whiteout of nothing"),
        ({".wh.a/f": b""}, "inside a whiteout"),
        ({"d/" * 201 + "f": b""}, "folders deep"),
        ({"n" * 256: b""}, "File name too long"),
        ({".": b""}, "root folder"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, files: dict[str, bytes | str], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        unpacked(tar_of(files), tmp_path / "tree")


def test_depth_can_not_be_hidden_in_symlinks(tmp_path: Path) -> None:
    deep = "d/" * 150
    with pytest.raises(ImageError, match="folders deep"):
        unpacked(tar_of({f"{deep}f": b"", "s": deep, f"s/{deep}f": b""}), tmp_path / "tree")


def test_bombs_are_refused(tmp_path: Path) -> None:
    many = tar_of({str(number): b"" for number in range(11)})
    with pytest.raises(ImageError, match="more than 10 files"):
        unpacked(many, tmp_path / "many", max_entries=10)
    (tmp_path / "large").mkdir()
    reader = LayerReader(io.BytesIO(tar_of({"f": bytes(1 << 17)})), "layer", 1 << 16)
    with pytest.raises(ImageError, match="more than 65536 bytes"):
        unpack(reader, tmp_path / "large", privileged=False)
    header = member("x", tarfile.XHDTYPE, size=1 << 40).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(ImageError, match="asks for"):
        unpacked(header + bytes(4096), tmp_path / "header")
    longs = member("x", tarfile.GNUTYPE_LONGNAME, size=1).tobuf(tarfile.GNU_FORMAT) + b"x" + bytes(511)
    with pytest.raises(ImageError, match="not a valid tar"):
        unpacked(longs * 3000 + bytes(1024), tmp_path / "recursion")


def test_what_follows_an_unreadable_header_is_not_dropped_silently(tmp_path: Path) -> None:
    good = tar_of({"a": b"1", "b": b"2"})
    broken = good[:1024] + b"\xff" * 512 + good[1536:]
    with pytest.raises(ImageError, match="unreadable header"):
        unpacked(broken, tmp_path / "tree")


@pytest.mark.parametrize("cut", [100, 512, 700, 1024 + 100])
def test_a_cut_tar_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(ImageError):
        unpacked(tar_of({"a": b"1" * 300, "b": b"2" * 600})[:cut], tmp_path / "tree")


# --- what is kept ------------------------------------------------------------------------------------------------


def test_mode_time_links_and_xattrs_are_kept(tmp_path: Path) -> None:
    entries = [
        (member("d", tarfile.DIRTYPE, mode=0o1777, mtime=5), b""),
        (member("d/suid", mode=0o4755, mtime=7, pax_headers={"SCHILY.xattr.user.note": "yes"}), b"#!"),
        (member("d/again", tarfile.LNKTYPE, linkname="./d/suid"), b""),
        (member("d/pipe", tarfile.FIFOTYPE, mode=0o600), b""),
    ]
    tree, merged = tmp_path / "tree", tmp_path / "merged"
    marks = unpacked(make_tar(entries), tree)
    merged.mkdir()
    merge([(tree, marks)], merged)
    for root in (tree, merged):
        suid = (root / "d/suid").stat()
        assert (stat.S_IMODE(suid.st_mode), suid.st_mtime, suid.st_nlink) == (0o4755, 7, 2)
        assert ((root / "d").stat().st_mode & 0o7777, (root / "d").stat().st_mtime) == (0o1777, 5)
        assert stat.S_ISFIFO((root / "d/pipe").stat().st_mode)
        assert os.getxattr(root / "d/suid", "user.note") == b"yes"
    assert (merged / "d/suid").stat().st_ino != (tree / "d/suid").stat().st_ino


def test_xattrs_that_steer_overlayfs_are_dropped(tmp_path: Path) -> None:
    steering = {"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.overlay.opaque": "y"}
    unpacked(make_tar([(member("f", pax_headers=steering), b"")]), tmp_path / "tree")
    assert os.listxattr(tmp_path / "tree/f") == []


def test_devices_without_root(tmp_path: Path) -> None:
    null = member("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3)
    assert unpacked(make_tar([(null, b"")]), tmp_path / "a").skipped == (b"dev/null",)
    with pytest.raises(ImageError, match="only root"):
        unpacked(make_tar([(member("disk", tarfile.BLKTYPE, devmajor=8), b"")]), tmp_path / "b")
    with pytest.raises(ImageError, match="whiteout"):
        unpacked(make_tar([(member("dev/x", tarfile.CHRTYPE), b"")]), tmp_path / "c")


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    data = make_tar([(member(name), b"x"), (member(f".wh.{name}2"), b"")], format=tarfile.GNU_FORMAT)
    raw = data.replace(name.encode("utf-8", "surrogateescape"), b"caf\xe9")
    marks = unpacked(raw, tmp_path / "tree")
    assert os.listdir(os.fsencode(tmp_path / "tree")) == [b"caf\xe9"]
    assert marks.whiteouts == (b"caf\xe92",)


def test_a_whiteout_and_a_new_folder_of_the_same_name(tmp_path: Path) -> None:
    for number, order in enumerate((("a", ".wh.a"), (".wh.a", "a"))):
        kinds = {"a": tarfile.DIRTYPE, ".wh.a": tarfile.REGTYPE}
        entries = [(member(name, kinds[name]), b"") for name in order]
        marks = unpacked(make_tar(entries), tmp_path / str(number))
        assert (marks.whiteouts, marks.opaque) == ((), (b"a",))


def test_a_folder_in_place_of_a_file_hides_what_is_below(tmp_path: Path) -> None:
    entries = [(member("a"), b"file"), (member("a", tarfile.DIRTYPE), b"")]
    assert unpacked(make_tar(entries), tmp_path / "tree").opaque == (b"a",)


def test_an_absolute_symlink_starts_at_the_root_of_the_tree(tmp_path: Path) -> None:
    unpacked(tar_of({"x": None, "d/x": None, "d/link": "/x", "d/link/f": b""}), tmp_path / "tree")
    assert os.listdir(tmp_path / "tree/x") == ["f"]


def test_a_replaced_folder_takes_its_marks_along(tmp_path: Path) -> None:
    files = {"a/x": b"", "a/.wh.y": b"", "a/b/.wh..wh..opq": b""}
    data = make_tar([(member(name), what) for name, what in files.items()] + [(member("a"), b"file")])
    assert unpacked(data, tmp_path / "tree") == LayerMarks()


def test_merging_never_follows_a_symlink_of_a_lower_layer(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_bytes(b"")
    low, high, merged = tmp_path / "low", tmp_path / "high", tmp_path / "merged"
    below = unpacked(tar_of({"d": str(outside)}), low)
    above = unpacked(tar_of({"d/f": b"x", "d/.wh.keep": b""}), high)
    merged.mkdir()
    merge([(low, below), (high, above)], merged)
    assert os.listdir(outside) == ["keep"]
    assert (merged / "d/f").read_bytes() == b"x"
    assert not (merged / "d").is_symlink()
