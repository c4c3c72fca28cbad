"""AdaLink and the routed low-rank product against NumPy and closed formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, merge, split
from adalink_jax.methods.low_rank import ACTIVATIONS, routed_low_rank
from adalink_jax.models.config import T5Config
from adalink_jax.models.parameters import abstract_params, init_adapter
from adalink_jax.models.t5 import Transformer
from tests.tiers import mostly_slow


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model, params, *arguments, method=None):
    return model.apply({"params": params}, *arguments, enable_dropout=False, method=method)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_routes=st.integers(1, 5),
    slots=st.integers(1, 4),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_each_token_meets_its_own_module(seed, num_routes, slots, activation):
    """Token by token in NumPy; rows hold at most `slots` routes, any of them, in any order."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 6, 5)).astype(np.float32)
    down = rng.normal(size=(num_routes, 5, 2)).astype(np.float32)
    up = rng.normal(size=(num_routes, 2, 4)).astype(np.float32)
    routes = np.stack([
        rng.choice(rng.choice(num_routes, min(slots, num_routes), replace=False), 6)
        for _ in range(3)
    ]).astype(np.int32)  # fmt: skip
    f = {
        "identity": lambda h: h,
        "relu": lambda h: np.maximum(h, 0),
        "gelu": lambda h: np.asarray(jax.nn.gelu(h)),
        "silu": lambda h: h / (1 + np.exp(-h)),
        "tanh": np.tanh,
    }[activation]
    got = routed_low_rank(x, down, up, jnp.asarray(routes), slots, ACTIVATIONS[activation])
    for b in range(3):
        for t in range(6):
            k = routes[b, t]
            np.testing.assert_allclose(got[b, t], f(x[b, t] @ down[k]) @ up[k], atol=1e-4)


def test_several_routes_and_no_word_of_which():
    with pytest.raises(ValueError, match="2 routes"):
        routed_low_rank(np.ones((1, 1, 2)), np.ones((2, 2, 1)), np.ones((2, 1, 2)), None)


@pytest.mark.parametrize("activation", mostly_slow(sorted(ACTIVATIONS), ["gelu"]))
def test_the_network_with_adalink_is_the_base_on_adapted_embeddings(tiny, activation):
    """Folding x + f(x·down)·up into the encoder's table by NumPy gives the same logits.

    The table of the decoder stays: the encoder runs on a base whose table is the folded one.
    """
    config, base, batch = tiny
    method = METHODS["adalink"](rank=3, activation=activation)
    scope = init_adapter(config, method, base, jax.random.key(0))["encoder"]["adalink"]
    up = np.random.default_rng(0).normal(size=scope["up"].shape).astype(np.float32)
    adapter = {"encoder": {"adalink": {**scope, "up": up}}}
    inputs = [batch[f"{n}_tokens"] for n in ("encoder_input", "decoder_input", "decoder_target")]
    adapted = apply(Transformer(config, method), merge(base, adapter), *inputs)
    table = np.asarray(base["token_embedder"]["embedding"])
    hidden = table @ np.asarray(scope["down"][0])
    if activation == "relu":
        hidden = np.maximum(hidden, 0)
    elif activation == "gelu":  # The tanh form, as flax.linen.gelu and T5.
        inner = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
        hidden = 0.5 * hidden * (1 + np.tanh(inner))
    elif activation == "silu":
        hidden = hidden / (1 + np.exp(-hidden))
    elif activation == "tanh":
        hidden = np.tanh(hidden)
    folded = {**base, "token_embedder": {"embedding": table + hidden @ up[0]}}
    model = Transformer(config)
    encoded = apply(model, folded, inputs[0], method="encode")
    expected = apply(model, base, encoded, *inputs, method="decode")
    np.testing.assert_allclose(adapted, expected, atol=1e-4)
    plain = apply(model, base, *inputs)
    assert np.abs(adapted - plain).max() > 1e-2


@pytest.mark.parametrize(("rank", "count"), [(4, 8_192), (256, 524_288)])
def test_parameter_counts_of_the_paper(rank, count):
    """T5 1.0 11B has width 1024: 2·d·r parameters, without allocating the model."""
    config = T5Config(
        vocab_size=32128,
        emb_dim=1024,
        num_heads=128,
        num_encoder_layers=24,
        num_decoder_layers=24,
        head_dim=128,
        mlp_dim=65536,
        logits_via_embedding=True,
    )
    for routes in (1, 8):
        method = METHODS["adalink"](rank=rank, routes=routes)
        adapter, frozen = split(abstract_params(config, method)[0], method)
        assert sum(leaf.size for leaf in jax.tree.leaves(adapter)) == count * routes
    plain = abstract_params(config, Method())[0]
    assert jax.tree.structure(frozen) == jax.tree.structure(plain)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank": 0}, "rank is 0; it takes a whole number from 1"),
        ({"rank": "four"}, "rank is 'four'"),
        ({"rank": True}, "rank is True"),
        ({"rank": 2, "routes": 0}, "routes is 0"),
        ({"rank": 2, "activation": "rleu"}, "did you mean 'relu'"),
        ({"rank": 2, "stacks": ("encodr",)}, "one of encoder, decoder; did you mean 'encoder'"),
    ],
)
def test_mistakes_are_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        METHODS["adalink"](**kwargs)
