"""Images out: exports that come back the same, and layers made of what a container changed."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import HostError, ImageError, UsageError
from bench.images import oci
from bench.images.changes import Difference, Upper
from bench.images.export import Form, _tags
from bench.images.layers import LayerMarks, unpack
from bench.images.merge import merge
from bench.images.store import ImageStore, _is_loopback
from bench.images.stream import LayerReader
from bench.images.writer import LayerWriter
from bench.model import Image
from tests.unit.image_tars import OciFiles, config_of, digest, docker_archive, make_tar, member, tar_of

LOW = tar_of({"bin": None, "bin/sh": b"low", "etc/gone": b"x", "etc/stays": b"y", "old": None, "old/a": b"a"})
HIGH = tar_of({"bin/sh": b"high"})
LAYERS = [LOW, HIGH, LOW]  # one of them twice
FORMS: tuple[Form, ...] = ("docker-archive", "oci", "oci-archive")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def imported(store: ImageStore, folder: Path, *, compressed: bool = True) -> Image:
    config = config_of(LAYERS, Cmd=["/bin/sh"], Labels={"kept": "yes"})
    files = OciFiles()
    entry = files.image(LAYERS, compressed=compressed, config=config, annotations={oci.NAME: "web:1"})
    return store.resolve(str(files.index(entry).write_folder(folder / "layout")))


# --- export ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compressed", [True, False])
def test_what_is_exported_comes_back(tmp_path: Path, store: ImageStore, form: Form, compressed: bool) -> None:
    image = imported(store, tmp_path, compressed=compressed)
    store.export(image, tmp_path / "out.tar", form)
    back = ImageStore(tmp_path / "other").resolve(str(tmp_path / "out.tar"))
    assert (back.name, back.layers, back.command, back.size) == ("web:1", image.layers, image.command, image.size)
    if form != "docker-archive":  # its manifest is made anew on import
        assert back.digest == image.digest
    assert sorted(os.listdir(tmp_path)) == ["layout", "other", "out.tar", "store"]  # no scratch


def test_the_same_bytes_each_time(tmp_path: Path, store: ImageStore) -> None:
    image = imported(store, tmp_path)
    for form in FORMS:
        for name in ("one", "two"):
            store.export(image, tmp_path / f"{form}-{name}", form)
    for form in ("docker-archive", "oci-archive"):
        assert (tmp_path / f"{form}-one").read_bytes() == (tmp_path / f"{form}-two").read_bytes()
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / f"oci-{name}").rglob("*") if path.is_file()}
                for name in ("one", "two"))  # fmt: skip
    assert one == two
    assert b"tenancy-bench" not in one["index.json"]  # our own notes stay at home


def test_an_archive_as_docker_reads_it(tmp_path: Path, store: ImageStore) -> None:
    image = imported(store, tmp_path)
    store.export(image, tmp_path / "out.tar", "docker-archive")
    with tarfile.open(tmp_path / "out.tar") as tar:
        (listed,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = tar.extractfile(listed["Config"]).read()  # type: ignore[union-attr]
        layers = [digest(tar.extractfile(name).read()) for name in listed["Layers"]]  # type: ignore[union-attr]
        assert len(tar.getnames()) == 4  # the layer that is in it twice is written once
    assert listed["RepoTags"] == ["web:1"]
    assert listed["Config"] == f"{digest(config).removeprefix('sha256:')}.json"
    assert tuple(layers) == image.layers
    assert json.loads(config)["config"]["Labels"] == {"kept": "yes"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_damage_in_the_store_is_not_exported(tmp_path: Path, store: ImageStore, form: Form, damage: str) -> None:
    image = imported(store, tmp_path)
    path = Path(store.details("web:1").layers[0].digest.replace("sha256:", f"{tmp_path}/store/blobs/sha256/"))
    data = path.read_bytes()
    path.unlink()
    if damage != "lose":
        path.write_bytes(data[:-9] if damage == "cut" else data[:4] + b"\1" + data[5:])
        if damage == "flip" and form == "docker-archive":
            path.write_bytes(data[:-20] + b"\1" + data[-19:])  # it looks into the gzip stream only
    with pytest.raises(ImageError, match=path.name):
        store.export(image, tmp_path / "out", form)
    assert sorted(os.listdir(tmp_path)) == ["layout", "store"]


def test_where_an_export_can_not_go(tmp_path: Path, store: ImageStore) -> None:
    image = imported(store, tmp_path)
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        store.export(image, tmp_path / "there", "oci")
    with pytest.raises(HostError, match="can't be written: No such file"):
        store.export(image, tmp_path / "nowhere/out", "oci")
    assert (tmp_path / "there").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("web", ("web:latest",)),
        ("docker://127.0.0.1:5000/a/web:2", ("127.0.0.1:5000/a/web:2",)),
        ("oci:/srv/layout:default", None),
        ("Web Server", None),
        (None, None),
    ],
)
def test_names_as_docker_takes_them(name: str | None, tags: tuple[str, ...] | None) -> None:
    assert _tags(name) == tags


@pytest.mark.parametrize(
    ("reference", "loopback"),
    [
        ("docker://127.0.0.1:5000/web:1", True),
        ("docker://127.3.2.1/web", True),
        ("docker://[::1]:5000/web", True),
        ("docker://localhost:5000/web", False),
        ("docker://127.0.0.1.example.org/web", False),
        ("docker://10.0.0.1:5000/127.0.0.1", False),
        ("docker://web", False),
        ("docker://[::1/web", False),
        ("oci:127.0.0.1", False),
    ],
)
def test_only_a_loopback_address_may_speak_plain_http(reference: str, loopback: bool) -> None:
    assert _is_loopback(reference) == loopback


# --- commit ----------------------------------------------------------------------------------------------------


def changed_tree(store: ImageStore, image: Image, folder: Path, change: Callable[[Path], None]) -> Difference:
    """`image` as a tree, and a copy of it that `change` changes."""
    base, now = folder / "base", folder / "now"
    for tree in (base, now):
        tree.mkdir()
        merge(store.unpacked(image), tree)
    change(now)
    return Difference(base, now)


def _change(tree: Path) -> None:
    (tree / "etc/gone").unlink()
    (tree / "bin/sh").write_bytes(b"lower")  # of the same length as before
    os.utime(tree / "bin/sh", (0, 0))
    (tree / "etc/new").write_bytes(b"n")
    os.link(tree / "etc/new", tree / "etc/again")


def test_a_commit_is_the_image_with_a_layer_more(tmp_path: Path, store: ImageStore) -> None:
    image = imported(store, tmp_path)
    difference = changed_tree(store, image, tmp_path, _change)
    made = store.commit(image, difference, "web:2")
    assert store.commit(image, difference, "web:2") == made  # whenever it is made
    assert (made.name, made.command, made.layers[:-1]) == ("web:2", image.command, image.layers)
    assert made.size > image.size
    tree = store.tree(made)
    assert sorted(os.listdir(tree / "etc")) == ["again", "new", "stays"]
    assert (tree / "etc/new").stat().st_ino == (tree / "etc/again").stat().st_ino
    store.export(made, tmp_path / "out", "oci")
    assert ImageStore(tmp_path / "other").resolve(str(tmp_path / "out")).layers == made.layers


def test_what_a_commit_does_not_touch_is_not_in_its_layer(tmp_path: Path, store: ImageStore) -> None:
    image = imported(store, tmp_path)
    assert written(changed_tree(store, image, tmp_path, lambda tree: None)) == ["./"]
    _change(tmp_path / "now")
    found = written(Difference(tmp_path / "base", tmp_path / "now"))
    assert found == ["./", "bin/", "bin/sh", "etc/", "etc/again", "etc/.wh.gone", "etc/new"]


def test_content_counts_though_all_else_is_the_same(tmp_path: Path, store: ImageStore) -> None:
    image = imported(store, tmp_path)

    def secretly(tree: Path) -> None:
        status = (tree / "bin/sh").stat()
        (tree / "bin/sh").write_bytes(b"LOW")
        os.utime(tree / "bin/sh", ns=(status.st_atime_ns, status.st_mtime_ns))

    assert written(changed_tree(store, image, tmp_path, secretly)) == ["./", "bin/", "bin/sh"]


def test_which_names_are_one_file_counts(tmp_path: Path) -> None:
    base, now = tmp_path / "base", tmp_path / "now"
    for tree, pairs in ((base, ("ab", "cd")), (now, ("ac", "bd"))):
        tree.mkdir()
        for one, two in pairs:
            (tree / one).write_bytes(b"")
            os.utime(tree / one, (0, 0))
            os.link(tree / one, tree / two)
    assert written(Difference(base, now)) == ["./", "a", "b", "c", "d"]
    (now / "a").unlink()
    (now / "b").unlink()
    os.link(base / "a", now / "a")
    os.link(now / "a", now / "b")
    assert written(Difference(base, now)) == ["./", "c", "d"]


def written(difference: Difference | Upper, **limits: int) -> list[str]:
    buffer = io.BytesIO()
    layer = LayerWriter(buffer, **limits)
    difference.write(layer)
    layer.finish()
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        return [info.name + ("/" if info.isdir() else "") for info in tar]


def test_a_commit_keeps_fields_it_knows_nothing_of(tmp_path: Path, store: ImageStore) -> None:
    config = json.loads(config_of([LOW], User="7"))
    config |= {"created": "2020-01-01T00:00:00Z", "history": [{"created_by": "a"}], "variant": "v2"}
    (tmp_path / "old.tar").write_bytes(docker_archive([LOW], config=json.dumps(config).encode()))
    image = store.resolve(str(tmp_path / "old.tar"))
    made = store.commit(image, changed_tree(store, image, tmp_path, _change), "new:1")
    store.export(made, tmp_path / "out.tar", "docker-archive")
    with tarfile.open(tmp_path / "out.tar") as tar:
        (listed,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        found = json.load(tar.extractfile(listed["Config"]))  # type: ignore[arg-type]
    assert found["config"] == {"User": "7"}
    assert (found["variant"], len(found["history"]), "created" in found) == ("v2", 2, False)


@pytest.mark.parametrize("name", ["default", "", "docker://web", "./web", "/web", "web.tar", "abcd", "oci:x"])
def test_names_that_mean_something_else(tmp_path: Path, store: ImageStore, name: str) -> None:
    image = imported(store, tmp_path)
    with pytest.raises(UsageError, match="can't be called"):
        store.commit(image, Upper(tmp_path), name)


def test_an_image_that_is_gone(tmp_path: Path, store: ImageStore) -> None:
    image = imported(store, tmp_path)
    with pytest.raises(ImageError, match="not in the store"):
        ImageStore(tmp_path / "other").commit(image, Upper(tmp_path), "web:2")


# --- what no layer can hold ------------------------------------------------------------------------------------


def test_names_and_sizes_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.wh.b").write_bytes(b"")
    with pytest.raises(ImageError, match=r"'a/\.wh\.b': in an image"):
        written(Upper(tmp_path))
    (tmp_path / "a/.wh.b").rename(tmp_path / "a/large")
    os.truncate(tmp_path / "a/large", 1 << 40)
    buffer = io.BytesIO()
    with pytest.raises(ImageError, match="more than 1048576 bytes in one layer"):
        Upper(tmp_path).write(LayerWriter(buffer, 1 << 20))
    assert buffer.tell() < 4096  # not a disk full later
    os.truncate(tmp_path / "a/large", 0)
    with pytest.raises(ImageError, match="more than 2 files"):
        written(Upper(tmp_path), max_entries=2)
    assert written(Upper(tmp_path), max_entries=3) == ["./", "a/", "a/large"]
    os.setxattr(tmp_path / "a/large", "user.a=b", b"")
    with pytest.raises(ImageError, match=r"attribute 'user\.a=b'"):
        written(Upper(tmp_path))


def test_folders_deeper_than_we_unpack(tmp_path: Path) -> None:
    tree, base = tmp_path / "tree", tmp_path / "base"
    (tree / "d/" / ("d/" * 198)).mkdir(parents=True)
    base.mkdir()
    assert len(written(Upper(tree))) == 200
    (tree / ("d/" * 200)).mkdir()
    (tree / ("d/" * 201)).mkdir()
    for changes in (Upper(tree), Difference(base, tree)):
        with pytest.raises(ImageError, match="folders deep"):
            written(changes)


def test_a_socket_is_left_out_and_what_it_hides_stays_hidden(tmp_path: Path) -> None:
    base, now = tmp_path / "base", tmp_path / "now"
    for tree in (base, now):
        tree.mkdir()
        os.utime(tree, (0, 0))
    (base / "s").write_bytes(b"")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(now / "s"))
        assert written(Upper(now)) == ["./", ".wh.s"]
        assert written(Difference(base, now)) == ["./", ".wh.s"]
        (base / "s").unlink()
        os.utime(base, (0, 0))
        os.utime(now, (0, 0))
        assert written(Difference(base, now)) == ["./"]


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 9)

    class Shrinking(io.BytesIO):
        def write(self, data: object) -> int:
            os.truncate(tmp_path / "f", 3 if self.tell() else 9)  # once its header, after the folder's, is written
            return super().write(data)  # type: ignore[arg-type]

    with pytest.raises(ImageError, match="changed while it was read"):
        Upper(tmp_path).write(LayerWriter(Shrinking()))


def test_a_symlink_in_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    """A container may put one there between our look at a name and our opening it."""
    secret, upper = tmp_path / "secret", tmp_path / "upper"
    secret.mkdir()
    (secret / "key").write_bytes(b"mine")
    (upper / "d").mkdir(parents=True)
    lstat = os.lstat

    def swapping(name: str, *, dir_fd: int) -> os.stat_result:
        status = lstat(name, dir_fd=dir_fd)
        if not (upper / "d").is_symlink():
            os.rmdir(upper / "d")
            os.symlink(secret, upper / "d")
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "lstat", swapping)
        with pytest.raises(ImageError, match="changed while"):
            written(Upper(upper))


# --- what unpacking gives back ---------------------------------------------------------------------------------


def test_times_are_kept_to_the_nanosecond(tmp_path: Path) -> None:
    source, tree = tmp_path / "source", tmp_path / "tree"
    source.mkdir()
    tree.mkdir()
    moments = (1_700_000_000_123_456_789, -1, -1_500_000_001, 0, 1_000_000_000)
    for number, moment in enumerate(moments):
        (source / str(number)).write_bytes(b"")
        os.utime(source / str(number), ns=(0, moment))
    buffer = io.BytesIO()
    layer = LayerWriter(buffer)
    Upper(source).write(layer)
    layer.finish()
    buffer.seek(0)
    assert unpack(LayerReader(buffer, "layer"), tree, privileged=False) == LayerMarks()
    assert tuple((tree / str(number)).stat().st_mtime_ns for number in range(len(moments))) == moments


@pytest.mark.parametrize("said", ["nan", "inf", "1e400", "1e9", "--1", "9" * 400, "1." + "9" * 40])
def test_times_that_are_none(tmp_path: Path, said: str) -> None:
    data = make_tar([(member("f", pax_headers={"mtime": said}), b"")])
    (tmp_path / "tree").mkdir()
    try:
        unpack(LayerReader(io.BytesIO(data), "layer"), tmp_path / "tree", privileged=False)
    except ImageError:
        assert said not in ("1e9", "--1")


def test_a_sparse_file_is_counted_with_its_holes(tmp_path: Path) -> None:
    header = bytearray(member("hole", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (1 << 32)  # its real size: none of it is in the tar
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    (tmp_path / "tree").mkdir()
    with pytest.raises(ImageError, match="more bytes than allowed"):
        unpack(
            LayerReader(io.BytesIO(header + bytes(1024)), "l"), tmp_path / "tree", privileged=False, max_bytes=1 << 20
        )
    assert not list((tmp_path / "tree").iterdir())


def test_folders_replaced_again_and_again(tmp_path: Path) -> None:
    entries = [(member("a", kind), b"") for _ in range(101) for kind in (tarfile.DIRTYPE, tarfile.REGTYPE)]
    (tmp_path / "tree").mkdir()
    with pytest.raises(ImageError, match="replaced by later entries"):
        unpack(LayerReader(io.BytesIO(make_tar(entries)), "layer"), tmp_path / "tree", privileged=False)
