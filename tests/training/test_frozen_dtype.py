"""A frozen base in bfloat16: what is stored so, and what the network computes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax import sharding
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.models.t5 import Transformer
from adalink_jax.training import optimizers, state, step

SETTINGS = {"adalink": {"rank": 2}, "lora": {"rank": 2}}
ADAPTERS = [name for name in METHODS if not METHODS[name].trains_base]


def started(tiny, name: str, frozen_dtype: str):
    """A state before its first step, and the compiled step."""
    config, base, _ = tiny
    method = METHODS[name](**SETTINGS.get(name, {}))
    rate = optimizers.factors(base_learning_rate=0.01)
    optimizer = optimizers.adafactor(rate, multiply_by_parameter_scale=False, factored=False)
    optimizer = optimizers.per_module(optimizer, method)
    mesh = sharding.make_mesh()
    with sharding.on_mesh(mesh):
        adapter = state.init_adapter(config, method, base, jax.random.key(3))
        current = state.create(
            config, method, base, adapter, optimizer, mesh, frozen_dtype=frozen_dtype
        )
        train_step = step.make_train_step(Transformer(config, method), optimizer, rate)
        return current, step.compiled(train_step, current, seed=0)


def logits(config, method, params, batch):
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    return Transformer(config, method).apply(
        {"params": params}, *(batch[name] for name in names), enable_dropout=False
    )


@pytest.mark.parametrize("name", ADAPTERS)
def test_only_what_is_frozen_is_bfloat16_and_the_rest_trains(tiny, name):
    current, train_step = started(tiny, name, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(current.frozen)} == {jnp.dtype("bfloat16")}
    batch = {k: v for k, v in tiny[2].items() if "routes" not in k}
    first = None
    for _ in range(4):
        current, metrics = train_step(current, batch)
        first = first or float(metrics["loss"])
    assert float(metrics["loss"]) < first
    floats = jax.tree.leaves((current.trainable, current.opt_state))
    assert {leaf.dtype for leaf in floats} <= {jnp.dtype("float32"), jnp.dtype("int32")}


def test_the_network_computes_with_what_is_stored_and_nothing_else_is_rounded(tiny):
    """Against the same weights, rounded beforehand and stored as float32."""
    config, base, batch = tiny
    method = METHODS["adalink"](rank=2)
    current, _ = started(tiny, "adalink", "bfloat16")
    rounded = jax.tree.map(
        lambda x: np.asarray(x, jnp.bfloat16).astype(np.float32), jax.device_get(base)
    )
    found = logits(config, method, merge(current.frozen, current.trainable), batch)
    expected = logits(config, method, merge(rounded, current.trainable), batch)
    # One operation alone is in bfloat16: the layer norms' scales, which here are ones.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # Weights are off by up to 2^-9 of themselves; the logits of a T5 by a few times that.
    exact = np.asarray(logits(config, method, merge(base, current.trainable), batch))
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < 2**-6
