"""One suite, run over every driver: what drivers/base.py promises."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench.drivers.base import Driver, Pooling
from bench.drivers.context import RunContext
from bench.errors import CommandError, LaunchError, ReadyTimeoutError
from bench.host import host_facts
from bench.model import HttpCheck, InstanceSpec, Payload, Phase, PhaseLog, Ready
from bench.samplers import cpu_seconds
from tests.integration.traces import traces

PROFILES = ("process", "container", "container:pooled", "vm", "vm:lean", "vm:micro", "vm:clone")
SHORT = ("process", "container", "container:pooled", "vm")
SOON = ("process", "container", "container:pooled", "vm:micro")  # of guests the one that is up soonest


def over(*quick: str) -> pytest.MarkDecorator:
    """All profiles. Those not in `quick` are slow ones: they differ from `vm` in how a guest is made and started, which
    its whole life shows, and not in what the other tests are about."""

    def marks(name: str) -> list[pytest.MarkDecorator]:
        needed = [pytest.mark.root, *([pytest.mark.libvirt] if name.startswith("vm") else [])]
        return needed if name in quick else [*needed, pytest.mark.slow]

    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in PROFILES])


Make = Callable[..., InstanceSpec]
Get = Callable[[str], Driver]


def patience(name: str) -> float:
    """Seconds an instance has to be ready in; guests may be emulated."""
    return 90.0 if name.startswith("vm") else 10.0


def started(log: PhaseLog) -> PhaseLog:
    log.begin()
    return log


def prepare(driver: Driver, spec: InstanceSpec, count: int = 1) -> None:
    """As the runner does it before a ramp of `count`."""
    driver.prepare(spec)
    if isinstance(driver, Pooling) and driver.pools(spec):
        driver.fill(spec, count)


def sh(script: str, ready: Ready) -> Payload:
    return Payload("script", ("/bin/sh", "-c", script), ready)


@over(*PROFILES)
def test_the_life_of_an_instance(name: str, driver_of: Get, make_spec: Make, context: RunContext) -> None:
    """Launch, answer, look inside, measure, stop, and nothing left."""
    driver = driver_of(name)
    assert driver.support(host_facts()).ok, driver.support(host_facts()).reason
    spec = make_spec(name, payload="httpd")
    prepare(driver, spec)
    prepare(driver, spec)  # idempotent
    assert all(isinstance(value, str) for value in driver.describe().values())
    phases = started(PhaseLog())
    with driver.launch(spec, phases) as instance:
        instance.wait_ready(patience(name))
        stamps = phases.freeze()
        assert 0 < stamps["created"] <= stamps["started"] <= stamps["ready"]
        assert instance.id == spec.id
        assert instance.alive()
        with urllib.request.urlopen(f"http://{instance.address}:8080/", timeout=10) as answer:
            assert answer.status == 200
        said = instance.exec(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], timeout=20)
        assert (said.status, said.stdout, said.stderr) == (7, "out\n", "err\n")
        footprint = instance.footprint()
        assert footprint.pids
        assert all(Path(f"/proc/{pid}").exists() for pid in footprint.pids)
        assert all(Path(path).is_dir() for path in footprint.cgroups.values())
        assert all(Path(path).exists() for path in (*footprint.disk_own, *footprint.disk_shared))
        seconds = cpu_seconds(footprint)
        assert seconds is not None
        assert seconds > 0
        assert traces(context.run), "the referee sees a running instance, or its verdict below is worth nothing"
        instance.stop(20)
        assert not instance.alive()
        assert not any(Path(f"/proc/{pid}").exists() for pid in footprint.pids)
        instance.stop(20)  # idempotent
    driver.close()


@over(*SHORT)
def test_two_live_side_by_side_and_are_told_apart(name: str, driver_of: Get, make_spec: Make) -> None:
    driver = driver_of(name)
    one, two = make_spec(name, payload="httpd"), make_spec(name, payload="httpd")
    prepare(driver, one, 2)
    with driver.launch(one, PhaseLog()) as first, driver.launch(two, PhaseLog()) as second:
        first.wait_ready(patience(name))
        second.wait_ready(patience(name))
        assert first.address != second.address
        assert not set(first.footprint().pids) & set(second.footprint().pids)
        assert not set(first.footprint().disk_own) & set(second.footprint().disk_own)
        first.kill()
        assert second.alive()
        assert second.exec(["/bin/true"], timeout=20).status == 0


@over(*SOON)
def test_never_ready_ends_in_time_with_its_last_words(name: str, driver_of: Get, make_spec: Make) -> None:
    driver = driver_of(name)
    spec = make_spec(name)
    spec = msgspec.structs.replace(spec, payload=sh("echo my last words; sleep 1000", Ready(line="never")))
    prepare(driver, spec)
    wait = {"vm": 30.0, "vm:lean": 30.0, "vm:micro": 12.0, "vm:clone": 12.0}.get(name, 3.0)
    began = time.monotonic()
    with driver.launch(spec, PhaseLog()) as instance, pytest.raises(ReadyTimeoutError, match="my last words"):
        instance.wait_ready(wait)
    assert time.monotonic() - began < wait + 15


@over(*SHORT)
def test_a_payload_that_ends_at_once_is_told_at_once(name: str, driver_of: Get, make_spec: Make) -> None:
    driver = driver_of(name)
    spec = make_spec(name)
    spec = msgspec.structs.replace(spec, payload=sh("echo I go; exit 3", Ready(line="never")))
    prepare(driver, spec)
    began = time.monotonic()
    with driver.launch(spec, PhaseLog()) as instance, pytest.raises(LaunchError, match="I go") as caught:
        instance.wait_ready(60)
    assert not isinstance(caught.value, ReadyTimeoutError)
    assert time.monotonic() - began < 45


@over(*SOON)
def test_readiness_by_port_and_by_http(name: str, driver_of: Get, make_spec: Make) -> None:
    """An open port first, a status later: the one must not be taken for the other."""
    driver = driver_of(name)
    serve = 'sleep 0.3; exec httpd -f -p "$BENCH_ADDRESS:8080" -h /srv/www'
    for ready in (Ready(port=8080), Ready(http=HttpCheck(port=8080, path="/nosuch", status=404))):
        spec = make_spec(name)
        spec = msgspec.structs.replace(spec, payload=sh(serve, ready))
        prepare(driver, spec)
        phases = started(PhaseLog())
        with driver.launch(spec, phases) as instance:
            instance.wait_ready(patience(name))
            began = phases.get(Phase.STARTED)
            at = phases.get(Phase.READY)
            assert began is not None
            assert at is not None
            assert at - began > 250_000_000, "ready was stamped before anything could listen"


@over(*SHORT)
def test_exec_that_does_not_end_is_stopped(name: str, driver_of: Get, make_spec: Make) -> None:
    driver = driver_of(name)
    spec = make_spec(name)
    prepare(driver, spec)
    with driver.launch(spec, PhaseLog()) as instance:
        instance.wait_ready(patience(name))
        with pytest.raises(CommandError, match="sleep"):
            instance.exec(["/bin/sleep", "1000"], timeout=1)
        assert instance.alive()


@over(*SHORT)
def test_a_program_that_is_not_there_is_named(name: str, driver_of: Get, make_spec: Make) -> None:
    driver = driver_of(name)
    spec = msgspec.structs.replace(make_spec(name), payload=Payload("none", ("/bin/nosuch",), Ready(line="never")))
    prepare(driver, spec)

    def bring_up() -> None:
        with driver.launch(spec, PhaseLog()) as instance:
            instance.wait_ready(patience(name))

    with pytest.raises(LaunchError, match=r"(?s)nosuch|not found"):
        bring_up()


@over(*SHORT)
def test_reap_of_a_live_run_s_nothing_finds_nothing(name: str, driver_of: Get, context: RunContext) -> None:
    assert list(driver_of(name).reap(context.run)) == []
