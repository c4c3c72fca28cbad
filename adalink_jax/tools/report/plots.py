"""The plots of a report, as PNG."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

# Twenty distinct colors, the dark ones first.
_COLORS = [f"C{i}" for i in range(10)] + [
    "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#c7c7c7",
    "#dbdb8d", "#9edae5",
]  # fmt: skip


def _figure(columns: int, rows: int = 1, height: float = 3.6):
    from matplotlib import figure

    canvas = figure.Figure(figsize=(max(6, 5 * columns), height * rows), layout="constrained")
    return canvas, canvas.subplots(rows, columns, squeeze=False)


def _styles(keys: Iterable[tuple]) -> dict[tuple, dict[str, str]]:
    """Returns label and color of each (base, mixture, method, modules); names a base if several."""
    keys = list(keys)
    several = len({key[0] for key in keys}) > 1
    names = {
        key: ", ".join(filter(None, (key[0] if several else "", key[2], key[3]))) for key in keys
    }
    order = list(dict.fromkeys(names.values()))
    return {
        key: {"label": name, "color": _COLORS[order.index(name) % len(_COLORS)]}
        for key, name in names.items()
    }


def _legend(canvas: Any, axes: Any) -> None:
    handles, names = {}, []
    for one in axes.flat:
        for handle, name in zip(*one.get_legend_handles_labels(), strict=True):
            if name not in handles:
                handles[name] = handle
                names.append(name)
    canvas.legend(
        [handles[n] for n in names], names, loc="outside lower center", fontsize=8,
        ncols=max(1, min(3, len(names))),
    )  # fmt: skip


def ranks(lines: Mapping[tuple, Mapping[int, list[float]]], file: BinaryIO) -> None:
    """Draws score by rank: one panel per mixture, one line per method, one dot per seed."""
    mixtures = list(dict.fromkeys(key[1] for key in lines))
    canvas, axes = _figure(len(mixtures))
    styles = _styles(lines)
    for key, points in lines.items():
        one = axes[0][mixtures.index(key[1])]
        sizes = list(points)
        means = [statistics.fmean(points[size]) for size in sizes]
        one.plot(sizes, means, marker="o", **styles[key])
        for size in sizes:
            dots = [size] * len(points[size])
            one.plot(dots, points[size], ".", color=styles[key]["color"], alpha=0.5)
    for one, mixture in zip(axes[0], mixtures, strict=True):
        sizes = sorted({s for key, points in lines.items() if key[1] == mixture for s in points})
        one.set_xscale("log", base=2)
        one.set_xticks(sizes)
        one.xaxis.set_major_formatter("{x:.0f}")
        one.minorticks_off()
        one.set(xlabel="rank or length", ylabel="score (%)", title=mixture)
        one.grid(alpha=0.3)
    _legend(canvas, axes)
    canvas.savefig(file, dpi=150)


def cost(points: Mapping[tuple, tuple[int, int | None, float]], file: BinaryIO) -> None:
    """Draws score by stored parameters and by FLOPs of a step: one row per mixture."""
    mixtures = list(dict.fromkeys(key[1] for key in points))
    canvas, axes = _figure(2, len(mixtures))
    styles = _styles(points)
    for key, (stored, step, score) in points.items():
        row = axes[mixtures.index(key[1])]
        row[0].plot([stored], [score], "o", **styles[key])
        if step:
            row[1].plot([step], [score], "o", **styles[key])
    for row, mixture in zip(axes, mixtures, strict=True):
        row[0].set(xscale="log", xlabel="stored parameters", ylabel="score (%)", title=mixture)
        row[1].set(xlabel="operations of a step", ylabel="score (%)", title=mixture)
        for one in row:
            one.grid(alpha=0.3)
    _legend(canvas, axes)
    canvas.savefig(file, dpi=150)


def interference(cells: Mapping[tuple, float], file: BinaryIO) -> None:
    """Draws the points gained by mixing: a heat map of rank × number of tasks per method."""
    names = list(dict.fromkeys(place[0] for place in cells))
    canvas, axes = _figure(len(names))
    limit = max(1e-9, *(abs(gain) for gain in cells.values()))
    for one, name in zip(axes[0], names, strict=True):
        sizes = sorted({size for n, size, _ in cells if n == name})
        counts = sorted({count for n, _, count in cells if n == name})
        grid = [
            [cells.get((name, size, count), float("nan")) for count in counts] for size in sizes
        ]
        shown = one.imshow(grid, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        for (row, column), gain in ((p, grid[p[0]][p[1]]) for p in _places(grid)):
            color = "white" if abs(gain) > limit / 2 else "black"
            one.text(column, row, f"{gain:+.1f}", ha="center", va="center", color=color)
        one.set_xticks(range(len(counts)), counts)
        one.set_yticks(range(len(sizes)), sizes)
        one.set(xlabel="tasks", ylabel="rank or length")
        one.set_title(name, fontsize=9)
    canvas.colorbar(shown, ax=axes, label="points")
    canvas.savefig(file, dpi=150)


def _places(grid: list[list[float]]) -> list[tuple[int, int]]:
    return [(i, j) for i, row in enumerate(grid) for j, value in enumerate(row) if value == value]


def learning(lines: Mapping[tuple, Mapping[int, list[float]]], file: BinaryIO) -> None:
    """Draws score by step: one panel per mixture, three in a row; one line per method."""
    mixtures: dict[str, list] = defaultdict(list)
    for key, points in lines.items():
        mixtures[key[1]].append((key, points))
    columns = min(3, len(mixtures))
    canvas, axes = _figure(columns, -(-len(mixtures) // columns))
    styles = _styles(lines)
    for one, (mixture, members) in zip(axes.flat, mixtures.items(), strict=False):
        for key, points in members:
            means = [statistics.fmean(values) for values in points.values()]
            one.plot(list(points), means, ".-", **styles[key])
        one.set(xlabel="step", ylabel="score (%)", title=mixture)
        one.grid(alpha=0.3)
    for one in list(axes.flat)[len(mixtures) :]:
        one.set_axis_off()
    _legend(canvas, axes)
    canvas.savefig(file, dpi=150)
