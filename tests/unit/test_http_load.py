"""The load of a step, against a server on loopback whose answers are chosen."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bench.linux.http_load import ask
from bench.model import HttpCheck

GOOD = b"HTTP/1.0 200 OK\r\n\r\nhello"


class Server:
    """Answers each connection with `says`, after `delay` seconds, one at a time; None closes without a word."""

    def __init__(self) -> None:
        self.says: bytes | None = GOOD
        self.delay = 0.0
        self.seen = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.check = HttpCheck(port=self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            with link:
                link.recv(4096)
                self.seen += 1
                time.sleep(self.delay)
                if self.says is not None:
                    link.sendall(self.says)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


HERE = ["127.0.0.1"]


def test_each_is_asked_when_it_is_due(server: Server) -> None:
    began = time.monotonic()
    answers = ask(server.check, HERE, [0] * 20, 200.0, 2.0)
    took = time.monotonic() - began
    assert len(answers) == server.seen == 20
    assert all(one.seconds is not None and one.seconds > 0 for one in answers)
    assert took >= 19 / 200, "an open loop: not faster than asked"


@pytest.mark.parametrize("says", [b"HTTP/1.0 503 Busy\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b"HTTP", None])
def test_anything_but_the_status_asked_for_is_a_failure(server: Server, says: bytes | None) -> None:
    server.says = says
    assert [one.seconds for one in ask(server.check, HERE, [0, 0], 1000.0, 2.0)] == [None, None]


def test_nobody_listening_is_a_failure_and_others_are_still_asked(server: Server) -> None:
    nobody = "127.0.0.2"  # the server listens on 127.0.0.1 alone
    answers = ask(server.check, [nobody, *HERE], [0, 1, 0, 1], 1000.0, 2.0)
    assert sorted((one.target, one.seconds is None) for one in answers) == [(0, True)] * 2 + [(1, False)] * 2


def test_one_that_says_nothing_in_time_has_failed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        check = HttpCheck(port=silent.getsockname()[1])
        began = time.monotonic()
        answers = ask(check, HERE, [0, 0, 0], 1000.0, 0.1)
        assert [one.seconds for one in answers] == [None] * 3
        assert time.monotonic() - began < 5


def test_a_stall_is_charged_to_all_that_should_have_been_asked_meanwhile(server: Server) -> None:
    """Ten requests in 10 ms to a server that takes 10 ms for each: the last waited for all others."""
    server.delay = 0.01
    answers = ask(server.check, HERE, [0] * 10, 1000.0, 5.0)
    slowest = max(one.seconds for one in answers if one.seconds is not None)
    assert slowest > 0.08


def test_descriptors_are_given_back(server: Server) -> None:
    """Also those of requests that failed; the server's thread, and what tests before this one left, close their own."""
    before = descriptors()
    ask(server.check, [*HERE, "127.0.0.2"], [0, 1] * 50, 2000.0, 0.5)
    deadline = time.monotonic() + 5
    while descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors() <= before


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
