"""The teacher: a BERT encoder that only looks at text, such as all-MiniLM-L6-v2."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.tools.english_base import packed

_WORDS = "embeddings.word_embeddings.weight"


def compress(folder: pathlib.Path, out: pathlib.Path) -> None:
    """Writes a BERT's weights as small integers, with a scale for each row of a matrix.

    6 bits are left of the word table and 7 of other matrices.

    Args:
      folder: has `model.safetensors` and `config.json`, as transformers writes them.
      out: the file, .npz.
    """
    import safetensors.numpy

    arrays = {}
    for name, array in safetensors.numpy.load_file(folder / "model.safetensors").items():
        if name.startswith("pooler") or name.endswith("position_ids"):
            continue
        if array.ndim == 2:
            scale = np.abs(array).max(1, keepdims=True) / (31 if name == _WORDS else 63)
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


def states(
    weights: Mapping[str, jax.Array], heads: int, ids: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Runs the encoder.

    Args:
      weights: see `load`.
      heads: the number of heads.
      ids: [B, T], 0 on padding; with the two special tokens.

    Returns:
      The outputs of all layers, [B, T, D] each, and the mean of the last over the tokens, of
      length 1: the embedding of the text, [B, D].
    """
    mask = ids > 0
    h = weights[_WORDS][ids] + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    h = _norm(weights, "embeddings", h + weights["embeddings.token_type_embeddings.weight"][0])
    outputs = []
    layers = 1 + max(
        int(m[1]) for name in weights if (m := re.match(r"encoder\.layer\.(\d+)", name))
    )
    for i in range(layers):
        name = f"encoder.layer.{i}"
        q, k, v = (
            _dense(weights, f"{name}.attention.self.{part}", h).reshape(*ids.shape, heads, -1)
            for part in ("query", "key", "value")
        )
        bias = jnp.where(mask, 0.0, -1e9)[:, None, None]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) / np.sqrt(q.shape[-1])
        seen = jax.nn.softmax(logits + bias).astype(h.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", seen, v).reshape(h.shape)
        out = f"{name}.attention.output"
        h = _norm(weights, out, h + _dense(weights, f"{out}.dense", mixed))
        inner = jax.nn.gelu(_dense(weights, f"{name}.intermediate.dense", h), approximate=False)
        h = _norm(weights, f"{name}.output", h + _dense(weights, f"{name}.output.dense", inner))
        outputs.append(h)
    weight = mask[..., None].astype(jnp.float32)
    mean = (h.astype(jnp.float32) * weight).sum(1) / weight.sum(1)
    return outputs, mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def _dense(weights: Mapping[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Mapping[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-12)
    scale, bias = (weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
    return (x * scale + bias).astype(scale.dtype)
