"""The default container is no weaker than Docker's: against a real one, call by call, path by path."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.container import seccomp
from bench.container.spec import default_seccomp, default_spec, encode
from bench.container.spec_records import Spec, SyscallRule
from bench.errors import CommandError
from bench.linux import bpf
from bench.process import run, spawn
from tests.integration.confinement import Difference, compare, compare_filters, of_process, of_spec

_PATH = f"/usr/bin:/usr/sbin:{os.environ.get('PATH', '')}"
DOCKERD, DOCKER, RUNC, BUSYBOX = (shutil.which(name, path=_PATH) for name in ("dockerd", "docker", "runc", "busybox"))
REMEDY = "remedy: apt-get install --no-install-recommends docker.io runc busybox-static"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        None in (DOCKERD, DOCKER, RUNC, BUSYBOX), reason=f"dockerd, docker, runc or busybox is not installed; {REMEDY}"
    ),
]

JUSTIFIED: dict[str, str] = {}
"""What of ours may be weaker than Docker's, and why: nothing."""

_RUN = ("/run/containerd/s", "/run/containerd", "/run/docker/plugins", "/run/docker")
"""Folders that dockerd makes whatever it is told."""

SPEC = default_spec(["/bin/busybox", "sleep", "600"], root="root", hostname="parity")


# --- a Docker of our own -----------------------------------------------------------------------------------------


class Engine:
    """A dockerd started by hand, with everything of it in `folder` and its cgroups below one of our own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.group = f"bench-docker-{os.getpid()}"
        self.socket = f"unix://{folder}/sock"
        self._made = [path for path in _RUN if not os.path.exists(path)]

    def docker(self, *words: str, timeout: float = 60) -> str:
        return run([str(DOCKER), "-H", self.socket, *words], timeout=timeout, env={"HOME": str(self.folder)}).stdout

    @contextlib.contextmanager
    def running(self) -> Iterator[Engine]:
        (self.folder / "none.json").write_text("{}")  # not the host's own configuration
        places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid", "config-file": "none.json"}
        argv = ["sh", "-c", 'exec "$0" "$@" 2>&1', str(DOCKERD)]
        argv += [f"--{key}={self.folder}/{name}" for key, name in places.items()]
        argv += [f"--host={self.socket}", f"--cgroup-parent=/{self.group}", "--storage-driver=vfs"]
        argv += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false"]
        with (self.folder / "log").open("wb") as log, spawn(argv, stdout=log.fileno()) as daemon:
            try:
                self._wait(30)
                yield self
            finally:
                daemon.terminate()  # it takes its containerd along
                daemon.wait(30)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.docker("version")
                return
            except CommandError as error:
                if time.monotonic() > deadline:
                    raise AssertionError((self.folder / "log").read_text()) from error
                time.sleep(0.1)

    def clean(self) -> None:
        for path in Path("/sys/fs/cgroup").rglob(self.group):
            os.rmdir(path)
        for folder in self._made:
            with contextlib.suppress(OSError):  # not there, or in use by another engine meanwhile
                os.rmdir(folder)


def _root(folder: Path) -> Path:
    """A root file system that is one static program."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(str(BUSYBOX), folder / "bin/busybox")
    return folder


def _tar(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")
    return path


class Reference:
    """A running container of Docker's, with default settings."""

    def __init__(self, engine: Engine, name: str) -> None:
        state: dict[str, Any] = json.loads(engine.docker("inspect", name))[0]
        self.pid = int(state["State"]["Pid"])
        self.masked, self.read_only = state["HostConfig"]["MaskedPaths"], state["HostConfig"]["ReadonlyPaths"]


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    with tempfile.TemporaryDirectory(prefix="bench-docker-", dir="/tmp") as name:  # short: it holds unix sockets
        folder = Path(name)
        engine = Engine(folder)
        archive = _tar(_root(folder / "root"), folder / "root.tar")
        try:
            with engine.running():
                engine.docker("import", str(archive), "parity")
                engine.docker("run", "-d", "--name=parity", "--network=none", "parity", "/bin/busybox", "sleep", "600")
                try:
                    yield Reference(engine, "parity")
                finally:
                    engine.docker("rm", "-f", "parity")
        finally:
            engine.clean()
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    assert not [path for path, _, _ in os.walk("/sys/fs/cgroup") if engine.group in path]


def _weaker(differences: list[Difference]) -> list[Difference]:
    return [found for found in differences if found.weaker and found.what not in JUSTIFIED]


def _listed(title: str, differences: list[Difference]) -> list[Difference]:
    """Shown by pytest -s, and whenever an assertion about them fails."""
    print(f"{title}: {len(differences)} differences", *differences, sep="\n  ")
    return differences


# --- against Docker ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docker_filter(reference: Reference) -> bytes:
    filters = bpf.installed_filters(reference.pid)
    assert len(filters) == 1
    return filters[0]


def test_the_filter_is_nowhere_weaker(docker_filter: bytes) -> None:
    found = _listed("seccomp", compare_filters(seccomp.compile(default_seccomp()), docker_filter))
    assert not _weaker(found)
    stricter = {difference.what for difference in found}
    assert "x86_64 io_uring_setup" in stricter  # the comparison sees what is known to differ
    assert any(what.startswith("x86_64 socket(0x28") for what in stricter)


def test_calls_allowed_beyond_docker_are_reported(docker_filter: bytes) -> None:
    planted = ("kexec_load", "clone", "unshare")  # `clone`: with any flags
    rules = tuple(rule for rule in default_seccomp().syscalls if not set(rule.names) & set(planted))
    wider = msgspec.structs.replace(default_seccomp(), syscalls=(*rules, SyscallRule(planted, "SCMP_ACT_ALLOW")))
    found = _weaker(compare_filters(seccomp.compile(wider), docker_filter))
    assert {difference.what.split()[1].partition("(")[0] for difference in found} == set(planted)
    assert len({difference.what.split()[0] for difference in found}) == 3  # on each architecture


def test_privileges_paths_mounts_and_devices_are_nowhere_weaker(reference: Reference) -> None:
    theirs = of_process(reference.pid)
    assert theirs.capabilities["effective"] == 0xA80425FB  # what is compared with is a container, not the host
    assert {"/proc/keys", "/sys/firmware"} <= theirs.masked
    assert "/proc/sys" in theirs.read_only
    assert not _weaker(_listed("of the kernel", compare(of_spec(SPEC), theirs)))
    assert set(reference.masked) <= set(SPEC.linux.masked_paths)
    assert set(reference.read_only) <= set(SPEC.linux.readonly_paths)


def _without(spec: Spec, **changes: Any) -> Spec:
    return msgspec.structs.replace(spec, linux=msgspec.structs.replace(spec.linux, **changes))


def test_every_kind_of_weakness_is_reported(reference: Reference) -> None:
    theirs = of_process(reference.pid)
    capabilities = msgspec.structs.replace(SPEC.process.capabilities, effective=("CAP_SYS_ADMIN",))
    process = msgspec.structs.replace(SPEC.process, capabilities=capabilities)
    mounts = tuple(msgspec.structs.replace(mount, options=()) for mount in SPEC.mounts)
    any_device = msgspec.structs.replace(SPEC.linux.resources.devices[0], allow=True, type="b")
    devices = msgspec.structs.replace(SPEC.linux.resources, devices=(any_device,))
    planted = {
        "capabilities, effective": msgspec.structs.replace(SPEC, process=process),
        "/proc/keys": _without(SPEC, masked_paths=()),
        "/proc/sys": _without(SPEC, readonly_paths=()),
        "mount /proc": msgspec.structs.replace(SPEC, mounts=mounts),
        "Seccomp": _without(SPEC, seccomp=None),
        "device b *:* rwm": _without(SPEC, resources=devices),
    }
    if theirs.devices is None:
        del planted["device b *:* rwm"]  # cgroup v2: a BPF program that can't be read back
    for what, spec in planted.items():
        assert what in {found.what for found in _weaker(compare(of_spec(spec), theirs))}


# --- against runc ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_runc() -> Iterator[int]:
    """Host pid of our default spec, run by runc from the config.json we write."""
    with tempfile.TemporaryDirectory(prefix="bench-runc-", dir="/tmp") as name:
        folder, group = Path(name), f"bench-runc-{os.getpid()}"
        _root(folder / "root")
        quiet = ["/bin/busybox", "sh", "-c", "exec /bin/busybox sleep 600 </dev/null >/dev/null 2>&1"]
        spec = default_spec(quiet, root="root", hostname="parity", cgroups_path=f"/{group}")
        (folder / "config.json").write_bytes(encode(spec))
        runc = [str(RUNC), "--root", f"{name}/state"]
        run([*runc, "run", "--detach", "--bundle", name, "--pid-file", f"{name}/pid", group], timeout=60)
        try:
            yield int((folder / "pid").read_text())
        finally:
            run([*runc, "delete", "--force", group], timeout=60)


def test_runc_runs_our_config_json_as_we_mean_it(in_runc: int) -> None:
    """The very same, save for paths this kernel does not have, and runc's own device rules beside ours."""
    running, declared = of_process(in_runc), of_spec(SPEC)
    there = {path for path in declared.masked | declared.read_only if os.path.exists(path)}
    expected = msgspec.structs.replace(declared, masked=declared.masked & there, read_only=declared.read_only & there)
    differing = _listed("running, against declared", compare(running, expected))
    assert {found.what.split()[0] for found in differing} <= {"device"}


def test_runc_compiles_our_profile_to_the_same_answers(in_runc: int) -> None:
    """Two compilers, one profile: every answer is the same, errno included."""
    theirs = bpf.installed_filters(in_runc)[0]
    assert not _listed("compilers", compare_filters(seccomp.compile(default_seccomp()), theirs))


def test_a_filter_of_our_own_is_read_back_whole(tmp_path: Path) -> None:
    """The tracer's reading is not of some other process, and leaves it running."""
    program = seccomp.compile(default_seccomp())
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        _under(program, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        assert told.read(1) == b"."
        try:
            assert bpf.installed_filters(pid) == [program]
            assert bpf.installed_filters(pid) == [program]
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def _under(program: bytes, writing: int) -> None:
    from bench.linux.seccomp import load_filter

    try:
        load_filter(program)
        os.write(writing, b".")
        while True:
            time.sleep(60)
    finally:
        os._exit(1)
