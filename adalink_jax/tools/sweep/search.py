r"""Searches a method's settings for few parameters and a high score; ends with the Pareto front.

adalink search runs/found experiments/mini.gin,methods/lora.gin adalink_jax/bases/mini mini_mnli \
    --choose "RANK=[1, 2, 4, 8]" --choose "lora.LoRA.layers=[(0,), (1,), None]" --jobs 2

A choice is a training with a value for each --choose, which is a gin setting. --space autopeft
chooses which layers have an adapter and a prefix, and their sizes; its file is methods/compose.gin.

Of the choices seen, some are good: none has fewer parameters and a higher score. --by evolution
crosses and changes these (NSGA-II), random draws, tpe asks optuna. The score is that of the
training's evaluation: let it be on examples held out from training (--gin.Data.held_out=0.1), not
on those that the found method is reported on. Short runs suffice: --gin.TRAIN_STEPS=….

Runs are written to OUT/trials, the table and the plot to OUT/report.
"""

import argparse
import hashlib
import pathlib
import shlex
import statistics
from collections.abc import Sequence
from typing import BinaryIO

from adalink_jax import files
from adalink_jax.checkpoints import open_base
from adalink_jax.config import gin_files
from adalink_jax.errors import UserError
from adalink_jax.tools import tables
from adalink_jax.tools.cost.counts import stored_parameters
from adalink_jax.tools.report.command import find
from adalink_jax.tools.sweep import pool, samplers, spaces, trainings
from adalink_jax.tools.sweep.samplers import Trial
from adalink_jax.tools.sweep.spaces import Choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the training, the space, and how to search it."""
    add = parser.add_argument
    add("out", metavar="OUT", help="the folder of all runs")
    about = "gin files of a training, such as experiments/mini.gin,methods/lora.gin"
    add("experiment", metavar="FILE,FILE…", type=trainings.words, help=about)
    add("base", metavar="BASE", help="a checkpoint")
    add("task", metavar="TASK", help="a task or mixture")
    about = "a gin setting and the values to choose from; once for each"
    add("--choose", action="append", default=[], metavar="NAME=[VALUE, …]", help=about)
    add("--space", choices=("autopeft",), help="a published space instead of --choose")
    about = "how choices are made (default: evolution); tpe needs optuna"
    add("--by", choices=tuple(samplers.SAMPLERS), default="evolution", help=about)
    add("--trials", type=int, default=40, help="how many choices are trained (default: 40)")
    add("--first", type=int, default=16, help="how many of them are random (default: 16)")
    about = "how many are chosen at a time, by all before them (default: 8)"
    add("--generation", type=int, default=8, help=about)
    add("--most", type=int, metavar="PARAMETERS", help="leave out what stores more than this")
    add("--search-seed", type=int, default=0, help="seed of the choices (default: 0)")
    trainings.add_common(parser, seeds="0")


def run(arguments: argparse.Namespace) -> int:
    """Trains generation after generation, then writes the front."""
    if arguments.search_seed < 0:
        raise UserError(f"--search-seed is {arguments.search_seed}; it takes a number from 0")
    for name in ("trials", "first", "generation"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    search = Search(arguments)
    seen: list[Trial] = []
    while len(seen) < arguments.trials:
        count = min(arguments.generation, arguments.trials - len(seen))
        by = samplers.SAMPLERS[arguments.by]
        if len(seen) < arguments.first:
            by, count = samplers.random, min(arguments.first, arguments.trials) - len(seen)
        chosen = by(search.space, seen, search.admits, count, arguments.search_seed)
        if not chosen:
            print(f"the space has no other choice after {len(seen)}")
            break
        lines = [line for choice in chosen for line in search.commands(choice)]
        if pool.train_all(lines, arguments.jobs):
            return 2
        seen += [search.trial(choice) for choice in chosen]
    if not seen:
        raise UserError("no choice can be trained: none is an adapter within --most")
    search.report(seen)
    return 0


class Search:
    """The trainings of one search.

    Attributes:
      space: what is chosen from.
    """

    def __init__(self, arguments: argparse.Namespace):
        if bool(arguments.choose) == bool(arguments.space):
            raise UserError("give --choose NAME=[VALUE, …], once or more often, or --space")
        self._given = arguments
        self._config = open_base(arguments.base).config
        published = spaces.published(self._config)
        self.space = (
            published[arguments.space] if arguments.space else spaces.given(arguments.choose)
        )
        self._parameters: dict[Choice, int | None] = {}

    def admits(self, choice: Choice) -> bool:
        """Returns whether a choice is an adapter, and stores no more than is allowed."""
        if (found := self.parameters(choice)) is None:
            return False
        return self._given.most is None or found <= self._given.most

    def parameters(self, choice: Choice) -> int | None:
        """Returns what a choice's adapter stores, before it is trained; None if it is none.

        Raises:
          UserError: the settings are not the method's, or it refuses the values.
        """
        if choice not in self._parameters:
            flags = self.space.flags(choice)
            self._parameters[choice] = None if flags is None else self._stored(flags)
        return self._parameters[choice]

    def _stored(self, flags: Sequence[str]) -> int:
        given = [flag.partition("=") for flag in (*self._training(0), *flags)]
        files = [value for name, _, value in given if name == "--gin_file"]
        bindings = [
            f"{name.removeprefix('--gin.')}={value}"
            for name, _, value in given
            if name.startswith("--gin.")
        ]
        read = gin_files.read("adalink_jax.runs.train", files, bindings)
        return stored_parameters(self._config, gin_files.build(read)["method"])

    def _training(self, seed: int | str, folder: str = "") -> list[str]:
        return trainings.training(
            self._given.experiment,
            INITIAL_CHECKPOINT_PATH=self._given.base,
            MIXTURE_OR_TASK_NAME=self._given.task,
            SEED=seed,
            MODEL_DIR=folder or self._given.out,
        ) + list(self._given.flags)

    def _folder(self, choice: Choice) -> str:
        digest = hashlib.sha256(shlex.join(self.space.flags(choice) or ()).encode()).hexdigest()
        return f"{self._given.out}/trials/{digest[:16]}"

    def commands(self, choice: Choice) -> list[list[str]]:
        """Returns the command lines of a choice, one for each seed."""
        flags = self.space.flags(choice) or []
        return [
            [*self._training(seed, f"{self._folder(choice)}/seed{seed}"), *flags]
            for seed in self._given.seeds
        ]

    def trial(self, choice: Choice) -> Trial:
        """Reads what a choice's trainings reached: the mean over tasks and seeds.

        Raises:
          UserError: a training has no score.
        """
        means = []
        for seed in self._given.seeds:
            ((run,), _) = find(pathlib.Path(self._folder(choice), f"seed{seed}"))
            if not run.scores or len(run.scores) < len(run.results):
                raise UserError(f"{run.path}: a task without a score; what is searched needs one")
            means.append(statistics.fmean(run.scores.values()))
        parameters = self.parameters(choice)
        assert parameters is not None
        return Trial(choice, parameters, statistics.fmean(means))

    def report(self, seen: Sequence[Trial]) -> None:
        """Prints the front, and writes it with the plot, and all trials as CSV."""
        best = samplers.front(seen)
        header = ["choice", "parameters", "score", "flags"]
        rows = [self._row(one) for one in best]
        text = (
            f"# Found: {self._given.task} on {self._given.base}\n\n"
            f"{len(seen)} choices were trained, {len(self._given.seeds)} seed(s) each. No other of "
            "them has fewer parameters than one of these and a higher score. Scores are percent, "
            "and those that a choice was made by: report another split or other seeds.\n\n"
            f"{tables.markdown(header[:3], [row[:3] for row in rows])}\n\n"
            "![score by parameters](search.png)\n\n"
            + "\n".join(f"```bash\n{self._command(one)}\n```\n" for one in best)
        )
        folder = pathlib.Path(self._given.out, "report")
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "search.md", text)
        everything = sorted(seen, key=lambda one: (one.parameters, -one.score))
        lines = tables.csv_lines(header, [self._row(one) for one in everything])
        files.write_text(folder / "search.csv", lines)
        with files.replaced_file(folder / "search.png") as image:
            _plot(seen, best, self._given.task, image)
        print(tables.markdown(header[:3], [row[:3] for row in rows]))
        print(f"{len(seen)} choices: {folder}/search.md, {folder}/search.csv")

    def _row(self, one: Trial) -> list[str]:
        flags = shlex.join(self.space.flags(one.choice) or ())
        return [self.space.said(one.choice), f"{one.parameters:,}", f"{one.score:.2f}", flags]

    def _command(self, one: Trial) -> str:
        flags = [*self._training(0, "runs/chosen"), *(self.space.flags(one.choice) or ())]
        return f"adalink train {shlex.join(flags)}"


def _plot(seen: Sequence[Trial], best: Sequence[Trial], task: str, file: BinaryIO) -> None:
    """Draws all trials, and the front as a step."""
    from matplotlib import figure

    canvas = figure.Figure(figsize=(6, 4), layout="constrained")
    axes = canvas.subplots()
    axes.scatter([t.parameters for t in seen], [t.score for t in seen], s=14, color="#888888")
    xs, ys = [t.parameters for t in best], [t.score for t in best]
    axes.step(xs, ys, where="post", marker="o", color="#0077bb", label="no other is better in both")
    axes.set_xscale("log")
    axes.set_xlabel("stored parameters")
    axes.set_ylabel(f"{task}, percent")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    canvas.savefig(file, dpi=130)
