"""The id maps of a new user namespace: written by the launcher, or for an ordinary user by newuidmap(1).

An ordinary user may map nothing but itself, one id; newuidmap knows which others /etc/subuid has given it.
"""

from __future__ import annotations

import os

from bench.linux import cgroups


def write_maps(pid: int, uid_map: str, gid_map: str) -> None:
    """Raises OSError naming the file, or the program that refused."""
    if os.geteuid() == 0:
        cgroups.write(f"/proc/{pid}/uid_map", uid_map)
        cgroups.write(f"/proc/{pid}/gid_map", gid_map)
    elif uid_map.count("\n") == 1:
        cgroups.write(f"/proc/{pid}/uid_map", uid_map)
        cgroups.write(f"/proc/{pid}/setgroups", "deny")  # else a group that only takes rights away could be left
        cgroups.write(f"/proc/{pid}/gid_map", gid_map)
    else:
        _ask("newuidmap", pid, uid_map)
        _ask("newgidmap", pid, gid_map)


def _ask(program: str, pid: int, lines: str) -> None:
    child = os.posix_spawnp(program, [program, str(pid), *lines.split()], {"PATH": "/usr/bin:/bin"})
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(1, f"ended with status {code}; see /etc/subuid and /etc/subgid", program)
