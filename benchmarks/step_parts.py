"""What parts of a training step take: the step without each, or with another in its place.

AdaLink and full fine-tuning at FLAN-T5 small's shape (random weights, a batch without padding), on
all cores, as in `benchmarks/train_step.py`:

* as it is: the step of `adalink train`, whose dropout draws its random bits by Threefry;
* bits by rbg, by unsafe_rbg: the same with XLA's own generator, which TPUs have in hardware; the
  second also splits keys by it;
* no dropout: nothing is drawn or multiplied;
* SGD: plain gradient descent in Adafactor's place, which keeps nothing and computes no root.

How to read it: all run in turns in one process (`timing`), and every "×" is the median of ratios
within a round. "× products" is the step over the matrix products that its gradients need, so what
is above 1 is everything else. "× as it is" is what the part would give.
"""

import dataclasses
import os
import pathlib
import statistics
import sys
from typing import Any

import jax

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.distributed.sharding import make_mesh, on_mesh, place_batch  # noqa: E402
from adalink_jax.methods.base import Method  # noqa: E402
from adalink_jax.models import parameters  # noqa: E402
from adalink_jax.training import optimizers  # noqa: E402
from adalink_jax.training import state as states  # noqa: E402
from benchmarks import matrix_products, shapes, timing  # noqa: E402
from benchmarks.train_step import (  # noqa: E402
    Step,
    make_batch,
    method_steps,
    methods,
    products_step,
)

_DROPOUT = 0.1
# Part → what differs from the step as it is.
_PARTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "bits by rbg": {"random": "rbg"},
    "bits by unsafe_rbg": {"random": "unsafe_rbg"},
    "no dropout": {"dropout_rate": 0.0},
    "SGD": {"optimizer": optimizers.sgd(optimizers.factors())},
    "no dropout, SGD": {"dropout_rate": 0.0, "optimizer": optimizers.sgd(optimizers.factors())},
}


def candidates(small: bool) -> dict[str, Step]:
    """Returns all timed steps."""
    config = (shapes.toy if small else shapes.flan_t5_small)(_DROPOUT)
    shape = matrix_products.Shape(2, 8, 2) if small else matrix_products.Shape(16, 64, 4)
    mesh = make_mesh()
    batch = place_batch(make_batch(config.vocab_size, shape), mesh)
    base = parameters.init_base(config, jax.random.key(0))
    base = states.place_params(config, Method(), base, mesh)
    steps: dict[str, Step] = {}
    for name, method in methods(prompt_length=1).items():
        if name not in ("adalink", "full"):
            continue
        steps[f"{name}, products"] = products_step(config, shape, method.trains_base)
        for part, given in _PARTS.items():
            other = dict(given)
            rate = other.pop("dropout_rate", _DROPOUT)
            its = dataclasses.replace(config, dropout_rate=rate)
            steps[f"{name}, {part}"] = method_steps(its, method, base, mesh, **other)([batch])
    return steps


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    options = timing.parser(__doc__, rounds=15).parse_args(arguments)
    load = os.getloadavg()
    with on_mesh(make_mesh()):
        wall, cpu = timing.interleaved(candidates(options.small), options.rounds, warm_ups=2)
    table = []
    for name in wall:
        method = name.partition(",")[0]
        products, whole = f"{method}, products", f"{method}, as it is"
        table.append(
            {
                "step": name,
                "seconds": statistics.median(wall[name]),
                "× products": timing.ratio(wall, name, products),
                "× products, CPU": timing.ratio(cpu, name, products),
                "× as it is": timing.ratio(wall, name, whole),
                "× as it is, CPU": timing.ratio(cpu, name, whole),
            }
        )
    settings = {"small": options.small, "rounds": options.rounds, "dropout_rate": _DROPOUT}
    timing.report("step_parts", table, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
