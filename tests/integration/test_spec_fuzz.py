"""Random specs full of hostile paths: always a container or a clear error, never half of one, never a file outside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bench.container.spec import default_mounts
from bench.container.spec_check import validate
from bench.container.spec_records import Device, Mount, Root, Spec
from bench.errors import ConfigError, LaunchError
from tests.integration.boxes import Boxes, changed, hostile, namespaces, sh, state

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with Boxes.open() as made:
        yield made


@pytest.fixture
def canary(boxes: Boxes) -> Iterator[Path]:
    """A folder of the host's with one file; nobody inside may see or change it."""
    folder = boxes.folder / "canary"
    folder.mkdir()
    (folder / "file").write_text("of the host\n")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


PIECES = (
    "..",
    ".",
    "proc",
    "self",
    "1",
    "root",
    "cwd",
    "fd",
    "3",
    "up",
    "out",
    "loop",
    "etc",
    "image",
    "dev",
    "null",
    "tmp",
    "new",
    "sys",
    "file",
)
paths = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map(lambda parts: "/" + "/".join(parts))


@st.composite
def mounts(draw: st.DrawFn) -> Mount:
    kind = draw(st.sampled_from(("bind", "bind", "tmpfs", "proc", "sysfs", "mqueue", "devpts", "cgroup", "nosuchfs")))
    options = draw(
        st.lists(
            st.sampled_from(("ro", "rw", "nosuid", "noexec", "rslave", "private", "remount", "size=1m", "bogus=1")),
            max_size=3,
        )
    )
    source = (
        draw(st.sampled_from(("{}/source", "{}/source/file", "/proc/self", "/etc/hostname", "/nosuch")))
        if kind == "bind"
        else kind
    )
    return Mount(draw(paths), kind, source, tuple([*options, "rbind"] if kind == "bind" else options))


def devices() -> st.SearchStrategy[Device]:
    return st.builds(Device, st.sampled_from(("c", "b", "p")), paths, st.just(1), st.sampled_from((3, 5)))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    kinds = draw(st.sampled_from((("mount",), ("mount", "pid"), ("mount", "pid", "network", "uts", "ipc", "cgroup"))))
    devices_made = {one.path: one for one in draw(st.lists(devices(), max_size=2))}
    return sh(
        "cat /out/file /up/file; ls -A /out /up; echo ran",
        namespaces=namespaces(*kinds), sysctl={},
        mounts=(*(default_mounts() if draw(st.booleans()) else ()), *draw(st.lists(mounts(), max_size=3))),
        devices=tuple(devices_made.values()), cwd=draw(paths), root=Root("root", draw(st.booleans())),
        masked_paths=tuple(draw(st.lists(paths, max_size=2))), readonly_paths=tuple(draw(st.lists(paths, max_size=2))),
    )  # fmt: skip


@pytest.fixture
def trap(boxes: Boxes, canary: Path, tmp_path: Path) -> Path:
    """An image whose links lead to the canary, by every way there is."""
    return hostile(
        boxes, tmp_path / "image", up=f"../../..{canary}", out=f"/proc/{os.getpid()}/root{canary}", loop="/loop"
    )


def test_a_random_spec_is_a_container_or_an_error_and_touches_nothing(
    boxes: Boxes, canary: Path, trap: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    before = state(canary)
    ends: dict[str, int] = {}

    @settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(specs())
    def attack(spec: Spec) -> None:
        spec = changed(spec, mounts=tuple(changed_source(one, tmp_path) for one in spec.mounts))
        try:
            validate(spec)
            told = boxes.run(spec, image=trap)
            kind = "ran" if "ran" in told.output else "ended"
            if spec.linux.new("pid"):
                assert "of the host" not in told.output
        except (ConfigError, LaunchError) as error:
            kind = type(error).__name__ if error.message else "without a word"
        ends[kind] = ends.get(kind, 0) + 1
        assert state(canary) == before
        assert boxes.instances() == []

    attack()
    assert ends.get("ran", 0) > 2, ends
    assert ends.get("LaunchError", 0) > 2, ends
    assert "without a word" not in ends


def changed_source(mount: Mount, folder: Path) -> Mount:
    return replace(mount, source=mount.source.format(folder))
