"""Time of a training step of each method, compared with lower bounds and other frameworks.

Measured at FLAN-T5 small's shape (random weights, a batch without padding), on all cores:

* each of the paper's methods: the compiled step that `adalink_jax.runs.train` runs, with its
  defaults and Adafactor; the state is donated;
* the floor: the same network, loss and metrics without a method, and only the gradient of the
  encoder's input. Nothing trains, so no input-centric method can be faster;
* products: only the matrix products of such a step (`matrix_products`), for the floor, for the
  longer encoder sequence of prompt tuning, and for full fine-tuning, which also needs the kernels'
  gradients;
* T5X's own network, transformers and peft, if installed.

How to read it: all run in turns in one process (`timing`), and every "×" is the median of ratios
within a round. "× products" shows how much of a step is not matrix products, comparing each method
with the products at its own lengths (target: 2). "× ours" compares another implementation's step
with the same method here. Columns marked CPU compare CPU time of all threads, which is steadier on
a shared machine. GFLOP/s are closed-form FLOPs divided by wall time.

A round of all of them is long, and its ratios vary by about 7 %. So adalink is then timed against
only the floor, in `--pairs` pairs. The lines above the table give the median with bounds (target:
1.03), and the same for the floor against itself, which shows what the run can tell apart.
"""

import dataclasses
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.distributed.sharding import make_mesh, on_mesh, place_batch  # noqa: E402
from adalink_jax.methods import METHODS  # noqa: E402
from adalink_jax.methods.base import Method  # noqa: E402
from adalink_jax.models import parameters  # noqa: E402
from adalink_jax.models.t5 import T5Config, Transformer  # noqa: E402
from adalink_jax.training import optimizers  # noqa: E402
from adalink_jax.training import state as states  # noqa: E402
from adalink_jax.training.step import loss_fn, make_train_step  # noqa: E402
from benchmarks import matrix_products, other_frameworks, shapes, t5x_network, timing  # noqa: E402

RANK, PROMPT_LENGTH = 4, 64
Step = Callable[[], Any]


def make_batch(vocab_size: int, shape: matrix_products.Shape) -> dict[str, np.ndarray]:
    """Returns random tokens without padding, all on one route."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, vocab_size, (shape.batch, shape.inputs)).astype(np.int32)
    targets = rng.integers(3, vocab_size, (shape.batch, shape.targets)).astype(np.int32)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones(targets.shape, np.float32),
        "encoder_routes": np.zeros_like(inputs),
        "decoder_routes": np.zeros_like(targets),
    }


def methods(prompt_length: int) -> dict[str, Method]:
    """Returns the paper's methods."""
    settings: dict[str, dict[str, Any]] = {
        "adalink": {"rank": RANK},
        "lora": {"rank": RANK},
        "prompt_tuning": {"length": prompt_length},
        "full": {},
    }
    return {name: METHODS[name](**own) for name, own in settings.items()}


def method_step(config: T5Config, method: Method, base: Any, batch: Any, mesh: Mesh) -> Step:
    """Returns one training step, compiled as in `adalink_jax.runs.train`."""
    return method_steps(config, method, base, mesh)([batch])


def method_steps(
    config: T5Config,
    method: Method,
    base: Any,
    mesh: Mesh,
    optimizer: optax.GradientTransformation | None = None,
    random: str = "threefry2x32",
) -> Callable[[Sequence[Any]], Step]:
    """Returns a function of batches, which returns a call that takes a step on each of them.

    Args:
      config: the architecture.
      method: what trains.
      base: its weights, on the mesh.
      mesh: the devices.
      optimizer: None for Adafactor, as the method has it.
      random: JAX's name of the generator of dropout's bits.
    """
    adapters = not method.trains_base
    schedule = optimizers.factors()
    optimizer = optimizer or optimizers.adafactor(
        schedule, multiply_by_parameter_scale=not adapters, factored=not adapters
    )
    optimizer = optimizers.per_module(optimizer, method)
    adapter = parameters.init_adapter(config, method, base, jax.random.key(1))
    state = [states.create(config, method, base, adapter, optimizer, mesh)]
    step = make_train_step(Transformer(config, method), optimizer, schedule)
    compiled, key = jax.jit(step, donate_argnums=0), jax.random.key(0, impl=random)

    def on(batches: Sequence[Any]) -> Step:
        def run() -> None:
            metrics = None
            for batch in batches:
                state[0], metrics = compiled(state[0], batch, key)
            jax.block_until_ready(metrics)

        return run

    return on


@dataclasses.dataclass(frozen=True)
class _GivenInput(Method):
    """Changes nothing, but replaces the encoder's input by x, so that x has a gradient."""

    x: Any = None

    def inputs(self, x, ctx):
        return (self.x, ctx) if ctx.stack == "encoder" else (x, ctx)


def floor_step(config: T5Config, params: Any, batch: Any) -> Step:
    """Returns a step with loss, metrics, and the gradient of the encoder's input; none trains."""

    @jax.jit
    def step(params, batch, number):
        key = jax.random.fold_in(jax.random.key(0), number) if config.dropout_rate else None
        table = params["token_embedder"]["embedding"]
        embedded = jnp.take(table, batch["encoder_input_tokens"], axis=0).astype(config.dtype)

        def loss(x):
            model = Transformer(config, _GivenInput(x))
            return loss_fn(model, {}, params, batch, key, 1e-4, 0.0)

        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(embedded)
        return metrics, gradient

    return lambda: jax.block_until_ready(step(params, batch, 0))


def products_step(config: T5Config, shape: matrix_products.Shape, weight_gradients: bool) -> Step:
    """Returns a step with only the matrix products."""
    keys = jax.random.split(jax.random.key(0), 3)
    weights = matrix_products.make_weights(config, shape, keys[0])
    inputs = jax.random.normal(keys[1], (shape.batch, shape.inputs, config.emb_dim), config.dtype)
    targets = jax.random.normal(keys[2], (shape.batch, shape.targets, config.emb_dim), config.dtype)
    step = jax.jit(matrix_products.make_step(config, weight_gradients=weight_gradients))
    return lambda: jax.block_until_ready(step(weights, inputs, targets))


def candidates(
    config: T5Config, shape: matrix_products.Shape, prompt_length: int
) -> tuple[dict[str, Step], dict[str, int]]:
    """Returns all timed steps, compared ones next to each other, and the FLOPs of products."""
    steps, flops = {}, {}
    longer = dataclasses.replace(shape, inputs=shape.inputs + prompt_length)
    for name, sizes, weight_gradients in (
        ("products", shape, False),
        ("products, prompt_tuning", longer, False),
        ("products, full", shape, True),
    ):
        steps[name] = products_step(config, sizes, weight_gradients)
        flops[name] = matrix_products.flops(config, sizes, weight_gradients=weight_gradients)
    mesh, host_batch = make_mesh(), make_batch(config.vocab_size, shape)
    batch = place_batch(host_batch, mesh)
    base = parameters.init_base(config, jax.random.key(0))
    base = states.place_params(config, Method(), base, mesh)
    steps["floor"] = floor_step(config, base, batch)
    for name, method in methods(prompt_length).items():
        steps[name] = method_step(config, method, base, batch, mesh)
    steps |= t5x_network.t5x_steps(config, base, batch, RANK)
    steps |= other_frameworks.transformers_steps(config, host_batch, RANK, prompt_length)
    return steps, flops


def rows(wall: timing.Times, cpu: timing.Times, flops: dict[str, int]) -> list[dict[str, Any]]:
    """Returns the table, one row per candidate."""
    table = []
    for name in wall:
        method = name.split(", ")[-1]
        own = f"products, {method}" if f"products, {method}" in wall else "products"
        row = {
            "step": name,
            "seconds": statistics.median(wall[name]),
            "CPU seconds": statistics.median(cpu[name]),
            "× floor": timing.ratio(wall, name, "floor"),
            "× floor, CPU": timing.ratio(cpu, name, "floor"),
            "× products": timing.ratio(wall, name, own),
            "× products, CPU": timing.ratio(cpu, name, own),
            "× ours": None,
            "GFLOP/s": None,
        }
        if name in flops:
            row["GFLOP/s"] = flops[name] / row["seconds"] / 1e9
        elif name not in METHODS and method in METHODS:
            row["× ours"] = timing.ratio(wall, name, method)
        table.append(row)
    return table


def against_floor(steps: dict[str, Step], pairs: int) -> dict[str, dict[str, dict[str, float]]]:
    """Times adalink's step and, as a control, the floor, each in pairs with the floor."""
    bounds = {}
    for name in ("adalink", "floor"):
        pair = {"floor": steps["floor"], "other": steps[name]}
        wall, cpu = timing.interleaved(pair, pairs)
        bounds[name] = {
            "wall": timing.median_with_bounds(wall, "other", "floor"),
            "CPU": timing.median_with_bounds(cpu, "other", "floor"),
        }
        for clock, ratio in bounds[name].items():
            print(
                f"{name} / floor, {pairs} pairs, {clock} time: {ratio['median']:.3f} "
                f"({ratio['low']:.3f} to {ratio['high']:.3f})"
            )
    return bounds


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    flags = timing.parser(__doc__, rounds=15)
    flags.add_argument("--pairs", type=int, default=60, help="default 60")
    flags.add_argument("--inputs", type=int, default=64, help="input tokens of a row; default 64")
    flags.add_argument("--dropout_rate", type=float, default=0.1, help="of the network")
    options = flags.parse_args(arguments)
    config = (shapes.toy if options.small else shapes.flan_t5_small)(options.dropout_rate)
    shape = matrix_products.Shape(16, options.inputs, 4)
    if options.small:
        shape = matrix_products.Shape(2, 8, 2)
    prompt_length = 4 if options.small else PROMPT_LENGTH
    load = os.getloadavg()
    with on_mesh(make_mesh()):
        steps, flops = candidates(config, shape, prompt_length)
        wall, cpu = timing.interleaved(steps, options.rounds, warm_ups=2)
        pairs = against_floor(steps, options.pairs)
    settings = {
        "model": {**dataclasses.asdict(config), "dtype": str(config.dtype)},
        "shape": dataclasses.asdict(shape),
        "rank": RANK,
        "prompt_length": prompt_length,
        "rounds": options.rounds,
        "gflop": {name: count / 1e9 for name, count in flops.items()},
        "pairs": options.pairs,
        "platform": jax.default_backend(),
    }
    table = rows(wall, cpu, flops)
    timing.report(
        "train_step", table, settings, (wall, cpu), load, options.out, against_floor=pairs
    )


if __name__ == "__main__":
    main(sys.argv[1:])
