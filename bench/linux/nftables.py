"""Packet filter tables, through `nft`: whole tables in one transaction, found again by name and comment."""

from __future__ import annotations

import json
import os
import shutil

from bench import process
from bench.errors import CommandError, HostError

NFT = "nft"
INSTALL = "apt-get install nftables"
FAMILY = "ip"
_TIMEOUT = 30.0  # s


def missing() -> str | None:
    """Why tables can't be made here; None if they can."""
    if shutil.which(NFT, path=process.clean_env()["PATH"]) is None:
        return f"{NFT} is not installed"
    return None if os.geteuid() == 0 else "not root"


def load(name: str, body: str) -> None:
    """Make the table `name`, or put it in the place of the one of that name, at once. Raises HostError."""
    if (reason := missing()) is not None:
        raise HostError(f"no packet filter tables can be made: {reason}", hint=INSTALL)
    head = f"table {FAMILY} {name}"
    # Deleting needs it to be there: declared empty first.
    script = f"{head}\ndelete {head}\n{head} {{\n{body}\n}}\n"
    try:
        process.run([NFT, "-f", "-"], timeout=_TIMEOUT, input=script.encode())
    except CommandError as error:
        raise HostError(
            f"the kernel refuses the table {name}: {error.message}",
            hint="it needs nat, masquerade and fib of nf_tables: modprobe -a nf_tables nft_chain_nat nft_masq nft_fib",
        ) from error


def delete(name: str) -> bool:
    """False if there is no such table. Raises CommandError."""
    if name not in tables(name):
        return False
    process.run([NFT, "delete", "table", FAMILY, name], timeout=_TIMEOUT)
    return True


def tables(prefix: str) -> dict[str, str]:
    """Tables whose names begin with `prefix`, and their comments; none where none can have been made."""
    if missing() is not None:
        return {}
    done = process.run([NFT, "-j", "list", "tables"], timeout=_TIMEOUT, check=False)
    if done.status:  # a kernel without nf_tables
        return {}
    found = [entry["table"] for entry in json.loads(done.stdout)["nftables"] if "table" in entry]
    names = [one["name"] for one in found if one["family"] == FAMILY and one["name"].startswith(prefix)]
    return {name: _comment(name) for name in names}


def _comment(name: str) -> str:
    """The table's own comment. A list of tables leaves it out, hence one question more for each of ours."""
    done = process.run([NFT, "-t", "list", "table", FAMILY, name], timeout=_TIMEOUT, check=False)
    line = next((one.strip() for one in done.stdout.splitlines() if one.strip().startswith("comment ")), "")
    return line.removeprefix("comment ").strip('"')
