"""Connections through SSH: they are of use where they lead back to this host.

What a guest costs is read from /proc, cgroups and disks here, it hangs on a bridge here, and its console and payload
reach us through sockets of this file system. A host is known by its boot id, whatever it is called.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qs

from bench import process
from bench.errors import CommandError, HostError

SCHEME = "qemu+ssh://"
_URI = re.compile(
    re.escape(SCHEME) + r"((?P<user>[^@/]+)@)?(?P<host>[^@/:]+)(:(?P<port>\d+))?/system(\?(?P<query>.*))?",
)
_AGENT = "SSH_AUTH_SOCK"
_BOOT = "/proc/sys/kernel/random/boot_id"
_TIMEOUT = 30.0  # seconds to log in and say a line


def check_here(uri: str) -> None:
    """Raises HostError unless `uri` (qemu+ssh://[USER@]HOST[:PORT]/system) leads to this host.

    As libvirt does, it takes another program than ssh from `command`, and a key from `keyfile`.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        raise HostError(f"can't use {uri}", hint=f"expected {SCHEME}[USER@]HOST[:PORT]/system")
    host, said = found["host"], parse_qs(found["query"] or "")
    argv = [
        *said.get("command", ["ssh"])[:1], "-T", "-o", "BatchMode=yes", *_option("-i", *said.get("keyfile", [])[:1]),
        *_option("-p", found["port"]), *_option("-l", found["user"]), "--", host, "cat", _BOOT,
    ]  # fmt: skip
    try:
        there = process.run(argv, timeout=_TIMEOUT, env=_agent()).stdout.strip()
    except CommandError as error:
        hint = f"see that `ssh {host} true` works without a question"
        raise HostError(f"can't ask {host} whether it is this host: {error.message}", hint=hint) from error
    if there != Path(_BOOT).read_text().strip():
        raise HostError(
            f"{host} is another host: what guests take there can't be read here, and their consoles don't reach us",
            hint=f"run bench on it: ssh {host} bench run ...",
        )


def _option(name: str, value: str | None = None) -> tuple[str, ...]:
    return () if value is None else (name, value)


def _agent() -> dict[str, str]:
    return {_AGENT: os.environ[_AGENT]} if _AGENT in os.environ else {}
