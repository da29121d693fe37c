"""Importing images in every form, the ways they can be broken, and the store on disk."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench import process
from bench.config.scenario import BUILTIN_PAYLOADS
from bench.errors import BenchError, HostError, ImageError
from bench.images import build, oci, tools
from bench.images.layout import Layout
from bench.images.store import ImageStore
from tests.unit.image_tars import OciFiles, blob_name, config_of, descriptor, digest, docker_archive, dump, tar_of

LOW = tar_of({"bin": None, "bin/sh": b"low", "etc/gone": b"x"})
HIGH = tar_of({"bin/sh": b"high", "etc/.wh.gone": b""})
LAYERS = [LOW, HIGH]
DIFF_IDS = (digest(LOW), digest(HIGH))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def simple(*, compressed: bool = False, **more: object) -> OciFiles:
    files = OciFiles()
    return files.index(files.image(LAYERS, compressed=compressed, **more))  # type: ignore[arg-type]


# --- good images -------------------------------------------------------------------------------------------------


def as_docker(folder: Path) -> Path:
    path = folder / "image.tar"
    path.write_bytes(docker_archive(LAYERS, tags=["web:1"]))
    return path


def as_docker_gz(folder: Path) -> Path:
    path = folder / "image.tar.gz"
    path.write_bytes(gzip.compress(docker_archive(LAYERS, tags=["web:1"])))
    return path


def as_folder(folder: Path) -> Path:
    return simple(compressed=True).write_folder(folder / "layout")


def as_oci_tar(folder: Path) -> Path:
    return simple(compressed=True).write_tar(folder / "layout.tar")


FORMS = [as_docker, as_docker_gz, as_folder, as_oci_tar]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_layers_and_tree(
    tmp_path: Path, store: ImageStore, form: Callable[[Path], Path]
) -> None:
    image = store.resolve(str(form(tmp_path)))
    assert image.layers == DIFF_IDS
    assert image.size == len(LOW) + len(HIGH)
    tree = store.tree(image)
    assert (tree / "bin/sh").read_bytes() == b"high"
    assert os.listdir(tree / "etc") == []
    assert store.images() == [image]


def test_what_the_image_says_of_itself(tmp_path: Path, store: ImageStore) -> None:
    image = store.resolve(str(as_docker(tmp_path)))
    assert (image.name, image.env, image.workdir) == ("web:1", ("A=1",), "/srv")
    assert image.command == ("/bin/sh", "-c", "true")
    details = store.details("web:1")
    assert (details.image, details.architecture, details.os) == (image, "amd64", "linux")
    assert [(one.diff_id, one.unpacked) for one in details.layers] == [(digest(data), len(data)) for data in LAYERS]


def test_a_layer_shared_in_an_old_archive_by_symlink(tmp_path: Path, store: ImageStore) -> None:
    listed = [{"Config": "c.json", "RepoTags": None, "Layers": ["1/layer.tar", "2/layer.tar"]}]
    files = {"c.json": config_of([LOW, LOW]), "1/layer.tar": LOW, "2/layer.tar": "../1/layer.tar"}
    (tmp_path / "old.tar").write_bytes(tar_of({**files, "manifest.json": dump(listed)}))
    image = store.resolve(str(tmp_path / "old.tar"))
    assert (image.name, image.layers) == ("old:latest", (digest(LOW), digest(LOW)))
    first, second = store.layer_trees(image)
    assert first == second


def test_the_right_platform_is_picked(tmp_path: Path, store: ImageStore) -> None:
    files = OciFiles()
    arm = files.image([tar_of({"arm": b""})], platform={"architecture": "arm64", "os": "linux"})
    ours = files.image(LAYERS, platform={"architecture": "amd64", "os": "linux"})
    noise = files.image([tar_of({"note": b""})], platform={"architecture": "unknown", "os": "unknown"})
    nested = files.blob(dump({"schemaVersion": 2, "manifests": [arm, ours, noise]}), oci.INDEX)
    named = {**nested, "annotations": {oci.NAME: "1.2"}}
    image = store.resolve(str(files.index(named).write_folder(tmp_path / "multi")))
    assert (image.name, image.layers) == ("multi:1.2", DIFF_IDS)


@pytest.mark.parametrize(
    ("notes", "name"),
    [
        (None, "layout:latest"),
        ({oci.NAME: "latest"}, "layout:latest"),
        ({oci.NAME: "1.2"}, "layout:1.2"),
        ({oci.NAME: "web:1.2"}, "web:1.2"),
        ({oci.NAME: "1.2", "io.containerd.image.name": "docker.io/library/web:1.2"}, "docker.io/library/web:1.2"),
    ],
)
def test_names(tmp_path: Path, store: ImageStore, notes: dict[str, str] | None, name: str) -> None:
    files = simple(**({"annotations": notes} if notes else {}))
    assert store.resolve(str(files.write_folder(tmp_path / "layout"))).name == name


def test_a_stored_image_by_name_and_digest(tmp_path: Path, store: ImageStore) -> None:
    path = as_docker(tmp_path)
    image = store.resolve(str(path))
    path.unlink()
    short = image.digest.removeprefix("sha256:")[:8]
    for reference in ("web:1", image.digest, short, f"sha256:{short}"):
        assert store.resolve(reference) == image


def test_a_name_moves_to_the_image_imported_last(tmp_path: Path, store: ImageStore) -> None:
    first = store.resolve(str(as_docker(tmp_path)))
    (tmp_path / "image.tar").write_bytes(docker_archive([LOW], tags=["web:1"]))
    second = store.resolve(str(tmp_path / "image.tar"))
    assert first.digest != second.digest
    assert store.images() == [second]
    assert store.resolve("web:1") == second


# --- broken images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS[:2] + FORMS[3:])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.4, 0.8, 0.95])
def test_a_truncated_archive_is_refused(
    tmp_path: Path, store: ImageStore, form: Callable[[Path], Path], part: float
) -> None:
    path = form(tmp_path)
    data = path.read_bytes()
    used = len(data) if path.suffix == ".gz" else len(data.rstrip(b"\0"))  # zeros at a tar's end mean nothing
    path.write_bytes(data[: int(used * part)])
    with pytest.raises(ImageError) as caught:
        store.resolve(str(path))
    assert str(path) in caught.value.message
    assert store.images() == []


@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_damaged_blob_is_named(tmp_path: Path, store: ImageStore, which: str, damage: str) -> None:
    files = OciFiles()
    entry = files.image(LAYERS)
    manifest = files.files["blobs/" + str(entry["digest"]).replace(":", "/")]
    name = blob_name({"layer": HIGH, "config": config_of(LAYERS), "manifest": manifest}[which])
    files.index(entry)
    data = files.files.pop(name)
    if damage != "lose":
        files.files[name] = data[:-3] if damage == "cut" else data[:20] + b"\x07" + data[21:]
    folder = files.write_folder(tmp_path / "layout")
    with pytest.raises(ImageError, match=name.rpartition("/")[2]):
        store.resolve(str(folder))
    assert store.images() == []


def test_a_blob_is_verified_even_if_what_is_in_it_unpacks(tmp_path: Path, store: ImageStore) -> None:
    files = simple(compressed=True)
    name = blob_name(gzip.compress(HIGH, mtime=0))
    data = files.files[name]
    files.files[name] = data[:4] + b"\1" + data[5:]  # the date in gzip's header, which no checksum covers
    assert gzip.decompress(files.files[name]) == HIGH
    with pytest.raises(ImageError, match=f"{name}: truncated or corrupt: expected {len(data)} bytes"):
        store.resolve(str(files.write_folder(tmp_path / "layout")))


def test_a_layer_that_is_not_the_one_the_configuration_names(tmp_path: Path, store: ImageStore) -> None:
    (tmp_path / "image.tar").write_bytes(docker_archive(LAYERS, config=config_of([LOW, LOW])))
    with pytest.raises(ImageError, match=f"expected {digest(LOW)} when unpacked, found {digest(HIGH)}"):
        store.resolve(str(tmp_path / "image.tar"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simple(config=config_of(LAYERS, architecture="arm64")), "image for linux/arm64"),
        (lambda: simple(platform={"architecture": "s390x", "os": "linux"}), "linux/amd64, it holds linux/s390x"),
        (lambda: simple(layer_type="application/vnd.oci.image.layer.v1.tar+zstd"), r"tar\+zstd"),
        (lambda: simple(layer_type=oci.LAYER_GZIP), "corrupt gzip"),
        (lambda: simple(config=config_of([LOW])), "2 layers, but 1 diff ids"),
        (lambda: simple(config=b"{"), "configuration"),
        (lambda: simple(config=dump({"architecture": 1})), "architecture"),
        (lambda: OciFiles().index(), "it holds nothing"),
        (lambda: OciFiles().index(descriptor(b"x", "text/plain")), "it holds nothing"),
        (lambda: OciFiles().index({**descriptor(b"x", oci.MANIFEST), "digest": "sha256:../etc"}), "not a sha256"),
    ],
)
def test_layouts_that_are_refused(
    tmp_path: Path, store: ImageStore, make: Callable[[], OciFiles], message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        store.resolve(str(make().write_folder(tmp_path / "layout")))
    assert store.images() == []


def test_several_images_in_one_layout(tmp_path: Path, store: ImageStore) -> None:
    files = OciFiles()
    one = files.image([LOW], annotations={oci.NAME: "one"})
    two = files.image([HIGH], annotations={oci.NAME: "two"})
    with pytest.raises(ImageError, match="several images: one, two"):
        store.resolve(str(files.index(one, two).write_folder(tmp_path / "layout")))


def test_indexes_that_nest_for_ever(tmp_path: Path, store: ImageStore) -> None:
    files = OciFiles()
    entry = files.image(LAYERS)
    for _ in range(6):
        entry = files.blob(dump({"schemaVersion": 2, "manifests": [entry]}), oci.INDEX)
    with pytest.raises(ImageError, match="nested"):
        store.resolve(str(files.index(entry).write_folder(tmp_path / "layout")))


def test_what_is_no_image(tmp_path: Path, store: ImageStore) -> None:
    (tmp_path / "text.tar").write_bytes(b"hello " * 1000)
    (tmp_path / "rootfs.tar").write_bytes(tar_of({"bin/sh": b""}))
    os.mkfifo(tmp_path / "fifo.tar")
    for name, message in [("text.tar", "not a tar"), ("rootfs.tar", "holds no image"), ("fifo.tar", "regular file")]:
        with pytest.raises(ImageError, match=message):
            store.resolve(str(tmp_path / name))
    with pytest.raises(ImageError, match=r"nowhere\.tar: No such file"):
        store.resolve(str(tmp_path / "nowhere.tar"))
    with pytest.raises(ImageError, match=r"no image 'web:2'.*the store has: nothing"):
        store.resolve("web:2")


def test_two_images_that_a_short_digest_fits(store: ImageStore, tmp_path: Path) -> None:
    entries = [oci.Descriptor(oci.MANIFEST, f"sha256:abcd{letter * 60}", 1) for letter in "ef"]
    store.resolve(str(as_docker(tmp_path)))
    (tmp_path / "store/index.json").write_bytes(msgspec.json.encode(oci.Index(manifests=tuple(entries))))
    with pytest.raises(ImageError, match="fits several images"):
        store.resolve("abcd")


# --- the store on disk -------------------------------------------------------------------------------------------


def test_nothing_is_made_before_it_is_needed(tmp_path: Path, store: ImageStore) -> None:
    assert store.images() == []
    with pytest.raises(ImageError):
        store.resolve("web:1")
    assert not (tmp_path / "store").exists()


def test_a_store_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError, match="can't be written"):
        ImageStore(tmp_path / "file/store").resolve(str(as_docker(tmp_path)))


def test_damage_in_the_store_is_noticed(tmp_path: Path, store: ImageStore, caplog: pytest.LogCaptureFixture) -> None:
    image = store.resolve(str(as_docker(tmp_path)))
    blobs = tmp_path / "store/blobs/sha256"
    layer = blobs / digest(HIGH).removeprefix("sha256:")
    layer.write_bytes(HIGH[:-1] + b"\1")
    with pytest.raises(ImageError, match=f"{layer}: damaged"):
        store.tree(image)
    assert not (tmp_path / "store/trees").exists() or not list((tmp_path / "store/trees").glob("images/*"))
    (blobs / image.digest.removeprefix("sha256:")).write_bytes(b"{}")
    with pytest.raises(ImageError, match="damaged"):
        store.resolve("web:1")
    assert store.images() == []
    assert "left out" in caplog.text
    assert store.resolve(str(as_docker(tmp_path))) == image  # importing again mends it
    assert (store.tree(image) / "bin/sh").read_bytes() == b"high"


def test_an_unsafe_layer_is_refused_with_its_image_named(tmp_path: Path, store: ImageStore) -> None:
    (tmp_path / "evil.tar").write_bytes(docker_archive([tar_of({"../evil": b""})], tags=["evil:1"]))
    image = store.resolve(str(tmp_path / "evil.tar"))
    with pytest.raises(ImageError, match=r"image evil:1, layer .*'\.\./evil': leads out"):
        store.tree(image)
    assert os.listdir(tmp_path / "store/tmp") == []


def test_trees_are_private_and_made_once(tmp_path: Path, store: ImageStore) -> None:
    image = store.resolve(str(as_docker(tmp_path)))
    tree = store.tree(image)
    inode = tree.stat().st_ino
    assert store.tree(image).stat().st_ino == inode
    private = tree.parent.parent
    assert private.stat().st_mode & 0o777 == 0o700
    (tree / "bin/sh").write_bytes(b"changed by a process")
    layers = store.unpacked(image)
    assert (layers[1][0] / "bin/sh").read_bytes() == b"high"  # nothing is shared with the tree


def test_what_a_killed_writer_left_is_removed(tmp_path: Path, store: ImageStore) -> None:
    store.resolve(str(as_docker(tmp_path)))
    left = tmp_path / "store/tmp/left/over"
    left.mkdir(parents=True)
    (left / "blob").write_bytes(b"half")
    store.resolve(str(as_docker(tmp_path)))
    assert os.listdir(tmp_path / "store/tmp") == []


def test_the_lock_keeps_others_out(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    probe = "import fcntl,sys; fcntl.flock(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    argv = [sys.executable, "-c", probe, tmp_path / "store/lock"]
    with layout.lock():
        assert process.run(argv, timeout=20, check=False).status == 1
    assert process.run(argv, timeout=20, check=False).status == 0


def test_two_processes_import_and_unpack_at_once(tmp_path: Path) -> None:
    path = as_docker(tmp_path)
    work = (
        "import sys; from pathlib import Path; from bench.images.store import ImageStore\n"
        "for _ in range(5):\n"
        "    store = ImageStore(Path(sys.argv[1])); image = store.resolve(sys.argv[2])\n"
        "    assert (store.tree(image) / 'bin/sh').read_bytes() == b'high'\n"
    )
    argv = [sys.executable, "-c", work, tmp_path / "store", path]
    with process.spawn(argv) as one, process.spawn(argv) as two:
        assert (one.wait(60), two.wait(60)) == (0, 0)
    assert len(ImageStore(tmp_path / "store").images()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root can make whiteouts; remedy: run as another user")
def test_whiteouts_need_root_for_overlayfs(tmp_path: Path, store: ImageStore) -> None:
    with pytest.raises(HostError, match="only root"):
        store.layer_trees(store.resolve(str(as_docker(tmp_path))))


# --- the default image -------------------------------------------------------------------------------------------


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    path = tmp_path / "busybox"
    path.write_text("#!/bin/sh\nprintf 'sh\\nhttpd\\nbusybox\\n['\n")
    path.chmod(0o755)
    return path


def test_the_default_image_is_the_same_each_time(
    tmp_path: Path, busybox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "find_busybox", lambda: busybox)
    one, two = (ImageStore(tmp_path / name) for name in ("one", "two"))
    image = one.resolve("default")
    os.utime(busybox, (1, 1))
    assert two.build_default() == image
    assert len(image.layers) == 2
    busybox.write_text("#!/bin/sh\nprintf sh\n")  # and it does depend on busybox
    changed = ImageStore(tmp_path / "two").resolve("default")
    assert (changed.digest == image.digest, changed.layers[1] == image.layers[1]) == (False, True)


def test_what_is_in_the_default_image(tmp_path: Path, busybox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_busybox", lambda: busybox)
    store = ImageStore(tmp_path / "store")
    tree = store.tree(store.resolve("default"))
    assert os.readlink(tree / "bin/sh") == "busybox"
    assert (tree / "tmp").stat().st_mode & 0o7777 == 0o1777
    for payload in BUILTIN_PAYLOADS.values():
        program = tree / payload.command[0].lstrip("/")
        assert os.access(program, os.X_OK)
        assert f"{payload.ready.line}\n".encode() in program.read_bytes()
    assert (tree / "srv/www/index.html").is_file()


def test_without_busybox_the_stored_default_is_used(
    tmp_path: Path, busybox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "find_busybox", lambda: busybox)
    built = ImageStore(tmp_path / "store").resolve("default")
    monkeypatch.undo()
    monkeypatch.setattr(build, "_PLACES", ())
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    assert ImageStore(tmp_path / "store").resolve("default") == built
    with pytest.raises(HostError) as caught:
        ImageStore(tmp_path / "other").resolve("default")
    assert caught.value.hint == "apt-get install -y busybox-static"


def test_a_dynamic_busybox_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_PLACES", (os.path.realpath("/bin/sh"),))
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(HostError, match="not a static"):
        build.find_busybox()
    assert not build.is_static(b"\x7fELF\x02")
    assert not build.is_static(b"#!/bin/sh")


def test_a_missing_tool_comes_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tools._PACKAGES, "no-such-tool", "the-package")
    with pytest.raises(HostError) as caught:
        tools.run_tool(["no-such-tool"], timeout=1)
    assert caught.value.hint == "apt-get install -y the-package"
    assert isinstance(caught.value, BenchError)
