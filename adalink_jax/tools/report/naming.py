"""Where the names of a plot's points stand, so that none covers another name or a point."""

import itertools
import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]
_LONGEST = 32  # Characters of a name.
# How far from its point a name may stand, in heights of a line, nearest first.
_DISTANCES = (0.0, 0.6, 1.3, 2.2, 3.2, 4.5, 6.0, 8.0, 10.0)


def short_names(labels: Sequence[str]) -> list[str]:
    """Returns the labels' first words; where several have the same, with what not all labels have.

    A label is as "adalink, rank 4, 64 examples" or "houlsby (bottleneck, rank 24), 64 examples". A
    long name is cut, if it stays the only one of its kind.
    """
    firsts = [re.split(r", | \(", label)[0] for label in labels]
    parts = [label.split(", ") for label in labels]
    common = set.intersection(*map(set, parts))
    names = [
        first if firsts.count(first) == 1 else ", ".join(part for part in own if part not in common)
        for first, own in zip(firsts, parts, strict=True)
    ]
    cut = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    return [
        short if cut.count(short) == 1 else name for short, name in zip(cut, names, strict=True)
    ]


def placed(
    points: Sequence[tuple[float, float]], widths: Sequence[float], height: float,
    area: tuple[float, float],
) -> list[tuple[float, float]]:  # fmt: skip
    """Chooses a place for each point's name: the nearest that is free.

    The names of points with the most neighbors are placed first. Where nothing is free, the name
    covers as little as possible.

    Args:
      points: x and y, in any unit of length, from the lower left corner of the axes.
      widths: of the names, in this unit.
      height: of a line of text.
      area: width and height of the axes.

    Returns:
      The lower left corner of each name.
    """
    marks = [_around(x, y, 0.7 * height, 0.7 * height) for x, y in points]
    taken: list[Box] = list(marks)
    found: dict[int, tuple[float, float]] = {}
    near = [sum(_overlap(_grown(a, 4 * height), b) > 0 for b in marks) for a in marks]
    for index in sorted(range(len(points)), key=lambda i: (-near[i], points[i])):
        candidates = _candidates(*points[index], widths[index], height)
        boxes = [(x, y, x + widths[index], y + height) for x, y in candidates]
        inside = [box for box in boxes if _is_inside(box, area)] or boxes
        box = min(inside, key=lambda box: sum(_overlap(box, other) for other in taken))
        taken.append(box)
        found[index] = box[:2]
    return [found[index] for index in range(len(points))]


def _candidates(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    gap = 0.5 * height
    result = []
    for distance, (right, up) in itertools.product(
        _DISTANCES, ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
    ):
        away = gap + distance * height
        left = x + away if right > 0 else x - away - width if right < 0 else x - width / 2
        low = y + away if up > 0 else y - away - height if up < 0 else y - height / 2
        result.append((left, low))
    return result


def _around(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _grown(box: Box, by: float) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _is_inside(box: Box, area: tuple[float, float]) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= area[0] and box[3] <= area[1]
