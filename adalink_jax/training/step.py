"""The training step: one compiled function of (state, batch)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adalink_jax.distributed.sharding import replicated
from adalink_jax.methods.base import Array, Params, merge
from adalink_jax.models.inputs import features_of
from adalink_jax.models.t5 import Transformer
from adalink_jax.training.losses import cross_entropy
from adalink_jax.training.optimizers import Schedule, rate_argument
from adalink_jax.training.state import TrainState

# Any number; it separates the random stream of dropout from all others of a run's key.
_DROPOUT = 0xD0


Batch = Mapping[str, Array]
Step = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]


def loss_fn(
    model: Transformer,
    trainable: Params,
    frozen: Params,
    batch: Batch,
    dropout_key: Array | None,
    z_loss: float,
    label_smoothing: float,
) -> tuple[Array, dict[str, Array]]:
    """Computes the summed loss of a batch, and sums for its metrics.

    Args:
      model: the network with its method.
      trainable: the tree to differentiate.
      frozen: the other parameters.
      batch: the network's `FEATURES`, and decoder_loss_weights, float32 [B,L].
      dropout_key: a PRNG key; None for no dropout.
      z_loss: coefficient of the z-loss.
      label_smoothing: probability taken from the target.

    Returns:
      The loss summed over target tokens; sums of z-loss, correct tokens and target tokens.
    """
    logits = model.apply(
        {"params": merge(frozen, trainable)},
        **features_of(batch),
        enable_dropout=dropout_key is not None,
        rngs={} if dropout_key is None else {"dropout": dropout_key},
    )
    targets = batch["decoder_target_tokens"]
    weights = batch["decoder_loss_weights"]
    loss, z = cross_entropy(logits, targets, weights, z_loss, label_smoothing)
    right = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weights)
    return loss, {"loss": loss, "z_loss": z, "right": right, "tokens": jnp.sum(weights)}


def dropout_key(key: Array, step: Array | int) -> Array:
    """Returns a step's dropout key. It is independent of initialization, which splits `key`."""
    return jax.random.fold_in(jax.random.fold_in(key, _DROPOUT), step)


def make_train_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    learning_rate: Schedule,
    *,
    z_loss: float = 1e-4,
    label_smoothing: float = 0.0,
    accumulation_steps: int = 1,
    ema_decay: float | None = None,
) -> Step:
    """Builds the step (state, batch, key); jit it inside `distributed.sharding.on_mesh`.

    Loss and gradients are summed over the parts of a batch, then divided once by the batch's
    number of target tokens. So accumulation only changes memory. Dropout depends only on
    (key, step), so a resumed run repeats it. The key is the same at every step. It is an argument
    so that runs with different seeds share one compiled program.

    Args:
      model: the network with its method.
      optimizer: already wrapped by `per_module`.
      learning_rate: for the metric of the same name; the optimizer has its own.
      z_loss: coefficient of the z-loss.
      label_smoothing: probability taken from the target.
      accumulation_steps: number of parts that a batch is split into.
      ema_decay: decay of the state's average, if it has one.
    """

    def gradients(trainable: Params, frozen: Params, batch: Batch, key: Array):
        def loss(trainable):
            return loss_fn(model, trainable, frozen, batch, key, z_loss, label_smoothing)

        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
        return grads, sums

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = dropout_key(key, state.step)
        if accumulation_steps == 1:
            grads, sums = gradients(state.trainable, state.frozen, batch, key)
        else:
            grads, sums = _accumulated(gradients, state, batch, key, accumulation_steps)
        tokens = jnp.maximum(sums["tokens"], 1.0)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {
            "loss": sums["loss"] / tokens,
            "z_loss": sums["z_loss"] / tokens,
            "accuracy": sums["right"] / tokens,
            "target_tokens": sums["tokens"],
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(state.step),
        }
        state = dataclasses.replace(
            state, step=state.step + 1, trainable=trainable, opt_state=opt_state
        )
        if ema_decay is not None:
            average = _averaged(state.average, trainable, state.step, ema_decay)
            state = dataclasses.replace(state, average=average)
        return state, metrics

    return train_step


def _averaged(average: Any, trainable: Any, step: Array, decay: float) -> Any:
    """Returns Σ decayⁿ⁻ⁱ·pᵢ / Σ decayⁿ⁻ⁱ over steps i = 1 … n: no weight is left on the start."""
    log = jnp.float32(math.log(decay))
    weight = jnp.expm1(log) / jnp.expm1(step * log)  # (1 - decay) / (1 - decayⁿ), 1 at first.
    return optax.incremental_update(trainable, average, weight)


def compiled(
    step_of: Callable[[Schedule], Step],
    state: TrainState,
    seed: int,
    learning_rate: Schedule,
    same: Hashable = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Compiles a step as `in_place` does, and binds the key of a seed and the learning rate.

    Both are arguments of the program, so that a grid of rates and seeds compiles it once.

    Args:
      step_of: makes the step of a learning rate, by `make_train_step` with an optimizer of it. It
        is called while the step is traced.
      state: as for `in_place`.
      seed: of the run.
      learning_rate: of the run.
      same: equal where `step_of` makes the same step. The program of the call before is then taken
        again, which saves the time that tracing takes; None for a new one.
    """
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda array: array.sharding, state))
    program, made_by = _program(object() if same is None else same, tuple(leaves), tree)
    made_by[:] = [step_of]  # Shapes that come only now are traced with this run's own step.
    place = replicated(state.step.sharding.mesh)
    key, rate = jax.device_put((jax.random.key(seed), rate_argument(learning_rate)), place)
    return functools.partial(program, key=key, rate=rate)


@functools.lru_cache(maxsize=1)
def _program(same: Hashable, leaves: tuple, tree: Any) -> tuple[Callable[..., Any], list]:
    made_by: list[Callable[[Schedule], Step]] = []

    def train_step(state: TrainState, batch: Batch, key: Array, rate: Schedule):
        return made_by[0](rate)(state, batch, key)

    return _donating(train_step, jax.tree.unflatten(tree, leaves)), made_by


def in_place(train_step: Callable[..., Any], state: TrainState) -> Callable[..., Any]:
    """Compiles the step (state, batch, key, …) to donate its state and keep its shardings.

    Args:
      train_step: as returned by `make_train_step`, or with more arguments.
      state: arrays, or their shapes with shardings.
    """
    return _donating(train_step, jax.tree.map(lambda array: array.sharding, state))


def _donating(train_step: Callable[..., Any], places: Any) -> Callable[..., Any]:
    return jax.jit(train_step, donate_argnums=0, out_shardings=(places, None))


def _accumulated(gradients, state: TrainState, batch: Batch, key, parts: int) -> Any:
    """Sums gradients and metrics over the parts of a batch, with one part in memory at a time."""
    # Part m takes rows m, m+parts, …, so that no rows move between devices.
    divided = {
        name: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
        for name, x in batch.items()
    }

    def add(total, part):
        index, rows = part
        result = gradients(state.trainable, state.frozen, rows, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, result), None

    first = jax.tree.map(lambda x: x[0], divided)
    shapes = jax.eval_shape(gradients, state.trainable, state.frozen, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), divided))
    return total
