"""Measures a method's cost from the program itself: compiled, or run on the present device.

In addition to the traced products (`counts`), this gives XLA's figures for the compiled program,
which include all elementwise operations, and the time on the device.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax.distributed.sharding import make_mesh, on_mesh
from adalink_jax.methods.base import Method, merge
from adalink_jax.models.config import REMATS
from adalink_jax.models.inputs import features_of
from adalink_jax.models.parameters import init_adapter, init_base
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.tools.cost.counts import Shape, batch_of
from adalink_jax.training.optimizers import adafactor, per_module
from adalink_jax.training.state import TrainState, abstract_trees, create, place_params
from adalink_jax.training.step import make_train_step

_WARM_UPS = 2


@dataclasses.dataclass(frozen=True)
class Compiled:
    """XLA's figures for a compiled training step.

    Attributes:
      flops: all FLOPs, elementwise ones too; a loop's body counts once.
      bytes_accessed: bytes read and written by all of the program's kernels.
      peak_bytes: the most memory in use at one time: arguments, results and temporaries.
    """

    flops: float
    bytes_accessed: float
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class Latency:
    """Wall-clock seconds of repeated calls.

    Attributes:
      p50: the median.
      p95: the 95th percentile.
    """

    p50: float
    p95: float


def default_optimizer(method: Method) -> optax.GradientTransformation:
    """Returns Adafactor as in the shipped gin files: factored only for whole models."""
    whole = method.trains_base
    rule = adafactor(lambda step: 1e-3, multiply_by_parameter_scale=whole, factored=whole)
    return per_module(rule, method)


def state_bytes(config: T5Config, method: Method) -> int:
    """Returns the bytes of parameters, optimizer state, and the trainable part's gradients."""
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
      shape: the batch's shape.
      slots: the most routes that one row may use.
    """
    compiled = _lowered_step(config, method, shape, slots).compile()
    costs = compiled.cost_analysis()
    assert costs is not None  # Every backend of JAX here tells them.
    return Compiled(costs["flops"], costs["bytes accessed"], _peak_bytes(compiled))


def peaks(config: T5Config, method: Method, shape: Shape) -> dict[str, int]:
    """Returns the peak memory of a training step, in bytes, for each way to rematerialise.

    Layers are scanned, whose program is compiled in the same time at any depth. Arguments are those
    of `compile_step`.
    """
    # What LLVM makes of a kernel takes long, and moves no buffer.
    options: Any = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    found = {}
    for remat in REMATS:
        changed = dataclasses.replace(config, scan_layers=True, remat=remat)
        lowered = _lowered_step(changed, method, shape, 1)
        found[remat] = _peak_bytes(lowered.compile(compiler_options=options))
    return found


def _lowered_step(config: T5Config, method: Method, shape: Shape, slots: int):
    trainable, frozen = abstract_trees(config, method)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        trainable=trainable,
        opt_state=jax.eval_shape(default_optimizer(method).init, trainable),
        frozen=frozen,
    )
    batch = batch_of(config, shape, jax.ShapeDtypeStruct)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return _train_step(config, method, slots).lower(state, batch, key)


def _peak_bytes(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    if jax.default_backend() != "cpu":
        return memory.peak_memory_in_bytes
    # On CPUs that leaves out temporaries, which share one arena as large as their peak.
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return peak + memory.temp_size_in_bytes - memory.alias_size_in_bytes


def time_step(config: T5Config, method: Method, shape: Shape, repetitions: int = 20) -> Latency:
    """Times training steps with random weights on the present device."""
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
        return model.apply({"params": params}, **features_of(batch), enable_dropout=False)

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
