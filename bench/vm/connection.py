"""The way to libvirt: `qemu:///embed` runs its QEMU driver inside our process, without a daemon.

libvirt is imported here and nowhere else, and only when a connection is opened. Its embedded driver keeps one root
folder for the life of a process: the first one opened serves all later runs of that process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import pwd
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import process
from bench.errors import BenchError, CommandError, HostError, LaunchError
from bench.linux.hugepages import children_may_have
from bench.vm import far

log = logging.getLogger(__name__)

INSTALL = "pip install tenancy-bench[vm] (compiles it: needs libvirt-dev, pkg-config and gcc)"
_USER = "libvirt-qemu"  # as Debian and Ubuntu build libvirt
_LOG, _NOWHERE = "LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null"
_KVM = "/dev/kvm"
_CAPS = "cache/qemu/capabilities"
_OWN_PID = "driver.pid"  # of the embedded driver itself, among those of guests
_HINTS = (
    (r"Failed to parse user '([^']+)'", r"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin \1"),
    (r"Failed to parse group '([^']+)'", r"groupadd --system \1"),
    (r"libvirt-sock.*(No such file|Connection refused)", "start libvirtd and virtlogd, or leave --connect out"),
    (r"[Nn]o connection driver available|library.*qemu.*not found", "apt-get install libvirt-daemon-driver-qemu"),
    (r"Cannot allocate memory", "lower the count or the memory limit: the host has no room for one more guest"),
    (r"Cannot get interface MTU|Unable to add bridge", "the run's bridge is gone: bench clean, then run again"),
    (
        r"[Pp]ermission denied",
        "QEMU runs as another user: state and cache folders must be readable along their whole path",
    ),
)
_opening, _importing = threading.Lock(), threading.Lock()
_events: threading.Thread | None = None
_embed_root: Path | None = None  # libvirt refuses a second one in the same process
_embed: Any = None  # stays open: each opening takes a place in a table of libvirt's, which has some twenty


class Connection:
    """An open connection. `close` lets go of it; domains live on until they are destroyed."""

    def __init__(self, handle: Any, uri: str, runtime: Path, user: str) -> None:
        self.handle = handle
        self.uri = uri
        self.runtime = runtime  # where libvirt keeps NAME.pid of running guests
        self.user = user  # who QEMU runs as
        self._version = ""  # asked once: it is wanted at a run's end too, when the connection may be lost

    def version(self) -> str:
        if not self._version:
            self._version = _dotted(self.handle.getLibVersion())
        return self._version

    @property
    def embedded(self) -> bool:
        """Whether libvirt's driver runs in this process, so that QEMU inherits from it."""
        return self.uri.startswith("qemu:///embed")

    def create(self, xml: str, huge_pages: bool = True) -> Any:
        """A new domain, paused. Raises LaunchError. Whether the host may back it with huge pages is inherited, and so
        only obeyed by an embedded driver."""
        libvirt = _libvirt()
        with children_may_have(huge_pages), errors(LaunchError, "libvirt refuses the domain"):
            return self.handle.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)

    def pid_of(self, name: str) -> int:
        """Pid of the domain's QEMU. Raises LaunchError if it is gone already."""
        try:
            return int((self.runtime / f"{name}.pid").read_text())
        except (OSError, ValueError) as error:
            raise LaunchError(f"QEMU of {name} ended as soon as it was started") from error

    def learn(self, machine: str, kind: str) -> None:
        """Have libvirt ask QEMU what it can do: about four seconds if it does not know yet. Raises HostError."""
        with errors(HostError, f"libvirt finds no QEMU for {kind} guests"):
            self.handle.getDomainCapabilities(None, "x86_64", machine, kind)

    def close(self) -> None:
        """Let go of libvirt; an embedded driver stays for the next run, its root goes unless domains are left in it."""
        if not self.embedded:
            with contextlib.suppress(_libvirt().libvirtError):
                self.handle.close()
        elif not any(path.name != _OWN_PID for path in self.runtime.glob("*.pid")):
            root = self.runtime.parents[1]
            shutil.rmtree(root, ignore_errors=True)
            with contextlib.suppress(OSError):  # the folder of an earlier run, made again for this one's sake
                root.parent.rmdir()


def connect(state: Path, cache: Path, uri: str | None = None) -> Connection:
    """Open `uri`, by default the embedded driver with its root in `state`.

    Raises HostError if libvirt is not there or refuses.
    """
    with _opening:
        if uri is None:
            return _open_embed(state / "libvirt", cache)
        if uri.startswith(far.SCHEME):
            far.check_here(uri)
        elif not re.fullmatch(r"qemu:///(system|embed\?root=/.*)", uri):
            raise HostError(
                f"can't use {uri}: console and payload of a guest reach us through sockets of this host",
                hint="leave --connect out, or give qemu:///system",
            )
        if uri.startswith("qemu:///embed"):
            return _open_embed(Path(uri.partition("root=")[2]), cache)
        return Connection(_open(uri), uri, Path("/run/libvirt/qemu"), "as libvirtd's qemu.conf says")


def domain_gone(domain: Any) -> bool:
    """Whether libvirt has forgotten the domain."""
    try:
        return not domain.isActive()
    except _libvirt().libvirtError:
        return True


def destroy(domain: Any) -> None:
    """End it, if it is still there. Raises LaunchError's kin BenchError if libvirt can't."""
    libvirt = _libvirt()
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            raise translate(error, BenchError, "libvirt can't destroy the domain") from error


def monitor(domain: Any, command: str, files: Sequence[int] = (), **arguments: object) -> dict[str, Any]:
    """What QEMU answers to a command of QMP, `files` going with it. Raises LaunchError."""
    import libvirt_qemu

    request = json.dumps({"execute": command, "arguments": arguments})
    with errors(LaunchError, f"QEMU refuses {command}"):
        if files:
            text, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, request, list(files))
        else:
            text = libvirt_qemu.qemuMonitorCommand(domain, request, 0)
    answer = json.loads(text)
    if "error" in answer:
        raise LaunchError(f"QEMU refuses {command}: {answer['error'].get('desc', answer['error'])}")
    found: dict[str, Any] = answer["return"]
    return found


@contextlib.contextmanager
def errors(kind: type[BenchError], what: str) -> Iterator[None]:
    """Errors of libvirt's as ours."""
    try:
        yield
    except _libvirt().libvirtError as error:
        raise translate(error, kind, what) from error


def translate(error: Exception, kind: type[BenchError], what: str) -> BenchError:
    said = str(error)
    for pattern, hint in _HINTS:
        if match := re.search(pattern, said):
            return kind(f"{what}: {said}", hint=match.expand(hint))
    return kind(f"{what}: {said}")


def check_embed() -> None:
    """Open an embedded driver in a process of its own: ours must stay free for a run's root. Raises HostError."""
    try:
        process.run([sys.executable, "-m", "bench.vm.connection"], timeout=30)
    except CommandError as error:
        said = error.message.strip().splitlines()[-1]
        raise translate(Exception(said), HostError, "libvirt's QEMU driver does not start") from error


# --- opening -----------------------------------------------------------------------------------------------------


def _open_embed(root: Path, cache: Path) -> Connection:
    global _embed_root, _embed
    used = _embed_root or root
    user = _make_root(used, cache)
    if _embed is None:
        _embed = _open(f"qemu:///embed?root={used}")
        atexit.register(_embed.close)  # while its thread of events still runs
    _embed_root = used
    return Connection(_embed, f"qemu:///embed?root={used}", used / "run/qemu", user)


def _make_root(root: Path, cache: Path) -> str:
    """Write the driver's configuration, hand over what earlier runs learned; returns who QEMU will run as."""
    # By default QEMU's output goes through the daemon virtlogd, and former owners of files are kept in their
    # attributes, where they would outlive a crash.
    lines = ['stdio_handler = "file"', "remember_owner = 0"]
    user = "libvirt's default"
    if (reason := _needs_root(root, cache)) is not None:
        user = f"root, because {reason}"
        lines += ['user = "root"', 'group = "root"', "dynamic_ownership = 0"]
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/qemu.conf").write_text("\n".join(lines) + "\n")
    for name in ("run/qemu", "lib/qemu/channel/target", "lib/qemu/save", "log/qemu"):  # if removed since it was opened
        (root / name).mkdir(parents=True, exist_ok=True)
    _copy_new(cache / "libvirt-caps", root / _CAPS)
    return user


def _needs_root(root: Path, cache: Path) -> str | None:
    """Why QEMU can't run as the unprivileged user that libvirt would give it; None if it can."""
    for path in (root, cache):
        if not _reachable(path):
            return f"other users can't reach {path}"
    # libvirt believes QEMU has KVM, since it asked as root, and then asks anew in every launch: four seconds and more.
    if Path(_KVM).exists() and not _may_open(_KVM, _USER):
        return f"{_USER} may not open {_KVM}"
    return None


def _may_open(path: str, user: str) -> bool:
    """Whether the account `user` may read and write `path`, as far as mode and groups tell."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return False
    facts = os.stat(path)
    if facts.st_uid == account.pw_uid:
        return facts.st_mode & 0o600 == 0o600
    if facts.st_gid in os.getgrouplist(user, account.pw_gid):
        return facts.st_mode & 0o060 == 0o060
    return facts.st_mode & 0o006 == 0o006


def _reachable(path: Path) -> bool:
    """Whether any user may pass through the folders of `path` that exist."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents) if folder.exists())


def keep_capabilities(connection: Connection, cache: Path) -> None:
    """Keep libvirt's answers about QEMU for later runs: asking costs about four seconds in each new root.

    libvirt checks them against QEMU, kernel and its own version before it believes them.
    """
    if "embed" in connection.uri:
        _copy_new(connection.runtime.parents[1] / _CAPS, cache / "libvirt-caps")


def _copy_new(source: Path, target: Path) -> None:
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.xml"):
        copy = target / path.name
        if not copy.exists() or copy.stat().st_mtime_ns < path.stat().st_mtime_ns:
            scratch = copy.with_name(f".{path.name}.{os.getpid()}")
            shutil.copy2(path, scratch)
            scratch.rename(copy)


def _open(uri: str) -> Any:
    libvirt = _libvirt()
    _run_events(libvirt)
    with errors(HostError, f"can't open {uri}"):
        return libvirt.open(uri)


def _libvirt() -> Any:
    with _importing:  # several threads launch at once, and the environment is all of theirs
        return sys.modules.get("libvirt") or _import_libvirt()


def _import_libvirt() -> Any:
    # Read once, by the import: without it libvirt writes what it logs on our stderr. Errors are raised besides.
    ours = os.environ.setdefault(_LOG, _NOWHERE) is _NOWHERE
    try:
        import libvirt
    except ImportError as error:
        raise HostError("libvirt-python is not installed", hint=INSTALL) from error
    finally:
        if ours:
            del os.environ[_LOG]
    return libvirt


def _run_events(libvirt: Any) -> None:
    """Start libvirt's event loop, once: it must be registered before the first connection."""
    global _events
    if _events is not None:
        return
    libvirt.registerErrorHandler(_silent, None)
    libvirt.virEventRegisterDefaultImpl()
    _events = threading.Thread(target=_event_loop, args=(libvirt,), name="libvirt-events", daemon=True)
    _events.start()


def _silent(_context: object, _error: object) -> None:
    """libvirt prints every error on stderr otherwise; ours are raised."""


def _event_loop(libvirt: Any) -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


if __name__ == "__main__":  # see check_embed
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:  # here: it goes also where who asked was killed
        opened = _open_embed(Path(scratch), Path(scratch, "no-cache"))
        sys.stdout.write(f"{opened.version()}\n")
