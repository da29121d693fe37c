"""matplotlib figures as inline SVG that follows the page: its colours, its font, its width, light or dark.

Colours are drawn as sentinels and replaced by CSS variables, so that one drawing serves both schemes. Every figure is
drawn twice, wide and narrow, and CSS shows the one that fits: shrinking a wide one makes its text unreadable.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

WIDE, NARROW = 912, 340  # CSS pixels
_POINTS = 72  # an SVG of matplotlib has 72 units an inch

TEXT, MUTED, GRID, PANEL = "#1a2b3c", "#4d5e6f", "#c7d8e9", "#f7f6f5"
PALETTE = tuple(f"#e1c0d{number}" for number in range(6))
_VARIABLES = {
    TEXT: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)", PANEL: "var(--panel)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(PALETTE)},
}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))

_STYLE: Any = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 12, "font.family": "sans-serif",
    "axes.edgecolor": MUTED, "axes.labelcolor": MUTED, "axes.facecolor": "none", "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "axes.titlesize": 12.5, "axes.titlecolor": TEXT, "axes.titlelocation": "left", "axes.unicode_minus": False,
    "axes.labelsize": 11.5, "figure.facecolor": "none", "figure.constrained_layout.use": True, "grid.color": GRID,
    "grid.linewidth": 0.7, "legend.frameon": False, "legend.fontsize": 12, "legend.labelcolor": TEXT,
    "lines.linewidth": 1.8, "lines.markersize": 4.5, "text.color": TEXT, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelsize": 11.5, "ytick.labelsize": 11.5, "hatch.linewidth": 0.6,
}  # fmt: skip


class Look(NamedTuple):
    """How one series is drawn everywhere: colour, marker and line, so that no figure depends on colour alone."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


class Drawing(NamedTuple):
    """One figure of the report. `alt` states the finding in numbers; `caption` says what is drawn, and n."""

    name: str
    title: str
    caption: str
    alt: str
    wide: str
    narrow: str


def look(place: int) -> Look:
    """The look of the series at `place` in the run."""
    place %= len(PALETTE)
    return Look(PALETTE[place], MARKERS[place], LINES[place])


def drawn(
    name: str, title: str, caption: str, alt: str, height: tuple[int, int], draw: Callable[[Figure, bool], None]
) -> Drawing:
    """Call `draw(figure, wide)` for both widths; `height` in pixels for wide and narrow."""
    wide = _render(f"{name}-wide", title, alt, (WIDE, height[0]), lambda figure: draw(figure, True))
    narrow = _render(f"{name}-narrow", title, alt, (NARROW, height[1]), lambda figure: draw(figure, False))
    return Drawing(name, title, caption, alt, wide, narrow)


def _render(name: str, title: str, alt: str, size: tuple[int, int], draw: Callable[[Figure], None]) -> str:
    """The same input gives the same text: ids come from a salt, and no date is written."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(size[0] / _POINTS, size[1] / _POINTS))
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inlined(text.getvalue(), name, title, alt)


_REWRITES = (  # in this order
    (re.compile(r"<metadata>.*?</metadata>", re.DOTALL), ""),
    (re.compile(r' xmlns(:xlink)?="[^"]*"'), ""),  # an HTML parser knows both
    (re.compile(r'<g id="[^"]*">'), "<g>"),  # nothing refers to groups
    (re.compile(r"font-family: [^;\"]*;? ?"), ""),  # the page's own
    (re.compile(r'fill="(#[0-9a-f]{6})"'), r'style="fill: \1"'),  # var() works in styles, not in attributes
    (re.compile(r"(\d+\.\d\d)\d+"), r"\1"),  # a hundredth of a pixel is enough
    (re.compile(r"\s*\n\s*"), "\n"),
)


def _inlined(document: str, name: str, title: str, alt: str) -> str:
    """The <svg> element alone, scalable, named for screen readers, its ids unique in the page."""
    svg = document[document.index("<svg") :]
    for pattern, new in _REWRITES:
        svg = pattern.sub(new, svg)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for sentinel, variable in _VARIABLES.items():
        svg = svg.replace(sentinel, variable)
    box = re.search(r'viewBox="[^"]*"', svg)
    labels = f'aria-labelledby="{name}-title {name}-desc"'
    head = f'<svg role="img" {labels} {box.group() if box else ""}>'
    names = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(alt)}</desc>'
    return re.sub(r"<svg[^>]*>", lambda _: head + names, svg, count=1)
