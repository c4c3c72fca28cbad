"""The sections of a report. Each is made from the groups it needs, and empty without them."""

import statistics
from collections.abc import Sequence

from adalink_jax.tools.cost.budget import TOLERANCE
from adalink_jax.tools.report import figures
from adalink_jax.tools.report.groups import Group, grouped, shown, varying, word
from adalink_jax.tools.report.page import (
    Block,
    Command,
    Figure,
    Heading,
    Paragraph,
    Table,
    quoted,
)
from adalink_jax.tools.report.runs import FROZEN, Run
from adalink_jax.tools.report.scores import (
    Footnotes,
    Measure,
    cell,
    measures,
    seeds_of,
    tasks_of,
)

_ALONE = "each task alone"


def _spread(groups: Sequence[Group]) -> str:
    splits = {s for g in groups for t in g.by_task for r in g.results(t) for s in r.examples}
    return (
        f"Scores are percent on {', '.join(sorted(splits)) or 'no split'}, mean ± standard"
        " deviation over seeds; (n) seeds where a task has fewer than its line. A mean over tasks"
        " stands only where every task was run with the same seeds. Stored: parameters in the"
        " adapter."
    )


def _score_table(groups: Sequence[Group], name: str, mixed: bool) -> Table:
    """Returns a table with one line per group and one column per task."""
    tasks = tasks_of(groups)
    notes, rows, gaps = Footnotes(groups, tasks), [], {}
    for group in groups:
        seeds = seeds_of(group, tasks)
        cells = [
            cell(group.scores(task), seeds)
            + notes.marks(group, [task] if group.scores(task) else ())
            for task in tasks
        ]
        means = group.means(tasks)
        if len(tasks) > 1:
            cells.append(cell(means) + notes.marks(group, tasks if means else ()))
        if means is None and tasks:
            gaps.setdefault(group.lacks(tasks), []).append(f"{group.base}, {group.line}")
        place = [group.mixture, group.label, group.sharing] if mixed else [group.label]
        rows.append([group.base, *place, f"{group.first.stored:,}", str(seeds), *cells])
    names = ["base", *(["mixture", "method", "modules"] if mixed else ["method"])]
    if cells := _chance(groups, tasks):
        place = ["", figures.CHANCE, ""] if mixed else [figures.CHANCE]
        rows.append(["", *place, "", "", *cells])
    header = [*names, "stored", "seeds", *tasks, *(["mean"] if len(tasks) > 1 else [])]
    below = list(notes.texts())
    if gaps and len(tasks) > 1:
        said = [f"{why} ({' | '.join(lines)})" for why, lines in gaps.items()]
        below.append(f"No mean over all {len(tasks)} tasks: {'; '.join(said)}.")
    return Table(header, rows, len(names), name, tuple(below))


def _chance(groups: Sequence[Group], tasks: Sequence[str]) -> list[str]:
    """Returns a line's cells of always giving one answer; none where no task's is known."""
    scores = [figures.chance(groups, task) for task in tasks]
    known = [score for score in scores if score is not None]
    if len(tasks) > 1:
        scores.append(statistics.fmean(known) if len(known) == len(tasks) else None)
    return ["" if score is None else f"{score:.1f}" for score in scores] if known else []


def single_task(groups: Sequence[Group]) -> list[Block]:
    """Single tasks: one line per base and method, and one per frozen base."""
    chosen = [group for group in groups if not group.mixture]
    if not chosen:
        return []
    table = _score_table(chosen, "single", mixed=False)
    return [Heading("One task at a time"), Paragraph(_spread(chosen)), table]


def multi_task(groups: Sequence[Group]) -> list[Block]:
    """Mixtures, with modules shared by all tasks or one module per task; a table for each."""
    mixtures = grouped((g for g in groups if g.mixture), lambda group: group.mixture)
    if not mixtures:
        return []
    found = [group for some in mixtures.values() for group in some]
    tables = [
        _score_table(some, f"mixture-{mixture}", mixed=True)
        for mixture, some in sorted(mixtures.items())
    ]
    return [Heading("Several tasks at once"), Paragraph(_spread(found)), *tables]


def settings(groups: Sequence[Group]) -> list[Block]:
    """The settings in which the lines of the other tables differ."""
    rows, header = [], []
    for trained in (True, False):
        some = [group for group in groups if (group.first.method_name != FROZEN) == trained]
        names = [n for n in varying(some) if not n.startswith(("method.", "base."))]
        header += [name for name in names if name not in header]
        rows += some if names else []
    if not rows:
        return []
    lines = [
        [*_place(group), *(shown(group.settings.get(name)) for name in header)] for group in rows
    ]
    note = "Beside seed, task and method, the lines of this report differ in:"
    columns = ["base", "mixture", "method", "modules", *map(word, header)]
    return [Heading("Settings"), Paragraph(note), Table(columns, lines, 4, "settings")]


def _place(group: Group) -> list[str]:
    return [group.base, group.mixture or _ALONE, group.label, group.sharing]


def _score(group: Group, measure: Measure, notes: Footnotes) -> str:
    means = group.means(measure.tasks)
    return cell(means) + notes.marks(group, measure.tasks) if means else ""


def _below(notes: Footnotes, lines: Sequence[Sequence[Group]] = ()) -> tuple[str, ...]:
    """Returns footnotes, and the settings that also differ along some lines."""
    also = sorted({word(n) for line in lines for n in varying(line) if not n.startswith("method.")})
    return (*notes.texts(), *([f"Along a line also differ: {', '.join(also)}."] if also else []))


def by_size(groups: Sequence[Group]) -> list[Block]:
    """Score by rank (or prompt length), for methods with runs at several ranks."""
    note = "Mean over tasks, ± over seeds. A prompt's length stands as its rank."
    return _by(groups, "size", ("Rank", "rank", "ranks.png"), note)


def by_examples(groups: Sequence[Group]) -> list[Block]:
    """Score by number of training examples, for methods trained on several numbers of them."""
    note = "Mean over tasks, ± over seeds. The examples of each task are chosen by the seed."
    return _by(groups, "few_shot", ("Few examples", "examples", "examples.png"), note)


def _by(groups: Sequence[Group], field: str, names: tuple[str, str, str], note: str) -> list[Block]:
    title, column, file = names
    panels, rows, joined = [], [], []
    notes = Footnotes(groups, tasks_of(groups))
    for measure in measures(groups):
        for base, some in measure.by_base.items():
            lines = figures.lines_by(some, field, measure)
            lines = {name: line for name, line in lines.items() if len(line) > 1}
            if not lines:
                continue
            panels.append(figures.by_number(column, lines, measure, some))
            for name, line in lines.items():
                joined.append([group for _, group in line])
                for number, group in line:
                    score = _score(group, measure, notes)
                    rows.append([base, measure.name, name, str(number), score])
    if not rows:
        return []
    table = Table(["base", "mixture", "method", column, "score"], rows, 3, column,
                  _below(notes, joined))  # fmt: skip
    return [
        Heading(title),
        Paragraph(note),
        Figure(file, f"score by {column}", tuple(panels)),
        table,
    ]


def equal_parameters(groups: Sequence[Group]) -> list[Block]:
    """Methods that store the same number of parameters, within the budget's tolerance."""
    rows, notes = [], Footnotes(groups, tasks_of(groups))
    for measure in _summaries(groups):
        for base, some in measure.by_base.items():
            trained, used = [g for g in some if g.first.method_name != FROZEN], set()
            trained.sort(key=lambda group: group.first.stored)
            for group in trained:
                stored = group.first.stored
                peers = [
                    p for p in trained if 0 <= p.first.stored - stored <= 2 * TOLERANCE * stored
                ]
                if len({peer.first.method_name for peer in peers}) < 2 or group in used:
                    continue
                used.update(peers)
                for peer in peers:
                    score = _score(peer, measure, notes)
                    place = [base, measure.name, peer.label, peer.sharing]
                    rows.append([*place, f"{peer.first.stored:,}", score])
    if not rows:
        return []
    header = ("base", "mixture", "method", "modules", "stored", "score")
    note = f"Methods whose adapters are of one size within {2 * TOLERANCE:.0%}."
    table = Table(header, rows, 4, "equal", notes.texts())
    return [Heading("Equal parameters"), Paragraph(note), table]


def _summaries(groups: Sequence[Group]) -> list[Measure]:
    """Returns what says most: the mean over the tasks alone, and each mixture's."""
    found = measures(groups)
    alone = [measure for measure in found if len(measure.tasks) == 1 and not measure.is_mixture]
    return found[len(alone) :] if len(alone) > 1 else found


def cost_table(measure: Measure) -> Table:
    """Returns the costs of some groups beside their mean score over the same tasks."""
    rows, notes = [], Footnotes(measure.groups, measure.tasks)
    for group in measure.groups:
        first = group.first
        # Tasks take different times: a mean stands where a score's does.
        seconds = [run.seconds for run in group.runs if run.seconds is not None]
        whole = group.means(measure.tasks) and len(seconds) == len(group.runs)
        rows.append(
            [
                *_place(group),
                f"{first.stored:,}",
                f"{first.bytes:,}",
                f"{first.step_flops:.3g}" if first.step_flops else "",
                f"{statistics.median(seconds):.0f}" if whole else "",
                str(seeds_of(group, measure.tasks)),
                _score(group, measure, notes),
            ]
        )
    columns = ("parameters", "bytes", "operations a step", "seconds", "seeds", measure.name)
    header = ["base", "mixture", "method", "modules", *columns]
    return Table(header, rows, 4, f"cost-{measure.name.replace(' ', '-')}", notes.texts())


def cost_and_score(groups: Sequence[Group]) -> list[Block]:
    """Stored parameters and the cost of a step, against the score."""
    if len(groups) < 2:
        return []
    summaries, drawn = _summaries(groups), []
    for file, xlabel, cost in (
        ("cost.png", "stored parameters", figures.stored),
        ("operations.png", "operations of a step", figures.operations),
    ):
        panels = [
            figures.by_cost(xlabel, measure, some, cost)
            for measure in summaries
            for some in measure.by_base.values()
        ]
        if found := tuple(panel for panel in panels if panel):
            drawn.append(Figure(file, f"score by {xlabel}", found))
    note = (
        "Parameters and bytes of one adapter. Operations are those of a training step's matrix"
        " products at the full lengths (two to a multiply-add). Seconds are those of one training,"
        " the median of a line's, with its evaluations and whatever it had to compile: the first of"
        " a kind compiles more than those after it, and other work on the machine slows it. Bars"
        " and bands are 95 % intervals."
    )
    return [Heading("Cost and score"), Paragraph(note), *drawn, *map(cost_table, summaries)]


def interference(groups: Sequence[Group]) -> list[Block]:
    """What each task gains or loses in a mixture, compared with the method on only that task."""
    heats, found, bases = [], [], len({group.base for group in groups})
    mixtures = grouped((g for g in groups if g.mixture), lambda group: group.mixture)
    for mixture, mixed in sorted(mixtures.items()):
        tasks, rows = tasks_of(mixed), []
        for base, some in grouped(mixed, lambda group: group.base).items():
            lines = {}
            for group, alone in ((g, a) for g in some for a in _alone(g, groups)):
                gains = _gains(group, alone, tasks)
                if not gains:
                    continue
                lines[", ".join(filter(None, (alone.label, group.sharing)))] = gains
                steps = dict.fromkeys((group.first.steps, alone.first.steps))
                place = [base, mixture, alone.label, group.sharing]
                cells = [f"{gains[t]:+z.1f}" if t in gains else "" for t in (*tasks, _MEAN)]
                rows.append([*place, " / ".join(f"{n:,}" for n in steps), *cells])
            if lines:
                title = f"{mixture}, {base}" if bases > 1 else mixture
                heats.append(figures.heat(title, (*tasks, _MEAN), lines))
        if rows:
            header = ["base", "mixture", "method", "modules", "steps", *tasks, _MEAN]
            found.append(Table(header, rows, 4, f"interference-{mixture}"))
    if not found:
        return []
    note = (
        "Score in the mixture minus score alone, points, over the seeds that both have; all"
        " settings are the same but the steps, those in the mixture first."
    )
    image = Figure("interference.png", "points gained by mixing", tuple(heats))
    return [Heading("Interference"), Paragraph(note), image, *found]


def _gains(mixed: Group, alone: Group, tasks: Sequence[str]) -> dict[str, float]:
    """Returns {task: points gained}, and their mean where all tasks have the same seeds."""
    gains, seeds = {}, set()
    for task in tasks:
        before, after = alone.scores(task), mixed.scores(task)
        common = tuple(seed for seed in after if seed in before)
        seeds.add(common)
        if common:
            gains[task] = statistics.fmean(after[seed] - before[seed] for seed in common)
    if len(gains) == len(tasks) and len(seeds) == 1:
        gains[_MEAN] = statistics.fmean(gains[task] for task in tasks)
    return gains


_MEAN = "mean"
# What a mixture's runs may have otherwise than those of its tasks alone.
_OF_MIXTURES = ("data", "method.routes", "steps")


def _alone(mixed: Group, groups: Sequence[Group]) -> list[Group]:
    """Returns the groups on single tasks with the same settings; of equal steps, if any are."""

    def rest(group: Group) -> dict[str, str]:
        return {n: v for n, v in group.settings.items() if n not in _OF_MIXTURES}

    found = [g for g in groups if not g.mixture and rest(g) == rest(mixed)
             and g.first.method_name == mixed.first.method_name]  # fmt: skip
    return [g for g in found if g.first.steps == mixed.first.steps] or found


def learning(groups: Sequence[Group]) -> list[Block]:
    """The score at each evaluation: each task's, and the mean over a mixture's tasks."""
    panels = []
    for measure in measures(groups):
        if len(measure.tasks) == 1 or measure.is_mixture:
            for some in measure.by_base.values():
                panels += figures.learning(measure, some)
    if not panels:
        return []
    note = "Mean over seeds, at the steps that all seeds have; dots are seeds."
    return [
        Heading("Learning curves"),
        Paragraph(note),
        Figure("learning.png", "score by step", tuple(panels)),
    ]


def runs(found: Sequence[Run], groups: Sequence[Group], notes: Sequence[str]) -> list[Block]:
    """The command behind each number, and what was left out."""
    names = {id(run): group for group in groups for run in group.runs}
    rows = [
        [run.path, names[id(run)].base, names[id(run)].line, run.mixture,
         Command(quoted(run.command)), str(run.seed), str(run.steps)]
        for run in found if id(run) in names
    ]  # fmt: skip
    header = ["run", "base", "method", "mixture", "command", "seed", "steps"]
    return [Heading("Runs"), Table(header, rows, 5, "commands", tuple(notes))]
