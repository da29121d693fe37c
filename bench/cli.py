"""One function a verb. Data on stdout, log on stderr; heavy rooms are imported by the verbs that need them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench import __version__
from bench.errors import UsageError
from bench.verbs.container import container

if TYPE_CHECKING:
    from bench.images.export import Form
    from bench.verbs.export import Form as Table

EXIT_CODES = """\b
Exit codes:
  0    done
  1    a trial or a check failed
  2    bad usage or input
  3    this host can't; the message says what to do
  4    compare: a metric got worse
  5    compare: something could not be compared; run: precision not reached
  129  SIGHUP, 130 SIGINT (Ctrl-C), 143 SIGTERM: stopped in good order"""

_results = click.option(
    "--results", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True,
    envvar="BENCH_RESULTS", help="Folder of run folders.",
)  # fmt: skip
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
_connect = click.option(
    "--connect", metavar="URI", help="libvirt connection of the vm driver [default: qemu:///embed, no daemon]."
)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="bench")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for every command run.")
def cli(verbose: int) -> None:
    """Measure containers against virtual machines on this host: start-up, memory, disk, density.

    Start with `bench doctor`, then `bench run density`, then `bench report latest`.
    """
    from bench import log

    log.setup((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])


@cli.command(epilog=EXIT_CODES)
@_json
@_connect
def doctor(as_json: bool, connect: str | None) -> int:
    """Say what this host is and what can run on it; each "no" comes with what to do."""
    from bench.verbs.doctor import examine

    return examine(as_json, connect)


@cli.command(epilog=EXIT_CODES)
@click.argument("scenario", required=False)
@click.option("--drivers", metavar="A,B:PROFILE", help="Only these drivers, comma-separated.")
@click.option("--count", type=int, metavar="N", help="Ramp every driver to N instances; with --to-limit, to N at most.")
@click.option(
    "--to-limit", is_flag=True, help="Ramp until the host's reserve, the service level, a failure or a bound ends it."
)
@click.option("--rounds", type=int, metavar="R", help="Passes over all drivers.")
@click.option(
    "--until-precise", metavar="5%",
    help="Go on until the 95 % interval of every start-up median is at most this wide; exit status 5 if it is not.",
)  # fmt: skip
@click.option("--max-rounds", type=int, metavar="R", help="At most so many rounds for that [default: 60].")
@click.option(
    "--seed", type=int, metavar="S", help="Seed of the order [default: the scenario's, else drawn and stored]."
)
@click.option("--image", metavar="I", help="Image name, digest, archive, OCI layout, or skopeo reference.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override one key of the scenario; repeatable. KEY=A,B,C runs each in turn, and several such keys in all "
    "combinations; a list is written in brackets, a text with a comma in quotes.",
)  # fmt: skip
@click.option(
    "--cold", is_flag=True,
    help="Before each launch drop the host's caches and evict the image's files (--count 1; the condition cache=cold).",
)  # fmt: skip
@click.option("--max-time", metavar="T", help='Begin no launch after this long, like "10 min".')
@click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    help="What guests run under, or the run fails (--set vm.accel) [default: auto, kvm where a guest boots under it].",
)
@_connect
@_results
@click.option("--resume", metavar="RUN", help="Go on with RUN, which was cut short: do exactly what it is missing.")
@click.option("--dry-run", is_flag=True, help="Show the plan, and what it will take, and stop.")
@_json
def run(
    scenario: str | None, drivers: str | None, count: int | None, to_limit: bool, rounds: int | None, seed: int | None,
    until_precise: str | None, max_rounds: int | None, image: str | None, overrides: Sequence[str], cold: bool,
    max_time: str | None, accel: str | None, connect: str | None, results: Path, resume: str | None, dry_run: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Run SCENARIO (a name from `bench list scenarios`, or a TOML file) and store what was measured.

    The run id is the last line on stdout. Needs root for all built-in drivers.
    """
    from bench.verbs import run as running

    options = running.Options(
        drivers=drivers,
        count=count,
        rounds=rounds,
        seed=seed,
        image=image,
        max_time=max_time,
        overrides=(*overrides, *([f"vm.accel={accel}"] if accel else ())),
        to_limit=to_limit,
        cold=cold,
        until_precise=until_precise,
        max_rounds=max_rounds,
    )
    if resume is not None:
        from bench.verbs import resume as resuming

        request = resuming.request(resume, scenario, options, results, connect)
        return running.show_plan(request, as_json) if dry_run else resuming.resume(request, as_json)
    if scenario is None:
        raise UsageError("SCENARIO is missing", hint="bench list scenarios; or --resume RUN")
    request = running.request(scenario, options, results, connect)
    return running.show_plan(request, as_json) if dry_run else running.execute(request, as_json)


@cli.command(name="list", epilog=EXIT_CODES)
@click.argument("what", type=click.Choice(["scenarios", "drivers", "profiles", "metrics", "runs"]), default="runs")
@_results
@_json
def list_(what: str, results: Path, as_json: bool) -> int:
    """List scenarios, drivers, profiles, metrics, or runs (the default)."""
    from bench.verbs.listing import show_list

    return show_list(what, results, as_json)


@cli.command(epilog=EXIT_CODES)
@click.argument("run")
@_results
@_json
def show(run: str, results: Path, as_json: bool) -> int:
    """Show the summary of RUN: an id, the start of one, its last six characters, a folder, or `latest`."""
    from bench.verbs.show import show_run

    return show_run(run, results, as_json)


@cli.command(epilog=EXIT_CODES)
@click.argument("run")
@click.argument("beside", nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="[default: reports/RUN.html]")
@_results
def report(run: str, beside: tuple[str, ...], output: Path | None, results: Path) -> int:
    """Write RUN as one HTML file that opens offline, and print its path.

    BESIDE: other runs of the same host (isolation, neighbours, density): what they hold is set against RUN's, density
    and start-up against each axis of isolation.
    """
    from bench.verbs.show import write_report

    click.echo(write_report(run, results, output, beside))
    return 0


@cli.command(epilog=EXIT_CODES)
@click.argument("a")
@click.argument("b")
@click.option(
    "--threshold", "thresholds", multiple=True, metavar="METRIC=5%",
    help="A change up to this is no verdict; 5% alone holds for all other metrics; repeatable [default: 0%].",
)  # fmt: skip
@_results
@_json
def compare(a: str, b: str, thresholds: Sequence[str], results: Path, as_json: bool) -> int:
    """Compare run B with run A: a table with a verdict for every metric of either.

    Verdicts come from a permutation test of whole ramps, corrected for the number of metrics.
    """
    from bench.verbs.compare import compare_runs

    return compare_runs(a, b, thresholds, results, as_json)


@cli.command(epilog=EXIT_CODES)
@click.argument("sql")
@_results
@_json
def query(sql: str, results: Path, as_json: bool) -> int:
    """Ask all runs by SQL (DuckDB), like "select run, driver, median from summary where metric = 'startup.ready'".

    \b
    Tables: runs, keys, launches, teardowns, readings, trials, findings, notes, summary; their columns are in
    docs/result-format.md.
    """
    from bench.verbs.query import query as ask

    return ask(sql, results, as_json)


@cli.command(epilog=EXIT_CODES)
@click.argument("run")
@click.option(
    "--format", "form", type=click.Choice(["csv", "parquet", "pyperf"]), default="csv", show_default=True,
    help="csv and parquet: a folder with one file a table; pyperf: one file.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: ./RUN-FORMAT or ./RUN.pyperf.json]")
@_results
def export(run: str, form: Table, output: Path | None, results: Path) -> int:
    """Write RUN for other programs, and print the path."""
    from bench.verbs.export import export as write

    click.echo(write(run, form, output, results))
    return 0


@cli.command(epilog=EXIT_CODES)
@click.option("--runs", type=click.IntRange(1), default=1000, show_default=True, help="Synthetic runs.")
@click.option("--seed", type=int, default=1, show_default=True, metavar="S")
@click.option("--real", metavar="DRIVER", help="Measure DRIVER against itself for real instead (as root).")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Real runs.")
@_results
@_json
def selftest(runs: int, seed: int, real: str | None, repeat: int, results: Path, as_json: bool) -> int:
    """Count how often the statistics err: the same driver compared with itself, known costs held against intervals.

    Exit status 1 if they err more often than they say of themselves.
    """
    from bench.verbs import selftest as testing

    return testing.real(real, repeat, seed, results, as_json) if real else testing.synthetic(runs, seed, as_json)


@cli.command(epilog=EXIT_CODES)
@click.argument("run", required=False)
@_json
def clean(run: str | None, as_json: bool) -> int:
    """Remove what RUN, or every dead run, left: processes, cgroups, network devices, domains, files.

    A live run is never touched.
    """
    from bench.verbs.clean import sweep

    return sweep(run, as_json)


@cli.group(epilog=EXIT_CODES)
def kernel() -> None:
    """Build guest kernels."""


@kernel.command(name="build", epilog=EXIT_CODES)
@_json
def kernel_build(as_json: bool) -> int:
    """Build the kernel of vm:micro and vm:clone from the distribution's source: some minutes, once."""
    from bench.verbs import kernel as kernels

    return kernels.build(as_json)


@cli.group(epilog=EXIT_CODES)
def image() -> None:
    """List, build and inspect images."""


@image.command(name="list", epilog=EXIT_CODES)
@_json
def image_list(as_json: bool) -> int:
    """List the images in the store."""
    from bench.verbs import listing

    return listing.show_images(as_json)


@image.command(name="build", epilog=EXIT_CODES)
@_json
def image_build(as_json: bool) -> int:
    """Build the default image, and fetch the kernel that guests boot (where QEMU is there)."""
    from bench.verbs import listing

    return listing.build_images(as_json)


@image.command(name="inspect", epilog=EXIT_CODES)
@click.argument("reference")
@_json
def image_inspect(reference: str, as_json: bool) -> int:
    """Show the layers of an image: a name, a digest, an archive, an OCI layout, or a skopeo reference."""
    from bench.verbs import listing

    return listing.show_image(reference, as_json)


@image.command(name="export", epilog=EXIT_CODES)
@click.argument("reference")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--form", type=click.Choice(["oci-archive", "oci", "docker-archive"]), default="oci-archive", show_default=True,
    help="oci is a folder; docker-archive is what `docker load` takes.",
)  # fmt: skip
def image_export(reference: str, path: Path, form: Form) -> int:
    """Write an image to PATH."""
    from bench.verbs.container_run import images

    store = images()
    store.export(store.resolve(reference), path, form)
    return 0


image.add_command(container.commands["commit"], "commit")
cli.add_command(container)
