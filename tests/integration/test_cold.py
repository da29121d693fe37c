"""A cold launch finds nothing of what it reads in the page cache, as another program than ours sees it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import cold, process
from bench.drivers.base import Driver, Sourced
from bench.errors import LaunchError
from bench.linux.pagecache import files_of
from bench.model import InstanceSpec, PhaseLog

DRIVERS = [
    *(pytest.param(name, marks=pytest.mark.root) for name in ("process", "container", "container:copy")),
    pytest.param("vm:lean", marks=[pytest.mark.root, pytest.mark.libvirt]),
]


def cached(paths: list[str]) -> dict[str, int]:
    """Bytes by file in the page cache, as util-linux's fincore sees them."""
    said = process.run(["fincore", "--json", "--bytes", "--output", "RES,FILE", *paths], timeout=30).stdout
    return {one["file"]: int(one["res"]) for one in json.loads(said)["fincore"] if int(one["res"])}


def holders(paths: list[str]) -> Iterator[str]:
    """Processes that run one of `paths`, also over an overlay, which keeps its number: it can't be evicted then."""
    files = {(found.st_ino, found.st_size): path for path in paths for found in [os.stat(path)]}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found = os.stat(folder / "exe")
        except OSError:  # it has ended, or is the kernel's
            continue
        if (found.st_ino, found.st_size) in files:
            yield f"{folder.name} runs {files[found.st_ino, found.st_size]}"


@pytest.mark.parametrize("name", DRIVERS)
def test_a_launch_reads_all_of_it_from_disk(
    name: str, driver_of: Callable[[str], Driver], make_spec: Callable[..., InstanceSpec]
) -> None:
    if shutil.which("fincore") is None:
        pytest.skip("fincore is not installed: apt-get install util-linux-extra, or util-linux")
    driver, spec = driver_of(name), make_spec(name)
    driver.prepare(spec)
    assert isinstance(driver, Sourced)
    files = list(files_of(driver.sources(spec)))
    if busy := next(holders(files), None):
        pytest.skip(f"the host is in use, process {busy}: run this test alone")
    log = PhaseLog()
    with driver.launch(spec, log) as instance:
        instance.wait_ready(90)
        warm = cached(files)
        if name != "container:copy":  # which runs a copy of its own
            with pytest.raises(LaunchError, match="stay in the page cache"):
                cold.chill(files)  # what runs has its program mapped
    assert warm, "a launch reads some of what the driver names"
    found = {one.metric: one.value for one in cold.chill(driver.sources(spec))}
    assert found["cold.evicted"] > 0
    assert found["cold.resident"] == 0
    assert cached(files) == {}
    spec = make_spec(name)
    with driver.launch(spec, log) as instance:
        assert cached(files), "read from disk now"
        instance.wait_ready(90)
