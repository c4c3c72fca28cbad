"""Folding: base + adapter as a plain base, against NumPy and the unfolded network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.checkpoints.architecture import infer_config, shapes_of
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.methods.linears import modules_of
from adalink_jax.models.parameters import init_base
from adalink_jax.models.t5 import Transformer
from tests.methods.toys import blank
from tests.tiers import mostly_slow

TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
NUMPY_ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def flat(tree):
    return {n: np.asarray(a) for n, a in traverse_util.flatten_dict(dict(tree), sep="/").items()}


def random_adapter(config, method, seed=0, scale=0.3):
    """Like a trained one: no matrix is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.float32(scale) * rng.standard_normal(x.shape, np.float32),
        blank(config, method),
    )


@functools.cache
def forward(config, method):
    model = Transformer(config, *([method] if method else []))

    @jax.jit
    def apply(params, tokens, route):
        routes = {
            "encoder_routes": jnp.full_like(tokens[0], route),
            "decoder_routes": jnp.full_like(tokens[1], route),
        }
        return model.apply({"params": params}, *tokens, enable_dropout=False, **routes)

    return apply


def logits(config, params, batch, method=None, route=0):
    return np.asarray(forward(config, method)(params, [batch[name] for name in TOKENS], route))


@pytest.fixture(scope="module", params=["t5_1_1", "t5_1_0"])
def based(request, tiny):
    """T5 1.1 and 1.0 (tied output), with a batch that holds every token of the vocabulary."""
    config, base, batch = tiny
    if request.param == "t5_1_0":
        config = dataclasses.replace(config, logits_via_embedding=True, mlp_activations=("relu",))
        base = init_base(config, jax.random.key(3))
    every = np.arange(1, config.vocab_size + 1).reshape(4, -1) % config.vocab_size
    batch = {**batch, "encoder_input_tokens": np.asarray(every, np.int32)}
    return config, jax.device_get(base), batch


@pytest.mark.parametrize(
    ("based", "activation"),
    mostly_slow(
        [(kind, name) for kind in ("t5_1_1", "t5_1_0") for name in NUMPY_ACTIVATIONS],
        [("t5_1_1", "gelu"), ("t5_1_0", "identity")],
    ),
    indirect=["based"],
)
def test_a_folded_adalink_is_the_unfolded_one(based, activation):
    config, base, batch = based
    method = METHODS["adalink"](rank=3, activation=activation, routes=3)
    adapter = random_adapter(config, method)
    scope = adapter["encoder"]["adalink"]
    table = np.asarray(base["token_embedder"]["embedding"], np.float64)
    for route in range(3):
        folded = method.fold(base, adapter, route)
        down, up = (np.asarray(scope[name][route], np.float64) for name in ("down", "up"))
        expected = table + NUMPY_ACTIVATIONS[activation](table @ down) @ up
        found = folded["encoder"]["token_embedder"]["embedding"]
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()

        inferred = infer_config(shapes_of(folded), activations=config.mlp_activations)
        assert inferred.separate_encoder_embedding
        assert inferred.logits_via_embedding == config.logits_via_embedding
        change = logits(inferred, folded, batch) - logits(
            config, merge(base, adapter), batch, method, route
        )
        assert np.abs(change).max() < 1e-5
    # All else, the decoder's table and T5 1.0's output layer among it, is the base's own.
    left = flat(folded)
    assert left.keys() - flat(base).keys() == {"encoder/token_embedder/embedding"}
    for name, array in flat(base).items():
        np.testing.assert_array_equal(left[name], array, err_msg=name)


@pytest.mark.parametrize("based", ["t5_1_1"], indirect=True)
def test_every_token_is_folded_as_the_encoder_embeds_it(based):
    """By the network's own embedding: its input to block 0, for each token of the vocabulary."""
    config, base, _ = based
    method = METHODS["adalink"](rank=3, activation="gelu")
    adapter = random_adapter(config, method)
    params = merge(base, adapter)
    tokens = np.arange(config.vocab_size, dtype=np.int32)[None]
    seen = []

    class Spy(METHODS["adalink"]):
        def inputs(self, x, ctx):
            x, ctx = super().inputs(x, ctx)
            if ctx.stack == "encoder":
                seen.append(x)
            return x, ctx

    model = Transformer(config, Spy(**dataclasses.asdict(method)))
    model.apply({"params": params}, tokens, enable_dropout=False, method="encode")
    folded = method.fold(base, adapter, 0)["encoder"]["token_embedder"]["embedding"]
    np.testing.assert_allclose(seen[0][0], folded, rtol=0, atol=1e-6)


def test_folding_goes_over_the_table_in_parts(based, monkeypatch):
    from adalink_jax.methods import embeddings

    config, base, _ = based
    method = METHODS["adalink"](rank=3)
    adapter = random_adapter(config, method)
    whole = method.fold(base, adapter, 0)["encoder"]["token_embedder"]["embedding"]
    monkeypatch.setattr(embeddings, "_ROWS", 7)
    parts = method.fold(base, adapter, 0)["encoder"]["token_embedder"]["embedding"]
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("based", mostly_slow(["t5_1_1", "t5_1_0"], ["t5_1_1"]), indirect=True)
def test_a_folded_base_can_be_adapted_and_folded_again(based):
    config, base, batch = based
    method = METHODS["adalink"](rank=2)
    first, second = (random_adapter(config, method, seed) for seed in (1, 2))
    once = method.fold(base, first, 0)
    config = dataclasses.replace(config, separate_encoder_embedding=True)
    twice = method.fold(once, second, 0)
    np.testing.assert_allclose(
        logits(config, twice, batch),
        logits(config, merge(once, second), batch, method),
        atol=1e-5,
        rtol=0,
    )


LORAS = {
    "encoder": {},
    "both stacks": {"stacks": ("encoder", "decoder"), "layers": (0,), "alpha": 3.0},
    "decoder": {"stacks": ("decoder",), "linears": ("*/query", "mlp/wo"), "routes": 3},
    "one linear": {"layers": (1,), "linears": ("attention/out",), "dropout_rate": 0.5},
}


@pytest.mark.parametrize(
    ("based", "name"),
    mostly_slow(
        [(kind, name) for kind in ("t5_1_1", "t5_1_0") for name in LORAS],
        [("t5_1_1", "decoder"), ("t5_1_0", "both stacks")],
    ),
    indirect=["based"],
)
def test_a_folded_lora_is_the_unfolded_one(based, name):
    config, base, batch = based
    method = METHODS["lora"](rank=2, **LORAS[name])
    adapter = random_adapter(config, method, scale=0.1)
    modules = flat(adapter)
    for route in range(method.routes):
        folded = method.fold(base, adapter, route)
        found = flat(folded)
        assert found.keys() == flat(base).keys()
        for name, array in flat(base).items():
            lora = name.replace("/kernel", "/lora")
            if f"{lora}/down" in modules:
                down, up = (
                    modules[f"{lora}/{part}"][route].astype(np.float64) for part in ("down", "up")
                )
                array = array + method.alpha / method.rank * down @ up
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(
            logits(config, folded, batch),
            logits(config, merge(base, adapter), batch, method, route),
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize("name", ["vera", "peanut"])
def test_folded_kernels_are_the_unfolded_ones(based, name):
    config, base, batch = based
    method = METHODS[name](
        rank=3, linears=("*/query", "mlp/*"), stacks=("encoder", "decoder"), layers=(0,), routes=2
    )
    adapter = random_adapter(config, method)
    folded = method.fold(base, adapter, 1)
    changed = {n for n, x in flat(folded).items() if np.any(x != flat(base)[n])}
    assert changed == {f"{place}/kernel" for place, _ in modules_of(adapter, name)}
    np.testing.assert_allclose(
        logits(config, folded, batch),
        logits(config, merge(base, adapter), batch, method, 1),
        atol=1e-5,
        rtol=0,
    )


def test_what_cannot_be_folded_says_why(based):
    config, base, _ = based
    both = METHODS["adalink"](rank=2, stacks=("encoder", "decoder"))
    with pytest.raises(UserError, match="decoder's token table is the base's shared one"):
        both.fold(base, random_adapter(config, both), 0)
    prompt = METHODS["prompt_tuning"](length=2)
    with pytest.raises(UserError, match="cannot be folded: its vectors stand in front"):
        prompt.fold(base, {}, 0)


def test_full_fine_tuning_is_its_own_fold(based):
    _, base, _ = based
    trained = jax.tree.map(lambda x: x + 1, base)
    assert METHODS["full"]().fold(base, trained, 0) == trained


def test_a_new_method_refuses_until_it_says_otherwise():
    from adalink_jax.methods.base import Method

    with pytest.raises(UserError, match="cannot be folded"):
        Method().fold({}, {}, 0)
