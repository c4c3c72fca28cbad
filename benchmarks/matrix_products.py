"""The matrix products of a T5 training step and nothing else: what the step cannot do without.

The network is stripped of norms, softmax, biases, masks, activations, dropouts, residuals,
embeddings and loss. What stays are the products of the linear layers and of attention, at the
same shapes and in the same order, and those of the backward pass, as `jax.vjp` makes them.

Its numbers mean nothing, but they must stay finite: queries, keys and gates are taken of the
stack's input rather than of the layer before, so that a deep chain of products stays linear.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from adalink_jax.models.t5 import T5Config

Weights = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a batch.

    Attributes:
      batch: B.
      inputs: T, with the vectors that prompt tuning puts in front.
      targets: L.
    """

    batch: int
    inputs: int
    targets: int


def make_weights(config: T5Config, shape: Shape, key: jax.Array) -> Weights:
    """Random kernels [Din, Dout] that keep a chain of products near unit variance."""
    width, hidden = config.num_heads * config.head_dim, config.mlp_dim
    attention = dict.fromkeys("qkv", (config.emb_dim, width)) | {"o": (width, config.emb_dim)}
    mlp = {f"wi_{i}": (config.emb_dim, hidden) for i in range(len(config.mlp_activations))}
    mlp["wo"] = (hidden, config.emb_dim)
    encoder = {"self": attention, "mlp": mlp}
    shapes = {
        "encoder": [encoder] * config.num_encoder_layers,
        "decoder": [encoder | {"cross": attention}] * config.num_decoder_layers,
        "logits": (config.emb_dim, config.vocab_size),
    }
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(leaves))
    kernels = [
        jax.random.normal(k, size, config.dtype) * size[0] ** -0.5
        for k, size in zip(keys, leaves, strict=True)
    ]
    weights = jax.tree.unflatten(tree, kernels)
    # In place of softmax, a factor that keeps the variance of attention's output.
    for w in weights["encoder"]:
        w["self"]["q"] *= (config.head_dim * shape.inputs) ** -0.5
    for w in weights["decoder"]:
        w["self"]["q"] *= (config.head_dim * shape.targets) ** -0.5
        w["cross"]["q"] *= (config.head_dim * shape.inputs) ** -0.5
    return weights


def _linear(x, kernel):
    # Over a flat list of tokens, or XLA would transpose x for the gradient of the kernel.
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def _attention(config: T5Config, w: Weights, queries, keys, values):
    """Attention whose logits are its weights, [B,Tq,D] from [B,Tq,D] and two of [B,Tk,D]."""

    def heads(x, kernel):
        return _linear(x, kernel).reshape(*x.shape[:2], config.num_heads, config.head_dim)

    q, k, v = heads(queries, w["q"]), heads(keys, w["k"]), heads(values, w["v"])
    logits = jnp.einsum("bqnk,bsnk->bnqs", q, k)
    y = jnp.einsum("bnqs,bsnk->bqnk", logits, v)
    return _linear(y.reshape(*y.shape[:2], -1), w["o"])


def _mlp(w: Weights, first, x):
    hidden = _linear(x, w["wi_0"])
    return _linear(hidden * _linear(first, w["wi_1"]) if "wi_1" in w else hidden, w["wo"])


def forward(config: T5Config, weights: Weights, inputs: jax.Array, targets: jax.Array):
    """[B,T,D] and [B,L,D] -> [B,L,V]."""
    x = inputs
    for w in weights["encoder"]:
        x = _attention(config, w["self"], inputs, inputs, x)
        x = _mlp(w["mlp"], inputs, x)
    y = targets
    for w in weights["decoder"]:
        y = _attention(config, w["self"], targets, targets, y)
        y = _attention(config, w["cross"], y, inputs, x)
        y = _mlp(w["mlp"], targets, y)
    return _linear(y, weights["logits"])


def make_step(config: T5Config, *, weight_gradients: bool):
    """Builds ``step(weights, inputs [B,T,D], targets [B,L,D]) -> gradients``.

    Args:
      config: the architecture.
      weight_gradients: whether gradients of the kernels are taken too (full fine-tuning), or
        only those of the two stacks' inputs (a frozen base).
    """

    def step(weights, inputs, targets):
        def run(inputs, targets, weights=weights):
            return forward(config, weights, inputs, targets)

        arguments = (inputs, targets, weights) if weight_gradients else (inputs, targets)
        logits, backward = jax.vjp(run, *arguments)
        return backward(logits)

    return step


def flops(config: T5Config, shape: Shape, *, weight_gradients: bool) -> int:
    """Floating-point operations of `make_step`'s program, two to a multiply-add.

    A linear layer's backward pass costs once its forward pass for the input's gradient and once
    for the kernel's; that of either product of attention costs twice its forward pass.
    """
    batch, width = shape.batch, config.num_heads * config.head_dim
    inputs, targets = batch * shape.inputs, batch * shape.targets
    projection = config.emb_dim * width
    mlp = config.emb_dim * config.mlp_dim * (len(config.mlp_activations) + 1)
    encoder = inputs * (4 * projection + mlp)
    decoder = targets * (6 * projection + mlp) + inputs * 2 * projection
    linear = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
    linear += targets * config.emb_dim * config.vocab_size
    attention = config.num_encoder_layers * inputs * shape.inputs
    attention += config.num_decoder_layers * targets * (shape.targets + shape.inputs)
    return 2 * ((3 if weight_gradients else 2) * linear + 3 * 2 * width * attention)
