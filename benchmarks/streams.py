"""Time of training on real sentences: padding, packing and other frameworks' batches.

FLAN-T5 small's shape (random weights, float32, dropout) on batches of GLUE's tasks, with
TASK_FEATURE_LENGTHS of 512 / 16. Each candidate trains on batches made its own way:

* adalink, lora: this project's default, rows bucketed by length;
* adalink, cheapest: bucketed by the lengths that `Batches.padding=cheapest` has for 20,000 steps;
* adalink, packed: rows of 512 tokens (`Batches.packing`), with room for their targets;
* adalink, packed as T5X: the same, with room for 16 tokens of targets in each row;
* peft lora: batches in random order, each padded to its longest input;
* peft lora, grouped: as transformers' `group_by_length`, sorted by length among fifty batches.

Batches of similar lengths differ much, so the few that are timed are spread over all lengths: of
32 or 50 in the order of their lengths, the middle one of each sixth.

How to read it: what is compared is the time of an input token that is no padding, as batches hold
other examples: "× adalink" is the median of ratios within a round, and "used" the share of input
tokens that are no padding. CPU columns compare the CPU time of all threads, which is steadier on a
shared machine.
Needs the environment variables GLUE_DIR and VOCABULARY, as `docs/tutorials/glue.md` says.
"""

import dataclasses
import functools
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import tasks as _tasks  # noqa: E402, F401  # Registers the tasks.
from adalink_jax.data import TrainBatches, plan, tokens  # noqa: E402
from adalink_jax.distributed.sharding import make_mesh, on_mesh, place_batch  # noqa: E402
from adalink_jax.methods.base import Method  # noqa: E402
from adalink_jax.models import parameters  # noqa: E402
from adalink_jax.models.t5 import T5Config  # noqa: E402
from adalink_jax.training import state as states  # noqa: E402
from benchmarks import other_frameworks, shapes, timing  # noqa: E402
from benchmarks.train_step import RANK, method_steps, methods  # noqa: E402

Batches = list[dict[str, np.ndarray]]
# transformers sorts by length among this many batches.
_GROUP = 50
_SEED = 0
# Of the run for which the cheapest lengths are chosen.
_STEPS = 20_000


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tasks, maximum lengths, rows of a batch, and batches of a round.

    A packed batch has fewer rows, as each holds several examples.
    """

    tasks: tuple[str, ...] = ("glue_rte", "glue_sst2", "glue_mnli")
    inputs: int = 512
    targets: int = 16
    rows: int = 32
    packed_rows: int = 8
    batches: int = 6


def used(batch: dict[str, np.ndarray]) -> int:
    """Returns the input tokens of a batch that are no padding."""
    return int(np.count_nonzero(batch["encoder_input_tokens"]))


def spread(batches: Batches, count: int) -> Batches:
    """Returns some batches, the middle one of each of `count` equal parts in order of length."""
    ordered = sorted(batches, key=used)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def ours(
    task: str,
    sizes: Sizes,
    packing: bool = False,
    packed_targets: int | None = None,
    steps: int | None = None,
) -> Batches:
    """Returns batches of a run on a task; packed ones are alike, so they are the first."""
    rows = sizes.packed_rows if packing else sizes.rows
    lengths = {"inputs": sizes.inputs, "targets": sizes.targets}
    source = TrainBatches(
        task, lengths, rows, _SEED, packing, packed_targets=packed_targets, steps=steps
    )
    if packing:
        return [source.batch(step) for step in range(sizes.batches)]
    return spread([source.batch(step) for step in range(plan.WINDOW)], sizes.batches)


def theirs(task: str, sizes: Sizes, grouped: bool) -> Batches:
    """Returns batches padded to their longest sequences."""
    read = tokens(task, "train", lengths={"inputs": sizes.inputs, "targets": sizes.targets})
    order = np.random.default_rng(_SEED).permutation(len(read))[: _GROUP * sizes.rows]
    if grouped:
        order = order[np.argsort(-read.inputs.lengths[order], kind="stable")]
    order = order[: len(order) // sizes.rows * sizes.rows].reshape(-1, sizes.rows)

    batches = []
    for chosen in order:
        inputs, targets = read.inputs.take(chosen), read.targets.take(chosen)
        batches.append(
            {
                "encoder_input_tokens": other_frameworks.padded(
                    [x[: sizes.inputs] for x in inputs]
                ),
                "decoder_target_tokens": other_frameworks.padded(
                    [x[: sizes.targets] for x in targets]
                ),
            }
        )
    return spread(batches, sizes.batches)


def peft_trains(config: T5Config) -> Callable[[Batches], Callable] | None:
    """Returns the same of peft's LoRA; None where it is not installed."""
    network = other_frameworks.transformers_network("peft, lora", config, RANK, 1)
    if network is None:
        return None

    def on(batches: Batches) -> Callable[[], None]:
        steps = [other_frameworks.torch_step(network, batch) for batch in batches]

        def run() -> None:
            for step in steps:
                step()

        return run

    return on


def candidates(
    config: T5Config, sizes: Sizes, task: str, mesh: Any
) -> Iterator[tuple[str, Callable[[], None], Batches]]:
    """Yields name, the timed call and its batches."""
    base = states.place_params(
        config, Method(), parameters.init_base(config, jax.random.key(0)), mesh
    )
    paper = methods(1)
    adalink, lora = (method_steps(config, paper[name], base, mesh) for name in ("adalink", "lora"))
    bucketed = ours(task, sizes)
    packed = ours(task, sizes, packing=True)
    narrow = ours(task, sizes, packing=True, packed_targets=sizes.targets)
    for name, steps, batches in (
        ("adalink", adalink, bucketed),
        ("lora", lora, bucketed),
        ("adalink, cheapest", adalink, ours(task, sizes, steps=_STEPS)),
        ("adalink, packed", adalink, packed),
        ("adalink, packed as T5X", adalink, narrow),
    ):
        yield name, steps([place_batch(batch, mesh) for batch in batches]), batches
    if peft := peft_trains(config):
        for name, grouped in (("peft lora", False), ("peft lora, grouped", True)):
            made = theirs(task, sizes, grouped)
            yield name, peft(made), made


def rows(config: T5Config, sizes: Sizes, task: str, rounds: int) -> tuple[list[dict], Any]:
    """Measures the candidates on a task; returns the table's rows, and all seconds."""
    mesh = make_mesh()
    with on_mesh(mesh):
        made = list(candidates(config, sizes, task, mesh))
        times = timing.interleaved({name: run for name, run, *_ in made}, rounds)
    tokens_of = {name: sum(map(used, batches)) for name, _, batches in made}
    per_token = [
        {name: [s / tokens_of[name] for s in seconds] for name, seconds in clock.items()}
        for clock in times
    ]
    wall, cpu = per_token
    table = []
    for name, _, batches in made:
        table.append(
            {
                "task": task,
                "trained": name,
                "tokens/s": 1 / statistics.median(wall[name]),
                "CPU ms a token": 1e3 * statistics.median(cpu[name]),
                "× adalink": timing.ratio(wall, name, "adalink"),
                "× adalink, CPU": timing.ratio(cpu, name, "adalink"),
                "used": tokens_of[name] / sum(b["encoder_input_tokens"].size for b in batches),
            }
        )
    return table, [{f"{task}, {name}": s for name, s in clock.items()} for clock in per_token]


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    flags = timing.parser(__doc__, rounds=3)
    flags.add_argument("--tasks", help="names with commas between them, of a text's tasks")
    options = flags.parse_args(arguments)
    config = shapes.flan_t5_small(0.1)
    sizes = Sizes()
    if options.small:
        config = dataclasses.replace(shapes.toy(0.1), vocab_size=512)
        sizes = Sizes(("mini_cola",), 32, 8, 8, 2, 3)
    if options.tasks:
        sizes = dataclasses.replace(sizes, tasks=tuple(options.tasks.split(",")))
    load = os.getloadavg()
    measure = functools.partial(rows, config, sizes, rounds=options.rounds)
    table, wall, cpu = [], {}, {}
    for task in sizes.tasks:
        found, seconds = measure(task)
        table += found
        wall |= seconds[0]
        cpu |= seconds[1]
    settings = {**dataclasses.asdict(sizes), "rank": RANK, "rounds": options.rounds}
    timing.report("streams", table, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
