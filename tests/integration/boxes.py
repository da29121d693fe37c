"""Containers from a Spec, run to their end or kept for a while; whatever happens nothing of them stays.

Their root is an overlay on one folder with busybox and a small program of ours for system calls, or a bundle's own.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace

from bench.container.client import LaunchedProcess, Launcher, Placed
from bench.container.groups import Groups, device_group, layout
from bench.container.recipe import Filter, Kitchen, recipe
from bench.container.seccomp import compile_file, filter_flags
from bench.container.spec import default_spec
from bench.container.spec_records import Capabilities, Linux, Namespace, Process, Spec
from bench.container.storage import OVERLAY_OPTIONS
from bench.linux import cgroups
from bench.linux.capabilities import NUMBERS
from bench.model import Completed
from bench.process import run

BUSYBOX = "/bin/busybox"
PROBE = "/bin/probe"
ALL_CAPABILITIES = tuple(f"CAP_{name}" for name in NUMBERS if name != "SYS_RESOURCE")  # which this host has not
_FOLDERS = ("bin", "etc", "proc", "sys", "dev", "tmp", "data", "home")


class Told(Struct, frozen=True):
    """How a container ended and what it said."""

    status: int
    output: str

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


class Box:
    """A running container."""

    def __init__(
        self, launcher: Launcher, number: int, place: Placed, process: LaunchedProcess, groups: Groups
    ) -> None:
        self._launcher, self._number, self._place, self._process = launcher, number, place, process
        self.pid, self.folder = process.pid, Path(place.folder)
        self.groups = groups.of(place.name)
        self._said = b""

    def exec(self, *argv: str, timeout: float = 20) -> Completed:
        return self._launcher.exec(self._number, replace(self._place, argv=argv), self.pid, timeout)

    def wait_for(self, text: str, timeout: float = 20) -> None:
        """Until it has said `text`."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self._said:
            if not self._read(deadline):
                raise AssertionError(f"it ended, or {timeout:g} s passed, without {text!r}: {self._said!r}")

    def finish(self, timeout: float = 20) -> Told:
        """Wait for its end."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        assert self._process.ended(max(deadline - time.monotonic(), 0)), f"still running: {self._said!r}"
        return Told(self._launcher.wait(self.pid) or 0, self._said.decode(errors="replace"))

    @property
    def said(self) -> str:
        return self._said.decode(errors="replace")

    def _read(self, deadline: float) -> bool:
        poller = select.poll()
        poller.register(self._process.output, select.POLLIN)
        if not poller.poll(max(deadline - time.monotonic(), 0) * 1000):
            return False
        data = os.read(self._process.output, 65536)
        self._said += data
        return bool(data)


class Boxes:
    """Where they are made: `open` it, then `run` or `running`."""

    def __init__(self, folder: Path, launcher: Launcher) -> None:
        self.folder, self.launcher = folder, launcher
        self.parent = f"bench-{folder.name}"
        self.image = _image(folder / "image")
        self._count = 0

    @staticmethod
    @contextlib.contextmanager
    def open() -> Iterator[Boxes]:
        name = tempfile.mkdtemp(prefix="box-", dir="/var/tmp")
        os.chmod(name, 0o755)  # so that a user namespace's root gets to its own root
        launcher = Launcher()
        try:
            made = Boxes(Path(name), launcher)
            try:
                launcher.start()
                layout().prepare(made.parent)
                yield made
            finally:
                launcher.close()
                made.clean()
        finally:
            shutil.rmtree(name)
        assert not made.traces()

    def shifted(self, owner: int) -> Path:
        """The image with all in it owned by the root of a user namespace."""
        copy = self.folder / f"image-{owner}"
        if not copy.exists():
            shutil.copytree(self.image, copy, symlinks=True)
            for path in (copy, *copy.rglob("*")):
                os.chown(path, owner, owner, follow_symlinks=False)
        return copy

    def clean(self) -> None:
        for top in (*layout().tops(), layout().v1.get("devices", "")):
            if os.path.isdir(f"{top}/{self.parent}"):
                cgroups.remove(f"{top}/{self.parent}")

    def traces(self) -> list[str]:
        """What is left of containers on this host, besides the folders that all share."""
        found = [path for path, _, _ in os.walk("/sys/fs/cgroup") if self.parent in path]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return found + [line for line in mounts if self.folder.name in line]

    def instances(self) -> list[str]:
        """What is left of single instances."""
        groups = [path for path in self.traces() if "/i" in path.rpartition(self.parent)[2]]
        return groups + [str(path) for path in self.folder.glob("i[0-9]*-*")]

    def run(self, spec: Spec, *, timeout: float = 20, **where: Any) -> Told:
        with self.running(spec, **where) as box:
            return box.finish(timeout)

    @contextlib.contextmanager
    def running(
        self, spec: Spec, *, bundle: Path | None = None, image: Path | None = None, owner: int = 0,
        reaper: bool = False, tamper: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> Iterator[Box]:  # fmt: skip
        """In the bundle's own root, or an overlay on `image`; `owner`: root of the user namespace, on the host;
        `reaper`: with a pid 1 of ours. `tamper` takes a safeguard out of the recipe, to see that it was one."""
        self._count += 1
        name = f"i{self._count}-{os.getpid()}"
        place = Placed(name, str(self.folder / name), spec.hostname or name, bundle=str(bundle or ""))
        os.mkdir(place.folder)
        os.chown(place.folder, owner, owner)
        try:
            with self._launched(spec, place, bundle, image or self.image, reaper, tamper) as box:
                yield box
        finally:
            shutil.rmtree(place.folder)

    @contextlib.contextmanager
    def _launched(
        self, spec: Spec, place: Placed, bundle: Path | None, image: Path, reaper: bool,
        tamper: Callable[[dict[str, Any]], None],
    ) -> Iterator[Box]:  # fmt: skip
        groups = layout().groups(self.parent, spec.linux.resources, ruled=True)
        rules = device_group(layout(), self.parent, spec.linux.resources, groups)
        seccomp = spec.linux.seccomp
        program = Filter(str(compile_file(seccomp, self.folder)), filter_flags(seccomp)) if seccomp else None
        options = ",userxattr" if spec.linux.namespace("user") else OVERLAY_OPTIONS
        root = None if bundle else ("overlay_root", str(image), options)
        kitchen = Kitchen(root, bundle or self.folder, groups, (rules,) if rules else (), program, reaper=reaper)
        fields = recipe(spec, kitchen)
        tamper(fields)
        number = self.launcher.learn(fields)
        pid = 0
        try:
            process = self.launcher.launch(number, place)
            pid = process.pid
            try:
                yield Box(self.launcher, number, place, process, groups)
            finally:
                process.close()
                os.close(process.output)
        finally:
            self.launcher.destroy(number, place.name, pid)


def _image(folder: Path) -> Path:
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    busybox = shutil.which("busybox")
    if busybox is None or shutil.which("gcc") is None:
        pytest.skip("no busybox or gcc; remedy: apt-get install --no-install-recommends busybox-static gcc libc6-dev")
    shutil.copy(busybox, folder / "bin/busybox")
    for applet in run([busybox, "--list"], timeout=10).stdout.split():
        if applet != "busybox":
            (folder / "bin" / applet).symlink_to("busybox")
    source = Path(__file__).with_name("probe.c")
    run(["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", folder / "bin/probe", source], timeout=60)
    (folder / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (folder / "etc/image").write_text("of the image\n")
    return folder


# --- specs with changes ------------------------------------------------------------------------------------------


def sh(script: str, **changes: Any) -> Spec:
    """The default container running a shell script; keyword arguments as `changed` has them."""
    return changed(default_spec(["/bin/sh", "-c", script], root="root"), **changes)


def probe(*words: object, **changes: Any) -> Spec:
    """The default container making one system call; see probe.c."""
    return changed(default_spec([PROBE, *map(str, words)], root="root"), **changes)


def changed(spec: Spec, **changes: Any) -> Spec:
    """Fields of the spec, its process and its linux by their own names."""
    for part in ("process", "linux"):
        record: Process | Linux = getattr(spec, part)
        mine = {name: changes.pop(name) for name in record.__struct_fields__ if name in changes}
        if mine:
            spec = replace(spec, **{part: replace(record, **mine)})
    return replace(spec, **changes)


def capabilities(*names: str, **others: Sequence[str]) -> Capabilities:
    """`names` bounding, effective and permitted."""
    full = tuple(f"CAP_{name}" for name in names)
    rest = {key: tuple(f"CAP_{name}" for name in value) for key, value in others.items()}
    return Capabilities(**{"bounding": full, "effective": full, "permitted": full, **rest})


def trusted(spec: Spec) -> Spec:
    """The same, with every capability and no filter: what is then refused is refused by namespaces alone."""
    kept = Capabilities(bounding=ALL_CAPABILITIES, effective=ALL_CAPABILITIES, permitted=ALL_CAPABILITIES)
    return changed(spec, capabilities=kept, seccomp=None)


def namespaces(*kinds: str, **paths: str) -> tuple[Namespace, ...]:
    """New ones of `kinds`; those with a path are joined."""
    made = [Namespace(kind) for kind in kinds]  # type: ignore[arg-type]
    return (*made, *(Namespace(kind, path) for kind, path in paths.items()))  # type: ignore[arg-type]


# --- traps -------------------------------------------------------------------------------------------------------


def state(folder: Path) -> list[tuple[str, int, int, int, bytes]]:
    """All that could have been changed below a folder."""
    found = []
    for path in sorted((folder, *folder.rglob("*"))):
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found.append((str(path), facts.st_mode, facts.st_uid, facts.st_ctime_ns, content))
    return found


def hostile(boxes: Boxes, folder: Path, **links: str) -> Path:
    """The image, with symlinks in place of folders."""
    shutil.copytree(boxes.image, folder, symlinks=True)
    for name, target in links.items():
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.symlink_to(target)
    return folder
