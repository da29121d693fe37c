"""An image of any size without a network: the same bytes each time, and none of them to be compressed away."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.images import ballast
from bench.images.changes import Upper
from bench.images.layout import Layout
from bench.images.store import ImageStore
from bench.model import GIB, MIB
from tests.unit.image_tars import docker_archive, tar_of


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("default+20MiB", 20 * MIB), ("default+1GiB", GIB), ("default", None), ("default+0MiB", None),
        ("default+20", None), ("web+20MiB", None), ("default+20MiB:latest", None), ("default+1TiB", None),
    ],
)  # fmt: skip
def test_names_that_ask_for_ballast(name: str, size: int | None) -> None:
    assert ballast.size_of(name) == size


def test_a_layer_of_files_that_do_not_compress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballast, "FILE", MIB)
    layout = Layout(tmp_path)
    with layout.lock():
        one, two = ballast.store_layer(layout, 2 * MIB + 4096), ballast.store_layer(layout, 2 * MIB + 4096)
    assert one == two
    with tarfile.open(layout.blob(one.digest)) as tar:
        files = {info.name: info for info in tar}
        assert [files[f"srv/ballast/{number:04}"].size for number in range(3)] == [MIB, MIB, 4096]
        assert len(files) == 5
        contents = [tar.extractfile(info) for info in tar if info.isfile()]
        data = [content.read() for content in contents if content]
    assert data[0][:4096] != data[2]
    assert len(zlib.compress(b"".join(data))) > 2 * MIB


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the default image: what is in this archive is it."""
    path = tmp_path / "default.tar"
    path.write_bytes(docker_archive([tar_of({"bin/sh": b"one"})], tags=["default"]))
    monkeypatch.setattr(ImageStore, "_resolve_default", lambda store: store.resolve(str(path)))
    return path


def test_the_image_is_made_once_and_again_for_another_default(
    tmp_path: Path, default: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore(tmp_path / "store")
    made, base = store.resolve("default+1MiB"), store.resolve("default")
    assert (made.name, made.layers[:-1], made.command) == ("default+1MiB", base.layers, base.command)
    assert made.size - base.size > MIB
    with monkeypatch.context() as patch:
        patch.setattr(ballast, "store_layer", lambda layout, size: pytest.fail("made again"))
        assert ImageStore(tmp_path / "store").resolve("default+1MiB") == made
    default.write_bytes(docker_archive([tar_of({"bin/sh": b"two"})], tags=["default"]))
    again = ImageStore(tmp_path / "store").resolve("default+1MiB")
    assert again.layers[0] != made.layers[0]
    assert again.layers[-1] == made.layers[-1]


def test_no_other_image_can_have_such_a_name(tmp_path: Path, default: Path) -> None:
    store = ImageStore(tmp_path / "store")
    with pytest.raises(UsageError, match="can't be called 'default\\+1MiB'"):
        store.commit(store.resolve("default"), Upper(tmp_path), "default+1MiB")
