"""A real registry on loopback: what skopeo pushes there from our store comes back with the same layers."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import process
from bench.errors import ImageError
from bench.images import tools
from bench.images.store import ImageStore
from bench.model import Completed, Image
from tests.unit.image_tars import docker_archive, tar_of

pytestmark = pytest.mark.root

LAYERS = [tar_of({"bin/sh": b"low", "etc/gone": b"x"}), tar_of({"etc/.wh.gone": b"", "bin/sh": b"high"})]
_START = 15.0  # seconds a registry may take


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return bytes(reply.read())


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """127.0.0.1:PORT of a Debian docker-registry that lives as long as these tests."""
    folder = tmp_path_factory.mktemp("registry")
    address = f"127.0.0.1:{free_port()}"
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    (folder / "config.yml").write_text(json.dumps(config))  # all JSON is YAML
    if process.run(["sh", "-c", "command -v docker-registry"], timeout=10, check=False).status:
        pytest.skip("no docker-registry; remedy: apt-get install -y docker-registry")
    with process.spawn(["docker-registry", "serve", folder / "config.yml"], stdout=2) as child:
        deadline = time.monotonic() + _START
        while True:
            try:
                get(f"http://{address}/v2/")
                break
            except OSError:
                assert child.poll() is None, "the registry ended"
                assert time.monotonic() < deadline, "the registry does not answer"
                time.sleep(0.05)
        yield address
        child.terminate()
        child.wait(10)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def image(store: ImageStore, tmp_path: Path) -> Image:
    (tmp_path / "image.tar").write_bytes(docker_archive(LAYERS, tags=["web:1"]))
    return store.resolve(str(tmp_path / "image.tar"))


def push(store: ImageStore, image: Image, folder: Path, target: str, *options: str) -> None:
    store.export(image, folder / "pushed", "oci")
    argv = [
        "skopeo",
        "copy",
        "--quiet",
        "--dest-tls-verify=false",
        *options,
        f"oci:{folder}/pushed",
        f"docker://{target}",
    ]
    process.run(argv, timeout=60)


@pytest.mark.parametrize("schema", ["oci", "v2s2"])
def test_what_is_pushed_comes_back(tmp_path: Path, store: ImageStore, image: Image, registry: str, schema: str) -> None:
    push(store, image, tmp_path, f"{registry}/team/web:{schema}", "--format", schema)
    assert schema in json.loads(get(f"http://{registry}/v2/team/web/tags/list"))["tags"]
    other = ImageStore(tmp_path / "other")
    back = other.resolve(f"docker://{registry}/team/web:{schema}")
    assert (back.name, back.layers) == (f"docker://{registry}/team/web:{schema}", image.layers)
    assert (back.command, back.size) == (image.command, image.size)
    assert (other.tree(back) / "bin/sh").read_bytes() == b"high"
    assert other.images() == [back]


def test_what_comes_back_can_be_exported_under_a_name_docker_takes(
    tmp_path: Path, store: ImageStore, image: Image, registry: str
) -> None:
    push(store, image, tmp_path, f"{registry}/web:out")
    other = ImageStore(tmp_path / "other")
    other.export(other.resolve(f"docker://{registry}/web:out"), tmp_path / "out.tar", "docker-archive")
    again = ImageStore(tmp_path / "third").resolve(str(tmp_path / "out.tar"))
    assert (again.name, again.layers) == (f"{registry}/web:out", image.layers)


def test_a_moving_tag_is_fetched_when_asked(tmp_path: Path, store: ImageStore, image: Image, registry: str) -> None:
    reference = f"docker://{registry}/web:moving"
    push(store, image, tmp_path, f"{registry}/web:moving")
    other = ImageStore(tmp_path / "other")
    first = other.resolve(reference)
    (tmp_path / "image.tar").write_bytes(docker_archive(LAYERS[:1], tags=["web:2"]))
    (tmp_path / "second").mkdir()
    push(store, store.resolve(str(tmp_path / "image.tar")), tmp_path / "second", f"{registry}/web:moving")
    assert other.resolve(reference) == first
    assert other.fetch(reference).layers == image.layers[:1]


def test_what_the_registry_does_not_have(store: ImageStore, registry: str) -> None:
    with pytest.raises(ImageError, match=r"skopeo can't get docker://.*nothing:1: .*unknown"):
        store.resolve(f"docker://{registry}/nothing:1")
    assert store.images() == []


def test_plain_http_is_for_loopback_addresses_only(
    store: ImageStore, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same registry by a name is not trusted: it is asked for TLS, which it does not speak."""
    asked: list[list[str]] = []

    def watched(argv: list[str], **options: object) -> Completed:
        asked.append(argv)
        return tools.run_tool(argv, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("bench.images.store.run_tool", watched)
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(ImageError) as caught:
            store.resolve(f"docker://{host}:{registry.partition(':')[2]}/nothing:1")
        insecure = "--src-tls-verify=false" in asked.pop()
        assert insecure == (host == "127.0.0.1")
        assert ("HTTP response to HTTPS client" in caught.value.message) == (host == "localhost")
