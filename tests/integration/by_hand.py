"""`bench container` as a user runs it: commands in processes of their own, and what they left."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.linux import syscalls
from bench.model import Completed, RunId
from tests.integration.traces import traces

_TOKEN = re.compile(r"bench-([a-z0-9]{6})/")
_HOME = Path(__file__).parents[2]
NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


class ByHand:
    """A state folder and a cache of its own, and the tokens of all that was started."""

    def __init__(self, state: Path, cache: Path, prefix: tuple[str, ...] = (), home: Path = _HOME) -> None:
        self.state, self._prefix, self._home = state, prefix, home
        self._moved = home != _HOME and Path(sys.executable).is_relative_to(_HOME)
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(state), "BENCH_STATE": str(state), "BENCH_CACHE": str(cache),
            "PYTHONPATH": str(home),
        }  # fmt: skip
        self.tokens: set[str] = set()

    def argv(self, *words: str) -> list[str]:
        more = ("--debug",) if words[0] == "run" else ()
        python = self._home / Path(sys.executable).relative_to(_HOME) if self._moved else sys.executable
        return [*self._prefix, str(python), "-m", "bench", "container", words[0], *more, *words[1:]]

    def __call__(self, *words: str, stdin: bytes = b"", timeout: float = 30, status: int | None = 0) -> Completed:
        """Run one to its end; `status` is what it must end with, None: whatever."""
        done = subprocess.run(
            self.argv(*words),
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=self.env,
            cwd=self._home,
            check=False,
        )
        out, said = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        self.note(said)
        assert status is None or done.returncode == status, f"{words}: {done.returncode}\n{out}\n{said}"
        return Completed(done.returncode, out, said)

    def note(self, said: str) -> None:
        self.tokens |= set(_TOKEN.findall(said))

    def ps(self) -> dict[str, Any]:
        return {one["name"]: one for one in json.loads(self("ps", "--json").stdout)}

    def until(self, condition: Callable[[], bool], timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "in vain"
            time.sleep(0.02)

    def clear(self) -> list[str]:
        """Remove every container; what is left of any after that."""
        for name in self.ps():
            self("rm", "-f", name)
        left = [trace for token in self.tokens for trace in traces(RunId(f"x-{token}"))]
        return left + [str(path) for path in (self.state.iterdir() if self.state.exists() else ())]


@contextlib.contextmanager
def open_checkout(folder: Path) -> Iterator[Path]:
    """The program and its environment where another user may come, wherever the checkout lies."""
    with contextlib.ExitStack() as stack:
        for name in ("bench", ".venv"):
            if (_HOME / name).is_dir():
                (folder / name).mkdir(parents=True)
                target = str(folder / name)
                syscalls.mount(str(_HOME / name), target, "", syscalls.MS_BIND)
                stack.callback(syscalls.umount2, target, syscalls.MNT_DETACH)
                syscalls.mount("none", target, "", syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
        yield folder


@contextlib.contextmanager
def home_of_nobody() -> Iterator[Path]:
    """Where nobody may write, with a `checkout` in it; pytest's own folders are root's alone."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    os.chown(folder, NOBODY, NOBODY)
    try:
        with open_checkout(folder / "checkout"):
            yield folder
    finally:
        shutil.rmtree(folder)


class Terminal:
    """A user at a terminal of `rows` and `columns`, who starts `argv` there."""

    def __init__(self, argv: list[str], env: Mapping[str, str], rows: int = 30, columns: int = 100) -> None:
        self.shown = b""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.chdir("/")  # the checkout may be closed to who runs this
            os.execvpe(argv[0], argv, dict(env))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: str, timeout: float = 10) -> str:
        """All that was shown up to `text`, which is then behind us."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self.shown!r}"
            if select.select([self.fd], [], [], left)[0]:
                try:
                    self.shown += os.read(self.fd, 4096)
                except OSError:
                    assert text.encode() in self.shown, f"ended without {text!r}: {self.shown!r}"
        before, _, self.shown = self.shown.partition(text.encode())
        return before.decode(errors="replace")

    def status(self) -> int:
        """Exit status of the command, when it has ended."""
        with contextlib.suppress(OSError):
            while select.select([self.fd], [], [], 10)[0] and (data := os.read(self.fd, 4096)):
                self.shown += data
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
