"""What a guest is told of its clocks, so that it need not measure them: under tcg each boot waits 0.2 s for that."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from bench import process
from bench.errors import HostError
from bench.images.compiled import compiled_path, parts

_PLAUSIBLE = range(100_000, 20_000_000)  # kHz


def tsc_khz(cache: Path) -> int:
    """Frequency of this host's time stamp counter, which is that of an emulated guest. Raises HostError."""
    sources = [*parts("kernel"), resources.files("bench.vm") / "guest/tsc.c", *parts("start")]
    said = process.run([compiled_path(cache, "tsc", sources)], timeout=10).stdout.strip()
    if not said.isdigit() or int(said) not in _PLAUSIBLE:
        raise HostError(
            f"the time stamp counter of this host can't be read: {said!r} kHz", hint="--set vm.calibrate=true"
        )
    return int(said)


def told(cache: Path, machine: str, vcpus: int) -> tuple[str, ...]:
    """Words of the kernel's command line. A single vCPU can do without the APIC's timer, which would be measured for
    0.1 s: its tick then comes from the HPET, whose frequency is known. Raises HostError."""
    words = (f"tsc_early_khz={tsc_khz(cache)}", "tsc=reliable", "no_timer_check")
    return (*words, "nolapic_timer") if (machine, vcpus) == ("q35", 1) else words
