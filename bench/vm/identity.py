"""What makes a clone its own machine: the record that vm/guest/awaken takes, and the program itself, compiled here."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import shutil
import struct
from importlib import resources
from pathlib import Path

from msgspec import Struct

from bench import process
from bench.errors import HostError

SEED = 64  # bytes
_MAGIC = b"BENCHID1"
_RECORD = struct.Struct("<8sI6s2x4s4s4s64s64s36s")
_RESEED, _NETWORK = 1, 2
_FLAGS = ("-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-s")


class Identity(Struct, frozen=True):
    """Of one clone. `seed` is None where it keeps the template's randomness; `address` is empty without a network."""

    hostname: str
    seed: bytes | None
    mac: str = ""
    address: str = ""
    prefix: int = 0
    gateway: str = ""

    def packed(self) -> bytes:
        flags = (_RESEED if self.seed is not None else 0) | (_NETWORK if self.address else 0)
        mask = ipaddress.IPv4Network(f"0.0.0.0/{self.prefix}").netmask.packed
        return _RECORD.pack(
            _MAGIC, flags, bytes.fromhex(self.mac.replace(":", "")), _ipv4(self.address), mask, _ipv4(self.gateway),
            self.seed or b"", self.hostname.encode()[:63], self.address.encode(),
        )  # fmt: skip


def _ipv4(text: str) -> bytes:
    return ipaddress.IPv4Address(text or "0.0.0.0").packed


def awaken_program(cache: Path) -> bytes:
    """The guest's program, static and without a libc; compiled once. Raises HostError without a compiler."""
    source = (resources.files("bench.vm") / "guest/awaken.c").read_bytes()
    path = cache / "guest" / f"awaken-{hashlib.sha256(source).hexdigest()[:16]}"
    if not path.exists():
        if shutil.which("gcc", path=process.clean_env()["PATH"]) is None:
            raise HostError(
                "gcc is not installed; clones need a program it compiles", hint="apt-get install gcc libc6-dev"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        process.run(["gcc", *_FLAGS, "-x", "c", "-o", scratch, "-"], timeout=60, input=source)
        scratch.rename(path)
    return path.read_bytes()
