"""What a child of the launcher does between clone and exec. It imports nothing of its own: imports are measured time.

It runs its recipe's steps in order; docs/runtime.md lists those of a default container. A failing step is reported by
name on the status socket, which exec closes: its end without a word is the proof that the payload runs.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` is made of, without its enums
import _socket
import os
import stat
import time

from bench.linux import cgroups, identity, messages, mounts, netlink, program, seccomp, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is not imported: see above
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    from bench.container.wirer import Wirer
    from bench.linux.program import Buffer, Exec, Op, Program

    Step = list[Any]
    Part = Program | Callable[["Place", "Streams"], Program]

PLAIN = {**mounts.ACTIONS, **identity.ACTIONS}
"""Steps that are the same for every instance of a recipe; the others are of `PLACED`, or methods of `Child`."""


class Recipe:
    """What all instances of one kind have in common. Plain JSON values, checked where they were made."""

    __slots__ = (
        "_inside",
        "_set_up",
        "argv",
        "awaits",
        "borrows",
        "child",
        "env",
        "exec_steps",
        "filters",
        "gid_map",
        "groups",
        "has_cpuset",
        "hooks",
        "joins",
        "namespaces",
        "shared",
        "steps",
        "terminal",
        "uid_map",
        "umask",
        "unified",
    )  # fmt: skip
    namespaces: int  # CLONE_NEW*, made anew
    joins: list[tuple[str, int]]  # namespace file, CLONE_NEW*
    uid_map: str  # lines for /proc/PID/uid_map; empty: no user namespace
    gid_map: str
    unified: str  # on a pure v2 host the folder below which an instance's group is made; else empty
    groups: list[tuple[str, list[tuple[str, str]]]]  # the same for each hierarchy, with files to write
    shared: list[str]  # v1 groups that all instances share
    steps: list[Step]
    borrows: bool  # its children need no fork: see container.borrow
    exec_steps: list[Step]  # for one more process in a running instance
    hooks: list[dict[str, Any]]  # the OCI runtime spec's createRuntime: the launcher runs them
    argv: list[str]
    env: dict[str, str]
    umask: int
    terminal: bool

    def __init__(self, fields: dict[str, object]) -> None:
        """Raises OSError if a file it names can't be read."""
        for name, value in fields.items():
            setattr(self, name, value)
        self.awaits = ["await_parent"] in self.steps
        self.has_cpuset = any(file.startswith("cpuset.") for _, settings in self.groups for file, _ in settings)
        self.child: Child | None = None  # in the child only
        self.filters: list[Buffer] = []  # their addresses are in the programs
        self._set_up = [
            self._own_null(number) if step == ["own_null"] else self._compile(number, *step)
            for number, step in enumerate(self.steps)
        ]
        self._inside = [self._compile(number, *step) for number, step in enumerate(self.exec_steps)]

    def _compile(self, number: int, name: str, *values: Any) -> Part:
        """A step's operations; or what makes them when it is known where the instance goes."""
        if (action := PLAIN.get(name)) is not None:
            return program.operations(action(*values), number)
        if (placed := PLACED.get(name)) is not None:
            return lambda place, _: program.operations(placed(self, place), number)
        if name == "mask":
            hide = mounts.mask(values[0], lambda: self._hide_folder(*values))
            return program.operations(hide, number)
        if name == "seccomp":
            return program.operations(self._filter(*values), number)
        return [((lambda: getattr(self.child, name)(*values)), None, number)]

    def _hide_folder(self, path: str) -> None:
        if self.child is None:
            raise LookupError(f"nobody is there to hide {path}")
        self.child.mask_folder(path)

    def _filter(self, path: str, flags: int) -> Op:
        with open(path, "rb") as file:
            data = file.read()
        self.filters.append(program.buffer(data))
        return program.seccomp(self.filters[-1], len(data) // seccomp.INSTRUCTION, flags)

    def _own_null(self, number: int) -> Part:
        """Where we make /dev/null, and nobody else is yet, it needs no second look."""
        made = any(step[:5] == ["device", "/dev/null", stat.S_IFCHR, 1, 3] for step in self.steps)
        if made and self.namespaces & syscalls.CLONE_NEWPID:
            return lambda _, streams: program.operations(_own_null(streams), number)
        return self._compile(number, "own_null")

    def program(self, place: Place, streams: Streams, *, inside: bool = False, become: bool = True) -> Program:
        """All that a child is to do for an instance at `place`; or for one more process `inside` a running one.

        Without `become` it does not end with the payload's exec.
        """
        made: Program = []
        for part in self._inside if inside else self._set_up:
            made += part(place, streams) if callable(part) else part
        last = [*program.restore_signals(), program.umask(self.umask)]
        if become and self.becomes_by_path(place) and self._streams_are_fixed(inside):
            last += [*_standard(streams), (self.execve(place), None)]
        return made + program.operations(last, len(self.exec_steps if inside else self.steps))

    def borrowed_program(self, place: Place, streams: Streams) -> Program:
        """The same for a child in the launcher's memory, up to exec, which is not its own to make.

        As few calls as may be are to be made under its filter; `container.borrow` knows them.
        """
        names = [step[0] for step in self.steps]
        filtered = names.index("seccomp") if "seccomp" in names else len(names)
        made: Program = []
        for part in self._set_up[:filtered]:
            made += part(place, streams) if callable(part) else part
        last = [*program.restore_signals(), program.umask(self.umask), *_standard(streams)]
        made += program.operations(last, len(self.steps))
        for part in self._set_up[filtered:]:
            made += part(place, streams) if callable(part) else part
        return made

    def becomes_by_path(self, place: Place) -> bool:
        """Whether the payload's file is known before the container's own PATH can be searched."""
        return "/" in (place.argv or self.argv)[0]

    def execve(self, place: Place) -> Exec:
        argv = place.argv or self.argv
        return program.execve(argv[0], argv, {**self.env, **place.env})

    def borrows_at(self, place: Place) -> bool:
        return self.borrows and self.becomes_by_path(place) and self._streams_are_fixed(inside=False)

    def _streams_are_fixed(self, inside: bool) -> bool:
        """Whether it is known before the fork which descriptors become the standard streams."""
        if self.terminal:
            return False
        parts = self._inside if inside else self._set_up
        steps = self.exec_steps if inside else self.steps
        return ["own_null"] not in steps or callable(parts[steps.index(["own_null"])])


class Place:
    """What is one instance's own."""

    __slots__ = (
        "address", "argv", "bridge", "bundle", "device", "env", "folder", "gateway", "hostname", "name", "network",
        "prefix", "root",
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
    network: str  # file of a network namespace to enter, made beforehand; empty: none

    def __init__(self, fields: dict[str, object]) -> None:
        for name in self.__slots__:
            setattr(self, name, fields[name])


class Streams:
    """Descriptors of one child: its end of the status socket and the three standard streams."""

    STANDARD = ("stdin", "output", "errors")
    __slots__ = (*STANDARD, "nulls", "status")

    def __init__(self, status: int, stdin: int, output: int, errors: int) -> None:
        self.status, self.stdin, self.output, self.errors = status, stdin, output, errors
        self.nulls = [name for name in self.STANDARD if os.fstat(getattr(self, name)).st_rdev == mounts.NULL]

    def standard(self) -> list[tuple[int, int]]:
        """Each stream's number in the payload, and the descriptor it is now."""
        return [(target, getattr(self, name)) for target, name in enumerate(self.STANDARD)]


def _standard(streams: Streams) -> list[Op]:
    return [program.dup2(fd, target) for target, fd in streams.standard() if fd != target]


def _own_null(streams: Streams) -> Iterator[Op]:
    """The container's null device for the host's in our streams: of that one its root could change the mode.

    A file that is opened gets the lowest free number: the one that was closed, as those below it are in use.
    """
    for name in streams.nulls:
        target = Streams.STANDARD.index(name)
        yield program.close(target)
        yield program.open("/dev/null", os.O_RDWR)
        setattr(streams, name, target)


def group_paths(recipe: Recipe, name: str) -> list[str]:
    """The instance's own cgroups."""
    return [f"{parent}/{name}" for parent, _ in recipe.groups]


def make_groups(recipe: Recipe, name: str) -> None:
    for parent, settings in recipe.groups:
        cgroups.make(f"{parent}/{name}", settings)


def _own_groups(recipe: Recipe, place: Place) -> Iterator[Op]:
    """Make this instance's v1 groups and join them: a thread that moves itself needs no grace period.

    All are made before one is joined, and that of memory, the first of them, is joined last: what the kernel remembers
    of the others' files would be charged to it, and keep it in memory long after its end.
    """
    for parent, settings in recipe.groups:
        yield from program.mkdir(f"{parent}/{place.name}")
        for file, value in settings:
            yield program.write(f"{parent}/{place.name}/{file}", value)
    yield from _join_groups(recipe, place)


def _join_groups(recipe: Recipe, place: Place) -> Iterator[Op]:
    """Groups that exist: of a running instance, or made by the launcher."""
    yield from _shared_groups(recipe, place)
    for group in reversed(group_paths(recipe, place.name)):
        yield program.write(f"{group}/tasks", "0")


def _shared_groups(recipe: Recipe, _: Place) -> Iterator[Op]:
    for group in recipe.shared:
        yield program.write(f"{group}/tasks", "0")


def _enter_network(_: Recipe, place: Place) -> Op:
    """Before anything is mounted: a sysfs is that of the namespace it is mounted in."""

    def enter() -> None:
        file = os.open(place.network, os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(file, syscalls.CLONE_NEWNET)
        os.close(file)

    return enter, None


PLACED: dict[str, Callable[[Recipe, Place], Any]] = {
    "enter_network": _enter_network,
    "own_groups": _own_groups,
    "join_groups": _join_groups,
    "shared_groups": _shared_groups,
    "own_folder": lambda _, place: program.chdir(place.folder),
    "host_name": lambda _, place: program.sethostname(place.hostname),
}
"""Steps whose operations the launcher makes when it knows where an instance goes."""


def _found(program: str, env: dict[str, str]) -> str:
    """The file it means, by the payload's PATH. os.execvpe would import a module for that: from the container."""
    if "/" in program:
        return program
    paths = [f"{folder or '.'}/{program}" for folder in env.get("PATH", "/usr/bin:/bin").split(":")]
    return next((path for path in paths if os.access(path, os.X_OK)), paths[0])


class Child:
    """A process on its way to become an instance's payload: the steps that need to know where it is."""

    def __init__(self, recipe: Recipe, place: Place, streams: Streams) -> None:
        self.recipe, self.place, self.streams = recipe, place, streams
        self.word = program.buffer(bytes(4096))
        self.configuration = b""  # netlink messages for our end of the veth pair
        self.trees: list[int] = []
        self.trace: list[tuple[int, int]] = []
        self._masked: str | None = None  # the first masked folder
        self.target = -1  # pidfd of the instance that an exec joins

    def become(self, steps: list[Step], compiled: Program, traced: bool = False) -> NoReturn:
        """Make the calls of the steps, then become the payload; or report why not and exit with 127."""
        self.recipe.child = self
        step: Step = ["start"]
        try:
            program.run(compiled, self._note if traced else None)
            if traced:
                self.tell({"trace": [(steps[number][0], at) for number, at in self.trace]})
            argv = self.place.argv or self.recipe.argv
            step = ["exec", argv[0]]
            self._exec(argv)
        except program.StepError as error:
            failed = [*steps, ["exec", (self.place.argv or self.recipe.argv)[0]]][error.step]
            self.tell({"step": failed, "errno": error.errno, "error": str(error)})
        except OSError as error:
            self.tell({"step": step, "errno": error.errno or 0, "error": str(error)})
        finally:
            os._exit(127)

    def _note(self, step: int) -> None:
        self.trace.append((step, time.monotonic_ns()))

    def _exec(self, argv: list[str]) -> None:
        streams = self.streams
        if not self.recipe.terminal:
            for target, fd in streams.standard():
                if fd != target:
                    os.dup2(fd, target)
        env = {**self.recipe.env, **self.place.env}
        os.execve(_found(argv[0], env), argv, env)

    def tell(self, report: dict[str, object]) -> None:
        os.write(self.streams.status, messages.encode(report))

    # --- steps ------------------------------------------------------------------------------------------------------

    def await_parent(self) -> None:
        """Until the launcher has done its part; if it died or gave up, there is nobody to report to."""
        size = program.read(self.streams.status, self.word)
        if size <= 0:
            os._exit(126)
        self.configuration = self.word.raw[1:size]

    def hold(self) -> None:
        """All is set up; the payload waits for its start."""
        self.tell({"held": True})
        self.await_parent()

    def bind_own_root(self) -> None:
        syscalls.mount(self.place.root, self.place.root, "", syscalls.MS_BIND | syscalls.MS_REC)

    def pivot_own_root(self) -> None:
        os.chdir(self.place.root)
        syscalls.pivot_root(".", ".")

    def pick_up(self, path: str, recursive: bool) -> None:
        self.trees.append(syscalls.open_tree(path, recursive))

    def pick_up_group(self, parent: str) -> None:
        self.pick_up(f"{parent}/{self.place.name}", False)

    def place_tree(self, number: int, target: str, folder: bool) -> None:
        mounts.place(self.trees[number], target, folder)

    def mask_folder(self, path: str) -> None:
        mounts.mask_folder(path, self._masked)
        self._masked = self._masked or path

    def own_null(self) -> None:
        """The container's null device for the host's in our streams: of that one its root could change the mode."""
        if self.streams.nulls:
            null = mounts.open_null()
            for name in self.streams.nulls:
                setattr(self.streams, name, null)

    def loopback(self) -> None:
        """Without it nothing inside can talk to itself."""
        with netlink.Netlink() as link:
            link.request(netlink.RTM_NEWLINK, netlink.link_up(1), what="lo up")

    def network(self) -> None:
        """Loopback, and the end of the veth pair that the launcher has given us."""
        if self.configuration:
            netlink.apply(self.configuration, "eth0")
        else:
            self.loopback()

    def terminal(self, rows: int, columns: int, console: bool = True) -> None:
        """A pseudo-terminal of the container's own devpts as standard streams; its master goes to the launcher.
        The first process's is the console too."""
        from bench.linux import terminals

        master, name = terminals.open_pair("/dev/pts/ptmx", rows, columns)
        if console:
            mounts.make_file("/dev/console")
            syscalls.mount(name, "/dev/console", "", syscalls.MS_BIND)
        link = _socket.socket(fileno=os.dup(self.streams.status))
        messages.send(link, messages.encode({"terminal": name}), [master])
        link.close()
        terminals.take(name)

    def hook(self, fields: dict[str, Any]) -> None:
        from bench.container.hooks import run_hook, state

        run_hook(fields, state(self.place.name, "creating", os.getpid(), self.place.bundle))

    def start_hook(self, fields: dict[str, Any]) -> None:
        """A program of the container's, so with its streams, not ours."""
        from bench.container.hooks import run_hook, state

        told = state(self.place.name, "created", os.getpid(), self.place.bundle)
        run_hook(fields, told, (self.streams.output, self.streams.errors))

    def reaper(self) -> None:
        """Stay as the container's pid 1: pass signals on, reap what has lost its parent, end as the payload does."""
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # for good, as it never becomes another program
        former = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        if payload := os.fork():
            os.closerange(0, os.sysconf("SC_OPEN_MAX"))  # the launcher's, which nobody in here is to have
            os._exit(_reap(payload))
        os.setpgid(0, 0)
        if self.recipe.terminal:  # we lead the session, but the payload is to get what is typed
            _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGTTOU})
            os.tcsetpgrp(0, os.getpid())
        _signal.pthread_sigmask(_signal.SIG_SETMASK, former)

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


class Borrower(Child):
    """A child that does this in the launcher's memory: it has no status socket, what it learns is there to be seen."""

    def __init__(self, recipe: Recipe, place: Place, streams: Streams, wirer: Wirer | None) -> None:
        super().__init__(recipe, place, streams)
        self._wirer = wirer if place.device else None
        self.untied = ""  # what could not be made on the host's side of its network
        self.made = recipe.borrowed_program(place, streams)

    def work(self, pid: int) -> None:
        """All but the exec; `pid`: its number on the host."""
        if self._wirer is not None:
            try:
                self._wirer.ask(pid, self.place)
            except OSError as error:
                self._wirer, self.untied = None, str(error.filename)
                raise
        program.run(self.made)

    def await_parent(self) -> None:
        wirer, self._wirer = self._wirer, None
        if wirer is None:
            return
        try:
            self.configuration = wirer.answer()
        except OSError as error:
            self.untied = error.filename or "network"
            raise

    def settle(self) -> None:
        """By the launcher, when the child failed: take the answer it did not live to read."""
        try:
            self.await_parent()
        except OSError:  # of a pair that nobody needs any more
            return


def _reap(payload: int) -> int:
    """Until the payload ends: its exit status, 128 + signal if it was killed."""
    waited = _signal.valid_signals()
    while True:
        number = _signal.sigwait(waited)
        if number != _signal.SIGCHLD:
            os.kill(payload, number)
            continue
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == payload:
                code = os.waitstatus_to_exitcode(ended[1])
                return code if code >= 0 else 128 - code
