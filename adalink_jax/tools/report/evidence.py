"""The sections that say what scores rest on: intervals, comparisons, predictions."""

import itertools
from collections.abc import Iterator, Sequence

from adalink_jax.errors import UserError, nearest
from adalink_jax.tools.report.groups import Group
from adalink_jax.tools.report.intervals import (
    Difference,
    difference,
    estimate,
    holm,
    incomparable,
)
from adalink_jax.tools.report.page import Block, Examples, Heading, Paragraph, Table
from adalink_jax.tools.report.predictions import NoDraws, aligned, lines
from adalink_jax.tools.report.scores import Measure, measures

# Below this p, after correction, the sign of a difference is said.
_SURE = 0.05
_COMPARED = """Ahead, or behind, is A where the corrected p is below 0.05. Differences in points, on
the seeds that both have and on the same examples. With one seed the test is of two trained models:
McNemar's exact one where the score is a share of right answers, else approximate randomization, in
which each example's two predictions change sides at random. With several seeds it is of two
methods: a paired bootstrap over examples with Student's distribution (t) of the seeds' mean, or
the latter alone. The last column is corrected for all tests of this table by Holm's method. Cohen's
g is the share of A among the answers that only one has right, minus a half; tasks scored by a
correlation do not count for these. Intervals are as in the table of intervals."""
# The page shows so many examples of each split.
_SHOWN = 100


def intervals(groups: Sequence[Group]) -> list[Block]:
    """Each line's scores with their number of seeds, spread and 95 % interval."""
    rows, reasons = [], []
    for measure in measures(groups):
        for group in measure.groups:
            if (found := estimate(group, measure.tasks)) is None:
                continue
            reasons += [found.why] if found.why and found.why not in reasons else []
            rows.append(
                [
                    group.base,
                    measure.name,
                    group.label,
                    group.sharing,
                    str(found.seeds),
                    f"{found.mean:z.1f}",
                    "" if found.deviation is None else f"{found.deviation:.1f}",
                    _interval(found.interval),
                    found.over,
                ]
            )
    if not rows:
        return []
    header = ["base", "score of", "method", "modules", "seeds", "mean", "deviation",
              "95 % interval", "covers"]  # fmt: skip
    note = (
        "The interval covers what other examples of the same kind would give (bootstrap), and, with"
        " more than one seed, what other seeds would (Student's distribution of their mean, wide"
        " for two or three). It ends where the score does. Shares of right answers with one seed,"
        " or with hardly any wrong, have Jeffreys' interval in place of the bootstrap's."
    )
    table = Table(header, rows, 4, "intervals", _not_drawn(reasons))
    return [Heading("Intervals"), table, Paragraph(note)]


def _not_drawn(reasons: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"Examples were not drawn again: {reason}." for reason in reasons)


def _interval(ends: tuple[float, float] | None, sign: str = "") -> str:
    return "" if ends is None else f"{ends[0]:{sign}z.1f} to {ends[1]:{sign}z.1f}"


def compared(groups: Sequence[Group], pairs: Sequence[Sequence[str]]) -> list[Block]:
    """Tests of the difference between pairs of methods, on the same seeds and examples.

    Args:
      groups: the report's groups.
      pairs: labels, or parts of labels that only one method's label has.

    Raises:
      UserError: a text stands in no label, or in several; or a pair is one line, or has nothing in
        common.
    """
    if not pairs:
        return []
    # Each test once, whichever way round and however often it is asked for.
    asked = {}
    for one, other in (_labels(groups, pair) for pair in pairs):
        asked.setdefault(frozenset((one, other)), (one, other))
    found, gaps = [], []
    for one, other in asked.values():
        rows, why = _differences(groups, one, other)
        found += rows
        gaps += why
    ps = [diff.p for *_, diff in found if diff.p is not None]
    corrected = iter(holm(ps))
    rows, reasons = [], []
    verdicts: dict[str, dict[str, list[str]]] = {}
    for first, second, measure, diff in found:
        p = None if diff.p is None else next(corrected)
        told = p is not None and p < _SURE
        verdict = ("ahead" if diff.estimate.mean > 0 else "behind") if told else "not told apart"
        pair = f"{first.line} and {second.line} on {first.base}"
        verdicts.setdefault(pair, {}).setdefault(verdict, []).append(measure.name)
        counts = "" if diff.won is None else f"{diff.won:,} : {diff.lost:,}"
        why = diff.estimate.why
        reasons += [why] if why and why not in reasons else []
        rows.append(
            [
                first.base,
                measure.name,
                first.line,
                second.line,
                str(diff.estimate.seeds),
                f"{diff.estimate.mean:+z.1f}",
                _interval(diff.estimate.interval, "+"),
                diff.estimate.over,
                counts,
                "" if diff.g is None else f"{diff.g:+z.2f}",
                diff.test,
                _p(diff.p),
                _p(p),
            ]
        )
    header = ["base", "score of", "A", "B", "seeds", "A - B", "95 % interval", "covers",
              "only A : B right", "Cohen's g", "test", "p", "p (Holm)"]  # fmt: skip
    said = [
        f"{pair}: " + "; ".join(f"{what} on {', '.join(on)}" for what, on in some.items()) + "."
        for pair, some in verdicts.items()
    ]
    notes = (*said, *_not_drawn(reasons), *(f"No row: {gap}." for gap in gaps))
    table = Table(header, rows, 4, "comparisons", notes)
    return [Heading("Comparisons"), table, Paragraph(_COMPARED.replace("\n", " "))]


def _p(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _label(groups: Sequence[Group], text: str) -> str:
    labels = list(dict.fromkeys(group.line for group in groups))
    if text in labels:
        return text
    # "adalink" is "adalink, rank 4" rather than a method that has it as a part.
    found = [label for label in labels if label.partition(",")[0] == text]
    found = found or [label for label in labels if text in label]
    if len(found) == 1:
        return found[0]
    said = f"is in {len(found)} labels: {'; '.join(found)}" if found else "is in no label"
    known = "" if found else nearest(text, labels) or f"; there are {'; '.join(labels)}"
    raise UserError(f"--compare: '{text}' {said}{known}")


def _labels(groups: Sequence[Group], pair: Sequence[str]) -> tuple[str, str]:
    one, other = (_label(groups, text) for text in pair)
    if one == other:
        raise UserError(f"--compare: '{pair[0]}' and '{pair[1]}' are one line, {one}")
    return one, other


def _differences(
    groups: Sequence[Group], one: str, other: str
) -> tuple[list[tuple[Group, Group, Measure, Difference]], list[str]]:
    """Returns the differences of two lines, and why scores of both have none."""
    found, gaps = [], {}
    for measure in measures(groups):
        for some in measure.by_base.values():
            first, second = ([g for g in some if g.line == label] for label in (one, other))
            for a, b in itertools.product(first, second):
                if diff := difference(a, b, measure.tasks):
                    found.append((a, b, measure, diff))
                else:
                    why = incomparable(a, b, measure.tasks)
                    gaps.setdefault(why, {})[measure.title(a)] = None
    said = [f"{one} and {other}, {why}: {', '.join(names)}" for why, names in gaps.items()]
    if not found:
        why = f"; {'; '.join(gaps)}" if gaps else ""
        raise UserError(f"--compare: {one} and {other} were not run on a common task and seed{why}")
    return found, said


def predictions(groups: Sequence[Group]) -> list[Block]:
    """What each method predicts for the same examples, at the first seed that it has."""
    found = []
    for measure in measures(groups):
        if len(measure.tasks) > 1 and not measure.is_mixture:
            continue
        for base, some in measure.by_base.items():
            for task in measure.tasks:
                name = task if task == measure.name else f"{task} in {measure.name}"
                found += _examples(f"{name}, {base}", [g for g in some if g.scores(task)], task)
    if not found:
        return []
    note = (
        "One training of each method, the smallest seed; examples that few methods have right come"
        " first. The page, report.html, shows them."
    )
    return [Heading("Predictions"), Paragraph(note), *found]


def _examples(title: str, groups: Sequence[Group], task: str) -> Iterator[Examples]:
    chosen = [next(iter(group.by_task[task].values())) for group in groups]
    for split in chosen[0].results[task].examples if chosen else ():
        kept = []
        for group, run in zip(groups, chosen, strict=True):
            try:
                aligned([chosen[0] if not kept else kept[0][1], run], task, split)
            except NoDraws:
                continue
            kept.append((group, run))
        if not kept:
            continue
        # Examples in context stand before the input that all have.
        kept.sort(key=lambda one: one[1].in_context)
        columns = [list(lines(run, task, split)) for _, run in kept]
        rows = [
            (line[0]["inputs"], line[0]["target"], tuple(one["prediction"] for one in line))
            for line in zip(*columns, strict=True)
        ]
        rows.sort(key=lambda row: sum(answer == row[1] for answer in row[2]))
        few = rows[:_SHOWN]
        note = f"{len(few)} of {len(rows):,} examples of {split}"
        yield Examples(title, [group.line for group, _ in kept], few, note)
