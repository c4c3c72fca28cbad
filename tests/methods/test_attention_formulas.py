"""Keys, values and gates that methods put into attention and blocks, against NumPy."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Context, Site
from adalink_jax.models.layers import Attention
from tests.methods.test_oracles import BOTH, CONFIG


def heads(x, kernel):
    return (x @ kernel).reshape(*x.shape[:2], CONFIG.num_heads, CONFIG.head_dim)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def unipelt_gate(leaves, x, real, stack, segments=None):
    """σ(x·w + b), in the encoder its mean over the real tokens of an example: [B,T,1]."""
    gate = 1 / (1 + np.exp(-(x @ leaves["weights"][0] + leaves["bias"][0])))
    if stack == "decoder":
        return gate[..., None]
    segments = real.astype(int) if segments is None else segments
    means = np.zeros_like(gate)
    for row, own, ids in zip(means, gate, segments, strict=True):
        for segment in set(ids) - {0}:
            row[ids == segment] = own[ids == segment].mean()
    return means[..., None]


@pytest.mark.parametrize("stack", BOTH)
def test_gates_are_their_formula(stack):
    """LoRA's is each token's own, a bottleneck's its example's mean; packed rows too."""
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((2, 6, 8), np.float32) for _ in range(2))
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
    ctx = Context(mask=segments > 0, segment_ids=segments, stack=stack, width=8)

    class Hook(nn.Module):
        method: Any

        @nn.compact
        def __call__(self):
            if self.method.scope == "lora":
                return self.method.linear(x, y, None, Site(stack, "mlp", "wo"), ctx)
            return self.method.sublayer(y, x, x, Site(stack, "mlp"), ctx)

    for name, settings in (("lora", {"stacks": BOTH}), ("bottleneck", {"source": "input"})):
        added = []
        for gated in (True, False):
            hook = Hook(METHODS[name](rank=2, gated=gated, **settings))
            if gated:
                params = hook.init(jax.random.key(0))["params"]
                params = jax.tree.map(
                    lambda p: rng.normal(0, 0.5, p.shape).astype(np.float32), params
                )
            added.append(hook.apply({"params": params}) - y)
        of_token = "decoder" if name == "lora" else stack
        gate = unipelt_gate(params[name]["gate"], x, segments > 0, of_token, segments)
        real = segments > 0
        np.testing.assert_allclose(added[0][real], (gate * added[1])[real], atol=1e-5)
        assert np.abs(added[1] - added[0]).max() > 0.1


@pytest.mark.parametrize("block", ["attention", "encoder_decoder_attention"])
def test_a_prefix_and_zero_init_attention_are_their_formulas(block):
    """Attention in NumPy: over [K_p; K], and with tanh(g)·softmax(q·K_p)·V_p added to it."""
    rng = np.random.default_rng(2)
    x, source = (rng.standard_normal((2, n, CONFIG.emb_dim), np.float32) for n in (5, 7))
    cross = block != "attention"
    source = source if cross else x
    length, before = source.shape[1], 3
    mask = rng.random((2, 1, 5, length)) < 0.7
    mask[..., 0] = True
    bias, front = (
        rng.standard_normal((1, CONFIG.num_heads, 5, n)).astype(np.float32)
        for n in (length, before)
    )
    site = Site("decoder" if cross else "encoder", block)
    real = np.arange(5) < np.array([[5], [4]])
    context = Context(mask=real, memory_bias=front, width=CONFIG.emb_dim, stack=site.stack)
    names = ("query", "key", "value")
    for method in (
        METHODS["prefix_tuning"](length=before),
        METHODS["prefix_tuning"](length=before, gated=True),
        METHODS["llama_adapter"](length=before, stacks=BOTH),
    ):
        module = Attention(CONFIG, site, method)
        given = (x, source, context, context, x, mask, None if cross else bias)
        params = module.init(jax.random.key(0), *given)["params"]
        params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(np.float32), params)
        found = module.apply({"params": params}, *given)

        kernels = {name: params[name]["kernel"] for name in (*names, "out")}
        q, k, v = (heads(t, kernels[n]) for t, n in zip((x, source, source), names, strict=True))
        own, seen, added = params.get(method.scope), mask, 0.0
        gate = np.ones((2, 1, 5, length + before), np.float32)
        its_bias = np.zeros_like(bias) if cross else bias
        if method.scope == "prefix_tuning":
            shape = (2, before, CONFIG.num_heads, CONFIG.head_dim)
            rows = {
                name: np.broadcast_to(own[name][0].reshape(shape[1:]), shape)
                for name in ("keys", "values")
            }
            k, v = np.concatenate([rows["keys"], k], 1), np.concatenate([rows["values"], v], 1)
            if method.gated:
                gate[..., :before] = unipelt_gate(own["gate"], x, real, site.stack)[:, None]
            seen = np.concatenate([np.ones((2, 1, 5, before), bool), mask], -1)
            its_bias = np.concatenate([np.zeros_like(front) if cross else front, its_bias], -1)
        elif not cross:
            prompt = np.broadcast_to(own["prompt"], (2, *own["prompt"].shape[1:]))
            weights = softmax(np.einsum("bqnc,bpnc->bnqp", q, heads(prompt, kernels["key"])))
            look = np.einsum("bnqp,bpnc->bqnc", weights, heads(prompt, kernels["value"]))
            added = np.tanh(own["gate"][0])[:, None] * look
        gate = gate[..., : k.shape[1]]
        logits = np.einsum("bqnc,bknc->bnqk", q, k) * gate + its_bias
        weights = softmax(np.where(seen, logits, -1e10)) * gate
        y = np.einsum("bnqk,bknc->bqnc", weights, v) + added
        expected = y.reshape(2, 5, -1) @ kernels["out"]
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=method.scope)
