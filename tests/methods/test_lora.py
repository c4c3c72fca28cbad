"""LoRA against kernels into which its product was folded by NumPy."""

import functools

import jax
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.models.parameters import init_adapter
from adalink_jax.models.t5 import Transformer
from tests.methods.toys import blank
from tests.tiers import mostly_slow

TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, *tokens):
    return model.apply({"params": params}, *tokens, enable_dropout=False)


def names(adapter) -> set[str]:
    flat = traverse_util.flatten_dict(dict(adapter), sep="/")
    return {name.split("/lora/")[0] for name in flat}


BOTH = {"alpha": 2.0, "stacks": ("encoder", "decoder")}


@pytest.mark.parametrize(
    "kwargs",
    mostly_slow([{}, BOTH, {"linears": ("*attention/value", "mlp/wo"), "layers": (1,)}], [BOTH]),
)
def test_lora_equals_folded_kernels(tiny, kwargs):
    config, base, batch = tiny
    method = METHODS["lora"](rank=3, **kwargs)
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.2, blank(config, method)
    )
    inputs = [batch[name] for name in TOKENS]
    adapted = logits(Transformer(config, method), merge(base, adapter), *inputs)
    folded = traverse_util.flatten_dict(jax.tree.map(np.asarray, dict(base)), sep="/")
    flat = traverse_util.flatten_dict(adapter, sep="/")
    for site in names(adapter):
        down, up = flat[f"{site}/lora/down"][0], flat[f"{site}/lora/up"][0]
        folded[f"{site}/kernel"] = folded[f"{site}/kernel"] + method.alpha / 3 * (down @ up)
    plain = logits(Transformer(config), traverse_util.unflatten_dict(folded, sep="/"), *inputs)
    np.testing.assert_allclose(adapted, plain, atol=2e-4)


def test_which_layers_are_adapted(tiny):
    config, base, _ = tiny

    def sites(**kwargs):
        method = METHODS["lora"](rank=1, **kwargs)
        return names(init_adapter(config, method, base, jax.random.key(0)))

    attention = {"query", "key", "value", "out"}
    encoder = {f"attention/{name}" for name in attention} | {"mlp/wi_0", "mlp/wi_1", "mlp/wo"}
    assert sites() == {f"encoder/layers_{i}/{site}" for i in (0, 1) for site in encoder}
    assert sites(layers=[1], linears="mlp/wo") == {"encoder/layers_1/mlp/wo"}
    crossed = sites(stacks="decoder", linears="encoder_decoder_attention/*")
    assert crossed == {f"decoder/layers_0/encoder_decoder_attention/{name}" for name in attention}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 1, "linears": "attention/qeury"}, "did you mean 'attention/query'"),
        ({"rank": 1, "linears": "self_attention/*"}, "matches no linear layer of the encoder"),
        ({"rank": 1, "dropout_rate": 1.0}, "dropout_rate is 1.0"),
    ],
)
def test_mistakes_are_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        METHODS["lora"](**kwargs)


def test_a_layer_that_is_not_there_is_refused(tiny):
    config, base, _ = tiny
    with pytest.raises(UserError, match="the encoder has layers 0 to 1"):
        init_adapter(config, METHODS["lora"](rank=1, layers=(2,)), base, jax.random.key(0))
