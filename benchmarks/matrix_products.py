"""Only the matrix products of a T5's training step or greedy decoding: the least to compute.

The network has no norms, softmax, biases, masks, activations, dropout, residuals, embeddings or
loss. It keeps the products of linear layers and of attention, with the same shapes and in the same
order, and those of a step's backward pass, as `jax.vjp` makes them.

Its numbers mean nothing but must stay finite. Queries, keys and gates are computed from the stack's
input and not from the previous layer, so that a deep chain of products stays linear.
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
      inputs: T, including the vectors that prompt tuning prepends.
      targets: L.
    """

    batch: int
    inputs: int
    targets: int


def make_weights(config: T5Config, shape: Shape, key: jax.Array) -> Weights:
    """Returns random kernels [Din, Dout] that keep a chain of products near unit variance."""
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
    # Replaces softmax by a factor that keeps the variance of attention's output.
    for w in weights["encoder"]:
        w["self"]["q"] *= (config.head_dim * shape.inputs) ** -0.5
    for w in weights["decoder"]:
        w["self"]["q"] *= (config.head_dim * shape.targets) ** -0.5
        w["cross"]["q"] *= (config.head_dim * shape.inputs) ** -0.5
    return weights


def _linear(x, kernel):
    # With a flat list of tokens, XLA does not transpose x for the kernel's gradient.
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def _attention(config: T5Config, w: Weights, queries, keys, values):
    """Attention without softmax, [B,Tq,D] from [B,Tq,D] and two of [B,Tk,D]."""

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
    """Maps [B,T,D] and [B,L,D] to [B,L,V]."""
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


def generate(config: T5Config, weights: Weights, inputs: jax.Array, length: int) -> jax.Array:
    """Greedy decoding of [B,T,D]: encodes it, then takes `length` steps of one token a row.

    As in the decoder's cache, the keys and values of the inputs are computed once, and each step
    attends over room for all `length` tokens.

    Returns:
      The sum over steps of the logits [B,V].
    """

    def heads(x, kernel):
        return _linear(x, kernel).reshape(*x.shape[:2], config.num_heads, config.head_dim)

    def attended(w, y, keys, values):
        logits = jnp.einsum("bqnk,bsnk->bnqs", heads(y, w["q"]), keys)
        found = jnp.einsum("bnqs,bsnk->bqnk", logits, values)
        return _linear(found.reshape(*found.shape[:2], -1), w["o"])

    x = inputs
    for w in weights["encoder"]:
        x = _attention(config, w["self"], inputs, inputs, x)
        x = _mlp(w["mlp"], inputs, x)
    layers = weights["decoder"]
    crossed = [(heads(inputs, w["cross"]["k"]), heads(x, w["cross"]["v"])) for w in layers]
    room = jnp.zeros((len(x), length, config.num_heads, config.head_dim), x.dtype)
    caches = [(room, room) for _ in layers]

    def step(state, number):
        first, total, caches = state
        y, grown = first, []
        for w, (keys, values), cross in zip(layers, caches, crossed, strict=True):
            new = heads(first, w["self"]["k"]), heads(y, w["self"]["v"])
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(old, one, number, axis=1)
                for old, one in zip((keys, values), new, strict=True)
            )
            grown.append((keys, values))
            y = attended(w["self"], y, keys, values)
            y = attended(w["cross"], y, *cross)
            y = _mlp(w["mlp"], first, y)
        logits = _linear(y, weights["logits"])
        # The next token comes from these logits, so a step waits for the one before it.
        following = first + 1e-6 * logits[..., : first.shape[-1]]
        return (following, total + logits[:, 0], grown), None

    start = inputs[:, :1], jnp.zeros((len(x), config.vocab_size), x.dtype), caches
    (_, total, _), _ = jax.lax.scan(step, start, jnp.arange(length))
    return total


def make_step(config: T5Config, *, weight_gradients: bool):
    """Builds ``step(weights, inputs [B,T,D], targets [B,L,D]) -> gradients``.

    Args:
      config: the architecture.
      weight_gradients: whether to compute the kernels' gradients too (full fine-tuning), or only
        those of the two stacks' inputs (a frozen base).
    """

    def step(weights, inputs, targets):
        def run(inputs, targets, weights=weights):
            return forward(config, weights, inputs, targets)

        arguments = (inputs, targets, weights) if weight_gradients else (inputs, targets)
        logits, backward = jax.vjp(run, *arguments)
        return backward(logits)

    return step


def flops(config: T5Config, shape: Shape, *, weight_gradients: bool) -> int:
    """Returns the FLOPs of `make_step`'s program, two per multiply-add.

    A linear layer's backward pass costs its forward pass once for the input's gradient and once
    for the kernel's. For each of attention's products it costs twice the forward pass.
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
