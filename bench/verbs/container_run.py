"""`bench container run` and `exec`: from options to a container, and its exit status back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import click
from msgspec import Struct
from msgspec.structs import replace

from bench.container import control, monitor, rootless
from bench.container.adjust import Options, with_env, with_network
from bench.container.bundle import Bundle, of_folder, of_image, user_of
from bench.container.client import Launcher, Placed
from bench.container.monitor import Parent, Relay
from bench.container.network import parse_network
from bench.container.recipe import describe
from bench.container.runtime import Container, Runtime, Wanted
from bench.container.spec_records import ConsoleSize, Spec, User
from bench.container.state import NotRunning, Record, Records, check_name
from bench.drivers.network import RunNetwork
from bench.errors import BenchError, UsageError
from bench.images.store import ImageStore
from bench.paths import cache_dir, state_dir

_JOINED = "container:"


class NotStarted(BenchError):
    """The payload did not come to run: no exit status of its own says so."""

    exit_code: ClassVar[int] = 125


class Request(Struct, frozen=True, kw_only=True):
    """What `bench container run` was asked for."""

    image: str | None
    bundle: Path | None
    options: Options
    user: str = ""
    name: str = ""
    detach: bool = False
    remove: bool = False
    interactive: bool = False
    network: str = "none"
    publish: tuple[str, ...] = ()
    translate: bool = False
    init: bool = False
    storage: str = "overlay"
    debug: bool = False
    console: str | None = None


def images() -> ImageStore:
    return ImageStore(cache_dir() / "images")


def run(request: Request) -> int:
    """The payload's exit status; of a detached one its name is printed. Raises NotStarted."""
    with _not_started():
        _check(request)
        if not request.detach:
            return _attend(request, None)
        click.echo(monitor.detach(partial(_attend, request), _say))
        return 0


@contextmanager
def _not_started() -> Iterator[None]:
    try:
        yield
    except BenchError as error:
        raise NotStarted(error.message, hint=error.hint) from error
    except OSError as error:
        raise NotStarted(str(error)) from error


def _say(text: str) -> None:
    click.echo(text, err=True)


def _check(request: Request) -> None:
    if (request.image is None) == (request.bundle is None):
        raise UsageError("name an image or a bundle, one of the two", hint="bench container run IMAGE, or --bundle DIR")
    if request.name:
        check_name(request.name)
    if request.console and not request.options.terminal and request.bundle is None:
        raise UsageError("--console-socket is for a terminal", hint="add -t")
    if request.detach and request.interactive:
        raise UsageError("-d and -i don't go together: a detached container has nobody who types")
    parse_network(_plain(request.network), request.publish)


def _plain(network: str) -> str:
    return "none" if network == "user" or network.startswith(_JOINED) else network


def _bundle(request: Request, store: ImageStore) -> Bundle:
    options = request.options
    if request.bundle is not None:
        made = of_folder(request.bundle, options, user=request.user)
    else:
        made = of_image(store, request.image or "", options, user=request.user)
    made = replace(made, spec=_sized(made.spec))
    if request.network == "host":
        return replace(made, spec=with_network(made.spec, None))
    if request.network.startswith(_JOINED):
        other = Records(state_dir()).find(request.network.removeprefix(_JOINED))
        os.close(control.process_of(other))
        return replace(made, spec=with_network(made.spec, f"/proc/{other.pid}/ns/net"))
    return made


def _sized(spec: Spec) -> Spec:
    """A terminal of our window's size, and its usual name."""
    if not spec.process.terminal:
        return spec
    process = replace(
        spec.process, console_size=_console() or spec.process.console_size, env=_with_term(spec.process.env)
    )
    return replace(spec, process=process)


def _console() -> ConsoleSize | None:
    rows, columns = monitor.window(0, 1, 2)
    return ConsoleSize(rows, columns) if rows and columns else None


def _with_term(env: tuple[str, ...]) -> tuple[str, ...]:
    return env if any(one.startswith("TERM=") for one in env) else (*env, "TERM=xterm")


def _wanted(request: Request) -> Wanted:
    network = parse_network(_plain(request.network), request.publish)
    return Wanted(
        name=request.name, storage=request.storage, network=network, translate=request.translate, init=request.init,
        user_network=request.network == "user", limit=request.options.limited,
    )  # fmt: skip


def _attend(request: Request, parent: Parent | None) -> int:
    """Run it to its end; it is looked after by this process."""
    say = _say if parent is None else parent.say
    beside = () if parent is None else (os.getppid(),)  # the command that waits for us
    with Runtime(images=images(), networks=RunNetwork, beside=beside) as runtime, ExitStack() as stack:
        bundle = _bundle(request, runtime.images)
        if not runtime.root:
            spec = rootless.without_root(bundle.spec, request.options.limited, runtime.delegation)
            for text in rootless.warnings(spec, runtime.delegation):
                say(f"bench: warning: {text}")
        tell = (lambda fields: say("\n".join(describe(fields)))) if request.debug else None
        attached = parent is None and request.console is None
        pipes = _Pipes(stack) if attached and not bundle.spec.process.terminal else None
        streams = pipes.streams(request.interactive) if pipes else ()
        container = runtime.create(bundle, _wanted(request), streams=streams, tell=tell)
        relay = _relay(container, runtime, request, pipes, stack, attached)
        container.start()
        container.kept = not request.remove
        if parent is not None:
            parent.ready(container.name)
        master = container.process.output
        relay.run(partial(monitor.follow_window, master) if attached and master >= 0 else lambda: None)
        return container.wait() or 0


class _Pipes:
    """For a container without a terminal that we are attached to: its output comes through us, into the log too."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.output, self._output = os.pipe()
        self.errors, self._errors = os.pipe()
        stack.callback(os.close, self.output)
        stack.callback(os.close, self.errors)

    def streams(self, interactive: bool) -> tuple[int, int, int]:
        stdin = 0 if interactive else os.open(os.devnull, os.O_RDONLY)
        if stdin:
            self._stack.callback(os.close, stdin)
        return stdin, self._output, self._errors

    def close_theirs(self) -> None:
        os.close(self._output)
        os.close(self._errors)


def _relay(
    container: Container, runtime: Runtime, request: Request, pipes: _Pipes | None, stack: ExitStack, attached: bool
) -> Relay:
    relay = Relay(container.process.pidfd, partial(_pass_on, container.record))
    master = container.process.output
    if master >= 0:
        stack.callback(os.close, master)
    if request.console is not None and master >= 0:
        monitor.hand_over(master, request.console, container.process.terminal or "")
        return relay
    log = os.open(runtime.records.log(container.record), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, log)
    if pipes is not None:
        pipes.close_theirs()
        relay.copy(pipes.output, 1, log)
        relay.copy(pipes.errors, 2, log)
    elif master >= 0:
        relay.copy(master, *([1, log] if attached else [log]))
        if request.interactive:
            stack.enter_context(monitor.raw(0))
            relay.type(0, master)
    return relay


def _pass_on(record: Record, number: int) -> None:
    with suppress(NotRunning):
        control.kill(record, number)


# --- exec --------------------------------------------------------------------------------------------------------


class ExecRequest(Struct, frozen=True, kw_only=True):
    """What `bench container exec` was asked for."""

    name: str
    argv: tuple[str, ...]
    terminal: bool = False
    interactive: bool = False
    user: str = ""
    workdir: str | None = None
    env: tuple[str, ...] = ()


def execute(request: ExecRequest) -> int:
    """The command's exit status. Raises NotStarted."""
    with _not_started():
        records = Records(state_dir())
        record = records.find(request.name)
        if (found := control.status(records, record)) != "running":
            raise NotRunning(f"container {record.name} is {found}, not running", hint="bench container ps")
        return _joined(record, request)


def _joined(record: Record, request: ExecRequest) -> int:
    process = control.exec_process(record, request.argv, **_changes(record, request))
    with Launcher() as launcher, ExitStack() as stack:
        number = launcher.learn(control.exec_recipe(record, process))
        streams: Sequence[int] = ()
        if not request.terminal:
            stdin = 0 if request.interactive else os.open(os.devnull, os.O_RDONLY)
            streams = (stdin, 1, 2)
        place = Placed(record.id, argv=request.argv)
        target, born = control.joined(record)
        pid, pidfd, master = launcher.attach(number, place, target, streams, born=born)
        stack.callback(os.close, pidfd)
        relay = Relay(pidfd, partial(_signalled, pidfd))
        if master >= 0:
            stack.callback(os.close, master)
            relay.copy(master, 1)
            if request.interactive:
                stack.enter_context(monitor.raw(0))
                relay.type(0, master)
        relay.run(partial(monitor.follow_window, master) if master >= 0 else lambda: None)
        return launcher.wait(pid) or 0


def _signalled(pidfd: int, number: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def _changes(record: Record, request: ExecRequest) -> dict[str, Any]:
    env = with_env(record.spec.process.env, request.env)
    changes: dict[str, Any] = {"env": env, "terminal": request.terminal}
    if request.terminal:
        changes["console_size"] = _console()
        changes["env"] = _with_term(env)
    if request.workdir is not None:
        if not request.workdir.startswith("/"):
            raise UsageError(f"-w {request.workdir}: not an absolute path")
        changes["cwd"] = request.workdir
    if request.user:
        changes["user"] = _user(record, request.user)
    return changes


def _user(record: Record, text: str) -> User:
    """By the accounts that the container has at this moment."""
    return user_of([Path(f"/proc/{record.pid}/root")], text)
