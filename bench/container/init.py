"""What a child of the launcher does between clone and exec. It imports nothing of its own: imports are measured time.

Order: wait until the parent has put us into cgroups and given us a network device; cgroup namespace; mounts;
pivot_root; network; host name; chroot; capabilities; exec. A failing step is reported by name on the status pipe,
which exec closes: its end without a word is the proof that the payload runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket

from bench.linux import cgroups, mounts, netlink, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is not imported: see above
    from collections.abc import Callable, Iterator
    from typing import NoReturn

OOM_SCORE = "500"
"""If the host runs out of memory the kernel shall take an instance, never the harness."""


class Order:
    """What to launch, as it comes from the client: plain JSON values, checked where they were made."""

    __slots__ = (
        "argv", "capabilities", "cgroups", "chroot", "cwd", "env", "hostname", "last_capability", "namespaces",
        "network", "steps", "unified",
    )  # fmt: skip
    namespaces: int  # CLONE_NEW*
    cgroups: list[tuple[str, list[tuple[str, str]]]]  # folder, files to write
    unified: str | None  # the cgroup2 folder to be cloned into, on a pure v2 host
    steps: list[mounts.Json]
    network: dict[str, str] | None  # device, bridge, address, prefix, gateway
    hostname: str | None
    chroot: str | None
    cwd: str
    argv: list[str]
    env: dict[str, str]
    capabilities: list[int] | None  # kept; None: all
    last_capability: int

    def __init__(self, fields: dict[str, object]) -> None:
        for name in self.__slots__:
            setattr(self, name, fields[name])


class Streams:
    """Descriptors of one child: the status pipe and the three standard streams."""

    __slots__ = ("errors", "output", "status", "stdin")

    def __init__(self, status: int, stdin: int, output: int, errors: int) -> None:
        self.status, self.stdin, self.output, self.errors = status, stdin, output, errors


def child(order: Order, release: int, streams: Streams) -> NoReturn:
    """Become the payload, or report why not and exit with 127."""
    if not os.read(release, 1):
        os._exit(126)  # the launcher died, or gave up on us
    _become(order, _set_up(order), streams)


def joined(order: Order, pidfd: int, streams: Streams) -> NoReturn:
    """Like `child`, for one more process in a running instance: join its namespaces, then become the command.

    A pid namespace takes in only children of the one who joins it: hence one process more, which hands on the status.
    """
    _become(order, _join(order, pidfd, streams.status), streams)


def _become(order: Order, steps: Iterator[tuple[str, Callable[[], object]]], streams: Streams) -> NoReturn:
    doing = "start"
    try:
        for doing, action in steps:  # noqa: B007 - what failed is read in the handler below
            action()
        doing = f"exec {order.argv[0]}"
        for target, fd in enumerate((streams.stdin, streams.output, streams.errors)):
            os.dup2(fd, target)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the interpreter ignores it, and exec would hand that on
        os.umask(0o022)
        os.execvpe(order.argv[0], order.argv, order.env)
    except OSError as error:
        report = {"step": doing, "errno": error.errno or 0, "error": str(error)}
        os.write(streams.status, json.dumps(report).encode())
    finally:
        os._exit(127)


def _set_up(order: Order) -> Iterator[tuple[str, Callable[[], object]]]:
    """What to do, step by step, each with the words that name it when it fails."""
    yield "session", os.setsid
    yield "oom_score_adj", lambda: cgroups.write("/proc/self/oom_score_adj", OOM_SCORE)
    if order.namespaces & syscalls.CLONE_NEWNS:
        # After the parent moved us: the root of a cgroup namespace is the cgroup one is in at this moment.
        yield "unshare the cgroup namespace", lambda: syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    for packed in order.steps:
        step = mounts.unpack(packed)
        yield step.describe(), step.execute
    if order.namespaces & syscalls.CLONE_NEWNET:
        yield "network", lambda: _network(order.network)
    if (hostname := order.hostname) is not None:
        yield "host name", lambda: syscalls.sethostname(hostname)
    yield from _identity(order)


def _join(order: Order, pidfd: int, status: int) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "session", os.setsid
    if order.namespaces:
        yield "join namespaces", lambda: syscalls.setns(pidfd, order.namespaces | syscalls.CLONE_NEWCGROUP)
    if order.namespaces & syscalls.CLONE_NEWPID:
        yield "fork", lambda: _hand_on(status)
    yield from _identity(order)


def _hand_on(status: int) -> None:
    """Returns in a new child only; its parent waits and exits with its status."""
    if pid := os.fork():
        os.close(status)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever ends the one that waits means the command


def _identity(order: Order) -> Iterator[tuple[str, Callable[[], object]]]:
    if (root := order.chroot) is not None:
        yield f"chroot {root}", lambda: os.chroot(root)
    yield f"working directory {order.cwd}", lambda: os.chdir(order.cwd)
    if (kept := order.capabilities) is not None:
        yield "capabilities", lambda: syscalls.keep_capabilities(frozenset(kept), order.last_capability)


def _network(wanted: dict[str, str] | None) -> None:
    with netlink.Netlink() as link:
        link.request(netlink.RTM_NEWLINK, netlink.link_up(socket.if_nametoindex("lo")), what="lo up")
        if wanted is not None:
            index = socket.if_nametoindex("eth0")
            link.request(netlink.RTM_NEWLINK, netlink.link_up(index), what="eth0 up")
            ip = netlink.address(index, wanted["address"], int(wanted["prefix"]))
            link.create(netlink.RTM_NEWADDR, ip, f"address {wanted['address']}")
            link.create(netlink.RTM_NEWROUTE, netlink.default_route(wanted["gateway"]), f"route {wanted['gateway']}")
