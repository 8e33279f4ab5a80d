"""The plots of a report, as inline SVG: the only door to matplotlib.

One small plot per quantity, drawn at the width of a phone: a page sets them side by side where
there is room, and text stays readable where there is none. Colours are written as CSS variables of
the page, so one drawing serves light and dark; text stays text. Nothing in a drawing depends on the
clock, so equal tables give equal bytes.
"""

from __future__ import annotations

import html
import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.report.tables import Floats

# Stand-ins that matplotlib accepts as colours, and the variables of page.css they become.
_INK, _FAINT, _LINE, _MARK = "#010203", "#040506", "#070809", "#0a0b0c"
_SERIES = tuple(f"#0d0e{number:02x}" for number in range(16, 22))
_VARIABLES = {
    _INK: "--ink-2",
    _FAINT: "--rule",
    _LINE: "--accent",
    _MARK: "--warm",
    **{colour: f"--series-{number}" for number, colour in enumerate(_SERIES)},
}
_MARKERS = "osD^vP"  # series are told apart by shape as well as by colour

# CSS pixels at which fonts have their size: about what a page of two or three columns, or a phone,
# gives a drawing.
WIDE, SMALL = (380, 228), (280, 186)

_DOTS = 12  # a line through fewer points than this shows the points
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11.5,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A plot of one quantity against another."""

    name: str
    """Short and unique on the page; keeps the ids of two drawings apart."""
    alt: str
    """What the drawing shows, for those who do not see it."""
    x: Sequence[float] | Floats
    y: Sequence[float] | Floats
    x_label: str
    size: tuple[int, int] = WIDE
    """Width and height in CSS pixels."""


def line(plot: Line) -> str:
    """Return a line drawn through points that are finite; few points are marked."""
    with _Canvas(plot.name, plot.alt, plot.size) as canvas:
        axes = canvas.axes
        x, y = np.asarray(plot.x, dtype=np.float64), np.asarray(plot.y, dtype=np.float64)
        good = np.isfinite(x) & np.isfinite(y)
        axes.plot(
            x[good], y[good], color=_LINE, marker="o" if good.sum() < _DOTS else "", markersize=4
        )
        # From zero, or a flat line's noise would look like change.
        axes.set_ylim(bottom=0, top=None if np.any(y[good] > 0) else 1)
        axes.set_xlim(0, max(1.0, float(x[np.isfinite(x)].max(initial=0))), auto=False)
        axes.xaxis.set_major_formatter(_thousands)
        axes.yaxis.set_major_formatter(_thousands)
        axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(plot.x_label)
    return canvas.svg


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One series of a chart."""

    label: str
    x: Sequence[float] | Floats
    y: Sequence[float] | Floats
    low: Sequence[float] | Floats | None = None
    """Lower ends of intervals about y, with ``high``."""
    high: Sequence[float] | Floats | None = None
    bound: bool = False
    """Whether it is a limit the others are held against: drawn dashed, without markers."""
    joined: bool = True
    """Whether its points lie on one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Several series over one axis."""

    name: str
    """Short and unique on the page."""
    alt: str
    curves: Sequence[Curve]
    x_label: str
    log_x: bool = False
    log_y: bool = False
    zero: float | None = None
    """Where a rule across marks nothing gained."""
    size: tuple[int, int] = WIDE


def chart(plot: Chart) -> str:
    """Return several series with a legend; at most six."""
    with _Canvas(plot.name, plot.alt, plot.size) as canvas:
        axes = canvas.axes
        for number, curve in enumerate(plot.curves):
            _draw(axes, curve, _SERIES[number % len(_SERIES)], _MARKERS[number % len(_MARKERS)])
        if plot.zero is not None:
            axes.axhline(plot.zero, color=_FAINT, linewidth=1.4)
        for log, scale, axis in (
            (plot.log_x, axes.set_xscale, axes.xaxis),
            (plot.log_y, axes.set_yscale, axes.yaxis),
        ):
            if log:
                scale("log")
                axis.set_minor_formatter(lambda _value, _tick: "")
            axis.set_major_formatter(_thousands)
        axes.set_xlabel(plot.x_label)
        axes.legend(
            frameon=False, fontsize=10, labelcolor=_INK, loc="lower left", bbox_to_anchor=(0, 1),
            ncols=3, borderaxespad=0, handlelength=1.4, columnspacing=1.2,
        )  # fmt: skip
    return canvas.svg


def _draw(axes: Any, curve: Curve, colour: str, marker: str) -> None:
    x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
    order = np.argsort(x, kind="stable")
    style = (0, (4, 3)) if curve.bound else "-" if curve.joined else ""
    axes.plot(
        x[order], y[order], color=colour, linestyle=style or "none", label=curve.label,
        marker="" if curve.bound else marker, markersize=4.5,
    )  # fmt: skip
    if curve.low is not None and curve.high is not None:
        low, high = np.asarray(curve.low, np.float64), np.asarray(curve.high, np.float64)
        axes.vlines(x, low, high, color=colour, linewidth=1.4)


def density_histogram(name: str, alt: str, densities_L: Floats, dense_above: float = 0.1) -> str:
    """Return how many latents fire how often, on a log axis; silent latents are counted in words.

    Parameters
    ----------
    densities_L
        Share of rows each latent fires on.
    dense_above
        Where the mark for dense latents stands.
    """
    with _Canvas(name, alt, WIDE) as canvas:
        axes = canvas.axes
        alive = densities_L[densities_L > 0]
        low = np.floor(np.log10(alive.min())) if alive.size else -6.0
        edges = np.logspace(low, 0, int(-low) * 6 + 1) if low < 0 else np.array([0.1, 1.0])
        axes.hist(np.clip(alive, edges[0], 1), bins=edges, color=_LINE, rwidth=0.86)
        axes.axvline(dense_above, color=_MARK, linewidth=1.2, linestyle=(0, (3, 3)))
        axes.set_xscale("log")
        axes.set_xlim(edges[0], 1)
        axes.xaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_formatter(_thousands)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("rows a latent fires on, %")
    return canvas.svg


def _thousands(value: float, _tick: int) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M".replace("-", "−")
    if abs(value) >= 1e3:
        return f"{value / 1e3:g}k".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def _percent(value: float, _tick: int) -> str:
    return f"{100 * value:g}"


@dataclass(slots=True)
class _Canvas:
    """One figure, made on entry and turned into SVG text on exit."""

    name: str
    alt: str
    size: tuple[int, int]
    axes: Any = field(init=False)
    svg: str = field(init=False, default="")
    _context: Any = field(init=False)

    def __enter__(self) -> _Canvas:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        self._context = mpl.rc_context({**_STYLE, "svg.hashsalt": self.name})
        self._context.__enter__()
        figure = Figure(figsize=(self.size[0] / 72, self.size[1] / 72), layout="constrained")
        self.axes = figure.add_subplot()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                text = io.StringIO()
                figure = self.axes.figure
                figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
                self.svg = _inline(text.getvalue(), self.name, self.alt)
        finally:
            self._context.__exit__(None, None, None)


def _rounded(tag: re.Match[str]) -> str:
    """Shorten the coordinates of a tag to hundredths of a pixel."""
    return re.sub(r"-?\d+\.\d{3,}", lambda hit: f"{float(hit.group()):.2f}", tag.group())


def _inline(svg: str, name: str, alt: str) -> str:
    """Turn a file's SVG into an element of a page: no prolog, no stray ids, colours from CSS."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None
    head = f'<svg class="plot" {view.group()} role="img" aria-labelledby="{name}-alt">'
    svg = re.sub(
        r"<svg[^>]*>", f'{head}<title id="{name}-alt">{html.escape(alt)}</title>', svg, count=1
    )
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) | {f"{name}-alt"}
    svg = re.sub(r' id="([^"]*)"', lambda hit: hit.group() if hit.group(1) in used else "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # The page's own font: metrics differ little from those the layout was made with.
    svg = re.sub(r"font-family: [^;\"]+; ?", "", svg)
    svg = re.sub(r"<[^>]+>", _rounded, svg)
    return re.sub(r"\n\s*", "\n", svg).strip()
