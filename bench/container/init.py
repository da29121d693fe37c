"""What a child of the launcher does between clone and exec. It imports nothing of its own: imports are measured time.

It runs its recipe's steps in order; docs/runtime.md lists those of a default container. A failing step is reported by
name on the status socket, which exec closes: its end without a word is the proof that the payload runs.
"""

from __future__ import annotations

import _socket
import os
import time

from bench.linux import cgroups, identity, messages, mounts, netlink, seccomp, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is not imported: see above
    from typing import Any, NoReturn

    Step = list[Any]

PLAIN = {**mounts.ACTIONS, **identity.ACTIONS}


class Recipe:
    """What all instances of one kind have in common. Plain JSON values, checked where they were made."""

    __slots__ = (
        "argv", "awaits", "env", "exec_steps", "gid_map", "groups", "hooks", "joins", "namespaces", "shared", "steps",
        "terminal", "uid_map", "umask", "unified",
    )  # fmt: skip
    namespaces: int  # CLONE_NEW*, made anew
    joins: list[tuple[str, int]]  # namespace file, CLONE_NEW*
    uid_map: str  # lines for /proc/PID/uid_map; empty: no user namespace
    gid_map: str
    unified: str  # on a pure v2 host the folder below which an instance's group is made; else empty
    groups: list[tuple[str, list[tuple[str, str]]]]  # the same for each hierarchy, with files to write
    shared: list[str]  # v1 groups that all instances share
    steps: list[Step]
    exec_steps: list[Step]  # for one more process in a running instance
    hooks: list[dict[str, Any]]  # the OCI runtime spec's createRuntime: the launcher runs them
    argv: list[str]
    env: dict[str, str]
    umask: int
    terminal: bool

    def __init__(self, fields: dict[str, object]) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        self.awaits = ["await_parent"] in self.steps


class Place:
    """What is one instance's own."""

    __slots__ = (
        "address", "argv", "bridge", "bundle", "device", "env", "folder", "gateway", "hostname", "name", "prefix",
        "root",
    )  # fmt: skip
    name: str  # of its cgroups
    folder: str  # its own; the working folder of the set-up
    hostname: str
    device: str  # host's end of its veth pair; empty: none
    bridge: int  # interface index
    address: str
    prefix: int
    gateway: str
    env: dict[str, str]  # beside the recipe's
    argv: list[str]  # instead of the recipe's, unless empty
    bundle: str  # for hooks
    root: str  # a folder of its own that is to be its root, where no union is mounted

    def __init__(self, fields: dict[str, object]) -> None:
        for name in self.__slots__:
            setattr(self, name, fields[name])


class Streams:
    """Descriptors of one child: its end of the status socket and the three standard streams."""

    __slots__ = ("errors", "output", "status", "stdin")

    def __init__(self, status: int, stdin: int, output: int, errors: int) -> None:
        self.status, self.stdin, self.output, self.errors = status, stdin, output, errors


def group_paths(recipe: Recipe, name: str) -> list[str]:
    """The instance's own cgroups."""
    return [f"{parent}/{name}" for parent, _ in recipe.groups]


def make_groups(recipe: Recipe, name: str) -> None:
    for parent, settings in recipe.groups:
        cgroups.make(f"{parent}/{name}", settings)


class Child:
    """A process on its way to become an instance's payload: the steps that need to know where it is."""

    def __init__(self, recipe: Recipe, place: Place, streams: Streams, filters: dict[str, bytes]) -> None:
        self.recipe, self.place, self.streams, self.filters = recipe, place, streams, filters
        self.trees: list[int] = []
        self.target = -1  # pidfd of the instance that an exec joins

    def become(self, steps: list[Step], traced: bool = False) -> NoReturn:
        """Run the steps, then the payload; or report why not and exit with 127."""
        step: Step = ["start"]
        trace = []
        try:
            for step in steps:  # what failed is read in the handler below
                name, *values = step
                action = PLAIN.get(name)
                if action is not None:
                    action(*values)
                else:
                    getattr(self, name)(*values)
                if traced:
                    trace.append((name, time.monotonic_ns()))
            if traced:
                self.tell({"trace": trace})
            argv = self.place.argv or self.recipe.argv
            step = ["exec", argv[0]]
            self._exec(argv)
        except OSError as error:
            self.tell({"step": step, "errno": error.errno or 0, "error": str(error)})
        finally:
            os._exit(127)

    def _exec(self, argv: list[str]) -> None:
        streams = self.streams
        if not self.recipe.terminal:
            for target, fd in enumerate((streams.stdin, streams.output, streams.errors)):
                os.dup2(fd, target)
        syscalls.restore_signals()
        os.umask(self.recipe.umask)
        os.execvpe(argv[0], argv, {**self.recipe.env, **self.place.env})

    def tell(self, report: dict[str, object]) -> None:
        os.write(self.streams.status, messages.encode(report))

    # --- steps ------------------------------------------------------------------------------------------------------

    def await_parent(self) -> None:
        """Until the launcher has done its part; if it died or gave up, there is nobody to report to."""
        if not os.read(self.streams.status, 1):
            os._exit(126)

    def hold(self) -> None:
        """All is set up; the payload waits for its start."""
        self.tell({"held": True})
        self.await_parent()

    def own_groups(self) -> None:
        """Make this instance's v1 groups and join them: a thread that moves itself needs no grace period."""
        name = self.place.name
        for parent, settings in self.recipe.groups:
            group = f"{parent}/{name}"
            cgroups.make(group, settings)
            cgroups.write(f"{group}/tasks", "0")
        self.shared_groups()

    def join_groups(self) -> None:
        """Groups that exist: of a running instance, or made by the launcher."""
        for group in group_paths(self.recipe, self.place.name):
            cgroups.write(f"{group}/tasks", "0")
        self.shared_groups()

    def shared_groups(self) -> None:
        for group in self.recipe.shared:
            cgroups.write(f"{group}/tasks", "0")

    def own_folder(self) -> None:
        os.chdir(self.place.folder)

    def bind_own_root(self) -> None:
        mounts.bind_root(self.place.root)

    def pivot_own_root(self) -> None:
        mounts.pivot(self.place.root)

    def pick_up(self, path: str, recursive: bool) -> None:
        self.trees.append(syscalls.open_tree(path, recursive))

    def place_tree(self, number: int, target: str, folder: bool) -> None:
        mounts.place(self.trees[number], target, folder)

    def host_name(self) -> None:
        syscalls.sethostname(self.place.hostname)

    def loopback(self) -> None:
        """Without it nothing inside can talk to itself."""
        with netlink.Netlink() as link:
            link.request(netlink.RTM_NEWLINK, netlink.link_up(1), what="lo up")

    def network(self) -> None:
        """Loopback, and the end of the veth pair that the launcher has given us."""
        if not self.place.device:
            return self.loopback()
        with netlink.Netlink() as link:
            index = _socket.if_nametoindex("eth0")
            netlink.configure(link, index, self.place.address, self.place.prefix, self.place.gateway)
        return None

    def seccomp(self, path: str, flags: int) -> None:
        """The launcher has read the program before; its file is out of reach here."""
        seccomp.load_filter(self.filters[path], flags)

    def terminal(self, rows: int, columns: int) -> None:
        """A pseudo-terminal of the container's own devpts as standard streams; its master goes to the launcher."""
        from bench.linux import terminals

        master, name = terminals.open_pair("/dev/pts/ptmx", rows, columns)
        mounts.make_file("/dev/console")
        syscalls.mount(name, "/dev/console", "", syscalls.MS_BIND)
        link = _socket.socket(fileno=os.dup(self.streams.status))
        messages.send(link, messages.encode({"terminal": name}), [master])
        link.close()
        terminals.take(name)

    def hook(self, fields: dict[str, Any], status: str) -> None:
        from bench.container.hooks import run_hook, state

        run_hook(fields, state(self.place.name, status, os.getpid(), self.place.bundle))

    # --- one more process in a running instance --------------------------------------------------------------------

    def join_target(self, flags: int) -> None:
        syscalls.setns(self.target, flags)

    def fork(self) -> None:
        """Go on in a new child; its parent waits and exits with its status.

        A pid namespace takes in only children of the one who joins it: hence one process more.
        """
        if pid := os.fork():
            os.close(self.streams.status)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os._exit(code if code >= 0 else 128 - code)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, syscalls.SIGKILL)  # whoever ends the one that waits means the command
