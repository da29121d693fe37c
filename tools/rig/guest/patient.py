"""Inside the rig: boot the accelerators' probe guests with patience.

bench keeps the answers in its cache, so `bench doctor` and `bench run` find them there. Their own limits are for real
processors: emulated, a guest under kvm takes as long as one that will never boot may take there.
"""

from __future__ import annotations

import sys

from bench.paths import cache_dir
from bench.vm import accel
from bench.vm.kernel import guest_kernel

if __name__ == "__main__":
    accel._LIMITS["kvm"], accel._LIMITS["tcg"] = 300.0, 900.0
    found = accel.accelerator(cache_dir(), guest_kernel(cache_dir()))
    print(found)
    sys.exit(found.name != "kvm")
