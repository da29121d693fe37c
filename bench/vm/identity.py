"""What makes a clone its own machine: the record that vm/guest/clone.c takes."""

from __future__ import annotations

import ipaddress
import struct

from msgspec import Struct

SEED = 64  # bytes
_MAGIC = b"BENCHID1"
_RECORD = struct.Struct("<8sI6s2x4s4s4s64s64s36s")
_RESEED, _NETWORK = 1, 2


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
