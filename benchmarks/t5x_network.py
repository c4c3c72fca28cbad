"""Training steps of T5X's network at the same shapes, if it is installed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from adalink_jax.methods.low_rank import routed_low_rank
from adalink_jax.models.t5 import T5Config
from adalink_jax.training import optimizers
from adalink_jax.training.step import loss_fn

Steps = dict[str, Callable[[], None]]


def t5x_steps(config: T5Config, base: Any, batch: Mapping[str, Any], rank: int) -> Steps:
    """Returns steps of T5X's minimal T5 with AdaLink (frozen base), and with full fine-tuning.

    AdaLink's product is added to the output of the encoder's embedding, because T5X has no hook.

    Args:
      config: the architecture.
      base: parameters; T5X's network has the same names.
      batch: as for `adalink_jax.training.step`.
      rank: AdaLink's rank.
    """
    try:
        from t5x.examples.t5 import network
    except ImportError as error:
        print(f"T5X's network is skipped: {error}")
        return {}
    fields = dataclasses.asdict(config)
    model = network.Transformer(network.T5Config(**fields))
    batch = {name: array for name, array in batch.items() if not name.endswith("routes")}
    key = jax.random.key(0) if config.dropout_rate else None

    def full_loss(trainable, frozen):
        return loss_fn(model, trainable, frozen, batch, key, 1e-4, 0.0)[0]

    def adalink_loss(trainable, frozen):
        calls = []

        def adapt(call, args, kwargs, context):
            x = call(*args, **kwargs)
            if type(context.module).__name__ == "Embed" and context.method_name == "__call__":
                calls.append(None)
                if len(calls) == 1:  # The encoder embeds first, then the decoder.
                    return x + routed_low_rank(x, trainable["down"], trainable["up"], None)
            return x

        with nn.intercept_methods(adapt):
            return full_loss({}, frozen)

    adapter = {
        "down": jax.random.normal(jax.random.key(1), (1, config.emb_dim, rank)),
        "up": jnp.zeros((1, rank, config.emb_dim)),
    }
    return {
        "T5X's network, adalink": _jax_step(adalink_loss, adapter, base, scaled=False),
        "T5X's network, full": _jax_step(full_loss, base, {}, scaled=True),
    }


def _jax_step(loss: Callable, trainable: Any, frozen: Any, *, scaled: bool) -> Callable[[], None]:
    optimizer = optimizers.adafactor(
        optimizers.factors(), multiply_by_parameter_scale=scaled, factored=scaled
    )

    def step(trainable, opt_state, frozen):
        value, gradients = jax.value_and_grad(loss)(trainable, frozen)
        updates, opt_state = optimizer.update(gradients, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    trainable = jax.tree.map(lambda x: jnp.array(x, copy=True), trainable)
    state = [trainable, optimizer.init(trainable)]

    def run() -> None:
        *state[:], value = compiled(*state, frozen)
        value.block_until_ready()

    return run
