"""Guest RAM and the hypervisor's own memory, told apart on a real guest: what it touches is found in its RAM."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from bench.config.profiles import PROFILES
from bench.drivers.base import Driver, Instance
from bench.model import MIB, InstanceSpec, PhaseLog, VmSettings
from bench.samplers.memory import MemorySampler

pytestmark = [pytest.mark.root, pytest.mark.libvirt]
RAM, FIRST, TOUCHED = 512, 256, 128  # MiB
REUSED = 16  # MiB of what it is given may be pages that it has touched and freed before


def views(instance: Instance) -> dict[str, float]:
    return {reading.metric: reading.value for reading in MemorySampler().read([instance.footprint()])}


def fill(instance: Instance, name: str, mib: int) -> None:
    """Have the guest write so many MiB into memory of its own, and keep them."""
    script = (
        f"mkdir -p /tmp/{name} && mount -t tmpfs -o size={mib + 1}m none /tmp/{name} && "
        f"dd if=/dev/zero of=/tmp/{name}/x bs=1M count={mib}"
    )
    done = instance.exec(["/bin/sh", "-c", script], timeout=60)
    assert done.status == 0, done.stderr


@pytest.mark.parametrize("profile", ["stock", "lean"])
def test_what_a_guest_touches_is_in_its_ram_and_not_in_the_overhead(
    profile: str, driver_of: Callable[[str], Driver], make_spec: Callable[..., InstanceSpec]
) -> None:
    """RAM of the distribution's profiles is anonymous memory: only QEMU can say which of its mappings that is."""
    changed = {"memory": RAM * MIB, "disk": 64 * MIB, "network": "none", "thp": False}
    settings = msgspec.convert({**PROFILES[f"vm:{profile}"], **changed}, VmSettings)
    driver, spec = driver_of("vm"), make_spec("vm", settings=settings)
    driver.prepare(spec)
    with driver.launch(spec, PhaseLog()) as instance:
        instance.wait_ready(90)
        fill(instance, "first", FIRST)  # what the guest has touched and freed while it booted is used up
        before = views(instance)
        assert before["instances.memory.pss"] == pytest.approx(
            before["instances.memory.guest"] + before["instances.memory.overhead"]
        )
        assert before["instances.memory.guest"] <= before["instances.memory.touched"] <= RAM * MIB
        assert before["instances.memory.overhead"] > 8 * MIB
        fill(instance, "second", TOUCHED)
        after = views(instance)
        grown = {name: after[name] - before[name] for name in after}
        assert (TOUCHED - REUSED) * MIB <= grown["instances.memory.touched"] < (TOUCHED + 8) * MIB
        assert after["instances.memory.touched"] > (FIRST + TOUCHED) * MIB
        assert (TOUCHED - REUSED) * MIB <= grown["instances.memory.guest"] < (TOUCHED + 8) * MIB
        assert grown["instances.memory.overhead"] < 16 * MIB, "translated code at most"
