"""`make test-rig`: build what is missing, boot, wait, unpack the results, say what passed.

Exits 0 if all passed, 1 if something failed, 3 if this host can't.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import log
from bench.errors import BenchError, HostError
from bench.images.disks import erofs_image
from bench.images.store import ImageStore
from bench.paths import cache_dir
from bench.process import run
from bench.vm.guest_program import guest_program
from bench.vm.kernel import guest_kernel
from tools.rig.machine import Outcome, run_job
from tools.rig.parts import TREE, make_parts
from tools.rig.stages import STAGES, TESTS, Verdict, summary, verdicts

HOME = TREE / ".rig"
DRIVERS = "process,container,vm:stock,vm:lean,vm:micro,vm:clone"


def main(words: Sequence[str]) -> int:
    """The rig's verb."""
    options = _options(words)
    log.setup(logging.INFO)
    try:
        return _rig(options)
    except BenchError as error:
        print(f"rig: {error.message}" + (f"\nrig: hint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.rig", description=__doc__)
    parser.add_argument("--drivers", default=DRIVERS, help="of the density run: %(default)s")
    parser.add_argument("--count", type=int, default=2, help="instances of each driver")
    parser.add_argument("--stages", default=",".join(STAGES), help="only these: %(default)s")
    parser.add_argument("--tests", default=" ".join(TESTS), help="files and options of pytest")
    parser.add_argument("--memory", type=int, default=6144, help="of the guest, in MiB")
    parser.add_argument("--limit", type=float, default=7200, help="seconds until the guest is killed")
    return parser.parse_args(words)


def _rig(options: argparse.Namespace) -> int:
    stages = options.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        raise HostError(f"no such stage: {', '.join(sorted(unknown))}", hint=f"there are {', '.join(STAGES)}")
    parameters = {"STAGES": options.stages, "DRIVERS": options.drivers, "COUNT": str(options.count)}
    cache = cache_dir()
    _fill(cache)
    parts = make_parts(HOME / "parts", guest_kernel(cache), cache, {**parameters, "TESTS": options.tests})
    results = HOME / "results" / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    results.mkdir(parents=True)
    outcome = run_job(parts, results, options.memory, options.limit)
    _unpack(results)
    found = verdicts((results / "rig.log").read_text(errors="replace"), stages)
    text = summary(found, outcome.status, outcome.seconds, results / "out")
    (results / "summary.txt").write_text(text)
    latest = HOME / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(results.relative_to(HOME))
    print(text + f"results: {results}")
    return 0 if _passed(found, outcome) else 1


def _fill(cache: Path) -> None:
    """What a run makes from the image when it is first needed, for lack of a compiler and of mkfs.erofs in the rig."""
    images = ImageStore(cache / "images")
    guest_program(cache)
    for dax in (False, True):
        erofs_image(images, images.resolve("default"), dax=dax)


def _passed(found: Sequence[Verdict], outcome: Outcome) -> bool:
    return outcome.status == 0 and all(one.passed for one in found)


def _unpack(results: Path) -> None:
    """The job's output folder; what of it came out, if the guest was killed on the way."""
    archive = results / "rig.out"
    if not archive.exists() or not archive.stat().st_size:
        return
    (results / "out").mkdir()
    run(["tar", "-xf", archive, "-C", results / "out", "--no-same-owner"], timeout=300)
    archive.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
