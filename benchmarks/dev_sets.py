"""Time of evaluating a dev set: ours, one padded length for all, and transformers.

FLAN-T5 small's shape with an AdaLink of rank 4 (random weights, float32) on a task's whole
validation split, with lengths of 512 / 16:

* labels: rank classification as `adalink eval` does it, rows bucketed by length;
* labels, padded: every row padded to 512, and the whole network once for every label, as T5X
  scores them, but by this project's network;
* greedy: greedy decoding as `adalink eval` does it;
* greedy, products: only the matrix products of "greedy" (`matrix_products`), on the same batches;
* greedy, padded: greedy decoding with every row padded to 512, as T5X's batches are;
* transformers greedy: `generate` on batches in the split's order, each padded to its longest row;
* transformers greedy, sorted: the same on rows sorted by length.

How to read it: "× labels" and "× greedy" are medians of ratios within a round. Of 64 texts that
these random weights wrote none ended before its sixteenth token; transformers is told to write all
of them, and has no adapter. Tokenizing and compiling are not timed. The texts and metrics of
"labels" and "greedy" are, as the command has them; the others make none. Needs the environment
variables GLUE_DIR and VOCABULARY, as `docs/tutorials/glue.md` says.
"""

import dataclasses
import functools
import os
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import tasks  # noqa: E402
from adalink_jax.data import EvalExamples, tokens  # noqa: E402
from adalink_jax.data.corpus import mixture  # noqa: E402
from adalink_jax.evaluation.evaluator import Evaluator  # noqa: E402
from adalink_jax.methods import METHODS  # noqa: E402
from adalink_jax.methods.base import merge  # noqa: E402
from adalink_jax.models import decoding, parameters  # noqa: E402
from adalink_jax.models.t5 import T5Config, Transformer  # noqa: E402
from benchmarks import matrix_products, other_frameworks, shapes, timing  # noqa: E402
from benchmarks.evaluation import score_pairs  # noqa: E402

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tasks, maximum lengths, and rows of a batch."""

    tasks: tuple[str, ...] = ("glue_rte",)
    inputs: int = 512
    targets: int = 16
    rows: int = 32


def ours(config: T5Config, sizes: Sizes, task: str, inputs: list[np.ndarray]) -> dict[str, Run]:
    """Returns this project's ways."""
    method = METHODS["adalink"](rank=4)
    base = parameters.init_base(config, jax.random.key(0))
    adapter = parameters.init_adapter(config, method, base, jax.random.key(1))
    model, params = Transformer(config, method), merge(base, adapter)
    lengths = {"inputs": sizes.inputs, "targets": sizes.targets}
    rows = -(-len(inputs) // sizes.rows) * sizes.rows
    every = other_frameworks.padded([*inputs, *[[]] * (rows - len(inputs))], sizes.inputs)
    batches = every.reshape(-1, sizes.rows, sizes.inputs)
    vocabulary = mixture(task).vocabulary
    scored = EvalExamples(task, "validation", lengths)
    shapes_ = [batch["encoder_input_tokens"].shape for batch in scored.batches(sizes.rows)]
    options = decoding.encoded_options(tasks.LABELS[task], vocabulary)
    greedy = jax.jit(functools.partial(decoding.greedy, model, max_length=sizes.targets, eos_id=1))

    def as_evaluated(mode: str) -> Run:
        evaluate = Evaluator(model, [task], lengths=lengths, batch_size=sizes.rows, mode=mode)
        return functools.partial(evaluate, params)

    def every_pair() -> None:
        for batch in batches:
            jax.block_until_ready([score_pairs(model, params, batch, one) for one in options])

    def every_text() -> None:
        for batch in batches:
            jax.block_until_ready(greedy(params, batch))

    key = jax.random.key(2)
    longest = matrix_products.Shape(sizes.rows, sizes.inputs, sizes.targets)
    weights = matrix_products.make_weights(config, longest, key)
    product = jax.jit(functools.partial(matrix_products.generate, config, length=sizes.targets))
    vectors = {one: jax.random.normal(key, (*one, config.emb_dim)) for one in {*shapes_}}

    def every_product() -> None:
        for one in shapes_:
            jax.block_until_ready(product(weights, vectors[one]))

    return {
        "labels": as_evaluated("rank_classification"),
        "labels, padded": every_pair,
        "greedy": as_evaluated("greedy"),
        "greedy, products": every_product,
        "greedy, padded": every_text,
    }


def theirs(config: T5Config, sizes: Sizes, inputs: list[np.ndarray]) -> dict[str, Run]:
    """Returns transformers' ways; none where it is not installed."""
    network = other_frameworks.transformers_network("transformers, full", config, 4, 1)
    if network is None:
        return {}
    import torch

    network.eval()

    def on(inputs: list[np.ndarray]) -> Run:
        starts = range(0, len(inputs), sizes.rows)
        batches = [other_frameworks.padded(inputs[at : at + sizes.rows]) for at in starts]
        tensors = [torch.from_numpy(batch.astype(np.int64)) for batch in batches]

        def run() -> None:
            for batch in tensors:
                network.generate(
                    batch,
                    attention_mask=(batch > 0).long(),
                    do_sample=False,
                    use_cache=True,
                    min_new_tokens=sizes.targets,
                    max_new_tokens=sizes.targets,
                )

        return run

    return {
        "transformers greedy": on(inputs),
        "transformers greedy, sorted": on(sorted(inputs, key=len)),
    }


def rows(config: T5Config, sizes: Sizes, task: str, rounds: int) -> tuple[list[dict], Any]:
    """Measures all ways on a task; returns the table's rows, and all seconds."""
    lengths = {"inputs": sizes.inputs, "targets": sizes.targets}
    inputs = [row[: sizes.inputs] for row in tokens(task, "validation", lengths=lengths).inputs]
    runs = ours(config, sizes, task, inputs) | theirs(config, sizes, inputs)
    wall, cpu = timing.interleaved(runs, rounds)
    table = []
    for name in runs:
        to = "labels" if name.startswith("labels") else "greedy"
        table.append(
            {
                "task": task,
                "evaluated": name,
                "examples/s": len(inputs) / statistics.median(wall[name]),
                "CPU s an example": statistics.median(cpu[name]) / len(inputs),
                f"× {to}": timing.ratio(wall, name, to),
                f"× {to}, CPU": timing.ratio(cpu, name, to),
            }
        )
    return table, [{f"{task}, {name}": s for name, s in clock.items()} for clock in (wall, cpu)]


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    flags = timing.parser(__doc__, rounds=3)
    flags.add_argument("--tasks", help="names with commas between them, of a text's tasks")
    options = flags.parse_args(arguments)
    config, sizes = shapes.flan_t5_small(0.0), Sizes()
    if options.small:
        config = dataclasses.replace(shapes.toy(0.0), vocab_size=512)
        sizes = Sizes(("mini_cola",), 32, 8, 64)
    if options.tasks:
        sizes = dataclasses.replace(sizes, tasks=tuple(options.tasks.split(",")))
    load = os.getloadavg()
    table, wall, cpu = [], {}, {}
    for task in sizes.tasks:
        found, seconds = rows(config, sizes, task, options.rounds)
        table += found
        wall |= seconds[0]
        cpu |= seconds[1]
    settings = {**dataclasses.asdict(sizes), "rounds": options.rounds}
    timing.report("dev_sets", table, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
