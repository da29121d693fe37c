"""One reader for everything instances say: pipes and sockets, watched by one thread, stamped as lines arrive.

epoll, not select: descriptors go past 1,024. The stamp is taken when epoll wakes, before the bytes are read.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

_TAIL = 4096
Action = Callable[[], None]


class LineStream:
    """What arrived on one descriptor: the stamp of its first byte, of each marked line, and the tail of the text."""

    def __init__(self, hub: LineHub, fd: int, marks: Iterable[str], log: BinaryIO | None) -> None:
        self._hub = hub
        self._fd = fd
        self._log = log
        self._marks: dict[str, int | None] = dict.fromkeys(marks)
        self._actions: Mapping[str, Action | None] = marks if isinstance(marks, Mapping) else {}
        self._changed = threading.Condition()
        self._rest = b""
        self._tail = b""
        self.first_byte: int | None = None
        self.ended = False

    def stamp(self, mark: str) -> int | None:
        """Monotonic ns at which a line holding `mark` arrived; None if none has."""
        return self._marks[mark]

    def wait(self, mark: str, timeout: float) -> int:
        """Wait for a line holding `mark` and return its stamp.

        Raises TimeoutError after `timeout` seconds, EOFError when the other side closed before it came.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while (stamp := self._marks[mark]) is None:
                if self.ended:
                    raise EOFError(mark)
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise TimeoutError(mark)
        return stamp

    def wait_end(self, timeout: float) -> bool:
        """Whether the other side closed, and all of it was read, within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ended, timeout)

    def tail(self) -> str:
        """The last 4 KiB that arrived, as text."""
        with self._changed:
            return self._tail.decode(errors="replace")

    def close(self) -> None:
        """Stop watching and close the descriptor. Idempotent."""
        self._hub.forget(self)

    def feed(self, data: bytes, at: int) -> None:
        """Called by the hub's thread with what was read; empty means the other side closed."""
        with self._changed:
            if data:
                self._take(data, at)
            else:
                self._scan(self._rest, at)
                self.ended = True
            self._changed.notify_all()

    def _take(self, data: bytes, at: int) -> None:
        if self.first_byte is None:
            self.first_byte = at
        if self._log:
            with contextlib.suppress(OSError):  # a disk that is full: who speaks goes on
                self._log.write(data)
        self._tail = (self._tail + data)[-_TAIL:]
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_TAIL:]  # a payload that never ends its line must not fill our memory
        for line in lines:
            self._scan(line, at)

    def _scan(self, line: bytes, at: int) -> None:
        text = line.decode(errors="replace")
        for mark, stamp in self._marks.items():
            if stamp is None and mark in text:
                self._marks[mark] = at
                if (action := self._actions.get(mark)) is not None:
                    action()

    def release(self) -> None:
        """Close the descriptor and the log; the hub calls it once, with its lock held."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        if self._log:
            self._log.close()
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    @property
    def fd(self) -> int:
        return self._fd


class LineHub:
    """Owns the epoll descriptor and the thread; a context manager."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._streams: dict[int, LineStream] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False

    def __enter__(self) -> LineHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def watch(
        self, fd: int, *, marks: Iterable[str] | Mapping[str, Action | None] = (), log: Path | None = None
    ) -> LineStream:
        """Take over `fd` (made non-blocking, closed by us): stamp the `marks`, append all of it to `log`.

        A mark may come with what to do at once when its line is there, in our thread: nothing that waits.
        """
        os.set_blocking(fd, False)
        stream = LineStream(self, fd, marks, log.open("ab", buffering=0) if log else None)
        with self._lock:
            self._streams[fd] = stream
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="lines", daemon=True)
                self._thread.start()
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        return stream

    def forget(self, stream: LineStream) -> None:
        with self._lock:
            if self._streams.get(stream.fd) is stream:
                del self._streams[stream.fd]
                self._unregister(stream.fd)
                stream.release()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            streams = list(self._streams.values())
        for stream in streams:
            self.forget(stream)
        if self._epoll.closed:
            return
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._epoll.close()
        os.close(self._wake)

    def _loop(self) -> None:
        while not self._closing:
            events = self._epoll.poll()
            at = time.monotonic_ns()
            for fd, _ in events:
                if fd != self._wake:
                    self._pull(fd, at)

    def _pull(self, fd: int, at: int) -> None:
        with self._lock:  # so that `forget` cannot close the descriptor under our read
            stream = self._streams.get(fd)
            if stream is None:
                return
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return
            except OSError:  # a socket whose peer died (ECONNRESET), a pty whose last writer closed (EIO)
                data = b""
            stream.feed(data, at)
            if not data:
                self._unregister(fd)

    def _unregister(self, fd: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # gone already: it ended before
            self._epoll.unregister(fd)
