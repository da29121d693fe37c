"""The outside of a boundary: this host with a canary process, or a guest that stands in for it in a control."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from bench import process
from bench.drivers.base import Instance
from bench.errors import HostError
from bench.linux import procfs
from bench.model import Completed
from bench.probes.base import Answer, Held
from bench.probes.program import parse

_ADDRESSES = 8  # of the host's own that a probe tries
_PATIENCE = 2.0  # seconds for a greeting


class HostWorld:
    """This host. What attacks go for is in one process and one folder, made for them."""

    def __init__(self, program: str, held: Held) -> None:
        self._program, self._held = program, held

    @property
    def held(self) -> Held:
        return self._held

    def read(self, path: str) -> str | None:
        return procfs.read(path)

    def write(self, path: str, text: str) -> None:
        Path(path).write_text(text)

    def damage(self) -> Sequence[str]:
        found = []
        if procfs.read(self._held.file) != self._held.secret:
            found.append(f"the canary's file {self._held.file} has changed")
        if self._held.secret not in (procfs.read(f"/proc/{self._held.pid}/cmdline") or ""):
            found.append(f"the canary process {self._held.pid} has ended")
        return found

    def lists(self, mark: str) -> bool:
        lines = (procfs.read(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
        return any(line is not None and mark in line for line in lines)

    def greeting(self, port: int) -> str:
        try:
            with socket.create_connection(("127.0.0.1", port), _PATIENCE) as link:
                link.settimeout(_PATIENCE)
                return link.recv(64).decode(errors="replace")
        except OSError:
            return ""

    def leaking(self, words: Sequence[str]) -> Answer:
        argv = [self._program, *words]
        reading, writing = os.pipe()
        with open(reading, "rb") as answers, open(self._held.file, "rb") as leaked:
            try:
                with process.spawn(argv, stdout=writing, pass_fds=(leaked.fileno(),)) as child:
                    child.wait(10)
            finally:
                os.close(writing)
            return parse(argv, Completed(child.returncode, answers.read().decode(), ""))

    def bare(self, words: Sequence[str], timeout: float) -> Answer:
        """The attack as a process of the host without any limit."""
        argv = [self._program, *words]
        return parse(argv, process.run(argv, timeout=timeout, check=False))

    @property
    def addresses(self) -> Sequence[str]:
        found = [
            one.address
            for addresses in psutil.net_if_addrs().values()
            for one in addresses
            if one.family is socket.AF_INET and not one.address.startswith("127.")
        ]
        return [*found[-_ADDRESSES + 1 :], "127.0.0.1"]


class GuestWorld:
    """A guest as the outside of a bare process in it; what an attack did is asked of the guest itself."""

    def __init__(self, guest: Instance, program: str, timeout: float) -> None:
        self._guest, self._program, self._timeout = guest, program, timeout

    @property
    def held(self) -> Held:
        raise LookupError("a guest holds no canary: this control belongs on the host")

    def read(self, path: str) -> str | None:
        done = self._guest.exec(["cat", path], timeout=self._timeout)
        return done.stdout if done.status == 0 else None

    def write(self, path: str, text: str) -> None:
        self._guest.exec(["sh", "-c", 'printf %s "$1" > "$2"', "sh", text, path], timeout=self._timeout)

    def damage(self) -> Sequence[str]:
        return ()

    def lists(self, mark: str) -> bool:
        return True

    def greeting(self, port: int) -> str:
        return ""

    def leaking(self, words: Sequence[str]) -> Answer:
        return self.bare(words, self._timeout)

    def bare(self, words: Sequence[str], timeout: float) -> Answer:
        argv = [self._program, *words]
        return parse(argv, self._guest.exec(argv, timeout=timeout))

    @property
    def addresses(self) -> Sequence[str]:
        return ()


@contextmanager
def host_world(program: str, folder: Path) -> Iterator[HostWorld]:
    """This host with a canary in `folder`, which is made; both are gone afterwards. Raises HostError."""
    secret = secrets.token_hex(8)
    folder.mkdir(mode=0o700, parents=True)
    try:
        (folder / "file").write_text(secret)
        with _canary(program, folder, secret) as held:
            yield HostWorld(program, held)
    finally:
        shutil.rmtree(folder)


@contextmanager
def _canary(program: str, folder: Path, secret: str) -> Iterator[Held]:
    """The canary process; it dies with us."""
    reading, writing = os.pipe()
    argv = [program, "canary", str(folder), secret]
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(open(reading, "rb"))
        try:
            stack.enter_context(process.spawn(argv, stdout=writing, env={"BENCH_SECRET": secret}))
        finally:
            os.close(writing)
        line = said.readline()
        if not line:
            raise HostError("the canary process did not start", hint="its last words are above")
        fields = msgspec.json.decode(line)
        yield msgspec.convert({**fields, "secret": secret, "folder": str(folder)}, Held)
