r"""Runs the paper's experiment: two bases, all methods and tasks, ranks, equal sizes, seeds.

adalink experiment runs/mini --jobs 2

By default it uses the small world of generated sentences and the bases that come with the package,
and takes about two hours on two cores; with `--world images` that of pictures. On GLUE's real
sentences, from the two small bases that know English:

GLUE_DIR=glue adalink experiment runs/english --world english

and from public checkpoints:

adalink experiment runs/glue --world glue --raw checkpoints/t5_1_1_base \
    --tuned checkpoints/flan_t5_base --model flan_t5_base --budget 6144 --gin.TRAIN_STEPS=5000

with the environment variable VOCABULARY set, too. On a table of your own, as in adalink train:

adalink experiment runs/mine --data reviews.csv --tuned checkpoints/flan_t5_base \
    --gin.VOCABULARY=spiece.model

The worlds `english_flan` and `glue_flan` ask the same in FLAN's prompts, which a base tuned on
instructions knows. The rates are chosen on a tenth of the training examples that is held out, never
on dev, but in the small world of sentences. The stages, in order:

  rates   find the learning rate of each base and method: a grid, one seed, two tasks
  alone   score the frozen bases, with and without examples in the input
  single  train every task with every method, base and seed
  mixed   train all tasks together, with shared modules and with one module per task
  ranks   find the rate of several of AdaLink's ranks, then train each at its own
  equal   the same for every method, all with the same number of parameters
  report  write tables and plots of all runs so far to OUT/report
"""

import argparse
import dataclasses
import functools
import itertools
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator, Mapping

import adalink_jax
from adalink_jax.config import flags as command_lines
from adalink_jax.errors import UserError, nearest
from adalink_jax.methods import METHODS
from adalink_jax.tools.cost import budget
from adalink_jax.tools.cost.command import matched
from adalink_jax.tools.report import rates
from adalink_jax.tools.report.command import report
from adalink_jax.tools.sweep import pool, trainings

STAGES = ("rates", "alone", "single", "mixed", "ranks", "equal", "report")
BASES = ("tuned", "raw")
_HELD_OUT = ("--gin.Data.held_out=0.1", "--gin.Evaluation.split=held_out")
_SHIPPED = pathlib.Path(adalink_jax.__file__).parent / "bases"
_GRID = "0.0003 0.001 0.003 0.01 0.03 0.1"
_GLUE = "cola sst2 mrpc qqp stsb mnli qnli rte"
_TITLES = {"ranks": "AdaLink's rank", "equal": "Equal parameters"}
# The folders of grids: of methods at their files' sizes, and at those of other stages.
_GRIDS = ("rates", "rank_rates", "equal_rates")
_PARTS = {"ranks": ("rank_rates", "ranks"), "equal": ("equal_rates", "equal")}


@dataclasses.dataclass(frozen=True)
class World:
    """Where the tasks of an experiment are from, and what is done with them if nobody says.

    Attributes:
      files: how the names of its files in gin/experiments begin.
      prefix: how the names of its tasks begin.
      tasks: the rest of their names.
      tuning: the tasks by which rates are chosen.
      mixtures: mixtures of its tasks -> how many tasks they have.
      contexts: numbers of examples in front of an input of the frozen bases.
      lengths: those of these inputs; None for a table's own.
      bases: the tuned and the raw one, unless others are named; None if they have to be.
      model: a file of gin/models, to find settings for a budget.
      methods: files of gin/methods.
      ranked: the one of them whose ranks are trained.
      stages: those that run.
      flags: of every training.
      mixed: of the trainings on a mixture, after those.
      grid: of the trainings that choose a rate.
      own_vocabulary: whether each base's name is its vocabulary's, too.
    """

    files: str
    prefix: str
    tasks: str
    tuning: str
    mixtures: Mapping[str, int]
    lengths: Mapping[str, int] | None
    bases: tuple[str, str] | None
    model: str | None
    contexts: tuple[int, ...] = (0, 4)
    methods: str = trainings.METHODS
    ranked: str = "adalink"
    stages: tuple[str, ...] = STAGES
    flags: tuple[str, ...] = ()
    mixed: tuple[str, ...] = ()
    grid: tuple[str, ...] = _HELD_OUT
    own_vocabulary: bool = False


WORLDS = {
    "mini": World(
        files="mini",
        prefix="mini_",
        tasks=_GLUE,
        tuning="cola mnli",
        mixtures={"mini_glue_equal": 8},
        lengths={"inputs": 256, "targets": 16},
        bases=(str(_SHIPPED / "mini"), str(_SHIPPED / "mini_raw")),
        model="mini",
        flags=("--gin.TRAIN_STEPS=300", "--gin.EVAL_PERIOD=100"),
        mixed=("--gin.TRAIN_STEPS=800", "--gin.EVAL_PERIOD=400"),
        grid=(),
    ),
    "images": World(
        files="mini_images",
        prefix="mini_",
        tasks="coco textcaps okvqa textvqa stvqa docvqa",
        tuning="coco textvqa",
        mixtures={"mini_image_captions": 2, "mini_image_questions": 4},
        lengths={"inputs": 16, "targets": 16},
        bases=(str(_SHIPPED / "mini_images"), str(_SHIPPED / "mini_images_raw")),
        model="mini_images",
        contexts=(0,),
        methods="adalink_by_modality adalink lora_by_modality lora prompt_tuning projection full",
        ranked="adalink_by_modality",
        flags=(
            "--gin.TRAIN_STEPS=300", "--gin.EVAL_PERIOD=300", "--gin.BATCH_SIZE=16",
            "--gin.Images.encoder=mini_images_encoder", "--gin.Evaluation.mode=greedy",
        ),
        mixed=("--gin.TRAIN_STEPS=800", "--gin.EVAL_PERIOD=800"),
    ),
    "english": World(
        files="english",
        prefix="glue_",
        tasks=_GLUE,
        tuning="cola mnli",
        mixtures={"glue_equal": 8},
        lengths={"inputs": 512, "targets": 16},
        bases=("english", "english_raw"),
        model="english",
        mixed=("--gin.TRAIN_STEPS=2000", "--gin.EVAL_PERIOD=2000"),
        own_vocabulary=True,
    ),
    "glue": World(
        files="glue",
        prefix="glue_",
        tasks=_GLUE,
        tuning="cola mnli",
        mixtures={"glue_equal": 8},
        lengths={"inputs": 512, "targets": 16},
        bases=None,
        model="flan_t5_base",
    ),
}  # fmt: skip
for _name in ("english", "glue"):
    WORLDS[f"{_name}_flan"] = dataclasses.replace(
        WORLDS[_name], prefix="flan_", mixtures={"flan_glue_equal": 8}
    )


def _of_table(path: str, model: str | None) -> World:
    """Returns the world of a user's own table, which is one task."""
    name = command_lines.table_name(path)
    return World(
        files="own_data",
        prefix="",
        tasks=name,
        tuning=name,
        mixtures={name: 1},
        lengths=None,
        bases=None,
        model=model,
        contexts=(0,),
        stages=("rates", "alone", "single", "ranks", "report"),
        flags=(f"--data={path}",),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder, the world and the values to try."""
    parser.add_argument("out", metavar="OUT", help="the folder of all runs")
    about = f"{', '.join(WORLDS)}: its tasks, bases and files of gin/experiments (default: mini)"
    parser.add_argument("--world", help=about)
    about = "a table in the place of a world, with --dev, --input, --target, --labels as in train"
    parser.add_argument("--data", metavar="FILE", help=about)
    for base, about in (("tuned", "the instruction-tuned"), ("raw", "the raw")):
        about = f"{about} base (default: the world's)"
        parser.add_argument(f"--{base}", metavar="BASE", help=about)
    about = f"bases to adapt (default: {' '.join(BASES)}; of a table those that are named)"
    trainings.add_words(parser, "--bases", "", about)
    about = "stages to run (default: all; on a table all but mixed and equal)"
    trainings.add_words(parser, "--stages", "", about)
    trainings.add_words(parser, "--tasks", "", "tasks of the world (default: all)")
    about = "tasks of rates, ranks and equal (default: cola mnli; of images coco textvqa)"
    trainings.add_words(parser, "--tuning-tasks", "", about)
    about = f"files of gin/methods (default: {trainings.METHODS}; of images "
    about += f"{WORLDS['images'].methods})"
    trainings.add_words(parser, "--methods", "", about)
    about = "ranks of AdaLink, in stage ranks"
    trainings.add_words(parser, "--ranks", "1 4 16 64", about, trainings.numbers(int, 1))
    about = f"the grid of learning rates (default: {_GRID}; full fine-tuning leaves out the last)"
    rates_of = trainings.numbers(float)
    parser.add_argument("--rates", type=rates_of, metavar="A,B…", help=about)
    about = "a file of gin/models, to find settings for --budget (default: the world's)"
    parser.add_argument("--model", help=about)
    about = "number of parameters of each method in stage equal (default: 1024)"
    parser.add_argument("--budget", type=int, default=1024, help=about)
    about = "how far from the budget a size may be, as a part of it (default: 0.01)"
    parser.add_argument("--tolerance", type=float, default=budget.TOLERANCE, help=about)
    trainings.add_common(parser, seeds="0 1 2")


def run(arguments: argparse.Namespace) -> int:
    """Runs the chosen stages."""
    import jax

    for stage in arguments.stages:
        if stage not in STAGES:
            raise UserError(f"no stage '{stage}'{nearest(stage, STAGES)}")
    for base in arguments.bases:
        if base not in BASES:
            raise UserError(f"no base '{base}'{nearest(base, BASES)}")
    # The trainings need the accelerators; this process only reads and counts.
    jax.config.update("jax_platforms", "cpu")
    study = Study(arguments, _world(arguments))
    for stage in study.stages:
        print(f"== {stage}", flush=True)
        if stage == "alone":
            for folder, flags in study.alone():
                trainings.score(folder, flags)
        elif stage == "report":
            study.report()
        else:
            # The rates of a stage's sizes are read when their grid has been trained.
            for part in _PARTS.get(stage, (stage,)):
                if pool.train_all(getattr(study, part)(), arguments.jobs):
                    return 2
    return 0


def _world(given: argparse.Namespace) -> World:
    """Returns the world that is asked for.

    Raises:
      UserError: there is none of this name; or what is asked for does not go with a table.
    """
    if given.data is None:
        name = given.world or "mini"
        if name not in WORLDS:
            raise UserError(f"no world '{name}'{nearest(name, WORLDS)}")
        return WORLDS[name]
    if given.world is not None:
        raise UserError(f"--data {given.data} takes the place of a world; leave --world out")
    if given.tasks or given.tuning_tasks:
        raise UserError(f"{given.data} is one task; leave --tasks and --tuning-tasks out")
    if "mixed" in given.stages:
        raise UserError(f"{given.data} is one task, so there is no stage mixed")
    if "equal" in given.stages and given.model is None:
        raise UserError("stage equal needs --model, a file of gin/models, to count parameters")
    return _of_table(given.data, given.model)


class Study:
    """The command lines of one experiment, stage by stage.

    Args:
      arguments: the parsed arguments of `add_arguments`.
      world: where the tasks are from.
    """

    def __init__(self, arguments: argparse.Namespace, world: World):
        self._given, self._world = arguments, world
        self.stages = arguments.stages or world.stages
        self._methods = arguments.methods or trainings.words(world.methods)
        self._tasks = arguments.tasks or trainings.words(world.tasks)
        self._tuning = arguments.tuning_tasks or trainings.words(world.tuning)
        for method in self._methods:
            trainings.experiment(world.files, method)  # There is such a method.
        known = trainings.words(world.tasks)
        for task in (*self._tasks, *self._tuning):
            if task not in known:
                raise UserError(
                    f"no task '{task}'{nearest(task, known) or ';'} there are {world.tasks}"
                )
        shipped = dict(zip(BASES, world.bases or (None, None), strict=True))
        named = {"tuned": arguments.tuned, "raw": arguments.raw}
        self._bases = {base: path for base in BASES if (path := named[base] or shipped[base])}
        # Of a table that base is adapted which is named.
        own = [base for base in BASES if base in self._bases] if arguments.data else None
        for base in arguments.bases or own or BASES:
            if base not in self._bases:
                of = arguments.data or f"--world {arguments.world}"
                raise UserError(f"{of} has no bases: name one by --{base}, a checkpoint or mini")
        self._bases = {base: self._bases[base] for base in arguments.bases or own or BASES}
        # The best learning rate of a grid, read only once.
        self._rate = functools.cache(self._best_rate)

    def _best_rate(self, stage: str, base: str, name: str) -> float:
        folder = f"{self._given.out}/{stage}/{base}/{name}"
        try:
            return rates.best_of(folder)
        except UserError as error:
            if os.path.isdir(folder):
                raise
            first = {"rates": "rates", "rank_rates": "ranks", "equal_rates": "equal"}[stage]
            raise UserError(
                f"there is no grid of learning rates in {folder}; --stages {first} trains it"
            ) from error

    def rates(self) -> Iterator[list[str]]:
        """Yields a grid of learning rates for each base and method, with one seed."""
        for method in self._methods:
            yield from self._grid("rates", method, method, [])

    def rank_rates(self) -> Iterator[list[str]]:
        """Yields such a grid for each of AdaLink's ranks."""
        for rank in self._given.ranks:
            flags = [f"--gin.RANK={rank}"]
            yield from self._grid("rank_rates", f"rank{rank}", self._world.ranked, flags)

    def equal_rates(self) -> Iterator[list[str]]:
        """Yields such a grid for each method at the size of stage equal."""
        for method, flags in self._matches:
            yield from self._grid("equal_rates", method, method, flags)

    def _grid(self, folder: str, name: str, method: str, flags: list[str]) -> Iterator[list[str]]:
        grid = _GRID.split()
        if method in METHODS and METHODS[method].trains_base:
            grid = grid[:-1]  # Updates scale with a weight's size: the last is too high.
        for base in self._bases:
            for rate in self._given.rates or grid:
                for task in self._tuning:
                    run = f"{folder}/{base}/{name}/{rate}/{task}"
                    line = self._training(run, base, method, self._task(task), 0, rate)
                    yield [*line, *flags, *self._world.grid]

    def alone(self) -> Iterator[tuple[str, list[str]]]:
        """Yields the folder and the flags of each evaluation of a frozen base."""
        scoring = trainings.for_scoring([*self._world.flags, *self._given.flags])
        named = [self._task(task) for task in self._given.tasks]
        for base in self._bases:
            for mixture in named or self._world.mixtures:
                for count in self._world.contexts:
                    of = f"{mixture}/" if named else self._of(mixture)
                    folder, flags = trainings.frozen_base(
                        f"{self._given.out}/alone/{base}/{of}in_context{count}",
                        self._bases[base],
                        mixture,
                        self._world.lengths,
                        count,
                    )
                    yield folder, [*flags, *self._vocabulary(base), *scoring]

    def _of(self, mixture: str) -> str:
        """The folder of a mixture, where there are several."""
        return f"{mixture}/" if len(self._world.mixtures) > 1 else ""

    def single(self) -> Iterator[list[str]]:
        """Yields the trainings of every single task; those of a method come one after another."""
        for seed in self._given.seeds:
            for method in self._methods:
                for base in self._bases:
                    for task in self._tasks:
                        run = f"single/{base}/{method}/{task}/seed{seed}"
                        rate = self._rate("rates", base, method)
                        yield self._training(run, base, method, self._task(task), seed, rate)

    def mixed(self) -> Iterator[list[str]]:
        """Yields the trainings on all tasks together."""
        for seed, method, base in itertools.product(self._given.seeds, self._methods, self._bases):
            for mixture, tasks in self._world.mixtures.items():
                sharings = {"shared": ["--gin.ROUTES=1"], "per_task": [f"--gin.ROUTES={tasks}"]}
                if not _has_routes(method):
                    sharings = {"shared": []}
                for sharing, routes in sharings.items():
                    run = f"mixed/{base}/{method}/{self._of(mixture)}{sharing}/seed{seed}"
                    rate = self._rate("rates", base, method)
                    names = run, base, method, mixture
                    yield [*self._training(*names, seed, rate, self._world.mixed), *routes]

    def ranks(self) -> Iterator[list[str]]:
        """Yields AdaLink's trainings at several ranks."""
        for seed in self._given.seeds:
            for rank in self._given.ranks:
                for base in self._bases:
                    for task in self._tuning:
                        run = f"ranks/{base}/rank{rank}/{task}/seed{seed}"
                        rate = self._rate("rank_rates", base, f"rank{rank}")
                        line = self._training(
                            run, base, self._world.ranked, self._task(task), seed, rate
                        )
                        yield [*line, f"--gin.RANK={rank}"]

    def equal(self) -> Iterator[list[str]]:
        """Yields every method with the same number of parameters; LoRA then has only one layer."""
        for method, flags in self._matches:
            for seed in self._given.seeds:
                for base in self._bases:
                    for task in self._tuning:
                        run = f"equal/{base}/{method}/{task}/seed{seed}"
                        rate = self._rate("equal_rates", base, method)
                        line = self._training(run, base, method, self._task(task), seed, rate)
                        yield line + flags

    def report(self) -> None:
        """Writes the reports of all runs so far; cells with fewer seeds are marked.

        Raises:
          UserError: no stage was run.
        """
        out, together = self._given.out, ("alone", "single", "mixed")
        there = [part for part in (*_GRIDS, *together, *_TITLES) if os.path.isdir(f"{out}/{part}")]
        if not there:
            raise UserError(f"{out}: no stage was run there yet, so there is nothing to report")
        os.makedirs(f"{out}/report", exist_ok=True)
        for grid in _GRIDS:
            if grid in there:
                name = "learning_rates" if grid == "rates" else grid
                rates.write(f"{out}/{grid}", f"{out}/report/{name}.md")
        if parts := [f"{out}/{part}" for part in together if part in there]:
            report(parts, f"{out}/report/methods", "Methods, one task at a time and mixed")
        for part, title in _TITLES.items():
            if part in there:
                report([f"{out}/{part}"], f"{out}/report/{part}", title)

    @functools.cached_property
    def _matches(self) -> list[tuple[str, list[str]]]:
        """Each method that can have the budget's size, with the flags for that."""
        given, model = self._given, self._given.model or self._world.model
        assert model is not None  # `_world` has seen to it.
        budget.check(given.budget, given.tolerance)
        found = []
        for method in self._methods:
            if method in METHODS and METHODS[method].trains_base:
                continue
            try:
                match = matched(model, method, given.budget, given.tolerance)
            except UserError as error:  # Its file names layers that this model does not have.
                line = str(error)
            else:
                if match.meets:
                    found.append((method, shlex.split(match.flags())))
                    continue
                line = match.line()
            print(f"left out: {model}, {method}: {line}", file=sys.stderr)
        return found

    def _task(self, task: str) -> str:
        return f"{self._world.prefix}{task}"

    def _vocabulary(self, base: str) -> list[str]:
        own = self._world.own_vocabulary
        return [f"--gin.VOCABULARY={self._bases[base]}"] if own else []

    def _training(self, run, base: str, method: str, task: str, seed, rate, more=()) -> list[str]:
        return (
            trainings.training(
                trainings.experiment(self._world.files, method),
                MODEL_DIR=f"{self._given.out}/{run}",
                INITIAL_CHECKPOINT_PATH=self._bases[base],
                MIXTURE_OR_TASK_NAME=task,
                SEED=seed,
                LEARNING_RATE=rate,
            )
            + self._vocabulary(base)
            + [*self._world.flags, *more, *self._given.flags]
        )


def _has_routes(method: str) -> bool:
    """Whether a method can have a module for each task; a file of another name has METHODS' one."""
    known = METHODS.get(method)
    if known is None:
        return True
    return not known.trains_base and any(f.name == "routes" for f in dataclasses.fields(known))
