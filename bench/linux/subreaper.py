"""Adopt orphaned grandchildren, and reap only those we were told of.

A hypervisor daemonizes: it is nobody's child until init, or a subreaper, adopts it. Where pid 1 reaps slowly its
corpse keeps answering kill(pid, 0), which is how libvirt waits for it (1.8 s a guest on the reference machine).
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator

from bench.linux.syscalls import PR_SET_CHILD_SUBREAPER, prctl


def become_subreaper() -> None:
    """Make this process the parent of descendants whose own parent ends. Raises OSError."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


class Watched:
    """One process under watch; `gone` is set as soon as it has ended, and its corpse is reaped if it is ours."""

    def __init__(self, pid: int, fd: int, last: Callable[[], None]) -> None:
        self.pid = pid
        self.fd = fd
        self.last = last
        self.gone = threading.Event()


class Reaper:
    """A thread that waits on pidfds. Only registered pids are reaped: whoever forked the others wants their status."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._watched: dict[int, Watched] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False

    def watch(self, pid: int, last: Callable[[], None] = lambda: None) -> Watched:
        """Watch `pid`, which may have ended already.

        `last` is called when it has ended, on our thread, and must not raise. If the corpse is ours it still stands
        then, and whoever waits until kill(pid, 0) fails has not gone on to tidy up.
        """
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            watched = Watched(pid, -1, last)
            last()
            watched.gone.set()
            return watched
        watched = Watched(pid, fd, last)
        with self._lock:
            self._watched[fd] = watched
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="reaper", daemon=True)
                self._thread.start()
            self._epoll.register(fd, select.EPOLLIN)
        return watched

    def sweep(self, prefix: str) -> int:
        """Reap adopted corpses of programs whose name begins with `prefix`; returns how many.

        Adopted is what has a session other than ours: a daemon. Whoever forked a child in our session waits for it.
        """
        corpses = [pid for pid in _corpses(prefix) if not self._is_watched(pid)]
        for pid in corpses:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return len(corpses)

    def _is_watched(self, pid: int) -> bool:
        with self._lock:
            return any(one.pid == pid for one in self._watched.values())

    @contextlib.contextmanager
    def sweeping(self, prefix: str, every: float) -> Iterator[None]:
        """Sweep every `every` seconds as long as the context lasts; costs nothing if it lasts less."""
        over = threading.Event()

        def loop() -> None:
            while not over.wait(every):
                self.sweep(prefix)

        thread = threading.Thread(target=loop, name="sweeper", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def close(self) -> None:
        """End the thread; processes still watched are left alone. Idempotent."""
        self._closing = True
        if not self._epoll.closed:
            os.eventfd_write(self._wake, 1)
            if self._thread is not None:
                self._thread.join()
                self._thread = None
            for fd in self._watched:
                os.close(fd)
            self._watched.clear()
            self._epoll.close()
            os.close(self._wake)

    def _loop(self) -> None:
        while not self._closing:
            for fd, _ in self._epoll.poll():
                if fd != self._wake:
                    self._ended(fd)

    def _ended(self, fd: int) -> None:
        with self._lock:
            watched = self._watched.pop(fd)
            self._epoll.unregister(fd)
            os.close(fd)
        watched.last()
        with contextlib.suppress(ChildProcessError):  # a daemon's child, not ours: its own parent reaps it
            os.waitpid(watched.pid, 0)
        watched.gone.set()


def _corpses(prefix: str) -> Iterator[int]:
    """Zombies whose parent we are and whose session is not ours."""
    us, session = os.getpid(), os.getsid(0)
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            comm, _, rest = file.read().partition("(")[2].rpartition(")")
            state, parent, _, its_session = rest.split()[:4]
            if (state, int(parent)) == ("Z", us) and int(its_session) != session and comm.startswith(prefix):
                yield int(name)
