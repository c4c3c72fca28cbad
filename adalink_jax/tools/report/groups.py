"""Groups of runs: what one line of a table stands for, and what it is called.

The runs of a group have equal settings, but for seed and paths. A group's means come from here
alone, so that all tables and plots show the same number for the same thing.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from adalink_jax.methods.base import Method
from adalink_jax.tools.report.runs import FROZEN, Run, Scored

# Settings that every label or table says.
_SAID = ("base.fingerprint", "few_shot", "in_context", "method.routes")
# What a label names first, where several settings tell groups apart equally well.
_FIRST = ("steps", "learning_rate.base_learning_rate", "optimizer.@partial", "batch_size")
_WORDS = {
    "learning_rate.base_learning_rate": "learning rate",
    "task_feature_lengths.inputs": "length",
    "task_feature_lengths.targets": "target length",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in seed and paths; and in the task, if each has only one.

    Attributes:
      base: the base's name.
      mixture: the mixture that all were trained on; "" if each run has one task, or no training.
      label: the method and the fewest settings that tell it from other groups.
      settings: the settings that all runs share, as JSON by dotted name.
      runs: one for each seed, and task if each has one.
    """

    base: str
    mixture: str
    label: str
    settings: Mapping[str, str]
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Any run, for what all runs of the group share."""
        return self.runs[0]

    @property
    def sharing(self) -> str:
        """How a mixture's tasks are adapted; "" for single tasks. See `Run.sharing`."""
        return self.first.sharing if self.mixture else ""

    @property
    def line(self) -> str:
        """The label with how tasks are adapted, as in a plot's legend."""
        modules = f"modules {self.sharing}" if self.sharing else ""
        return ", ".join(filter(None, (self.label, modules)))

    @functools.cached_property
    def by_task(self) -> Mapping[str, Mapping[int, Run]]:
        """{task: {seed: the run that has a score for it}}, seeds ascending."""
        found: dict[str, dict[int, Run]] = defaultdict(dict)
        for run in sorted(self.runs, key=lambda run: (run.seed, run.started, run.path)):
            for task in run.scores:
                found[task][run.seed] = run
        return dict(found)

    def scores(self, task: str) -> dict[int, float]:
        """Returns {seed: score} of one task."""
        return {seed: run.scores[task] for seed, run in self.by_task.get(task, {}).items()}

    def results(self, task: str) -> list[Scored]:
        """Returns what each run reached on a task."""
        return [run.results[task] for run in self.by_task.get(task, {}).values()]

    def means(self, tasks: Sequence[str]) -> dict[int, float] | None:
        """Returns {seed: mean score over the tasks}.

        None unless every task has the same seeds, and all their scores one scale.
        """
        scores = [self.scores(task) for task in tasks]
        if (
            not self.of_one_scale(tasks)
            or not scores
            or not scores[0]
            or any(one.keys() != scores[0].keys() for one in scores)
        ):
            return None
        return {seed: statistics.fmean(one[seed] for one in scores) for seed in scores[0]}

    def of_one_scale(self, tasks: Iterable[str]) -> bool:
        """Whether scores of tasks can be averaged: CIDEr has no end, and the others end at 100."""
        metrics = ((name for one in self.results(task) for name in one.counted) for task in tasks)
        scales = ({name.rpartition("/")[2] == "cider" for name in names} for names in metrics)
        return len({any(scale) for scale in scales if scale}) <= 1

    def lacks(self, tasks: Sequence[str]) -> str:
        """Returns why there is no mean over the tasks: "no run of a, no seed 1 of b"."""
        if not self.of_one_scale(tasks):
            return "CIDEr and other scores have no common scale"
        seeds = sorted({seed for task in tasks for seed in self.scores(task)})
        gaps = grouped(tasks, lambda t: tuple(s for s in seeds if s not in self.scores(t)))
        said = []
        for missing, some in gaps.items():
            numbers = f"seed {', '.join(map(str, missing))}"
            if missing or not seeds:
                what = "run" if len(missing) == len(seeds) else numbers
                said.append(f"no {what} of {', '.join(some)}")
        return ", ".join(said)


def grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Groups items by a key, in the order of its first appearance."""
    groups: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def groups_of(runs: Iterable[Run]) -> tuple[list[Group], list[str]]:
    """Groups runs by their settings; nothing depends on the order in which the runs are given.

    A run and its copies count once. Of trainings that are equal in settings and seed, the one that
    started last counts: to train again what is determined is no other seed.

    Returns:
      The groups, sorted by base, method, size and label; and notes on what was left out or was run
      by different code.
    """
    runs = sorted(runs, key=lambda run: (run.path, run.digest))
    # Of copies, one that still has its predictions.
    runs.sort(key=lambda run: not pathlib.Path(run.path, "predictions").is_dir())
    copies = grouped(runs, lambda run: run.digest).values()
    notes = [f"{', '.join(r.path for r in some[1:])}: a copy of {some[0].path}, left out"
             for some in copies if len(some) > 1]  # fmt: skip
    single = [some[0] for some in copies]
    bases = {of: min(r.base for r in some) for of, some in grouped(single, _fingerprint).items()}
    groups = []
    for (_, mixture, _), some in grouped(single, _key).items():
        for settings, members in _of_equal_data(some):
            used, again = _latest(members)
            notes += [_left_out(run, used) for run in again]
            first = used[0]
            groups.append(Group(bases[_fingerprint(first)], mixture, "", settings, tuple(used)))
    groups = _labelled(groups)
    groups.sort(key=_order)
    for group in groups:
        if (versions := len({run.code for run in group.runs})) > 1:
            notes.append(f"{group.base}, {group.line}: runs of {versions} versions of the code")
    return groups, notes


def _order(group: Group) -> tuple:
    first = group.first
    return (
        group.base, first.method_name, first.size or 0, first.few_shot or 0, first.in_context,
        group.label, group.mixture, group.sharing,
    )  # fmt: skip


def _fingerprint(run: Run) -> str:
    return run.settings.get("base.fingerprint", run.base)


def _key(run: Run) -> tuple:
    mixture = "" if run.alone or run.method_name == FROZEN else run.mixture
    return run.method_name, mixture, tuple(sorted(run.settings.items()))


def _of_equal_data(runs: Sequence[Run]) -> Iterable[tuple[dict[str, str], list[Run]]]:
    """Splits runs of equal settings where they had other data or examples for the same task."""
    seen: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for task, digest in _data(run).items():
            seen[task].add(digest)

    def variant(run: Run) -> str:
        several = [item for item in sorted(_data(run).items()) if len(seen[item[0]]) > 1]
        return _short_digest(several) if several else ""

    for name, members in grouped(runs, variant).items():
        named = {"data": json.dumps(name)} if name else {}
        yield {**members[0].settings, **named}, members


def _data(run: Run) -> dict[str, str]:
    """Returns a digest of each task's training data, scored examples' number and metrics."""
    scored = {
        task: [dict(result.examples), sorted(result.counted)]
        for task, result in run.results.items()
    }
    tasks = {*run.data, *run.results}
    return {task: _short_digest([run.data.get(task), scored.get(task)]) for task in tasks}


def _short_digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:6]


def _latest(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Returns the runs that count, the last started of each task and seed, and the others."""
    last = {}
    for run in sorted(runs, key=lambda run: (run.started, run.path)):
        for task in {*run.tasks, *run.results}:
            last[task, run.seed] = run
    used = [run for run in runs if any(run is one for one in last.values())]
    return used, [run for run in runs if not any(run is one for one in used)]


def _left_out(run: Run, used: Sequence[Run]) -> str:
    same = [one.scores for one in used if one.seed == run.seed]
    other = any(one.get(task, score) != score for one in same for task, score in run.scores.items())
    scores = ", though its scores are others" if other else ""
    return f"{run.path}: trained or scored again later, left out{scores}"


def _labelled(groups: Sequence[Group]) -> list[Group]:
    """Names the groups: what a label always says, then the fewest settings that tell them apart."""
    labelled = []
    for some in grouped(groups, lambda group: group.first.method_name).values():
        telling = _telling(some)
        values = {name: [group.settings.get(name) for group in some] for name in telling}
        usual = {name: _usual(values[name]) for name in telling}
        for group in some:
            said = [n for n in telling if group.settings.get(n) not in usual[n]]
            parts = [
                basic_label(group.first),
                *(_said(name, group.settings.get(name)) for name in said),
            ]
            labelled.append(dataclasses.replace(group, label=", ".join(parts)))
    return labelled


def _usual(values: Sequence[str | None]) -> tuple[str | None, ...]:
    """Returns the value that labels leave out: none at all, or what most groups have."""
    if None in values:
        return (None,)
    return tuple(value for value, count in Counter(values).items() if 2 * count > len(values))


def _telling(groups: Sequence[Group]) -> tuple[str, ...]:
    """Returns the fewest settings that tell groups apart where a table's columns do not."""
    places = [(g.settings.get("base.fingerprint"), g.mixture, g.sharing, basic_label(g.first))
              for g in groups]  # fmt: skip
    names = varying(groups)
    # Settings that always change together are one.
    patterns = {}
    for name in names:
        values = [group.settings.get(name) for group in groups]
        patterns.setdefault(tuple(values.index(value) for value in values), name)
    for count in range(len(patterns) + 1):
        for some in itertools.combinations(patterns.items(), count):
            columns = [pattern for pattern, _ in some]
            if len(set(zip(places, *columns, strict=True))) == len(groups):
                return tuple(name for _, name in some)
    raise AssertionError("groups of equal settings")


def varying(groups: Sequence[Group]) -> list[str]:
    """Returns the settings in which groups differ and that no label or column says anyway."""
    names = {name for group in groups for name in group.settings} - set(_SAID)
    several = [n for n in names if len({group.settings.get(n) for group in groups}) > 1]
    return sorted(several, key=lambda n: (_FIRST.index(n) if n in _FIRST else len(_FIRST), n))


def basic_label(run: Run) -> str:
    """Returns what a label always says: recipe, method, its settings, the number of examples."""
    if run.method_name == FROZEN:
        return f"{FROZEN}, {run.in_context or 'no'} examples in context"
    few = "" if run.few_shot is None else f", {run.few_shot} examples"
    label = _method_label(run.method_name, run.method)
    return (f"{run.recipe} ({label})" if run.recipe else label) + few


def _method_label(name: str, method: Method) -> str:
    """Returns a method's name with its size and the settings that differ from the defaults."""
    parts = [name]
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        # What only training reads is said where it tells runs apart.
        if field.name == "routes" or field.name in method.training_only:
            continue
        if isinstance(value, tuple) and any(isinstance(item, Method) for item in value):
            # A method of methods is called by these.
            parts[0] = " + ".join(_method_label(item.scope, item) for item in value)
        elif field.name == method.size_field or value != field.default:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            parts.append(f"{field.name} {shown}")
    return ", ".join(parts)


def word(name: str) -> str:
    """Returns a setting's name in a label or a table: the end of its dotted name."""
    parts = [part for part in name.split(".") if not part.startswith("@")]
    return _WORDS.get(name, parts[-1])


def shown(value: str | None) -> str:
    """Returns a setting's value, given as JSON, as a label or a table shows it."""
    content = None if value is None else json.loads(value)
    if isinstance(content, str):
        return content.rpartition(".")[2] or content
    if isinstance(content, list):
        return " ".join(map(str, content))
    return "" if content is None else str(content)


def _said(name: str, value: str | None) -> str:
    if name == "steps":
        return f"{int(value or 0):,} steps"
    return f"{word(name)} {shown(value)}"
