"""The teacher: a BERT encoder that only looks at text, such as all-MiniLM-L6-v2."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.tools.english_base import packed

WORDS = "embeddings.word_embeddings.weight"


def compress(folder: pathlib.Path, out: pathlib.Path, rows: Sequence[int]) -> None:
    """Writes a BERT's weights as 8-bit integers, with a scale for each row of a matrix.

    Args:
      folder: has `model.safetensors` and `config.json`, as transformers writes them.
      out: the file, .npz.
      rows: those of the word table that are kept, in the order of their new ids.
    """
    import safetensors.numpy

    arrays = {}
    for name, array in safetensors.numpy.load_file(folder / "model.safetensors").items():
        if name.startswith("pooler") or name.endswith("position_ids"):
            continue
        if name == WORDS:
            array = array[np.asarray(rows)]
        if array.ndim == 2:
            scale = np.abs(array).max(1, keepdims=True) / 127
            arrays[f"{name}:int8"] = np.round(array / np.maximum(scale, 1e-12)).astype(np.int8)
            array = scale
        arrays[name] = array.astype(np.float32)
    heads = json.loads((folder / "config.json").read_text())["num_attention_heads"]
    packed.write(out, {"heads": heads, **arrays})


def load(path: pathlib.Path, dtype: Any) -> tuple[dict[str, jax.Array], int]:
    """Reads what `compress` wrote: the weights by their names, and the number of heads."""
    with np.load(path) as file:
        scales = {name: file[name] for name in file.files if ":" not in name and name != "heads"}
        whole = {
            name: scale * file[f"{name}:int8"] if f"{name}:int8" in file.files else scale
            for name, scale in scales.items()
        }
        return {name: jnp.asarray(array, dtype) for name, array in whole.items()}, int(
            file["heads"]
        )


class Block(NamedTuple):
    """What one block of a layer, attention or MLP, does to the stream.

    Attributes:
      stream: [B, T, D], what the block sees.
      logits: [B, N, T, T], the attention's, before the mask; None for an MLP.
    """

    stream: jax.Array
    logits: jax.Array | None


def layers(weights: Mapping[str, Any]) -> int:
    """Returns the number of layers."""
    return 1 + max(int(m[1]) for name in weights if (m := re.match(r"encoder\.layer\.(\d+)", name)))


def wrapped(weights: Mapping[str, Any], ids: Any) -> jax.Array:
    """Returns rows of ids behind the token that begins each of a BERT's rows, the table's last."""
    return jnp.pad(jnp.asarray(ids), ((0, 0), (1, 0)), constant_values=len(weights[WORDS]) - 1)


def embedded(weights: Mapping[str, jax.Array], ids: jax.Array) -> jax.Array:
    """Returns the stream before the first layer, [B, T, D], of ids [B, T]."""
    h = weights[WORDS][ids] + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    return norm(weights, "embeddings", h + weights["embeddings.token_type_embeddings.weight"][0])


def blocks(
    weights: Mapping[str, jax.Array], heads: int, ids: jax.Array
) -> tuple[list[Block], jax.Array]:
    """Runs the encoder.

    Args:
      weights: see `load`.
      heads: the number of heads.
      ids: [B, T], 0 on padding; with the special tokens.

    Returns:
      All blocks, attention and MLP in turn, and the last layer's output, [B, T, D].
    """
    h, found = embedded(weights, ids), []
    for i in range(layers(weights)):
        name, out = f"encoder.layer.{i}", f"encoder.layer.{i}.attention.output"
        logits = attention_logits(weights, heads, i, h)
        found.append(Block(h, logits))
        seen = jax.nn.softmax(jnp.where((ids > 0)[:, None, None], logits, -1e9)).astype(h.dtype)
        value = _dense(weights, f"{name}.attention.self.value", h)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", seen, value.reshape(*ids.shape, heads, -1))
        h = norm(weights, out, h + _dense(weights, f"{out}.dense", mixed.reshape(h.shape)))
        found.append(Block(h, None))
        inner = jax.nn.gelu(_dense(weights, f"{name}.intermediate.dense", h), approximate=False)
        h = norm(weights, f"{name}.output", h + _dense(weights, f"{name}.output.dense", inner))
    return found, h


def attention_logits(
    weights: Mapping[str, jax.Array], heads: int, layer: int, h: jax.Array
) -> jax.Array:
    """Returns a layer's attention logits, [B, N, T, T] in float32, of its input."""
    q, k = (
        _dense(weights, f"encoder.layer.{layer}.attention.self.{part}", h)
        for part in ("query", "key")
    )
    q, k = (part.reshape(*h.shape[:2], heads, -1) for part in (q, k))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    return logits / np.sqrt(q.shape[-1])


def embedding(h: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean of a last layer's outputs over the tokens, of length 1, [B, D]."""
    weight = mask[..., None].astype(jnp.float32)
    mean = (h.astype(jnp.float32) * weight).sum(1) / weight.sum(1)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def _dense(weights: Mapping[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights: Mapping[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """Returns a layer norm of x, [..., D]; its parameters are those under a name."""
    x = x.astype(jnp.float32)
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-12)
    scale, bias = (weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
    return (x * scale + bias).astype(scale.dtype)
