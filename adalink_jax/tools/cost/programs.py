"""What a method costs, by the program itself: traced, compiled, or run on the present device.

Three counts of the same step stand beside the closed formulas (`formulas`): the matrix products
of its jaxpr, whatever the method and however layers are repeated; what XLA says of the program
that it compiled, with all elementwise operations; and time on the device.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax.distributed.sharding import make_mesh, on_mesh
from adalink_jax.methods.base import Method, merge
from adalink_jax.models.parameters import init_adapter, init_base
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.tools.cost.formulas import Flops, Shape
from adalink_jax.training.optimizers import adafactor, per_module
from adalink_jax.training.state import TrainState, abstract_trees, create, place_params
from adalink_jax.training.step import loss_fn, make_train_step

_WARM_UPS = 2


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What XLA says of a compiled training step.

    Attributes:
      flops: all operations, elementwise ones too; a loop's body counts once.
      bytes_accessed: read and written by all of the program's kernels.
      peak_bytes: the most memory held at one time: arguments, results and what lies between.
    """

    flops: float
    bytes_accessed: float
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class Latency:
    """Wall-clock seconds of repeated calls.

    Attributes:
      p50: the median.
      p95: what 95 % of the calls stayed below.
    """

    p50: float
    p95: float


def batch_of(config: T5Config, shape: Shape, make: Callable[[tuple, Any], Any]) -> dict[str, Any]:
    """A batch's features, each made by ``make(shape, dtype)``."""
    inputs, targets = (shape.batch, shape.inputs), (shape.batch, shape.targets)
    features = {"encoder_input_tokens": inputs, "encoder_routes": inputs}
    features |= dict.fromkeys(
        ("decoder_input_tokens", "decoder_target_tokens", "decoder_routes"), targets
    )
    batch = {name: make(size, jnp.int32) for name, size in features.items()}
    return batch | {"decoder_loss_weights": make(targets, jnp.float32)}


def traced_flops(config: T5Config, method: Method, shape: Shape, slots: int = 1) -> Flops:
    """Operations of the products in the jaxprs of the forward pass and of the step's gradients.

    Args:
      config: the base's architecture, with its dropout and dtype.
      method: any method.
      shape: of the batch.
      slots: how many routes one row may hold.
    """
    model = Transformer(config, method, slots)
    trainable, frozen = abstract_trees(config, method)
    batch = batch_of(config, shape, jax.ShapeDtypeStruct)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def loss(trainable, frozen, batch, key):
        return loss_fn(model, trainable, frozen, batch, key, 1e-4, 0.0)

    def gradients(*arguments):
        return jax.grad(loss, has_aux=True)(*arguments)

    arguments = (trainable, frozen, batch, key)
    return Flops(
        forward=product_flops(jax.make_jaxpr(loss)(*arguments).jaxpr),
        train=product_flops(jax.make_jaxpr(gradients)(*arguments).jaxpr),
    )


def product_flops(jaxpr: Any) -> int:
    """Operations of all matrix products in a jaxpr: two to a multiply-add, loops unrolled.

    Args:
      jaxpr: a ``jax.core.Jaxpr``.

    Raises:
      ValueError: a product stands in a loop whose number of rounds the jaxpr does not tell.
    """
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = 1
            for axis in contracted:
                inner *= left[axis]
            total += 2 * inner * equation.outvars[0].aval.size
            continue
        inside = sum(product_flops(inner) for inner in _inner_jaxprs(equation))
        if inside and name == "while":
            raise ValueError("a while loop holds matrix products: their number is unknown")
        total += inside * (equation.params["length"] if name == "scan" else 1)
    return total


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)  # A closed jaxpr holds its jaxpr.
            if hasattr(item, "eqns"):
                yield item


def default_optimizer(method: Method) -> optax.GradientTransformation:
    """Adafactor as the shipped gin files set it: factored for whole models, whole for adapters."""
    whole = method.trains_base
    rule = adafactor(lambda step: 1e-3, multiply_by_parameter_scale=whole, factored=whole)
    return per_module(rule, method)


def state_bytes(config: T5Config, method: Method) -> int:
    """Bytes of the train state: parameters, optimizer state, and gradients for what trains."""
    trainable, frozen = abstract_trees(config, method)
    optimizer_state = jax.eval_shape(default_optimizer(method).init, trainable)
    trees = (trainable, trainable, frozen, optimizer_state)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


def _train_step(config: T5Config, method: Method, slots: int):
    step = make_train_step(
        Transformer(config, method, slots), default_optimizer(method), lambda step: 1e-3
    )
    return jax.jit(step, donate_argnums=0)


def compile_step(config: T5Config, method: Method, shape: Shape, slots: int = 1) -> Compiled:
    """Compiles a training step for the present device, without allocating its arrays.

    Args:
      config: the base's architecture, with its dropout and dtype.
      method: any method.
      shape: of the batch.
      slots: how many routes one row may hold.
    """
    trainable, frozen = abstract_trees(config, method)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        trainable=trainable,
        opt_state=jax.eval_shape(default_optimizer(method).init, trainable),
        frozen=frozen,
    )
    batch = batch_of(config, shape, jax.ShapeDtypeStruct)
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = _train_step(config, method, slots).lower(state, batch, key).compile()
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes
    if jax.default_backend() == "cpu":
        # There it leaves out temporaries, which lie in one arena of the size of their own peak.
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
        peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(costs["flops"], costs["bytes accessed"], peak)


def time_step(config: T5Config, method: Method, shape: Shape, repetitions: int = 20) -> Latency:
    """Times training steps of random weights on the present device, dropout as configured."""
    base = init_base(config, jax.random.key(0))
    adapter = init_adapter(config, method, base, jax.random.key(1))
    mesh = make_mesh()
    with on_mesh(mesh):
        state = create(config, method, base, adapter, default_optimizer(method), mesh)
        step = _train_step(config, method, 1)
        batch = _random_batch(config, shape)

        def call():
            nonlocal state
            state, metrics = step(state, batch, jax.random.key(0))
            jax.block_until_ready((state, metrics))

        return _timed(call, repetitions)


def time_forward(config: T5Config, method: Method, shape: Shape, repetitions: int = 20) -> Latency:
    """Times forward passes over a batch, from tokens to logits, without dropout."""
    config = dataclasses.replace(config, dropout_rate=0.0)
    base = init_base(config, jax.random.key(0))
    adapter = init_adapter(config, method, base, jax.random.key(1))
    params = place_params(config, method, merge(base, adapter), make_mesh())
    batch = _random_batch(config, shape)
    model = Transformer(config, method)

    @jax.jit
    def forward(params, batch):
        features = {name: batch[name] for name in batch if name != "decoder_loss_weights"}
        return model.apply({"params": params}, **features, enable_dropout=False)

    return _timed(lambda: jax.block_until_ready(forward(params, batch)), repetitions)


def _random_batch(config: T5Config, shape: Shape) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)

    def make(size, dtype):
        if dtype == jnp.float32:
            return jnp.ones(size, dtype)
        return jnp.asarray(rng.integers(2, config.vocab_size, size), dtype)

    batch = batch_of(config, shape, make)
    return {k: jnp.zeros_like(v) if k.endswith("routes") else v for k, v in batch.items()}


def _timed(call: Callable[[], Any], repetitions: int) -> Latency:
    for _ in range(_WARM_UPS):
        call()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return Latency(*(float(np.quantile(seconds, q)) for q in (0.5, 0.95)))
