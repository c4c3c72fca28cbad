"""Prompt tuning against virtual tokens of the plain network, and its initialisations."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.models.parameters import init_adapter
from adalink_jax.models.t5 import Transformer

TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")


def make(tiny, token_ids=(), **kwargs):
    config, base, _ = tiny
    method = METHODS["prompt_tuning"](**{"length": 3, "bottleneck": 4, **kwargs})
    adapter = init_adapter(config, method, base, jax.random.key(0), token_ids)
    return method, adapter, adapter["encoder"]["prompt_tuning"]


def test_prompts_are_virtual_tokens_bit_for_bit(tiny):
    """P more rows in the table and P virtual tokens in front give the same bits."""
    config, base, batch = tiny
    method, adapter, scope = make(tiny, reparameterise=False, initialisation="random")
    inputs = [batch[name] for name in TOKENS]

    def logits(model, params, tokens):
        return jax.jit(
            lambda params: model.apply(
                {"params": params}, tokens, *inputs[1:], enable_dropout=False
            )
        )(params)

    prompted = logits(Transformer(config, method), merge(base, adapter), inputs[0])
    table = np.concatenate([base["token_embedder"]["embedding"], scope["prompt"][0]])
    wider = dataclasses.replace(config, vocab_size=config.vocab_size + 3)
    virtual = np.broadcast_to(config.vocab_size + np.arange(3, dtype=np.int32), (4, 3))
    plain = logits(
        Transformer(wider),
        {
            **base,
            "token_embedder": {"embedding": table},
            "decoder": {
                **base["decoder"],
                # More rows in the table ask for as many columns of logits, which are cut below.
                "logits_dense": {
                    "kernel": np.pad(base["decoder"]["logits_dense"]["kernel"], ((0, 0), (0, 3)))
                },
            },
        },
        np.concatenate([virtual, inputs[0]], axis=1),
    )
    np.testing.assert_array_equal(prompted, plain[..., : config.vocab_size])


def test_reparameterisation_against_numpy(tiny):
    """P + LayerNorm(W2·relu(W1·P)); what is exported is its result, and gives the same logits."""
    config, base, batch = tiny
    method, adapter, scope = make(tiny)
    p, w1, w2 = (np.asarray(scope[name][0], np.float64) for name in ("prompt", "w1", "w2"))
    residual = np.maximum(p @ w1, 0) @ w2
    normed = residual - residual.mean(-1, keepdims=True)
    normed /= np.sqrt(residual.var(-1, keepdims=True) + 1e-6)
    exported, tree = method.export(adapter)
    np.testing.assert_allclose(tree["encoder"]["prompt_tuning"]["prompt"][0], p + normed, atol=1e-4)
    assert not exported.reparameterise
    inputs = [batch[name] for name in TOKENS]
    one, other = (
        jax.jit(functools.partial(Transformer(config, m).apply, enable_dropout=False))(
            {"params": merge(base, t)}, *inputs
        )
        for m, t in ((method, adapter), (exported, tree))
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_initialisations(tiny):
    table = np.asarray(tiny[1]["token_embedder"]["embedding"])
    prompt = make(tiny)[2]["prompt"][0]
    assert all(any(np.array_equal(row, entry) for entry in table[3:]) for row in prompt)
    prompt = make(tiny, [[5, 6], [7]], initialisation="class_labels")[2]["prompt"][0]
    np.testing.assert_allclose(prompt[0], (table[5] + table[6]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(prompt[1], table[7])
    prompt = make(tiny, [[9, 8]], initialisation="text", text="any")[2]["prompt"][0]
    np.testing.assert_array_equal(prompt, table[[9, 8, 9]])
    prompt = make(tiny, initialisation="random")[2]["prompt"][0]
    assert np.abs(prompt).max() <= 0.5


def test_which_texts_are_wanted():
    cls = METHODS["prompt_tuning"]
    assert cls().texts(["a", "b"]) == ()
    assert cls(initialisation="class_labels").texts(["a", "b"]) == ("a", "b")
    assert cls(initialisation="text", text="Say which:").texts(["a"]) == ("Say which:",)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length": 0}, "length is 0"),
        ({"initialisation": "vocab"}, "takes one of random"),
        ({"initialisation": "text"}, "goes with"),
        ({"text": "any"}, "goes with"),
        ({"dropout_rate": -0.1}, "dropout_rate is -0.1"),
    ],
)
def test_mistakes_are_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        METHODS["prompt_tuning"](**kwargs)


def test_labels_of_a_task_without_labels(tiny):
    with pytest.raises(UserError, match="the task has no labels"):
        make(tiny, [], initialisation="class_labels")


def test_packed_rows_are_refused(tiny):
    config, base, batch = tiny
    method, adapter, _ = make(tiny)
    with pytest.raises(UserError, match="set packing to False"):
        Transformer(config, method).apply(
            {"params": merge(base, adapter)},
            *(batch[name] for name in TOKENS),
            encoder_segment_ids=np.ones_like(batch["encoder_input_tokens"]),
            decoder_segment_ids=np.ones_like(batch["decoder_input_tokens"]),
            enable_dropout=False,
        )
