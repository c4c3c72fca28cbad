"""A T5 encoder that begins as the teacher, a BERT: its weights in T5's places.

A BERT normalizes after each sum, a T5 before each block; a T5 has no biases, and its positions are
biases of the attention. So the two are not the same function, but near:

* BERT's stream after a sum is h' = γ·(h + a - mean)/σ + β. With σ as its mean over a text, that is
  affine, channel by channel. So T5's stream s has h = C·s + c: what a block adds is divided by C,
  and T5's norm before a block multiplies by C.
* One channel more of the stream is constant; the kernels' rows for it hold BERT's biases.
* What a token's place adds to BERT's attention logits, by distance, is T5's table of relative
  position biases, one a layer.

Training does the rest.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.models.config import T5Config
from adalink_jax.models.layers import relative_position_bucket
from adalink_jax.tools.english_base import teacher

_EXTRA = 32  # Channels that the stream has beside the teacher's; the first is the constant.
_CONSTANT = 1.0


def config_of(weights: Mapping[str, Any], heads: int) -> T5Config:
    """Returns the architecture of a T5 that can begin as a teacher."""
    width = weights["embeddings.LayerNorm.weight"].shape[0]
    return T5Config(
        vocab_size=len(weights[teacher.WORDS]) - 1,
        emb_dim=width + _EXTRA,
        num_heads=heads,
        num_encoder_layers=teacher.layers(weights),
        num_decoder_layers=2,
        head_dim=width // heads,
        mlp_dim=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
        mlp_activations=("gelu",),
        logits_via_embedding=True,
        relpos_bias_per_layer=True,
    )


class Calibration(NamedTuple):
    """What the teacher does with a text.

    Attributes:
      streams: [2·layers + 1, rows, T, D], what each block sees, and the last layer's output;
        without what a token's place adds.
      places: [2·layers + 1, T, D], what a place adds.
      biases: [layers, N, buckets], what a distance adds to the attention's logits.
    """

    streams: np.ndarray
    places: np.ndarray
    biases: np.ndarray


def calibrate(weights: Mapping[str, jax.Array], heads: int, tokens: np.ndarray) -> Calibration:
    """Runs the teacher on rows of text.

    Args:
      weights: the teacher's, in float32.
      heads: the number of its heads.
      tokens: [rows, T], rows without padding.
    """

    @jax.jit
    def streams(ids):
        found, last = teacher.blocks(weights, heads, ids)
        return jnp.stack([*(block.stream for block in found), last])[:, :, 1:]

    ids = teacher.wrapped(weights, tokens)
    found = np.concatenate([np.asarray(streams(some)) for some in np.split(ids, 8)], 1)
    # A place's own part is the mean over rows, less the mean over places.
    places = found.mean(1)
    places -= places.mean(1, keepdims=True)
    biases = [
        _distance_biases(weights, heads, i, found[2 * i], places[2 * i])
        for i in range(teacher.layers(weights))
    ]
    return Calibration(found - places[:, None], places, np.stack(biases))


def _distance_biases(weights, heads, layer, stream, places) -> np.ndarray:
    """Returns what a distance adds to a layer's logits, [N, buckets]: a fit by least squares.

    The logits with and without the places differ by d[query, key]. Softmax ignores what belongs to
    a query alone, so d = table[distance] + query's own.
    """

    @jax.jit
    def difference(stream):
        with_places = teacher.attention_logits(weights, heads, layer, stream)
        without = teacher.attention_logits(weights, heads, layer, stream - places)
        return (with_places - without).mean(0)

    parts = [np.asarray(difference(some)) for some in np.split(stream, 8)]
    added = np.mean(parts, 0)
    length = added.shape[-1]
    at = np.arange(length)
    bucket = np.asarray(relative_position_bucket(at[None] - at[:, None]))
    counts = np.bincount(bucket.ravel(), minlength=32)
    fit = np.zeros((heads, 32))
    for _ in range(20):
        left = added - fit[:, bucket]
        left = added - left.mean(-1, keepdims=True)
        sums = np.stack([np.bincount(bucket.ravel(), one.ravel(), 32) for one in left])
        fit = sums / np.maximum(counts, 1)
    # Distances that no row has are as the farthest that one has.
    for side in (range(16), range(16, 32)):
        known = [i for i in side if counts[i]]
        for i in side:
            if not counts[i] and known:
                fit[:, i] = fit[:, known[-1]]
    return fit - fit[:, :1]


def encoder(
    weights: Mapping[str, jax.Array],
    config: T5Config,
    tokens: np.ndarray,
    calibration: Calibration,
) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    """Makes the token table and the encoder's parameters.

    Layer by layer, T5's stream on the text is fitted to the teacher's, channel by channel: the gain
    of its norm, what a block adds, and the constant.

    Args:
      weights: the teacher's, in float32.
      config: see `config_of`.
      tokens: [rows, T], those of the calibration.
      calibration: see `calibrate`.

    Returns:
      The token table [V, D], the encoder's tree, and for each layer how its output is put into the
      teacher's units (see `viewed`).
    """
    width = config.emb_dim - _EXTRA
    places = np.asarray(weights["embeddings.position_embeddings.weight"])[1 : tokens.shape[1] + 1]
    rows = np.asarray(weights[teacher.WORDS])[: config.vocab_size] + places.mean(0)
    rows = rows + np.asarray(weights["embeddings.token_type_embeddings.weight"])[0]
    rows = np.asarray(teacher.norm(weights, "embeddings", jnp.asarray(rows)))
    rows = rows - rows.mean(1, keepdims=True)
    extra = np.zeros((len(rows), _EXTRA), np.float32)
    extra[:, 0] = _CONSTANT
    embedding = np.concatenate([rows, extra], 1)
    s, tree, views = embedding[tokens], {}, {}
    for i in range(config.num_encoder_layers):
        layer = {"relpos_bias": {"rel_embedding": calibration.biases[i].astype(np.float32)}}
        for j, (block, make, run) in enumerate(
            (("attention", _attention, _run_attention), ("mlp", _mlp, _run_mlp))
        ):
            gain, constant, slope = _fit(s, calibration.streams[2 * i + j], width)
            if i > 0 and j == 0:
                views[str(i - 1)] = {"gain": gain[:width], "constant": constant}
            layer[f"pre_{block}_layer_norm"] = {"scale": gain}
            layer[block] = make(weights, config, i, constant, slope)
            s = s + _on_rows(run, config, layer, s)
        tree[f"layers_{i}"] = layer
    gain, constant, _ = _fit(s, calibration.streams[-1], width)
    tree["encoder_norm"] = {"scale": gain}
    views[str(config.num_encoder_layers - 1)] = {"constant": constant}
    return embedding, tree, views


def viewed(stream: jax.Array, view: Mapping[str, jax.Array]) -> jax.Array:
    """Returns a stream in the teacher's units, [..., width].

    Args:
      stream: [..., D], a layer's output; the last layer's after the encoder's norm.
      view: `constant` [width] and, but for the last layer's, `gain` [width].
    """
    if "gain" in view:
        mean_square = jnp.mean(jnp.square(stream), -1, keepdims=True)
        stream = stream * jax.lax.rsqrt(mean_square + 1e-6)
    width = len(view["constant"])
    return stream[..., :width] * view.get("gain", 1.0) + view["constant"]


def _fit(s: np.ndarray, h: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits the teacher's stream by T5's.

    Returns:
      The norm's gain [D], the constant [width] with h = gain·norm(s) + constant, and the slope
      [width] of h over s.
    """
    s, h = s.reshape(-1, s.shape[-1]), h.reshape(-1, width)
    unit = s / np.sqrt(np.mean(np.square(s), -1, keepdims=True) + 1e-6)
    gain = np.ones(s.shape[-1], np.float32)
    gain[:width] = _slope(unit[:, :width], h)
    gain[width] = 1 / unit[:, width].mean()
    constant = h.mean(0) - gain[:width] * unit[:, :width].mean(0)
    slope = _slope(s[:, :width], h)
    # A channel in which the two hardly agree has no slope of its own: what a block adds is divided
    # by it.
    middle = max(np.median(slope), 0.01)
    return gain, constant, np.clip(slope, middle / 4, middle * 4)


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(0), y - y.mean(0)
    return ((x * y).mean(0) / (x * x).mean(0)).astype(np.float32)


def _attention(weights, config: T5Config, i: int, constant, slope) -> dict[str, Any]:
    name = f"encoder.layer.{i}.attention"
    query, key, value = (
        np.asarray(weights[f"{name}.self.{part}.weight"]).T for part in ("query", "key", "value")
    )
    out = np.asarray(weights[f"{name}.output.dense.weight"]).T
    scale = np.sqrt(config.head_dim)
    bias = constant @ query + np.asarray(weights[f"{name}.self.query.bias"])
    # The constant parts of keys and values change nothing: the softmax ignores the first, and the
    # second adds the same to each token, which the next fit finds.
    return {
        "query": {"kernel": _inner(query / scale, bias / scale)},
        "key": {"kernel": _inner(key, None)},
        "value": {"kernel": _inner(value, None)},
        "out": {"kernel": _outer(out, slope)},
    }


def _mlp(weights, config: T5Config, i: int, constant, slope) -> dict[str, Any]:
    del config
    name = f"encoder.layer.{i}"
    inner = np.asarray(weights[f"{name}.intermediate.dense.weight"]).T
    bias = constant @ inner + np.asarray(weights[f"{name}.intermediate.dense.bias"])
    outer = np.asarray(weights[f"{name}.output.dense.weight"]).T
    return {"wi": {"kernel": _inner(inner, bias)}, "wo": {"kernel": _outer(outer, slope)}}


def _inner(kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Returns a kernel with the rows of the other channels; the constant's has the bias."""
    extra = np.zeros((_EXTRA, kernel.shape[1]), np.float32)
    if bias is not None:
        extra[0] = bias
    return np.concatenate([kernel, extra]).astype(np.float32)


def _outer(kernel: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Returns a kernel onto T5's stream: centered, as BERT's norm does, and in its units."""
    kernel = (kernel - kernel.mean(1, keepdims=True)) / slope
    return np.pad(kernel, ((0, 0), (0, _EXTRA))).astype(np.float32)


def _on_rows(run, config: T5Config, layer: Mapping[str, Any], s: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(run(config, layer, some)) for some in np.split(s, 8)])


def _run_attention(config: T5Config, layer: Mapping[str, Any], s: np.ndarray) -> jax.Array:
    x = _normed(s, layer["pre_attention_layer_norm"]["scale"])
    shape = (*x.shape[:2], config.num_heads, config.head_dim)
    q, k, v = (
        (x @ layer["attention"][part]["kernel"]).reshape(shape)
        for part in ("query", "key", "value")
    )
    at = jnp.arange(x.shape[1])
    bucket = relative_position_bucket(at[None] - at[:, None])
    logits = jnp.einsum("bqnk,bsnk->bnqs", q, k)
    logits = logits + layer["relpos_bias"]["rel_embedding"][:, bucket]
    mixed = jnp.einsum("bnqs,bsnk->bqnk", jax.nn.softmax(logits), v).reshape(*x.shape[:2], -1)
    return mixed @ layer["attention"]["out"]["kernel"]


def _run_mlp(config: T5Config, layer: Mapping[str, Any], s: np.ndarray) -> jax.Array:
    del config
    x = _normed(s, layer["pre_mlp_layer_norm"]["scale"])
    return jax.nn.gelu(x @ layer["mlp"]["wi"]["kernel"]) @ layer["mlp"]["wo"]["kernel"]


def _normed(s: np.ndarray, gain: np.ndarray) -> jax.Array:
    x = jnp.asarray(s)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * gain


def reading(
    embedding: np.ndarray, tokens: np.ndarray, view: Mapping[str, Any], outputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Makes kernels of an attention to the encoder that gives back what word stands there.

    Args:
      embedding: [V, D], the token table.
      tokens: [rows, T], those of the calibration.
      view: how the encoder's output is put into the teacher's units.
      outputs: [rows, T, width], the teacher's last layer there.

    Returns:
      The kernels of the values [D, width] and of the output [width, D]: their product takes an
      output of the encoder to the embedding of its token, as near as a linear map can.
    """
    width = outputs.shape[-1]
    x = (outputs - view["constant"]).reshape(-1, width)
    y = embedding[tokens].reshape(-1, embedding.shape[1])
    y = y - embedding.mean(0)
    gram = x.T @ x
    map_ = np.linalg.solve(gram + 1e-2 * np.trace(gram) / width * np.eye(width), x.T @ y)
    value = np.eye(embedding.shape[1], width, dtype=np.float32)
    return value, map_.astype(np.float32)
