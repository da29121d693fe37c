"""The process that clones: small, single-threaded, its own program, so that forking it is cheap and safe.

The harness holds the other end of a SOCK_SEQPACKET pair: one JSON request a message, one JSON answer, descriptors
beside it. Requests: launch, exec, wait, destroy. The launcher is the parent of every instance's first process and the
subreaper of the rest; when the harness goes away it kills what it launched and ends.

Only light modules here: every launch copies this heap.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time

from bench.container.init import Order, Streams, child, joined
from bench.linux import cgroups, netlink, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Answer = tuple[dict[str, object], tuple[int, ...]]

MESSAGE = 1 << 17
_GROUP_TIMEOUT = 10.0  # s; a killed process leaves its groups within milliseconds unless the kernel is stuck


class Failed(Exception):
    """A launch that ended before exec; `report` names the step."""

    def __init__(self, report: dict[str, object]) -> None:
        super().__init__(str(report))
        self.report = report


class Pipes:
    """Pipes of one child; whatever is still open is closed when the context ends."""

    def __init__(self, *names: str) -> None:
        self._open: dict[str, int] = {}
        for name in names:
            self._open[name + "<"], self._open[name + ">"] = os.pipe()

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(*self._open)

    def __getitem__(self, end: str) -> int:
        """`status<` is the end to read from, `status>` the one to write to."""
        return self._open[end]

    def close(self, *ends: str) -> None:
        for end in tuple(ends):
            os.close(self._open.pop(end))

    def take(self, end: str) -> int:
        """Hand an end to someone else, who closes it."""
        return self._open.pop(end)


class Launcher:
    """State: the children that run, and the statuses nobody asked for yet."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.netlink = netlink.Netlink()
        self.running: set[int] = set()
        self.exited: dict[int, int] = {}

    def serve(self) -> None:
        """Answer requests until the other side is gone; then kill what was launched."""
        while message := self.link.recv(MESSAGE):
            answer, fds = self._answer(json.loads(message))
            socket.send_fds(self.link, [json.dumps(answer).encode()], fds)
            for fd in fds:
                os.close(fd)
        for pid in self.running:
            os.kill(pid, signal.SIGKILL)

    def _answer(self, request: dict[str, Any]) -> Answer:
        verbs = {"launch": self.launch, "exec": self.exec, "wait": self.wait, "destroy": self.destroy}
        try:
            return verbs[request.pop("do")](request)
        except Failed as failed:
            return {"failed": failed.report}, ()
        except OSError as error:
            step = error.filename or "launcher"
            return {"failed": {"step": step, "errno": error.errno or 0, "error": str(error)}}, ()

    def launch(self, request: dict[str, Any]) -> Answer:
        """Start an instance. Answers pid, created, started (monotonic ns) with [pidfd, output]."""
        order = Order(request)
        for path, settings in order.cgroups:
            cgroups.make(path, settings)
        with Pipes("release", "status", "output") as pipes:
            pid, pidfd = self._clone(order, pipes)
            created = time.monotonic_ns()
            try:
                self._outfit(order, pid)
                os.write(pipes["release>"], b"g")
                started = _await_exec(pipes)
            except (OSError, Failed):
                os.close(pidfd)
                self._discard(pid)
                raise
            return {"pid": pid, "created": created, "started": started}, (pidfd, pipes.take("output<"))

    def _clone(self, order: Order, pipes: Pipes) -> tuple[int, int]:
        into = os.open(order.unified, os.O_PATH | os.O_CLOEXEC) if order.unified else None
        try:
            pid, pidfd = syscalls.clone3(order.namespaces, into)
        finally:
            if into is not None:
                os.close(into)
        if pid == 0:
            pipes.close("release>", "status<")
            child(order, pipes["release<"], Streams(pipes["status>"], self.null, pipes["output>"], pipes["output>"]))
        self.running.add(pid)
        pipes.close("release<", "status>", "output>")
        return pid, pidfd

    def _outfit(self, order: Order, pid: int) -> None:
        """Groups and network device, from outside, while the child waits."""
        if not order.unified:
            for path, _ in order.cgroups:
                cgroups.attach(path, pid)
        if (wanted := order.network) is not None:
            master = socket.if_nametoindex(wanted["bridge"])
            pair = netlink.veth(wanted["device"], "eth0", peer_pid=pid, master=master)
            self.netlink.create(netlink.RTM_NEWLINK, pair, f"veth {wanted['device']} on {wanted['bridge']}")

    def exec(self, request: dict[str, Any]) -> Answer:
        """Start one more process in the instance of `target`. Answers its pid with [pidfd, stdout, stderr]."""
        target = os.pidfd_open(request.pop("target"))
        try:
            order = Order(request)
            with Pipes("release", "status", "output", "errors") as pipes:
                pid = os.fork()
                if pid == 0:
                    pipes.close("release>", "status<")
                    os.read(pipes["release<"], 1)
                    joined(order, target, Streams(pipes["status>"], self.null, pipes["output>"], pipes["errors>"]))
                self.running.add(pid)
                for path, _ in order.cgroups:
                    cgroups.attach(path, pid)
                os.write(pipes["release>"], b"g")
                pipes.close("release<", "status>", "output>", "errors>")
                try:
                    _await_exec(pipes)
                except Failed:
                    self._discard(pid)
                    raise
                return {"pid": pid}, (os.pidfd_open(pid), pipes.take("output<"), pipes.take("errors<"))
        finally:
            os.close(target)

    def wait(self, request: dict[str, Any]) -> Answer:
        """Exit status (128 + signal) of a child that the harness has seen end; waits if it has not."""
        pid = request["pid"]
        self._collect()
        if pid in self.running:
            self._note(*os.waitpid(pid, 0))
        return {"status": self.exited.pop(pid, None)}, ()

    def destroy(self, request: dict[str, Any]) -> Answer:
        """Kill all that runs in the groups, reap it, remove the groups. Idempotent."""
        pid, paths = request["pid"], request["cgroups"]
        deadline = time.monotonic() + _GROUP_TIMEOUT
        while (left := {one for path in paths for one in cgroups.pids(path)}) and time.monotonic() < deadline:
            for one in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            time.sleep(0.0005)
            self._collect()
        if pid in self.running:
            self._discard(pid)
        for path in paths:
            cgroups.remove(path)
        self.exited.pop(pid, None)
        return {}, ()

    def _discard(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still this child's
        self._note(*os.waitpid(pid, 0))
        self.exited.pop(pid, None)

    def _collect(self) -> None:
        """Reap whatever has ended: our children, and orphans of theirs that came to us."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._note(*ended)

    def _note(self, pid: int, status: int) -> None:
        if pid in self.running:
            self.running.remove(pid)
            code = os.waitstatus_to_exitcode(status)
            self.exited[pid] = code if code >= 0 else 128 - code


def _await_exec(pipes: Pipes) -> int:
    """Monotonic ns at which exec closed the child's end of the status pipe. Raises Failed with what it reported."""
    report = os.read(pipes["status<"], MESSAGE)
    at = time.monotonic_ns()
    if report:
        raise Failed(json.loads(report))
    return at


def main(fd: int) -> None:
    """Serve on `fd` until the harness is gone."""
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    os.umask(0)
    gc.disable()  # a collection in the child would touch, and so copy, every page
    with socket.socket(fileno=fd) as link:
        link.set_inheritable(False)
        Launcher(link).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
