"""cuDNN's attention: what reaches the kernel computes what XLA's computes. It runs on GPUs alone.

Here its place is taken by JAX's own attention of the same call, which is not ours either.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.parameters import abstract_params
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.training.step import loss_fn
from tests.tiers import mostly_slow


@pytest.fixture
def calls(monkeypatch):
    """The shapes of bias and mask in each call of the kernel, which JAX's own attention takes."""
    seen, attention = [], jax.nn.dot_product_attention

    def stand_in(q, k, v, bias, mask, *, scale, implementation):
        assert implementation == "cudnn"
        seen.append((None if bias is None else bias.shape, mask.shape))
        return attention(q, k, v, bias, mask, scale=scale, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    return seen


def by(config: T5Config, attention: str) -> T5Config:
    """In float32, which the kernel does not take, so that only the order of sums differs."""
    config = dataclasses.replace(config, dtype=jnp.bfloat16, attention=attention)
    object.__setattr__(config, "dtype", jnp.dtype("float32"))
    return config


def gradients(config, method, params, batch):
    def loss(params):
        model = Transformer(config, method)
        return loss_fn(model, params, {}, batch, jax.random.key(3), 1e-4, 0.0)[0]

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("name", mostly_slow(["lora", "prefix_tuning"], []))
def test_loss_and_gradients_are_those_of_xla(tiny, calls, name):
    """Of all parameters, position biases too; with padding, and dropout of whole keys."""
    config, _, batch = tiny
    config = dataclasses.replace(config, dropout_rate=0.3)
    # Even lengths, as the kernel takes them.
    batch = {key: np.pad(value, ((0, 0), (0, 1))) for key, value in batch.items()}
    own = {"lora": {"rank": 2}, "prefix_tuning": {"length": 2}}[name]
    method = METHODS[name](**own)
    rng = np.random.default_rng(0)
    shapes, _ = abstract_params(config, method)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4") / 4, shapes)
    run = functools.partial(gradients, method=method, params=params, batch=batch)
    expected = run(by(config, "xla"))
    assert not calls
    found = run(by(config, "cudnn"))
    assert len(calls) == config.num_encoder_layers + 2 * config.num_decoder_layers
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    biases = [found[1][stack]["relpos_bias"]["rel_embedding"] for stack in ("encoder", "decoder")]
    assert all(np.abs(bias).max() > 1e-3 for bias in biases)


def test_odd_lengths_are_left_to_xla(tiny, calls):
    config, base, batch = tiny
    assert batch["encoder_input_tokens"].shape[1] % 2 == 1
    jax.eval_shape(lambda: gradients(by(config, "cudnn"), METHODS["full"](), base, batch))
    assert not calls


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "dtype is float32"),
        ({"dtype": "bfloat16", "head_dim": 12}, "head_dim is 12"),
        ({"attention": "cuddn"}, "did you mean 'cudnn'"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        T5Config(vocab_size=8, **{"attention": "cudnn", **changes})


def test_other_devices_and_a_jax_without_its_gradient_are_refused(tiny, monkeypatch):
    config, base, _ = tiny
    config = dataclasses.replace(config, dtype=jnp.bfloat16, attention="cudnn")
    tokens = np.ones((1, 2), np.int32)

    def run():
        model = Transformer(config)
        return model.apply({"params": base}, tokens, tokens, tokens, enable_dropout=False)

    with pytest.raises(UserError, match="needs an NVIDIA GPU, and this is a cpu; use 'xla'"):
        run()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    with pytest.raises(UserError, match="needs jax 0.11"):
        run()
