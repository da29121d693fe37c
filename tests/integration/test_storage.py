"""Storage drivers for real: roots of their own from one image, what they share, and nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench import process
from bench.container import storage
from bench.container.scratch import SMALLEST, loops_below, mounts_below, scratch_filesystem
from bench.container.storage import STORAGES, Root, Storage, abilities, open_storage, reap, support
from bench.errors import CommandError, HostError, LaunchError
from bench.images.store import ImageStore
from bench.model import MIB, Image
from tests.integration.image_trees import look, overlay
from tests.unit.image_tars import docker_archive, make_tar, member, tar_of

pytestmark = pytest.mark.root

SHARED = os.urandom(2 * MIB)
LAYERS = [
    make_tar(
        [
            (member("bin/big"), SHARED),
            (member("bin/suid", mode=0o4755, uid=7), b"#!"),
            (member("etc/gone"), b"x"),
            (member("etc/for-all", mode=0o644), b"all"),
            (member("link", tarfile.SYMTYPE, linkname="etc/for-all"), b""),
        ]
    ),
    tar_of({"etc/.wh.gone": b"", "etc/new": b"n"}),
]
NAMES = sorted(STORAGES)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images") / "store")


@pytest.fixture(scope="module")
def image(images: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Image:
    path = tmp_path_factory.mktemp("archive") / "image.tar"
    path.write_bytes(docker_archive(LAYERS, tags=["base:1"]))
    return images.resolve(str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of a run; afterwards nothing of it is mounted or attached."""
    yield tmp_path / "run"
    assert mounts_below(tmp_path) == []
    assert loops_below(tmp_path) == []
    assert fuse_processes(tmp_path) == []
    assert not (tmp_path / "run").exists()


def fuse_processes(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if words.startswith(b"fuse-overlayfs") and os.fsencode(folder) in words:
            found.append(int(entry.parent.name))
    return found


def skip_unless(name: str) -> None:
    answer = support(name, abilities())
    if not answer.ok:
        pytest.skip(f"{answer.reason}; remedy: {answer.hint}")


@contextmanager
def opened(name: str, folder: Path, images: ImageStore, image: Image) -> Iterator[Storage]:
    skip_unless(name)
    with open_storage(name, folder, SMALLEST) as made:
        made.prepare(images, image)
        made.prepare(images, image)
        yield made


@contextmanager
def rooted(made: Storage, image: Image, own: Path) -> Iterator[tuple[Root, Path]]:
    """A container's root, and where it can be looked at; an overlay is mounted here as its child would."""
    own.mkdir()
    with made.root(image, own) as root:
        if root.step[0] == "bind_root":
            yield root, Path(root.step[1])
            return
        layers = [Path(path) for path in root.shared]
        with overlay(layers, own) as path:
            yield root, path
    shutil.rmtree(own)


@pytest.mark.parametrize("name", NAMES)
def test_every_storage_gives_the_same_tree_to_each_container(
    tmp_path: Path, folder: Path, images: ImageStore, image: Image, name: str
) -> None:
    with opened(name, folder, images, image) as made, ExitStack() as stack:
        expected = look(images.tree(image))
        one, two = (stack.enter_context(rooted(made, image, tmp_path / own))[1] for own in ("one", "two"))
        for root in (one, two):
            assert {**look(root), "": 0} == {**expected, "": 0}
        (one / "bin/suid").write_bytes(b"mine")
        (one / "etc/new").unlink()
        shutil.rmtree(one / "bin")
        assert {**look(two), "": 0} == {**expected, "": 0}
    assert {**look(images.tree(image)), "": 0} == {**expected, "": 0}


@pytest.mark.parametrize("name", NAMES)
def test_its_changes_can_be_committed(
    tmp_path: Path, folder: Path, images: ImageStore, image: Image, name: str
) -> None:
    with opened(name, folder, images, image) as made, rooted(made, image, tmp_path / "one") as (root, path):
        (path / "etc/for-all").unlink()
        shutil.rmtree(path / "bin")
        (path / "bin").mkdir()
        (path / "bin/mine").write_bytes(b"1")
        (path / "bin/mine").chmod(0o4711)
        os.link(path / "bin/mine", path / "again")
        with (path / "bin/open").open("wb", buffering=0) as file:
            file.write(b"not closed yet")
            committed = images.commit(image, root.changes, f"{name}:1")
        seen = look(path)
    assert (images.tree(committed) / "bin/open").read_bytes() == b"not closed yet"
    found = look(images.tree(committed))
    if name == "fuse-overlayfs":  # with its write-back cache, times settle when a file is closed
        found.pop("bin/open"), seen.pop("bin/open")
    assert {**found, "": 0} == {**seen, "": 0}
    assert images.details(f"{name}:1").layers[-1].unpacked < len(SHARED)  # it holds the changes only


@pytest.mark.parametrize("name", NAMES)
def test_what_a_container_owns_and_what_it_shares(
    tmp_path: Path, folder: Path, images: ImageStore, image: Image, name: str
) -> None:
    with opened(name, folder, images, image) as made, rooted(made, image, tmp_path / "one") as (root, path):
        process.run(["sync", "-f", path], timeout=60)
        before = made.used()
        (path / "written").write_bytes(os.urandom(MIB))
        process.run(["sync", "-f", path], timeout=60)
        own = [Path(one) for one in root.own]
        assert any((one / "written").exists() for one in own)
        assert not any((Path(one) / "written").exists() for one in root.shared)
        assert all(Path(one).exists() for one in root.shared)
        assert bool(root.pids) == (name == "fuse-overlayfs")
        if before is not None:
            after = made.used()
            assert after is not None
            assert after - before > MIB * 9 // 10


@pytest.mark.parametrize("name", ["reflink", "btrfs"])
def test_clones_cost_next_to_nothing(tmp_path: Path, folder: Path, images: ImageStore, image: Image, name: str) -> None:
    with opened(name, folder, images, image) as made, ExitStack() as stack:
        mount = next(iter(mounts_below(folder)))
        process.run(["sync", "-f", mount], timeout=60)
        before = made.used()
        for number in range(10):
            stack.enter_context(rooted(made, image, tmp_path / str(number)))
        process.run(["sync", "-f", mount], timeout=60)
        after = made.used()
        assert before is not None
        assert after is not None
        assert after - before < len(SHARED)  # ten full copies would be twenty times that


@pytest.mark.parametrize("name", NAMES)
def test_the_step_is_one_that_a_container_takes(
    tmp_path: Path, folder: Path, images: ImageStore, image: Image, name: str
) -> None:
    with opened(name, folder, images, image) as made:
        own = tmp_path / "own"
        own.mkdir()
        with made.root(image, own) as root:
            said = in_namespace(root, own, "open('/etc/written', 'w').close(); print(sorted(os.listdir('/etc')))")
            assert said == "['for-all', 'new', 'written']\n"
            assert any((Path(one) / "etc/written").exists() for one in root.own)


def in_namespace(root: Root, own: Path, then: str) -> str:
    """Take the step by the function that the launcher's child calls, in a mount namespace of its own."""
    work = (
        "import json, os, sys; from bench.linux import mounts, program\n"
        "action, *values = json.loads(sys.argv[1])\n"
        "root = values[0] if action == 'bind_root' else mounts.OVERLAY_ROOT\n"
        "steps = [['propagation', 1 << 18 | 16384], [action, *values], ['pivot', root], ['drop_old_root']]\n"
        "for name, *values in steps: program.run(program.operations(mounts.ACTIONS[name](*values), 0))\n"
    )
    argv = ["unshare", "-m", sys.executable, "-c", work + then, json.dumps(root.step)]
    env = {"PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"}
    return process.run(argv, timeout=30, cwd=own, env=env).stdout


@pytest.mark.parametrize("name", ["overlay", "fuse-overlayfs"])
def test_an_image_of_many_layers(tmp_path: Path, images: ImageStore, name: str) -> None:
    """Their trees' own paths would not fit in a mount's options."""
    skip_unless(name)
    layers = [tar_of({str(number): b"", "last": str(number).encode()}) for number in range(60)]
    (tmp_path / "many.tar").write_bytes(docker_archive(layers))
    image = images.resolve(str(tmp_path / "many.tar"))
    assert len(storage.lowerdir(images.layer_trees(image))) > 4096
    with tempfile.TemporaryDirectory() as short:
        own = tmp_path / "own"
        own.mkdir()
        with open_storage(name, Path(short) / "run") as made:
            made.prepare(images, image)
            with made.root(image, own) as root:
                said = in_namespace(root, own, "print(len(os.listdir('/')), open('/last').read())")
    assert said == "61 59\n"


def test_more_layers_than_a_mount_can_name(tmp_path: Path, folder: Path) -> None:
    many = [tmp_path / str(number) for number in range(200)]

    class Images:
        def layer_trees(self, _: Image) -> list[Path]:
            return many

    image = Image(name="many:1", digest="", layers=(), env=(), command=(), workdir="/", size=0)
    with open_storage("overlay", folder) as made, pytest.raises(HostError, match="many:1: 200 layers make") as caught:
        made.prepare(Images(), image)  # type: ignore[arg-type]
    assert "fewer layers" in str(caught.value.hint)


# --- what is shared, by inode and by page ----------------------------------------------------------------------


def resident(path: Path) -> int:
    """Bytes of a file in the page cache."""
    said = process.run(["fincore", "--json", "--bytes", path], timeout=20).stdout
    return int(json.loads(said)["fincore"][0]["res"])


def evict(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def test_a_layer_is_on_disk_and_in_the_page_cache_once(tmp_path: Path, images: ImageStore, image: Image) -> None:
    layers = images.layer_trees(image)
    real = layers[0] / "bin/big"
    with overlay(layers, tmp_path / "one") as one, overlay(layers, tmp_path / "two") as two:
        assert one.stat().st_dev != two.stat().st_dev  # two mounts ...
        assert (one / "bin/big").stat().st_ino == (two / "bin/big").stat().st_ino == real.stat().st_ino  # of one file
        assert list((tmp_path / "one/upper").iterdir()) == list((tmp_path / "two/upper").iterdir()) == []
        evict(real)
        assert resident(two / "bin/big") == 0
        assert (one / "bin/big").read_bytes() == SHARED
        assert resident(two / "bin/big") == resident(real) == len(SHARED)  # read by one, there for the other
        with (one / "bin/big").open("r+b") as file:
            file.write(b"mine")
        assert (one / "bin/big").stat().st_blocks >= len(SHARED) // 512  # one byte costs the whole file
        assert os.listdir(tmp_path / "one/upper/bin") == ["big"]
        assert (two / "bin/big").read_bytes() == SHARED


@pytest.mark.parametrize("name", ["copy", "reflink", "btrfs"])
def test_copies_share_no_page_cache(tmp_path: Path, folder: Path, images: ImageStore, image: Image, name: str) -> None:
    with opened(name, folder, images, image) as made, ExitStack() as stack:
        one, two = (stack.enter_context(rooted(made, image, tmp_path / own))[1] for own in ("one", "two"))
        for path in (one, two):
            evict(path / "bin/big")
        assert (one / "bin/big").read_bytes() == SHARED
        assert resident(one / "bin/big") == len(SHARED)
        assert resident(two / "bin/big") == 0


# --- crash, refusal, failure -----------------------------------------------------------------------------------

_DIE = """
import os, signal, sys
from pathlib import Path
from bench.container.storage import open_storage
from bench.images.store import ImageStore
name, folder, store, own = sys.argv[1:]
images = ImageStore(Path(store)); image = images.resolve("base:1")
with open_storage(name, Path(folder), 320 << 20) as made:
    made.prepare(images, image)
    Path(own).mkdir()
    with made.root(image, Path(own)):
        print("up", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["fuse-overlayfs", "reflink", "btrfs"])
def test_a_killed_run_is_found_and_removed(
    tmp_path: Path, folder: Path, images: ImageStore, image: Image, name: str
) -> None:
    skip_unless(name)
    store = images.disk_path(image, "x").parent.parent
    own = folder / "own" if name == "fuse-overlayfs" else tmp_path / "own"
    with process.spawn([sys.executable, "-c", _DIE, name, folder, store, own], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read() == b"up\n"
        assert child.wait(60) == -signal.SIGKILL
    assert mounts_below(folder) != []
    assert [left.kind for left in reap(folder)] == ["mount", "file"]
    assert reap(folder) == []
    deadline = time.monotonic() + 5
    while fuse_processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)  # it ends by itself once its mount is gone


def test_a_loop_device_that_was_never_mounted_is_freed(tmp_path: Path, folder: Path) -> None:
    skip_unless("reflink")
    folder.mkdir()
    with (folder / "disk").open("xb") as file:
        file.truncate(MIB)
    process.run(["losetup", "-f", folder / "disk"], timeout=20)
    assert len(loops_below(tmp_path)) == 1
    assert [left.kind for left in reap(folder)] == ["loop", "file"]


def test_a_scratch_file_system_in_use_is_detached(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    skip_unless("reflink")
    monkeypatch.setattr("bench.container.scratch._PATIENCE", 0.1)
    with ExitStack() as stack:
        with scratch_filesystem(folder, "xfs", SMALLEST) as mount:
            stack.enter_context((mount / "f").open("wb"))
        assert mounts_below(folder) == []
        assert "still in use" in caplog.text
    folder.rmdir()


def test_a_full_scratch_file_system_is_said(
    tmp_path: Path, folder: Path, images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless("reflink")
    (tmp_path / "large.tar").write_bytes(docker_archive([tar_of({f"{n}": os.urandom(MIB) for n in range(8)})]))
    image = images.resolve(str(tmp_path / "large.tar"))
    with open_storage("reflink", folder, SMALLEST) as made:
        mount = Path(mounts_below(folder)[0])
        state = os.statvfs(mount)
        fd = os.open(mount / "ballast", os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(fd, 0, (state.f_bavail * state.f_frsize) - 5 * MIB)
        os.close(fd)
        with pytest.raises(HostError, match="No space left"):
            made.prepare(images, image)
        (mount / "ballast").unlink()
        made.prepare(images, image)  # what was half made does not count
        (tmp_path / "own").mkdir()
        with made.root(image, tmp_path / "own") as root:
            assert len(os.listdir(root.own[0])) == 8


def test_btrfs_roots_with_subvolumes_of_their_own(
    tmp_path: Path, folder: Path, images: ImageStore, image: Image
) -> None:
    """Any user may make them where it may write."""
    with opened("btrfs", folder, images, image) as made, rooted(made, image, tmp_path / "one") as (_, path):
        process.run(["btrfs", "subvolume", "create", path / "mine"], timeout=20)
        (path / "mine/f").write_bytes(b"")
    assert not path.exists()


def test_a_fuse_process_that_does_not_come_up(
    tmp_path: Path, folder: Path, images: ImageStore, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened("fuse-overlayfs", folder, images, image) as made:
        monkeypatch.setattr(storage, "lowerdir", lambda _: str(tmp_path / "nowhere"))
        (tmp_path / "own").mkdir()
        with pytest.raises(LaunchError, match="fuse-overlayfs ended with status"), made.root(image, tmp_path / "own"):
            pass


def test_fuse_serves_everybody_and_keeps_set_id(tmp_path: Path, folder: Path, images: ImageStore, image: Image) -> None:
    with opened("fuse-overlayfs", folder, images, image) as made, rooted(made, image, tmp_path / "one") as (root, path):
        mounted = os.statvfs(path).f_flag
        assert not mounted & os.ST_NOSUID
        assert (path / "bin/suid").stat().st_mode & stat.S_ISUID
        assert fuse_processes(tmp_path) == list(root.pids)
        line = next(one for one in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path} " in one)
        assert "allow_other" in line


def test_a_copy_that_does_not_fit_leaves_nothing(
    tmp_path: Path, folder: Path, images: ImageStore, image: Image
) -> None:
    with opened("copy", folder, images, image) as made:
        small = tmp_path / "small"
        small.mkdir()
        process.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], timeout=20)
        try:
            (small / "own").mkdir()
            with pytest.raises(CommandError, match="No space left"), made.root(image, small / "own"):
                pass
            assert os.listdir(small / "own") == []
        finally:
            process.run(["umount", small], timeout=20)


def test_what_does_not_work_here_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    able = storage.Abilities(root=True, filesystems=frozenset(), programs=frozenset(), devices=frozenset())
    monkeypatch.setattr(storage, "abilities", lambda: able)
    with (
        pytest.raises(HostError, match="storage btrfs: this kernel has no btrfs") as caught,
        open_storage("btrfs", tmp_path / "run"),
    ):
        pass
    assert caught.value.hint == "modprobe btrfs, or a kernel with it"
    assert not (tmp_path / "run").exists()
