"""HTTP requests at stated moments to many addresses, by one epoll loop: what a service level is read from.

Open loop: a request is sent when it is due, whether or not those before it were answered, and its time counts from that
moment. So a server that stalls is charged for all that should have been asked meanwhile (no coordinated omission).
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.linux.endpoints import answered, request_for
from bench.model import HttpCheck

IN_FLIGHT = 128
"""Requests under way at once at most; further ones wait, and their times count from when they were due."""
_LATE = 2_000_000  # ns: epoll's timeout counts in whole milliseconds; lateness up to this is ours and is not counted
_ENOUGH = 12  # bytes of an answer that hold its status: "HTTP/1.0 200"


class Answer(NamedTuple):
    """Of one request: which of the addresses, and seconds until its status was read; None if it failed."""

    target: int
    seconds: float | None


@dataclass
class _Request:
    """One under way."""

    target: int
    began: int  # ns
    link: socket.socket
    sent: bool = False
    head: bytes = b""


@dataclass
class _Load:
    check: HttpCheck
    addresses: Sequence[str]
    timeout: int  # ns
    clock: Callable[[], int]
    poller: select.epoll = field(default_factory=select.epoll)
    flying: dict[int, _Request] = field(default_factory=dict)  # by descriptor, the oldest first
    answers: list[Answer] = field(default_factory=list)

    def begin(self, target: int, due: int) -> None:
        now = self.clock()
        link = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        one = _Request(target, now if now - due < _LATE else due, link)
        code = link.connect_ex((self.addresses[target], self.check.port))
        if code not in (0, errno.EINPROGRESS):
            self._end(one, well=False)
            return
        self.flying[link.fileno()] = one
        self.poller.register(link.fileno(), select.EPOLLOUT)

    def wait(self, seconds: float) -> None:
        """Deal with what happens meanwhile."""
        for descriptor, events in self.poller.poll(max(seconds, 0)):
            one = self.flying[descriptor]
            try:
                self._read(one) if one.sent else self._send(one, events)
            except BlockingIOError:
                continue
            except OSError:
                self._leave(descriptor, well=False)

    def _send(self, one: _Request, events: int) -> None:
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self._leave(one.link.fileno(), well=False)
            return
        one.link.send(request_for(self.check, self.addresses[one.target]))
        one.sent = True
        self.poller.modify(one.link.fileno(), select.EPOLLIN)

    def _read(self, one: _Request) -> None:
        data = one.link.recv(4096)
        one.head += data
        if len(one.head) >= _ENOUGH or not data:
            self._leave(one.link.fileno(), well=answered(one.head, self.check))

    def expire(self) -> None:
        now = self.clock()
        for descriptor in [fd for fd, one in self.flying.items() if now - one.began > self.timeout]:
            self._leave(descriptor, well=False)

    def _leave(self, descriptor: int, *, well: bool) -> None:
        self.poller.unregister(descriptor)
        self._end(self.flying.pop(descriptor), well=well)

    def _end(self, one: _Request, *, well: bool) -> None:
        took = (self.clock() - one.began) / 1e9
        one.link.close()
        self.answers.append(Answer(one.target, took if well else None))

    def close(self) -> None:
        for one in self.flying.values():
            one.link.close()
        self.poller.close()


def ask(
    check: HttpCheck,
    addresses: Sequence[str],
    order: Sequence[int],
    rate: float,
    timeout: float,
    *,
    clock: Callable[[], int] = time.monotonic_ns,
) -> list[Answer]:
    """Ask `addresses[place]` for each place of `order`, `rate` requests a second; answers in the order they ended.

    Ends at most `timeout` seconds after the last one was due. Raises OSError if no socket can be made.
    """
    load = _Load(check, addresses, int(timeout * 1e9), clock)
    began, gap, next_one = clock(), 1e9 / rate, 0
    try:
        while next_one < len(order) or load.flying:
            now, due = clock(), began + int(next_one * gap)
            if next_one < len(order) and due <= now and len(load.flying) < IN_FLIGHT:
                load.begin(order[next_one], due)
                next_one += 1
                continue
            waiting = next_one < len(order) and len(load.flying) < IN_FLIGHT
            load.wait(min((due - now) / 1e9, timeout) if waiting else 0.01)
            load.expire()
    finally:
        load.close()
    return load.answers
