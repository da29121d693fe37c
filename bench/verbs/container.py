"""The command line of `bench container`: containers by hand. What the verbs do is imported when they are used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
  0    done
  1    the container does not do what it was told to
  2    bad usage, no such container, a name that is taken, a container that still runs or does not
  3    this host can't; the message says what to do"""
RUN_EXIT_CODES = """\b
Exit codes:
  the payload's own, 128 + signal if it was killed; of a detached one 0
  2    an option that is none
  125  it was not started; the message says why"""

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else on stdout.")
_words = click.argument("argv", nargs=-1, type=click.UNPROCESSED)
_names = click.argument("names", nargs=-1, required=True)
_PAYLOAD = {"ignore_unknown_options": False, "allow_interspersed_args": False}  # what follows is the payload's


@click.group(epilog=EXIT_CODES)
def container() -> None:
    """Run containers by hand: the built-in runtime without a benchmark around it."""


def _many(*names: str, **keys: Any) -> Callable[[_Command], _Command]:
    return click.option(*names, multiple=True, **keys)


_RUN_OPTIONS = (
    click.option(
        "--bundle",
        type=click.Path(path_type=Path, file_okay=False, exists=True),
        help="An OCI bundle instead of an image.",
    ),
    click.option("-d", "--detach", is_flag=True, help="Go on in the background; print its name."),
    click.option("--name", default="", metavar="NAME", help="[default: its id]"),
    click.option("--rm", "remove", is_flag=True, help="Remove it when it has ended."),
    click.option("-t", "--tty", is_flag=True, help="Give it a terminal."),
    click.option("-i", "--interactive", is_flag=True, help="Connect our stdin."),
    click.option("--console-socket", "console", metavar="PATH", help="Send the terminal's master to this Unix socket."),
    _many("-e", "--env", metavar="NAME=VALUE", help="Set a variable; NAME alone passes ours on."),
    click.option("-w", "--workdir", metavar="DIR"),
    click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="By name or number."),
    _many("-v", "--volume", metavar="SRC:DST[:OPTS]", help="Bind a folder or file of the host: ro, noexec, ..."),
    _many("--tmpfs", metavar="DST[:OPTS]", help="Mount a tmpfs: size=16m, mode=1777, ..."),
    click.option(
        "--network",
        default="none",
        show_default=True,
        metavar="NETWORK",
        help="none, host, bridge, user (pasta), or container:NAME.",
    ),
    _many("--publish", metavar="[IP:]PORT:PORT", help="Lead a port of the host to it."),
    click.option("--nat", is_flag=True, help="Let it out through the host's uplink."),
    click.option("--memory", metavar="SIZE", help="Like 64m."),
    click.option("--memory-swap", metavar="SIZE", help="Memory and swap together."),
    click.option("--cpus", type=float, metavar="N"),
    click.option("--cpu-shares", type=click.IntRange(2, 262_144), metavar="N"),
    click.option("--cpuset-cpus", metavar="LIST", help="Like 0-1,3."),
    click.option("--pids-limit", type=click.IntRange(1), metavar="N"),
    click.option("--blkio-weight", type=click.IntRange(10, 1000), metavar="N"),
    _many("--cap-add", metavar="CAP"),
    _many("--cap-drop", metavar="CAP"),
    click.option("--read-only", is_flag=True, help="Make its root read-only."),
    click.option("--no-new-privileges", is_flag=True),
    _many(
        "--security", metavar="seccomp=X", help="seccomp=unconfined, or seccomp=FILE (linux.seccomp of an OCI spec)."
    ),
    _many("--ulimit", metavar="NAME=SOFT[:HARD]"),
    _many("--sysctl", metavar="NAME=VALUE"),
    click.option("--hostname", metavar="NAME"),
    click.option("--init", is_flag=True, help="A pid 1 that reaps zombies and passes signals on."),
    click.option(
        "--storage",
        default="overlay",
        show_default=True,
        metavar="STORAGE",
        help="overlay, fuse-overlayfs, copy, reflink, btrfs.",
    ),
    _many("--userns", metavar="IN:OUT:COUNT", help="A user namespace with this map."),
    click.option("--debug", is_flag=True, help="Print the set-up as a list of steps before it runs."),
)


def _with_run_options(command: _Command) -> _Command:
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


@container.command(epilog=RUN_EXIT_CODES, context_settings=_PAYLOAD)
@_with_run_options
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[IMAGE] [ARGV]...")
def run(words: tuple[str, ...], bundle: Path | None, **given: Any) -> int:
    """Run a container from IMAGE, or from a bundle; ARGV instead of its own command."""
    from bench.container.adjust import Options
    from bench.verbs import container_run as running

    image, argv = (None, words) if bundle is not None else (words[0] if words else None, words[1:])
    options = Options(
        argv=argv, env=given["env"], workdir=given["workdir"], terminal=given["tty"], volumes=given["volume"],
        tmpfs=given["tmpfs"], ulimits=given["ulimit"], sysctls=given["sysctl"],
        **{name: given[name] for name in (
            "memory", "memory_swap", "cpus", "cpu_shares", "cpuset_cpus", "pids_limit", "blkio_weight", "cap_add",
            "cap_drop", "read_only", "no_new_privileges", "security", "hostname", "userns",
        )},
    )  # fmt: skip
    return running.run(running.Request(
        image=image, bundle=bundle, options=options, translate=given["nat"],
        **{name: given[name] for name in (
            "user", "name", "detach", "remove", "interactive", "network", "publish", "init", "storage", "debug",
            "console",
        )},
    ))  # fmt: skip


@container.command(name="exec", epilog=RUN_EXIT_CODES, context_settings=_PAYLOAD)
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Connect our stdin.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="By name or number.")
@click.option("-w", "--workdir", metavar="DIR")
@_many("-e", "--env", metavar="NAME=VALUE", help="Set a variable; NAME alone passes ours on.")
@click.argument("name")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(
    name: str, argv: tuple[str, ...], tty: bool, interactive: bool, user: str, workdir: str | None, env: tuple[str, ...]
) -> int:
    """Run one more command in the running container NAME."""
    from bench.verbs import container_run as running

    return running.execute(running.ExecRequest(
        name=name, argv=argv, terminal=tty, interactive=interactive, user=user, workdir=workdir, env=env
    ))  # fmt: skip


@container.command(epilog=EXIT_CODES)
@_json
def ps(as_json: bool) -> int:
    """List the containers, those that have ended too."""
    from bench.verbs import container_manage as manage

    return manage.show(as_json)


@container.command(epilog=EXIT_CODES)
@click.option("-f", "--follow", is_flag=True, help="Go on until it ends.")
@click.argument("name")
def logs(name: str, follow: bool) -> int:
    """Print what a container said on stdout and stderr."""
    from bench.verbs import container_manage as manage

    return manage.logs(name, follow)


@container.command(epilog=EXIT_CODES)
@click.option("-s", "--signal", "text", default="KILL", show_default=True, metavar="SIGNAL")
@_names
def kill(names: tuple[str, ...], text: str) -> int:
    """Send a signal to the first process of containers."""
    from bench.verbs import container_manage as manage

    return manage.kill(names, text)


@container.command(epilog=EXIT_CODES)
@_names
def pause(names: tuple[str, ...]) -> int:
    """Stop every process of containers where it is."""
    from bench.verbs import container_manage as manage

    return manage.pause(names)


@container.command(epilog=EXIT_CODES)
@_names
def resume(names: tuple[str, ...]) -> int:
    """Let paused containers go on."""
    from bench.verbs import container_manage as manage

    return manage.resume(names)


@container.command(epilog=EXIT_CODES)
@_json
@click.argument("names", nargs=-1)
def stats(names: tuple[str, ...], as_json: bool) -> int:
    """Print memory, CPU seconds and tasks of containers, or of all that run."""
    from bench.verbs import container_manage as manage

    return manage.stats(names, as_json)


@container.command(epilog=EXIT_CODES)
@click.option("-f", "--force", is_flag=True, help="Kill one that runs.")
@_names
def rm(names: tuple[str, ...], force: bool) -> int:
    """Remove containers with what they wrote, and whatever a killed monitor left of them."""
    from bench.verbs import container_manage as manage

    return manage.remove(names, force)


@container.command(epilog=EXIT_CODES)
@click.argument("name")
@click.argument("image")
def commit(name: str, image: str) -> int:
    """Make IMAGE of what container NAME has changed, and print its digest."""
    from bench.verbs import container_manage as manage

    return manage.commit(name, image)
