"""Connections through SSH: this host, another one, and one that does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import HostError
from bench.vm import connection, far


@pytest.fixture
def ssh(tmp_path: Path) -> Path:
    """In place of ssh: notes its words, and says what the test puts into `answer`, or ends as if nobody answered."""
    program = tmp_path / "ssh"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\ncat {tmp_path}/answer\n')
    program.chmod(0o755)
    return program


def test_a_way_back_to_this_host_is_one(ssh: Path) -> None:
    (ssh.parent / "answer").write_text(Path("/proc/sys/kernel/random/boot_id").read_text())
    far.check_here(f"qemu+ssh://me@here:2022/system?keyfile=/k&command={ssh}")
    words = (ssh.parent / "words").read_text()
    assert words == "-T -o BatchMode=yes -i /k -p 2022 -l me -- here cat /proc/sys/kernel/random/boot_id\n"


def test_another_host_is_refused_with_what_to_do(ssh: Path) -> None:
    (ssh.parent / "answer").write_text("5c7a1bb0-0000-4000-8000-000000000000\n")
    with pytest.raises(HostError, match="far is another host") as caught:
        connection.connect(ssh.parent, ssh.parent, f"qemu+ssh://far/system?command={ssh}")
    assert caught.value.hint == "run bench on it: ssh far bench run ..."


def test_one_that_can_not_be_asked(ssh: Path) -> None:
    with pytest.raises(HostError, match="can't ask far whether") as caught:
        far.check_here(f"qemu+ssh://far/system?command={ssh}")
    assert "ssh far true" in (caught.value.hint or "")


@pytest.mark.parametrize("uri", ["qemu+ssh:///system", "qemu+ssh://far/session", "qemu+ssh://far:x/system"])
def test_what_is_no_such_connection(uri: str) -> None:
    with pytest.raises(HostError, match="can't use"):
        far.check_here(uri)
