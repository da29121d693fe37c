"""`bench list` and `bench image`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import msgspec

from bench.config.find import builtin_scenarios
from bench.config.profiles import DEFAULT_PROFILE, PROFILES, SETTINGS
from bench.drivers.registry import describe_driver, driver_names
from bench.images.store import ImageStore
from bench.metrics import METRICS
from bench.paths import cache_dir
from bench.store.reader import list_runs, read_info
from bench.verbs.out import emit_json, table

_Rows = tuple[Sequence[str], list[list[str]]]


def show_list(what: str, results: Path, as_json: bool) -> int:
    """One table, or with --json one list of objects with the same columns."""
    tables: dict[str, Callable[[], _Rows]] = {
        "scenarios": _scenarios,
        "drivers": _drivers,
        "profiles": _profiles,
        "metrics": _metrics,
        "runs": lambda: _runs(results),
    }
    columns, rows = tables[what]()
    if as_json:
        emit_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table(columns, rows)
    return 0


def _scenarios() -> _Rows:
    import tomllib

    found = []
    for name, path in builtin_scenarios().items():
        found.append([name, str(tomllib.loads(path.read_text()).get("title", "")), str(path)])
    return ("scenario", "title", "file"), found


def _drivers() -> _Rows:
    return ("driver", "what it is"), [[name, describe_driver(name)] for name in driver_names()]


def _profiles() -> _Rows:
    rows = []
    for name, changed in PROFILES.items():
        driver, _, profile = name.partition(":")
        keys = msgspec.to_builtins(msgspec.convert(changed, SETTINGS[driver]))
        bare = "yes" if DEFAULT_PROFILE[driver] == profile else "no"
        rows.append([name, bare, " ".join(f"{driver}.{key}={value}" for key, value in keys.items()) or "-"])
    return ("profile", "what the bare name means", "effective keys"), rows


def _metrics() -> _Rows:
    return ("metric", "unit", "kind", "definition"), [[m.name, m.unit, m.kind, m.definition] for m in METRICS.values()]


def _runs(results: Path) -> _Rows:
    rows = []
    for path in list_runs(results):
        info = read_info(path)
        rows.append([info.run, info.scenario, info.status, " ".join(info.drivers), str(len(info.plan))])
    return ("run", "scenario", "status", "drivers", "trials"), rows


# --- images --------------------------------------------------------------------------------------------------------


def _store() -> ImageStore:
    return ImageStore(cache_dir() / "images")


def show_images(as_json: bool) -> int:
    images = _store().images()
    if as_json:
        emit_json(images)
    else:
        table(
            ["image", "digest", "layers", "bytes"],
            [[i.name, i.digest, str(len(i.layers)), str(i.size)] for i in images],
            right=(2, 3),
        )
    return 0


def build_images(as_json: bool) -> int:
    """The default image, and the guest kernel where there is a QEMU to boot it."""
    import shutil

    image = _store().build_default()
    made = {"image": image.digest}
    if shutil.which("qemu-system-x86_64"):
        from bench.vm.kernel import fetch_kernel

        made["kernel"] = fetch_kernel(cache_dir()).package
    if as_json:
        emit_json(made)
    else:
        for name, value in made.items():
            click.echo(f"{name} {value}")
    return 0


def show_image(reference: str, as_json: bool) -> int:
    details = _store().details(reference)
    if as_json:
        emit_json(details)
    else:
        rows = [[key, str(value)] for key, value in msgspec.to_builtins(details.image).items()]
        table(["image", reference], rows)
        click.echo()
        table(
            ["layer", "diff id", "bytes"],
            [[one.digest, one.diff_id, str(one.size)] for one in details.layers],
            right=(2,),
        )
    return 0
