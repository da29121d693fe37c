"""The figures. Each is one function from the run's tables to a Drawing, or None if the run lacks its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from msgspec import Struct

from bench.analysis import Estimate, Series
from bench.analysis.frames import STARTUP, Frames
from bench.analysis.headline import HeadlineRow
from bench.analysis.slopes import fit
from bench.analysis.summary import step_values, used_memory, values_of
from bench.model import GIB
from bench.report.format import estimate, interval, quantity, scale
from bench.report.svg import GRID, MUTED, PANEL, TEXT, Drawing, Look, drawn, look

POINTS = 300  # shown of one series at most; a seeded sample of more
STEPS = 1_000  # the same, of memory over N
_PANELS = 3  # in a row


class Scene(Struct, frozen=True):
    """What the figures are drawn from."""

    tables: Frames
    rows: tuple[HeadlineRow, ...]
    metrics: Mapping[tuple[Series, str], Estimate]
    available: int  # MemAvailable when the run began
    seed: int

    def name(self, series: Series) -> str:
        """`vm:stock (tcg)`: no VM is drawn without what it ran under."""
        mark = next((row.accelerator for row in self.rows if row.series == series), None)
        return f"{series.name} ({mark})" if mark else series.name

    def look(self, series: Series) -> Look:
        return look(self.tables.series.index(series))

    def having(self, *metrics: str) -> list[Series]:
        """Series that have all of `metrics`."""
        return [one for one in self.tables.series if all((one, metric) in self.metrics for metric in metrics)]

    def startup(self, series: Series) -> str:
        return next(row.startup_metric for row in self.rows if row.series == series)


def figures(scene: Scene) -> list[Drawing]:
    """All figures the run has data for, in the order of the report."""
    draws = (memory, startup, startup_over_n, service, disk, phases, capacity)
    return [drawing for draw in draws if (drawing := draw(scene)) is not None]


# --- memory ----------------------------------------------------------------------------------------------------


def memory(scene: Scene) -> Drawing | None:
    """MemAvailable used over N: points of all rounds, the fitted line, the interval of its slope."""
    shown = scene.having("memory.marginal")
    if not shown:
        return None
    slopes = [(scene.name(series), scene.metrics[series, "memory.marginal"]) for series in shown]
    return _panels(
        scene, shown, _memory_panel, "memory", "Memory over the number of instances",
        "Memory taken from the host (free memory, less the harness's own) since N = 0 of the same ramp. Points: "
        f"steps of all rounds (at most {STEPS} a driver, a seeded sample). Line: least squares over N ≥ 1, each ramp "
        "with its own intercept; band: 95 % interval "
        f"of its slope by resampling whole ramps. {_ramps_said(slopes)} Each panel has its own scale.",
        _said("One more instance takes", slopes, "bytes"),
    )  # fmt: skip


def _memory_panel(scene: Scene, series: Series, axes: Axes) -> None:
    values = used_memory(scene.tables, series)
    found = fit(values)
    slope = scene.metrics[series, "memory.marginal"]
    assert found is not None  # the metric is there, so the fit is
    start = found.start if not np.isnan(found.start).any() else found.y - found.slope * found.n
    base = dict(zip(found.trials, start, strict=True))
    trials = values.index.get_level_values("trial").map(base).to_numpy(dtype=float)
    count, used = values.index.get_level_values("n").to_numpy(dtype=float), values.to_numpy() - trials
    count, used = count[~np.isnan(trials)], used[~np.isnan(trials)]
    chosen, style = scale("bytes", float(np.abs(used).max())), scene.look(series)
    middle, level = found.n.mean(), (found.y - start).mean()
    line = np.array([0.0, count.max()])
    ends = (slope.low, slope.high) if slope.low is not None and slope.high is not None else (slope.value, slope.value)
    bounds = [(level + end * (line - middle)) / chosen.factor for end in ends]
    axes.fill_between(line, *bounds, color=style.colour, alpha=0.22, linewidth=0)
    axes.plot(line, (level + slope.value * (line - middle)) / chosen.factor, color=style.colour, linestyle=style.line)
    some = _some(len(count), scene.seed)
    _dots(axes, count[some], used[some] / chosen.factor, style)
    _labels(axes, "instances alive (N)", f"memory used, {chosen.unit}")
    _headed(axes, scene.name(series), f"{estimate(slope, 'bytes')} each")


# --- start-up --------------------------------------------------------------------------------------------------


def startup(scene: Scene) -> Drawing | None:
    """Every launch on a logarithmic axis, with its box: orders of magnitude and tails at one look."""
    shown = [series for series in scene.tables.series if (series, scene.startup(series)) in scene.metrics]
    if not shown:
        return None
    found = [(scene.name(series), scene.metrics[series, scene.startup(series)]) for series in shown]
    height = 64 + 82 * len(shown)
    what = " or ".join(dict.fromkeys(_phase_said(scene.startup(series)) for series in shown))
    return drawn(
        "startup", "Start-up time, every launch",
        f"From the request to launch to {what}, on a logarithmic axis. Points: launches of all rounds, warm-ups left "
        f"out (at most {POINTS} a driver, a seeded sample). Box: quartiles; bar: median; whiskers: 5 to 95 %. "
        + "; ".join(f"{name}: n = {one.n}" for name, one in found) + " launches.",
        _said(f"Median time to {what}:", found, "s"),
        (height, height), partial(_startup_rows, scene, shown),
    )  # fmt: skip


def _startup_rows(scene: Scene, shown: Sequence[Series], figure: Figure, wide: bool) -> None:
    axes = figure.subplots()
    rng = np.random.default_rng(scene.seed)
    for place, series in enumerate(reversed(shown)):
        values = _launch_values(scene, series, scene.startup(series))
        _strip(axes, place, values, scene.look(series), rng)
        found = scene.metrics[series, scene.startup(series)]
        text = f"{scene.name(series)}: {estimate(found, 's') if wide else quantity(found.value, 's')}, n = {found.n}"
        axes.text(0.0, place + 0.3, text, transform=axes.get_yaxis_transform(), color=TEXT, va="bottom")
    axes.set_ylim(-0.5, len(shown) - 0.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xscale("log")
    _wide_enough(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, "s")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _labels(axes, "seconds since the request to launch (log)" if wide else "since the request to launch (log)", "")


def _strip(axes: Axes, place: int, values: np.ndarray, style: Look, rng: np.random.Generator) -> None:
    """Points, and over them whiskers, box and median; in the lower part of the row, under its label."""
    some = values if len(values) <= POINTS else rng.choice(values, POINTS, replace=False)
    height = place + rng.uniform(-0.2, 0.2, len(some))
    axes.plot(some, height, style.marker, color=style.colour, markersize=3.6, alpha=0.45, markeredgewidth=0)
    least, first, median, third, most = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
    axes.plot([least, most], [place, place], color=TEXT, linewidth=1)
    axes.barh(place, third - first, left=first, height=0.3, facecolor=PANEL, edgecolor=TEXT, linewidth=1.1, zorder=3)
    axes.plot([median, median], [place - 0.24, place + 0.24], color=TEXT, linewidth=2.6, zorder=4)


def _wide_enough(axes: Axes) -> None:
    """At least one labelled tick: a logarithmic axis within one decade shows 1-2-5 steps."""
    low, high = axes.get_xlim()
    if high / low < 30:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def startup_over_n(scene: Scene) -> Drawing | None:
    """Whether launching gets slower the more instances are alive."""
    shown = [
        series for series in scene.tables.series
        if (series, scene.startup(series)) in scene.metrics and _alive(scene, series)["alive"].nunique() > 1
    ]  # fmt: skip
    if not shown:
        return None
    changes = "; ".join(f"{scene.name(series)}: {_change_said(scene, series)}" for series in shown)
    ns = "; ".join(f"{scene.name(series)}: n = {len(_alive(scene, series))}" for series in shown)
    return _panels(
        scene, shown, _alive_panel, "startup-n", "Start-up time over the number of instances alive",
        f"Points: launches of all rounds (at most {POINTS} shown); line: median over bins of N. {ns} launches. Each "
        "panel has its own scale, from zero.",
        f"Median start-up in the first and in the last quarter of a ramp. {changes}.",
    )  # fmt: skip


def _alive(scene: Scene, series: Series) -> pd.DataFrame:
    """Columns alive and seconds of all launches of `series`."""
    launches = scene.tables.launches
    rows = launches.loc[launches["series"] == series.key, ["alive", scene.startup(series).removeprefix("startup.")]]
    return rows.set_axis(["alive", "seconds"], axis=1).astype(float).dropna()


def _alive_panel(scene: Scene, series: Series, axes: Axes) -> None:
    rows, style = _alive(scene, series), scene.look(series)
    chosen = scale("s", float(rows["seconds"].quantile(0.9)))
    some = rows if len(rows) <= POINTS else rows.sample(POINTS, random_state=scene.seed % 2**32)
    _dots(axes, some["alive"].to_numpy(), some["seconds"].to_numpy() / chosen.factor, style, alpha=0.45)
    middle = _binned(rows)
    axes.plot(middle.index, middle / chosen.factor, color=style.colour, linestyle=style.line, linewidth=2.2)
    axes.set_ylim(bottom=0)
    _labels(axes, "instances alive before it", f"{_phase_said(scene.startup(series))}, {chosen.unit}")
    _headed(axes, scene.name(series), _change_said(scene, series))


def _binned(rows: pd.DataFrame) -> pd.Series[float]:
    """Median seconds over at most 16 bins of N, at each bin's middle."""
    bins = np.linspace(rows["alive"].min(), rows["alive"].max() + 1, min(16, rows["alive"].nunique()) + 1)
    place = np.digitize(rows["alive"], bins)
    medians = rows.groupby(place)["seconds"].median()
    medians.index = pd.Index(rows.groupby(place)["alive"].median())
    return medians


def _change_said(scene: Scene, series: Series) -> str:
    rows = _alive(scene, series)
    first, last = rows["alive"].quantile(0.25), rows["alive"].quantile(0.75)
    early, late = (part["seconds"].median() for part in (rows[rows["alive"] <= first], rows[rows["alive"] >= last]))
    return f"{quantity(early, 's')} → {quantity(late, 's')}"


# --- service ---------------------------------------------------------------------------------------------------


def service(scene: Scene) -> Drawing | None:
    """How fast instances answer under the load of each step, the more there are."""
    shown = [series for series in scene.tables.series if len(_by_n(scene, series, "service.p99")) > 1]
    if not shown:
        return None
    useful = [(scene.name(one), scene.metrics[one, "density.useful"]) for one in shown]
    return _panels(
        scene, shown, _service_panel, "service", "Answers over the number of instances",
        "The time of answers under the load of each step (service in the scenario), both axes logarithmic. Points: "
        "99th percentile in each round; line: median of these; thin: median of the 50th. Dotted: the largest step at "
        f"which the service level was held, median over rounds. {_ramps_said(useful)}",
        _said("Largest step at which the service level was held:", useful, "instances"),
    )  # fmt: skip


def _service_panel(scene: Scene, series: Series, axes: Axes) -> None:
    points = step_values(scene.tables, series, ((1, "service.p99"),))
    slow, middle = (_by_n(scene, series, f"service.{part}") for part in ("p99", "p50"))
    chosen, style = scale("s", float(slow.median())), scene.look(series)
    _dots(axes, points.index.get_level_values("n").to_numpy(), points.to_numpy() / chosen.factor, style, alpha=0.45)
    axes.plot(slow.index, slow / chosen.factor, color=style.colour, linestyle=style.line, linewidth=2.2)
    axes.plot(middle.index, middle / chosen.factor, color=style.colour, linestyle=style.line, linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, "count")))
        axis.set_minor_formatter(NullFormatter())
    found = scene.metrics[series, "density.useful"].value
    if found >= 1:
        axes.axvline(found, color=MUTED, linestyle=":", linewidth=1.2)
    _labels(axes, "instances alive (N)", f"until answered, {chosen.unit}")
    _headed(axes, scene.name(series), f"{quantity(found, 'instances')} useful")


# --- disk ------------------------------------------------------------------------------------------------------


def disk(scene: Scene) -> Drawing | None:
    """Allocated blocks by N: what is shared, once, and what only the instances own, on top of it."""
    shown = scene.having("disk.marginal", "disk.shared")
    if not shown:
        return None
    slopes = [(scene.name(series), scene.metrics[series, "disk.marginal"]) for series in shown]
    shared = "; ".join(
        f"{scene.name(one)}: {quantity(scene.metrics[one, 'disk.shared'].value, 'bytes')} shared" for one in shown
    )
    return _panels(
        scene, shown, _disk_panel, "disk", "Disk over the number of instances",
        "Allocated blocks, median over rounds. Grey, hatched: shared files, each counted once; colour: what only the "
        f"instances own; the number above: what du over each instance would claim. {_ramps_said(slopes)} Each panel "
        "has its own scale.",
        f"{_said('One more instance takes on disk', slopes, 'bytes')} {shared}.",
    )  # fmt: skip


def _disk_panel(scene: Scene, series: Series, axes: Axes) -> None:
    shared, own = (_by_n(scene, series, f"instances.disk.{part}") for part in ("shared", "own"))
    both = shared.index.intersection(own.index)
    low, high = shared[both].to_numpy(), (shared[both] + own[both]).to_numpy()
    chosen, style, count = scale("bytes", float(high.max())), scene.look(series), both.to_numpy()
    axes.fill_between(count, 0, low / chosen.factor, facecolor=GRID, edgecolor=MUTED, hatch="///", linewidth=0)
    axes.fill_between(count, low / chosen.factor, high / chosen.factor, color=style.colour, alpha=0.4, linewidth=0)
    _dots(axes, count, high / chosen.factor, style)
    axes.set_ylim(0, 1.15 * high.max() / chosen.factor)
    _labels(axes, "instances alive (N)", f"allocated, {chosen.unit}")
    claimed = scene.metrics.get((series, "disk.claimed"))
    said = f"; du claims {quantity(claimed.value, 'bytes')}" if claimed else ""
    _headed(axes, scene.name(series), f"{quantity(scene.metrics[series, 'disk.marginal'].value, 'bytes')} each{said}")


def _by_n(scene: Scene, series: Series, metric: str) -> pd.Series[float]:
    """Median over rounds at each N from 1 on."""
    values = step_values(scene.tables, series, ((1, metric),))
    medians = values.groupby(level="n").median()
    return medians[medians.index >= 1]


# --- phases ----------------------------------------------------------------------------------------------------


def phases(scene: Scene) -> Drawing | None:
    """Where the time of a start goes: one row a phase, from the median of the phase before to its own."""
    shown = [series for series in scene.tables.series if _stages(scene, series)]
    if not shown:
        return None
    texts = [f"{scene.name(series)}: {_stages_said(_stages(scene, series))}" for series in shown]
    ns = "; ".join(f"{scene.name(series)}: n = {_stages(scene, series)[-1][1].n}" for series in shown)
    return _panels(
        scene, shown, _phases_panel, "phases", "Phases of a start",
        "Median time of each phase since the request to launch, with its 95 % interval; the bar begins at the phase "
        f"before. A phase a driver cannot show is absent. {ns} launches. Each panel has its own scale.",
        "Medians since the request. " + "; ".join(texts) + ".",
    )  # fmt: skip


def _stages(scene: Scene, series: Series) -> list[tuple[str, Estimate]]:
    """Phases with their medians, in the order of time."""
    found = [
        (str(phase), scene.metrics[series, f"startup.{phase}"])
        for phase in STARTUP if (series, f"startup.{phase}") in scene.metrics
    ]  # fmt: skip
    return sorted(found, key=lambda stage: stage[1].value)


def _stages_said(stages: list[tuple[str, Estimate]]) -> str:
    return ", ".join(f"{name} {quantity(found.value, 's')}" for name, found in stages)


def _phases_panel(scene: Scene, series: Series, axes: Axes) -> None:
    stages, style = _stages(scene, series), scene.look(series)
    chosen = scale("s", stages[-1][1].value)
    before = 0.0
    for place, (_, found) in enumerate(stages):
        value = found.value / chosen.factor
        axes.barh(place, value - before, left=before, height=0.5, facecolor=style.colour, alpha=0.4)
        if found.low is not None and found.high is not None:
            ends = [found.low / chosen.factor, found.high / chosen.factor]
            axes.plot(ends, [place, place], color=TEXT, linewidth=1.2)
        axes.plot([value], [place], style.marker, color=style.colour, markersize=7)
        _beside(axes, max(value, (found.high or 0) / chosen.factor), place, quantity(found.value, "s"))
        before = value
    axes.set_yticks(range(len(stages)), [name for name, _ in stages])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * before)  # room for the last label
    axes.grid(visible=False, axis="y")
    _labels(axes, f"since the request, {chosen.unit}", "")
    _headed(axes, scene.name(series), f"{quantity(stages[-1][1].value, 's')} to {_phase_said(stages[-1][0])}")


# --- capacity --------------------------------------------------------------------------------------------------


def capacity(scene: Scene) -> Drawing | None:
    """Instances that fit a given memory: solid as far as it was measured, dashed as far as memory alone would go."""
    shown = [row for row in scene.rows if row.per_gib is not None and row.alive]
    if not shown:
        return None
    fits = [(scene.name(row.series), row.per_gib) for row in shown if row.per_gib]
    return drawn(
        "capacity", "How many fit, by memory alone",
        "Instances over the memory they take, both logarithmic. Solid, up to the marker: measured. Dashed, with the "
        "interval of the slope: what memory alone would allow, not measured; process ids, descriptors, bridge ports, "
        f"CPU and the reserve come into it too. Dotted: memory available when the run began. {_ramps_said(fits)}",
        _said("Instances per GiB, by memory alone:", fits, "count"),
        (400, 380), partial(_capacity_lines, scene, shown),
    )  # fmt: skip


def _capacity_lines(scene: Scene, shown: Sequence[HeadlineRow], figure: Figure, wide: bool) -> None:
    axes = figure.subplots()
    ends = [
        _capacity_line(axes, scene, row.series, row.per_gib, row.alive) for row in shown if row.per_gib and row.alive
    ]
    _capacity_ends(axes, ends)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axvline(scene.available, color=MUTED, linestyle=":", linewidth=1.2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=9 if wide else 5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, "bytes")))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, "count")))
    axes.minorticks_off()
    axes.set_xlim(right=scene.available * (2.2 if wide else 8))
    figure.legend(loc="outside upper left", ncols=min(3, len(shown)) if wide else 1, borderaxespad=0)
    _labels(axes, "memory they take (log)", "instances (log)")


def _capacity_line(axes: Axes, scene: Scene, series: Series, fits: Estimate, alive: int) -> tuple[float, float]:
    """Draw one series; where its line ends: memory and instances."""
    style = scene.look(series)
    measured, end = alive / fits.value * GIB, float(max(scene.available, alive / fits.value * GIB))
    beyond = np.array([measured, end])
    if fits.low is not None and fits.high is not None:
        bounds = (beyond / GIB * fits.low, beyond / GIB * fits.high)
        axes.fill_between(beyond, *bounds, color=style.colour, alpha=0.22, linewidth=0)
    first = measured / alive
    axes.plot([first, measured], [1, alive], color=style.colour, linewidth=2.4)
    axes.plot(beyond, beyond / GIB * fits.value, color=style.colour, linestyle="--", linewidth=1.3)
    label = f"{scene.name(series)}: {quantity(fits.value, 'count')} per GiB"
    axes.plot([measured], [alive], style.marker, color=style.colour, markersize=8, linestyle="none", label=label)
    return end, end / GIB * fits.value


def _capacity_ends(axes: Axes, ends: list[tuple[float, float]]) -> None:
    """How many at the end of each line; where two would overlap only the upper (the legend tells them apart)."""
    last = np.inf
    for memory, count in sorted(ends, key=lambda end: -end[1]):
        if count < last / 2:
            _beside(axes, memory, count, f"≈ {quantity(float(f'{count:.2g}'), 'count')}")
            last = count


# --- shared ----------------------------------------------------------------------------------------------------


def _panels(
    scene: Scene, shown: Sequence[Series], panel: Callable[[Scene, Series, Axes], None],
    name: str, title: str, caption: str, alt: str,
) -> Drawing:  # fmt: skip
    """One small plot a series, two or three in a row, or one under the other where the page is narrow."""
    columns = len(shown) if len(shown) <= _PANELS else 2 if len(shown) == 4 else _PANELS
    rows = -(-len(shown) // columns)

    def draw(figure: Figure, wide: bool) -> None:
        grid = figure.subplots(rows if wide else len(shown), columns if wide else 1, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        for series, axes in zip(shown, grid.flat, strict=False):
            panel(scene, series, axes)

    return drawn(name, title, caption, alt, (285 * rows, 245 * len(shown)), draw)


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, style: Look, alpha: float = 0.8) -> None:
    axes.plot(x, y, style.marker, color=style.colour, alpha=alpha, markeredgewidth=0)


def _some(count: int, seed: int) -> np.ndarray:
    """Places of at most STEPS of `count` points, in order: a seeded sample, so that a long run makes no large page."""
    if count <= STEPS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, STEPS, replace=False))


def _labels(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x.startswith("instances")))


def _beside(axes: Axes, x: float, y: float, text: str) -> None:
    """`text` to the right of a marker at x, y."""
    axes.annotate(text, (x, y), (8, 0), textcoords="offset points", va="center", ha="left", color=TEXT)


def _headed(axes: Axes, name: str, finding: str) -> None:
    axes.set_title(f"{name}\n{finding}", linespacing=1.4)


def _launch_values(scene: Scene, series: Series, metric: str) -> np.ndarray:
    return values_of(scene.tables, series, metric).dropna().to_numpy(dtype=float)


def _phase_said(metric: str) -> str:
    return {"reply": "first reply", "ready": "readiness"}.get(metric.removeprefix("startup."), metric)


def _said(lead: str, found: Sequence[tuple[str, Estimate]], unit: str) -> str:
    """The finding in numbers, for those who do not see the figure."""
    parts = (
        f"{name} {quantity(one.value, unit)}" + (f" (95 %: {ends})" if (ends := interval(one, unit)) else "")
        for name, one in found
    )
    return f"{lead} {'; '.join(parts)}."


def _ramps_said(found: Sequence[tuple[str, Estimate]]) -> str:
    return "; ".join(f"{name}: n = {one.n}" for name, one in found) + " ramps."
