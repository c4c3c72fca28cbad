"""The sections of a report. Each is made from the runs it needs, and empty without them."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from adalink_jax.tools.cost.budget import TOLERANCE
from adalink_jax.tools.report.page import Block, Heading, Image, Paragraph, Table
from adalink_jax.tools.report.runs import FROZEN, Run

_SPREAD = (
    "Scores are percent on the validation split, mean ± standard deviation over seeds; (n) seeds"
    " where there are fewer than elsewhere in the table. A mean over tasks stands only where every"
    " task was run. Stored: parameters in the adapter."
)


def cell(values: Sequence[float], most: int) -> str:
    """Formats a score's mean and spread over seeds, with their number if it is below `most`."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    few = f" ({len(values)})" if len(values) < most else ""
    return f"{statistics.fmean(values):.1f}{spread}{few}"


def grouped(runs: Iterable[Run], key: Callable[[Run], tuple]) -> dict[tuple, list[Run]]:
    """Groups runs by a key, in the order of its first appearance."""
    groups: dict[tuple, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return dict(groups)


def task_scores(runs: Iterable[Run]) -> dict[str, list[float]]:
    """Returns each task's scores, one for each run that has the task."""
    scores: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for task, score in run.scores.items():
            scores[task].append(score)
    return dict(scores)


def mean_over(scores: dict[str, list[float]], tasks: Sequence[str]) -> float | None:
    """Returns the mean over tasks of their means over seeds; None if a task is missing."""
    if not tasks or any(task not in scores for task in tasks):
        return None
    return statistics.fmean(statistics.fmean(scores[task]) for task in tasks)


def score_table(
    runs: Sequence[Run], names: Sequence[str], key: Callable[[Run], tuple[str, ...]]
) -> Table:
    """Returns a table with one line per key and one column per task.

    Args:
      runs: the runs.
      names: the headers of the key's columns.
      key: returns a run's key, as strings.
    """
    tasks = list(dict.fromkeys(task for run in runs for task in run.scores))
    groups = grouped(runs, lambda run: (*key(run), f"{run.stored:,}"))
    lines = {line: task_scores(group) for line, group in groups.items()}
    most = max(len(values) for scores in lines.values() for values in scores.values())
    rows = []
    for line, scores in lines.items():
        mean = mean_over(scores, tasks)
        cells = [cell(scores.get(task, ()), most) for task in tasks]
        rows.append([*line, *cells, "" if mean is None else f"{mean:.1f}"])
    return Table([*names, "stored", *tasks, "mean"], rows, len(names))


def single_task(runs: Sequence[Run]) -> list[Block]:
    """Single tasks: one line per base and method, and one per frozen base."""
    chosen = [run for run in runs if len(run.tasks) == 1 or run.method_name == FROZEN]
    if not chosen:
        return []
    table = score_table(chosen, ("base", "method"), lambda run: (run.base, run.label))
    return [Heading("One task at a time"), Paragraph(_SPREAD), table]


def multi_task(runs: Sequence[Run]) -> list[Block]:
    """Mixtures, with modules shared by all tasks or one module per task."""
    chosen = [run for run in runs if len(run.tasks) > 1 and run.method_name != FROZEN]
    if not chosen:
        return []
    names = ("base", "mixture", "method", "modules")
    table = score_table(chosen, names, lambda run: (run.base, run.mixture, run.label, run.sharing))
    return [Heading("Several tasks at once"), Paragraph(_SPREAD), table]


def ranks(runs: Sequence[Run], draw: Callable[[dict, str], str]) -> list[Block]:
    """Score by rank (or prompt length), for methods with runs at several ranks."""
    key = ("base", "mixture", "method", "modules")

    def kind(run: Run) -> tuple:
        few = "" if run.few_shot is None else f", {run.few_shot} examples"
        return run.base, run.mixture, run.method_name + few, run.sharing

    lines, rows = {}, []
    for group, members in grouped((r for r in runs if r.size is not None), kind).items():
        by_size = grouped(members, lambda run: (run.size,))
        if len(by_size) < 2:
            continue
        lines[group] = {
            size: [statistics.fmean(run.scores.values()) for run in some if run.scores]
            for (size,), some in sorted(by_size.items())
        }
        most = max(map(len, lines[group].values()))
        for size, values in lines[group].items():
            rows.append([*group, str(size), cell(values, most)])
    if not rows:
        return []
    note = "The mean over a run's tasks, ± over seeds. A prompt's length stands as its rank."
    image = draw(lines, "ranks.png")
    table = Table([*key, "rank", "score"], rows, len(key))
    return [Heading("Rank"), Paragraph(note), Image(image, "score by rank"), table]


def equal_parameters(runs: Sequence[Run]) -> list[Block]:
    """Methods that store the same number of parameters, within the budget's tolerance."""
    groups = grouped(runs, lambda run: (run.base, run.mixture, run.label, run.sharing))
    sized = sorted(
        ((key[0], key[1], some[0].stored, key, some) for key, some in groups.items()),
        key=lambda one: one[:3],
    )
    rows, used = [], set()
    for base, mixture, stored, key, _ in sized:
        peers = [
            (other_key, others)
            for b, m, other, other_key, others in sized
            if (b, m) == (base, mixture) and stored <= other <= stored * (1 + 2 * TOLERANCE)
        ]
        methods = {others[0].method_name for _, others in peers}
        if len(methods) < 2 or key in used:
            continue
        for other_key, others in peers:
            used.add(other_key)
            scores = [statistics.fmean(run.scores.values()) for run in others if run.scores]
            rows.append([*other_key, f"{others[0].stored:,}", cell(scores, len(others))])
    if not rows:
        return []
    header = ("base", "mixture", "method", "modules", "stored", "score")
    note = f"Methods whose adapters are of one size within {2 * TOLERANCE:.0%}."
    return [Heading("Equal parameters"), Paragraph(note), Table(header, rows, 4)]


def _cost_groups(runs: Sequence[Run]) -> dict[tuple, list[Run]]:
    """Groups runs by base, mixture, method and sharing; several single tasks form one mixture."""
    several = len({run.mixture for run in runs if len(run.tasks) == 1}) > 1

    def key(run: Run) -> tuple:
        mixture = "each task alone" if several and len(run.tasks) == 1 else run.mixture
        return run.base, mixture, run.label, run.sharing

    return grouped(runs, key)


def _seed_means(runs: Sequence[Run]) -> list[float]:
    """Returns the mean score over all tasks for each seed."""
    seeds = grouped((run for run in runs if run.scores), lambda run: (run.seed,))
    return [
        statistics.fmean(score for run in some for score in run.scores.values())
        for some in seeds.values()
    ]


def cost_table(runs: Sequence[Run]) -> Table:
    """Returns the costs and mean score of each base, mixture, method and sharing."""
    groups = _cost_groups(runs)
    means = {key: _seed_means(some) for key, some in groups.items()}
    most = max(map(len, means.values()))
    rows = []
    for key, some in groups.items():
        first = some[0]
        seconds = [run.seconds for run in some if run.seconds is not None]
        rows.append(
            [
                *key,
                f"{first.stored:,}",
                f"{first.bytes:,}",
                f"{first.step_flops:.3g}" if first.step_flops else "",
                f"{statistics.fmean(seconds):.0f}" if seconds else "",
                cell(means[key], most if first.steps else 1),
            ]
        )
    columns = ("parameters", "bytes", "operations a step", "seconds", "score")
    return Table(["base", "mixture", "method", "modules", *columns], rows, 4)


def cost_and_score(runs: Sequence[Run], draw: Callable[[dict, str], str]) -> list[Block]:
    """Stored parameters and the cost of a step, against the score."""
    points = {}
    for key, some in _cost_groups(runs).items():
        scores = _seed_means(some)
        if scores and some[0].stored:
            points[key] = (some[0].stored, some[0].step_flops, statistics.fmean(scores))
    if len(points) < 2:
        return []
    note = (
        "Parameters and bytes of one adapter. Operations are those of a training step's matrix"
        " products at the full lengths (two to a multiply-add); seconds are"
        " those of one training with its compiling and evaluations, on the machine that it ran on"
        " and beside whatever else ran there."
    )
    image = Image(draw(points, "cost.png"), "score by cost")
    return [Heading("Cost and score"), Paragraph(note), image, cost_table(runs)]


def interference(runs: Sequence[Run], draw: Callable[[dict, str], str]) -> list[Block]:
    """What each task gains or loses in a mixture, compared with the method on only that task."""
    alone = grouped(
        (r for r in runs if len(r.tasks) == 1), lambda run: (run.base, run.label, run.mixture)
    )
    mixed = grouped(
        (r for r in runs if len(r.tasks) > 1),
        lambda run: (run.base, run.label, run.sharing, str(len(run.tasks))),
    )
    rows, cells = [], {}
    tasks = list(dict.fromkeys(t for some in mixed.values() for run in some for t in run.tasks))
    for (base, label, sharing, count), some in mixed.items():
        scores = task_scores(some)
        gains = {}
        for task, values in scores.items():
            single = task_scores(alone.get((base, label, task), ())).get(task)
            if single:
                gains[task] = statistics.fmean(values) - statistics.fmean(single)
        if gains:
            line = [f"{gains[task]:+.1f}" if task in gains else "" for task in tasks]
            mean = f"{statistics.fmean(gains.values()):+.1f}"
            rows.append([base, label, sharing, count, *line, mean])
            if some[0].size is not None:
                place = (f"{base}, {some[0].method_name}, {sharing}", some[0].size, int(count))
                cells[place] = statistics.fmean(gains.values())
    if not rows:
        return []
    header = ["base", "method", "modules", "tasks", *tasks, "mean"]
    note = "Score in the mixture minus score alone, points; the same base, method and size."
    blocks: list[Block] = [Heading("Rank × number of tasks: interference"), Paragraph(note)]
    if len({place[1:] for place in cells}) > 1:
        blocks.append(Image(draw(cells, "interference.png"), "points gained by mixing"))
    return [*blocks, Table(header, rows, 3)]


def learning(runs: Sequence[Run], draw: Callable[[dict, str], str]) -> list[Block]:
    """The mean score over a run's tasks at each evaluation, averaged over seeds."""
    lines: dict[tuple, dict[int, list[float]]] = {}
    for run in runs:
        key = (run.base, run.mixture, run.label, run.sharing)
        points = lines.setdefault(key, defaultdict(list))
        for step, scores in run.curve:
            points[step].append(statistics.fmean(scores.values()))
    lines = {key: points for key, points in lines.items() if len(points) > 1}
    if not lines:
        return []
    return [Heading("Learning curves"), Image(draw(lines, "learning.png"), "score by step")]


def commands(runs: Sequence[Run]) -> list[Block]:
    """The command behind each number."""
    rows = [
        [run.path, run.base, run.label, run.mixture, run.command, str(run.seed), str(run.steps)]
        for run in runs
    ]
    header = ["run", "base", "method", "mixture", "command", "seed", "steps"]
    return [Heading("Runs"), Table(header, rows, 5)]
