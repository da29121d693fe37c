"""The process that clones: small, single-threaded, its own program, so that forking it is cheap and safe.

The client holds the other end of a SOCK_SEQPACKET pair: one request a message, one answer, descriptors beside
either. Requests: learn, launch, start, exec, wait, end, destroy. The launcher is the parent of every instance's
first process and the subreaper of the rest; when the client goes away it kills what it launched and ends.

Only light modules here: every launch copies this heap.
"""

from __future__ import annotations

import _socket
import gc
import os
import select  # part of the interpreter
import sys
import time

from bench.container.becoming import Ends, Failed, await_exec, check_became, told
from bench.container.init import Borrower, Child, Place, Recipe, Streams, group_paths, make_groups
from bench.container.wirer import Wirer
from bench.linux import cgroups, messages, netlink, program, syscalls
from bench.linux.borrowing import Borrowing, Broken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Answer = tuple[dict[str, object], tuple[int, ...]]

_NEEDED = {
    "terminal": "bench.linux.terminals", "hook": "bench.container.hooks", "start_hook": "bench.container.hooks",
    "rlimit": "resource",
}  # fmt: skip
"""Modules of steps that few recipes have: loaded before any child pivots, for then our paths are the container's."""
_GROUP_TIMEOUT = 10.0  # s; a killed process leaves its groups within milliseconds unless the kernel is stuck
_GO = b"g"
_BROKEN = 70  # exit status: EX_SOFTWARE
_EBUSY = 16


class Launcher:
    """State: recipes, the children that run, those held before their start, and the statuses nobody asked for yet."""

    def __init__(self, link: _socket.socket) -> None:
        self.link = link
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.netlink = netlink.Netlink()
        self.recipes: dict[int, Recipe] = {}
        self.cpus = os.sched_getaffinity(0)
        self.borrowing = Borrowing()
        self.wirer: Wirer | None = None
        self.running: set[int] = set()
        self.held: dict[int, int] = {}  # pid -> our end of its status socket
        self.exited: dict[int, int] = {}

    def serve(self) -> None:
        """Answer requests until the other side is gone; then kill what was launched."""
        while self._serve_one():
            pass
        self.kill()
        if self.wirer is not None:
            self.wirer.close()

    def _serve_one(self) -> bool:
        """False if the other side is gone: it may have been killed while we were at work for it."""
        try:
            request, fds = messages.receive(self.link, 3)
            if request is None:
                return False
            answer, sent = self._answer(request, fds)
            messages.send(self.link, messages.encode(answer), sent)
        except (BrokenPipeError, ConnectionResetError):
            return False
        for fd in (*fds, *sent):
            os.close(fd)
        return True

    def kill(self) -> None:
        """What was launched."""
        for pid in self.running:
            os.kill(pid, syscalls.SIGKILL)

    def _answer(self, request: dict[str, Any], fds: Sequence[int]) -> Answer:
        verbs = {
            "learn": self.learn, "launch": self.launch, "start": self.start, "exec": self.exec, "wait": self.wait,
            "end": self.end, "destroy": self.destroy,
        }  # fmt: skip
        try:
            return verbs[request.pop("do")](request, fds)
        except Failed as failed:
            return {"failed": failed.report}, ()
        except OSError as error:
            step = error.filename or "launcher"
            return {"failed": {"step": [step], "errno": error.errno or 0, "error": str(error)}}, ()

    def learn(self, request: dict[str, Any], _: Sequence[int]) -> Answer:
        """Keep a recipe: what launches have in common is sent, decoded and checked once."""
        recipe = Recipe(request["fields"])
        for name, *_values in (*recipe.steps, *recipe.exec_steps):
            if name in _NEEDED:
                __import__(_NEEDED[name])
        self.recipes[request["recipe"]] = recipe
        return {}, ()

    def launch(self, request: dict[str, Any], fds: Sequence[int]) -> Answer:
        """Start an instance. Answers pid, created, started (monotonic ns) with [pidfd, output].

        With three descriptors they become the standard streams, and there is no output to hand back. A recipe with a
        terminal hands back its master as output. One that holds (an OCI `create`) answers before its start.
        """
        recipe = self.recipes[request["recipe"]]
        place = Place(request)
        if recipe.borrows_at(place) and not request["trace"]:
            return self._lend(recipe, place, fds, request["pidfd"])
        if recipe.unified or recipe.uid_map:
            make_groups(recipe, place.name)
        with Ends() as ends:
            pid = self._clone(recipe, place, ends, fds, request["trace"])
            created = time.monotonic_ns()
            try:
                self._outfit(recipe, place, pid, ends)
                said = await_exec(ends, recipe.terminal)
                check_became(pid, said)
            except (OSError, Failed):
                self._discard(pid)
                raise
            if "held" in said:
                (self.held[pid],) = ends.take("status")
            if not request["pidfd"]:
                ends.close("pidfd")
            return {"pid": pid, "created": created, **said}, ends.take("pidfd", "output")

    def _lend(self, recipe: Recipe, place: Place, fds: Sequence[int], with_pidfd: bool) -> Answer:
        """Launch without a fork: the child borrows our memory, and we go on when it is the payload."""
        self._collect()
        if place.device and self.wirer is None:
            self.wirer = Wirer()
        with Ends() as ends:
            fds = fds or self._piped(ends)
            recipe.child = child = Borrower(recipe, place, Streams(-1, *fds), self.wirer)
            # Its mm is ours: nobody who may not trace us is to reach it, from wherever it can be seen.
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
            try:
                pid = self.borrowing.spawn(recipe.namespaces, child.work, recipe.execve(place))
            except OSError as error:
                if pid := self.borrowing.pid:
                    self.running.add(pid)
                    self._discard(pid)
                    child.settle()
                raise told(error, recipe, place, child.untied) from error
            finally:
                syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
            started = time.monotonic_ns()
            self.running.add(pid)
            if with_pidfd:
                try:
                    ends.add(pidfd=os.pidfd_open(pid))
                except OSError:
                    self._discard(pid)
                    raise
            return {"pid": pid, "created": self.borrowing.born, "started": started}, ends.take("pidfd", "output")

    def _piped(self, ends: Ends) -> tuple[int, int, int]:
        """Nothing to read, and a pipe for what it writes."""
        output, child_output = os.pipe()
        ends.add(output=output, child_output=child_output)
        return self.null, child_output, child_output

    def _clone(self, recipe: Recipe, place: Place, ends: Ends, fds: Sequence[int], traced: bool) -> int:
        ours, theirs = messages.pair()
        ends.add(status=ours, child_status=theirs)
        if not fds and not recipe.terminal:
            fds = self._piped(ends)
        streams = Streams(ends["child_status"], *(fds or (self.null,) * 3))
        child = Child(recipe, place, streams)
        made = program.operations(program.close(ends["status"]), -1)  # its end is the parent's death
        made += recipe.program(place, streams, become=not traced)
        pid, pidfd = self._born(recipe, place)
        if pid == 0:
            child.become(recipe.steps, made, traced)
        ends.add(pidfd=pidfd)
        self.running.add(pid)
        ends.close("child_status", "child_output")
        return pid

    def _born(self, recipe: Recipe, place: Place) -> tuple[int, int]:
        group = f"{recipe.unified}/{place.name}" if recipe.unified else ""
        if recipe.joins:
            return _born_inside(recipe.joins, recipe.namespaces, group)
        return _born_into(group, recipe.namespaces) if group else syscalls.clone3(recipe.namespaces)

    def _outfit(self, recipe: Recipe, place: Place, pid: int, ends: Ends) -> None:
        """What only the parent can do: id maps, groups of a user namespace, veth; the child mounts meanwhile."""
        word = _GO
        if recipe.uid_map:
            if not recipe.unified:
                for path in (*group_paths(recipe, place.name), *recipe.shared):
                    cgroups.attach(path, pid)
            from bench.container.idmaps import write_maps

            write_maps(pid, recipe.uid_map, recipe.gid_map)
            os.write(ends["status"], _GO)
        apart = bool(place.device) and len(self.cpus) > 1 and not recipe.has_cpuset
        if apart:  # else half of the children wait on our processor until we have done our part
            os.sched_setaffinity(pid, self.cpus - {syscalls.current_cpu()})
        if place.device:
            netlink.attach(self.netlink, place.device, "eth0", peer_pid=pid, master=place.bridge)
            word += netlink.configuration(place.address, place.prefix, place.gateway)
        if apart:
            os.sched_setaffinity(pid, self.cpus)
        for hook in recipe.hooks:
            from bench.container.hooks import run_hook, state

            run_hook(hook, state(place.name, "creating", pid, place.bundle))
        if recipe.awaits:  # else it would lie there unread, and exec would look like a connection reset
            os.write(ends["status"], word)

    def start(self, request: dict[str, Any], _: Sequence[int]) -> Answer:
        """Let a held instance go on to its payload. Answers started."""
        with Ends() as ends:
            ends.add(status=self.held.pop(request["pid"]))
            os.write(ends["status"], _GO)
            said = await_exec(ends, False)
            check_became(request["pid"], said)
            return said, ()

    def exec(self, request: dict[str, Any], fds: Sequence[int]) -> Answer:
        """Start one more process in the instance of `target`. Answers its pid with [pidfd, stdout, stderr].

        With three descriptors they become the standard streams, and only the pidfd is handed back; a recipe with a
        terminal hands back its master too. `born`: when the target started, if that is known.
        """
        recipe, place = self.recipes[request["recipe"]], Place(request)
        with Ends() as ends:
            ours, theirs = messages.pair()
            ends.add(status=ours, child_status=theirs, target=_target(request["target"], request.get("born")))
            if recipe.terminal:
                fds = (self.null,) * 3
            if not fds:
                output, child_output = os.pipe()
                errors, child_errors = os.pipe()
                ends.add(output=output, child_output=child_output, errors=errors, child_errors=child_errors)
                fds = (self.null, child_output, child_errors)
            pid, pidfd = _born_into(f"{recipe.unified}/{place.name}", 0) if recipe.unified else syscalls.clone3(0)
            if pid == 0:
                ends.close("status")
                streams = Streams(ends["child_status"], *fds)
                inside = Child(recipe, place, streams)
                inside.target = ends["target"]
                inside.become(recipe.exec_steps, recipe.program(place, streams, inside=True))
            ends.add(pidfd=pidfd)
            self.running.add(pid)
            ends.close("child_status", "child_output", "child_errors")
            try:
                await_exec(ends, recipe.terminal)
            except Failed:
                self._await_end(pid)  # by itself: killed, it would leave its own child to nobody
                self.exited.pop(pid, None)
                raise
            return {"pid": pid}, ends.take("pidfd", "output", "errors")

    def wait(self, request: dict[str, Any], _: Sequence[int]) -> Answer:
        """Exit status (128 + signal) of a child that the client has seen end; waits if it has not.

        Orphans that have come to us are reaped as well: the init of a pid namespace can't end before they are.
        """
        pid = request["pid"]
        self._collect()
        self._await_end(pid)
        return {"status": self.exited.pop(pid, None)}, ()

    def end(self, request: dict[str, Any], _: Sequence[int]) -> Answer:
        """Kill those of `pids` that still run, without waiting: many at once end sooner than one after the other."""
        for pid in request["pids"]:
            if pid in self.running:
                os.kill(pid, syscalls.SIGKILL)
        return {}, ()

    def destroy(self, request: dict[str, Any], _: Sequence[int]) -> Answer:
        """Kill and reap the instance, whatever else is in its groups, and remove them. Idempotent."""
        recipe = self.recipes[request["recipe"]]
        pid, paths = request["pid"], group_paths(recipe, request["name"])
        if (held := self.held.pop(pid, None)) is not None:
            os.close(held)
        if pid in self.running:
            self._discard(pid)  # with a pid namespace of its own, all in it goes along
        for path in paths:
            if not _removed(path):
                self._empty(paths)
                cgroups.remove(path)
        self.exited.pop(pid, None)
        return {}, ()

    def _empty(self, paths: list[str]) -> None:
        """Kill all that runs in the groups, and reap what has come to us."""
        deadline = time.monotonic() + _GROUP_TIMEOUT
        while (left := {one for path in paths for one in cgroups.pids(path)}) and time.monotonic() < deadline:
            for one in left:
                try:
                    os.kill(one, syscalls.SIGKILL)
                except ProcessLookupError:  # it was faster
                    continue
            time.sleep(0.0005)
            self._collect()

    def _discard(self, pid: int) -> None:
        os.kill(pid, syscalls.SIGKILL)  # not reaped yet, so the number is still this child's
        self._await_end(pid)
        self.exited.pop(pid, None)

    def _await_end(self, pid: int) -> None:
        """Reap until `pid` is among the dead. Any child: the init of a pid namespace ends after all in it, and those
        that came in by exec are reaped by us. Raises Failed if even SIGKILL does not end it: frozen, or held in the
        kernel."""
        if pid not in self.running:  # reaped before
            return
        deadline = time.monotonic() + _GROUP_TIMEOUT
        end = os.pidfd_open(pid)
        try:
            poller = select.poll()
            poller.register(end, select.POLLIN)
            wait = 1
            while pid in self.running:
                poller.poll(wait)
                self._collect()
                if pid in self.running and time.monotonic() > deadline:
                    raise Failed({"step": [f"process {pid}"], "errno": _EBUSY, "error": "is killed and does not end"})
                wait = min(2 * wait, 50)  # ms
        finally:
            os.close(end)

    def _collect(self) -> None:
        """Reap whatever has ended: our children, and orphans of theirs that came to us."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._note(*ended)
        except ChildProcessError:  # none is left
            return

    def _note(self, pid: int, status: int) -> None:
        if self.wirer is not None and pid == self.wirer.pid:
            self.wirer.lost()
            self.wirer = None
        if pid in self.running:
            self.running.remove(pid)
            code = os.waitstatus_to_exitcode(status)
            self.exited[pid] = code if code >= 0 else 128 - code


def _removed(path: str) -> bool:
    """Whether an empty group is gone now; False if something is in it or below it."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _target(pid: int, born: int | None) -> int:
    """A pidfd of the instance to join; of that process and no other of its number, if we know when it started."""
    if born is None:
        return os.pidfd_open(pid)
    from bench.linux.births import open_process

    return open_process(pid, born)


def _born_into(group: str, namespaces: int) -> tuple[int, int]:
    """A child that is in a cgroup v2 folder from its first instruction."""
    into = os.open(group, os.O_PATH | os.O_CLOEXEC)
    try:
        return syscalls.clone3(namespaces, into)
    finally:
        os.close(into)


def _born_inside(joins: list[tuple[str, int]], namespaces: int, group: str) -> tuple[int, int]:
    """A child in namespaces that exist: only a child of the one who joins is in a pid or user namespace.

    So one process more, which joins and clones a sibling of its own, our child, and ends. `group`: as for `_born_into`;
    empty: none.
    """
    said, say = os.pipe()
    between = os.fork()
    if not between:
        os.close(said)
        pid = _join_and_clone(joins, namespaces, group, say)
        os.close(say)
        if pid:
            os._exit(0)
        return 0, -1
    os.close(say)
    report = messages.read(said)
    os.close(said)
    os.waitpid(between, 0)
    if "errno" in report:
        raise Failed(report)
    return report["pid"], os.pidfd_open(report["pid"])


def _join_and_clone(joins: list[tuple[str, int]], namespaces: int, group: str, say: int) -> int:
    """The new child's pid, told to the launcher as well; 0 in that child; -1 if it failed."""
    step = group
    try:
        into = os.open(group, os.O_PATH | os.O_CLOEXEC) if group else None
        if group and any(flag == syscalls.CLONE_NEWCGROUP for _, flag in joins):
            cgroups.attach(group, 0)  # ourselves: from in there, the group is out of reach
            into = None
        for step, flag in joins:
            fd = os.open(step, os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(fd, flag)
            os.close(fd)
        step = "clone3"
        pid, _ = syscalls.clone3(namespaces | syscalls.CLONE_PARENT, into)
    except OSError as error:
        report = {"step": ["join", step], "errno": error.errno or 0, "error": str(error)}
        os.write(say, messages.encode(report))
        return -1
    if pid:
        os.write(say, messages.encode({"pid": pid}))
    return pid


def main(fd: int) -> None:
    """Serve on `fd` until the client is gone."""
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    os.umask(0)
    program.warm_up()
    gc.disable()  # a collection in the child would touch, and so copy, every page
    os.set_inheritable(fd, False)
    launcher = Launcher(_socket.socket(fileno=fd))
    try:
        launcher.serve()
    except Broken as broken:
        os.write(2, f"bench's launcher ends, and what it launched: {broken}\n".encode())
        launcher.kill()
        os._exit(_BROKEN)


if __name__ == "__main__":
    main(int(sys.argv[1]))
