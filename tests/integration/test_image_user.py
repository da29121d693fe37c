"""The image's USER is who the payload is: in a container as in a bare process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.container.bundle import of_image
from bench.drivers.context import RunContext
from bench.drivers.registry import make_driver
from bench.images.build import find_busybox
from bench.images.store import ImageStore
from bench.model import InstanceSpec, Payload, PhaseLog, Ready
from tests.unit.image_tars import config_of, docker_archive, make_tar, member

pytestmark = pytest.mark.root

PASSWD = b"root:x:0:0::/:/bin/sh\napp:x:1234:1235::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\nstaff:x:1235:\nlogs:x:77:app\n"
TELL = 'echo "ready $(id -u) $(id -g) $(id -G) $HOME"; exec sleep 1000'


def image_of(store: ImageStore, user: str, archive: Path) -> str:
    links = [(member(f"bin/{name}", b"2", linkname="busybox"), b"") for name in ("sh", "id", "sleep")]
    files = [
        (member("bin/busybox", mode=0o755), find_busybox().read_bytes()),
        (member("etc/passwd"), PASSWD),
        (member("etc/group"), GROUP),
    ]
    layer = make_tar([*files, *links])
    archive.write_bytes(docker_archive([layer], config=config_of([layer], User=user, Cmd=["/bin/sh"])))
    return str(archive)


@pytest.mark.parametrize("name", ["process", "container", "container:pooled"])
@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("app", "ready 1234 1235 1235 77 /home/app"),
        ("1234:77", "ready 1234 77 77 /home/app"),
        ("", "ready 0 0 0 /root"),
    ],
)
def test_who_the_payload_is(
    name: str, user: str, said: str, context: RunContext, make_spec: Callable[..., InstanceSpec], tmp_path: Path
) -> None:
    store = ImageStore(tmp_path / "images")
    image = store.resolve(image_of(store, user, tmp_path / "image.tar"))
    payload = Payload("who", ("/bin/sh", "-c", TELL), Ready(line=said))
    spec = msgspec.structs.replace(make_spec(name), image=image, payload=payload)
    driver = make_driver(name.partition(":")[0], dataclasses.replace(context, images=store))
    driver.prepare(spec)
    if name == "container:pooled":
        driver.fill(spec, 1)  # type: ignore[attr-defined]
    try:
        with driver.launch(spec, PhaseLog()) as instance:
            instance.wait_ready(10)
            assert instance.exec(["/bin/id", "-u"], timeout=10).stdout == said.split()[1] + "\n"
    finally:
        driver.close()
    if user:
        assert of_image(store, image.name).spec.process.user.uid == int(said.split()[1]), "as by hand"
