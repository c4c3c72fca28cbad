"""Draws the panels of a report: together as PNG, or each as SVG that follows a page's colors."""

import dataclasses
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from adalink_jax.methods import METHODS
from adalink_jax.tools import tables
from adalink_jax.tools.report import naming
from adalink_jax.tools.report.runs import FROZEN

# Colors that can be told apart with any eyes, on white and on black; a method has the same one in
# every plot. What trains the base is drawn in the text's color, which an SVG takes from its page.
_COLORS = ("#0077bb", "#e07000", "#009e73", "#cc4499", "#7755cc", "#998800", "#33aacc")
TEXT = "#010203"
_PALE = "#888888"
# The variants of a method: a line and a marker, each as matplotlib's and as text.
_VARIANTS = (
    ("-", "o", "─●─"), ("--", "s", "╌■╌"), (":", "^", "┈▲┈"), ("-.", "D", "┄◆┄"),
    ((0, (6, 2)), "v", "─▼─"), ((0, (1, 3)), "P", "·✚·"),
)  # fmt: skip
_FROZEN_LINES = (("--", "╌╌╌"), ("-.", "┄·┄"), ((0, (6, 2, 1, 2, 1, 2)), "─··"))
# An axis shows at least so many points, so that one point is never a gulf.
_LEAST_SPAN = 10.0
_SIZE = (4.4, 3.2)
_COLUMNS = 3
# With more methods than colors, each point has its name beside it, in axes that have room for it.
_NAMED_SIZE = (9.0, 6.0)
_NAME_POINTS = 7  # The size of a name's letters.


@dataclasses.dataclass(frozen=True)
class Point:
    """A mean score at x, its interval if there is one, and the scores of the seeds."""

    x: float
    y: float
    interval: tuple[float, float] | None = None
    dots: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Series:
    """The points of one label, joined by a line if there are several."""

    label: str
    method: str
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Level:
    """A horizontal line, e.g. the frozen base's score; `method` is "" for chance."""

    label: str
    method: str
    y: float
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes: scores in percent, over x.

    Attributes:
      title: what the scores are of.
      xlabel: what x is.
      series, levels: what is drawn.
      scale: "linear"; "log", with round ticks; or "steps of two", with a tick for each x.
    """

    title: str
    xlabel: str
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    scale: str = "linear"

    @property
    def is_named(self) -> bool:
        """Whether names beside the points say what they are, since a legend would be too long."""
        return self.scale == "log" and len(self.series) > len(_COLORS)


@dataclasses.dataclass(frozen=True)
class Heat:
    """A map of gains in points: rows × columns, where some cells may be missing."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], float]


@dataclasses.dataclass(frozen=True)
class Look:
    """How a label is drawn: matplotlib's color, line and marker, and the same as text."""

    color: str
    line: Any
    marker: str
    text: str


def looks(panels: Sequence[Panel | Heat]) -> dict[str, Look]:
    """Returns how each label of some panels is drawn, in the legend's order."""
    found, variants = {}, {}
    curves = [panel for panel in panels if isinstance(panel, Panel)]
    for one in [series for panel in curves for series in panel.series]:
        if one.label not in found:
            number = variants[one.method] = variants.get(one.method, -1) + 1
            found[one.label] = Look(_color(one.method), *_VARIANTS[number % len(_VARIANTS)])
    frozen = itertools.cycle(_FROZEN_LINES)
    for one in [level for panel in curves for level in panel.levels]:
        if one.label not in found:
            line, shown = (":", "┈┈┈") if not one.method else ("-", "───")
            line, shown = next(frozen) if one.method == FROZEN else (line, shown)
            found[one.label] = Look(_color(one.method), line, "", shown)
    return found


def labels(panel: Panel | Heat) -> list[str]:
    """Returns the labels that a panel's legend explains, in its order."""
    if isinstance(panel, Heat):
        return []
    series = () if panel.is_named else panel.series
    return [one.label for one in (*series, *_levels(panel))]


def is_wide(panel: Panel | Heat) -> bool:
    """Returns whether a panel takes the whole width."""
    return isinstance(panel, Heat) or panel.is_named


def _color(method: str) -> str:
    if method in ("", FROZEN):
        return _PALE
    if method in METHODS and METHODS[method].trains_base:
        return TEXT
    adapters = [name for name, cls in METHODS.items() if not cls.trains_base]
    return _COLORS[adapters.index(method) % len(_COLORS)] if method in adapters else _PALE


def png(panels: Sequence[Panel | Heat], file: BinaryIO) -> None:
    """Draws panels side by side on white, with one legend below."""
    wide = any(map(is_wide, panels))
    columns = 1 if wide else min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width = _NAMED_SIZE[0] if wide else max(6.0, _SIZE[0] * columns)
    canvas, axes = _figure(width, sum(_height(panel) for panel in panels[::columns]), rows, columns)
    styles = looks(panels)
    explained = list(dict.fromkeys(label for panel in panels for label in labels(panel)))
    for one, panel in zip(axes.flat, panels, strict=False):
        _draw(one, panel, styles)
    for one in list(axes.flat)[len(panels) :]:
        one.set_axis_off()
    if explained:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=s.color, linestyle=s.line, marker=s.marker or None)
                 for s in map(styles.__getitem__, explained)]  # fmt: skip
        canvas.legend(lines, explained, loc="outside lower center", fontsize=8,
                      ncols=min(_COLUMNS, len(explained)) if wide else columns)  # fmt: skip
    canvas.savefig(file, dpi=130, facecolor="white")


def svg(panel: Panel | Heat, styles: Mapping[str, Look], name: str) -> str:
    """Draws one panel as an SVG element whose text and axes have the color of the text around it.

    Args:
      panel: the panel.
      styles: how labels are drawn.
      name: tells its ids from those of the page's other SVGs.
    """
    import matplotlib

    width = 7.0 if isinstance(panel, Heat) else _size(panel)[0]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        canvas, axes = _figure(width, _height(panel), 1, 1)
        _draw(axes[0][0], panel, styles)
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(TEXT, "currentColor")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL).strip()
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', drawn))
    # Names of groups would stand several times in one page.
    return re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", drawn)


def _height(panel: Panel | Heat) -> float:
    return 1.4 + 0.32 * len(panel.rows) if isinstance(panel, Heat) else _size(panel)[1]


def _size(panel: Panel) -> tuple[float, float]:
    return _NAMED_SIZE if panel.is_named else _SIZE


def _figure(width: float, height: float, rows: int, columns: int):
    from matplotlib import figure

    canvas = figure.Figure(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots(rows, columns, squeeze=False)


def _draw(axes: Any, panel: Panel | Heat, styles: Mapping[str, Look]) -> None:
    if isinstance(panel, Heat):
        _heat(axes, panel)
    else:
        _curves(axes, panel, styles)
    axes.set_title(panel.title, fontsize=9, color=TEXT)
    axes.tick_params(colors=TEXT, labelsize=8)
    for side in axes.spines.values():
        side.set_color(TEXT)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=TEXT, fontsize=9)


def _curves(axes: Any, panel: Panel, styles: Mapping[str, Look]) -> None:
    for level in _levels(panel):
        look = styles[level.label]
        axes.axhline(level.y, color=look.color, linestyle=look.line, linewidth=1.2, zorder=1)
        if level.interval:
            axes.axhspan(*level.interval, color=look.color, alpha=0.12, linewidth=0, zorder=0)
    for series in panel.series:
        look = styles[series.label]
        xs, ys = [p.x for p in series.points], [p.y for p in series.points]
        axes.plot(
            xs,
            ys,
            color=look.color,
            linestyle=look.line,
            marker=look.marker,
            markersize=5,
            zorder=3,
        )
        for point in series.points:
            if point.interval:
                axes.plot([point.x] * 2, point.interval, color=look.color, linewidth=1.2, zorder=2)
            dots = [point.x] * len(point.dots)
            axes.plot(dots, point.dots, ".", color=look.color, alpha=0.4, markersize=4, zorder=2)
    axes.set(xlabel=panel.xlabel, ylabel="score (%)", ylim=limits(panel))
    _x_axis(axes, panel)
    axes.grid(alpha=0.25, color=_PALE)
    if panel.is_named:
        _front(axes, panel)
        _names(axes, panel, styles)


def _front(axes: Any, panel: Panel) -> None:
    """Draws the best score at each cost: no method costs less and scores higher."""
    best: list[Point] = []
    for point in sorted((s.points[0] for s in panel.series), key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    xs, ys = [point.x for point in best], [point.y for point in best]
    right = axes.get_xlim()[1]
    axes.step([*xs, right], [*ys, ys[-1]], where="post", color=_PALE, linewidth=1, zorder=1)


def _names(axes: Any, panel: Panel, styles: Mapping[str, Look]) -> None:
    """Writes each series' name beside its point, with a thin line where it stands apart."""
    # In points; the rest of the figure is for ticks and titles.
    area = 72 * 0.88 * _NAMED_SIZE[0], 72 * 0.88 * _NAMED_SIZE[1]
    to_axes = axes.transScale + axes.transLimits
    found = [to_axes.transform((s.points[0].x, s.points[0].y)) for s in panel.series]
    points = [(x * area[0], y * area[1]) for x, y in found]
    names = naming.short_names([series.label for series in panel.series])
    widths = [0.6 * _NAME_POINTS * len(name) for name in names]
    places = naming.placed(points, widths, 1.2 * _NAME_POINTS, area)
    for series, name, width, place in zip(panel.series, names, widths, places, strict=True):
        color = styles[series.label].color
        point = series.points[0]
        middle = ((place[0] + width / 2) / area[0], (place[1] + 0.6 * _NAME_POINTS) / area[1])
        text = axes.annotate(
            name, (point.x, point.y), middle, textcoords=axes.transAxes, ha="center", va="center",
            fontsize=_NAME_POINTS, color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.4, "shrinkA": 0},
        )  # fmt: skip
        text.set_in_layout(False)  # A name that reaches over the edge must not shrink the axes.


def limits(panel: Panel) -> tuple[float, float]:
    """Returns the ends of the score's axis.

    It holds all scores and, as far as they do not dwarf these, the intervals.
    """
    points, levels = _points(panel), _levels(panel)
    values = [v for p in points for v in (p.y, *p.dots)] + [level.y for level in levels]
    low, high = min(values), max(values)
    short = max(0.0, _LEAST_SPAN - (high - low)) / 2
    low, high = low - short, high + short
    span = high - low
    ends = [end for one in (*points, *levels) if one.interval for end in one.interval]
    low, high = max(min([low, *ends]), low - span), min(max([high, *ends]), high + span)
    return low - 0.05 * span, high + 0.05 * span


def _points(panel: Panel) -> list[Point]:
    return [point for series in panel.series for point in series.points]


def _levels(panel: Panel) -> list[Level]:
    """Returns the levels to draw; among many points, none that is far off."""
    if not panel.is_named:
        return list(panel.levels)
    ys = [point.y for point in _points(panel)]
    span = max(_LEAST_SPAN, max(ys) - min(ys)) / 2
    return [level for level in panel.levels if min(ys) - span <= level.y <= max(ys) + span]


def _x_axis(axes: Any, panel: Panel) -> None:
    from matplotlib import ticker

    xs = sorted({point.x for series in panel.series for point in series.points})
    if panel.scale == "linear" or not xs:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        return
    axes.set_xscale("log", base=2 if panel.scale == "steps of two" else 10)
    axes.set_xlim(xs[0] / 1.6, xs[-1] * 1.6)
    axes.minorticks_off()
    if panel.scale == "steps of two":
        axes.set_xticks(_apart(xs))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        return
    ratio = xs[-1] / xs[0]
    subs = (1, 1.5, 2, 3, 5, 7) if ratio < 6 else (1, 2, 5) if ratio < 300 else (1,)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(lambda x, _: tables.in_thousands(x))


def _apart(xs: Sequence[float]) -> list[float]:
    """Leaves out ticks that would stand less than a seventh of the axis from the last."""
    kept = [xs[0]]
    least = (xs[-1] / xs[0]) ** (1 / 7)
    for x in xs[1:]:
        if x >= kept[-1] * least * 0.999:
            kept.append(x)
    return kept


def _heat(axes: Any, panel: Heat) -> None:
    grid = [[panel.cells.get((row, column), float("nan")) for column in panel.columns]
            for row in panel.rows]  # fmt: skip
    most = max(1.0, *(abs(gain) for gain in panel.cells.values()))
    axes.imshow(grid, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for i, row in enumerate(panel.rows):
        for j, column in enumerate(panel.columns):
            if (gain := panel.cells.get((row, column))) is not None:
                color = "white" if abs(gain) > 0.6 * most else "black"
                axes.text(j, i, f"{gain:+.1f}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(panel.columns)), panel.columns, rotation=30, ha="right")
    axes.set_yticks(range(len(panel.rows)), panel.rows)
