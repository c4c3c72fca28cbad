"""Hugging Face's folders of T5, and of BLIP-2 around a T5: safetensors, single or sharded.

Its linear layers store the transpose of T5X's kernels. Each stack's relative position biases are
in its first block, also transposed. The encoder, the decoder and, in T5 1.0, the output layer
share one table; a file may hold it under several names. T5 1.0 scales the decoder's output by 1/√D
before its tied output layer. ``scale_decoder_outputs`` records this, or ``tie_word_embeddings`` in
configurations of transformers before version 5; later versions set that to true for every T5.

BLIP-2's folder is a T5 with a projection of image tokens; its image encoder is read on its own
(`adalink_jax.checkpoints.formats.vision`).

Source of the format: transformers 5.23, models/t5, models/mt5 and models/blip_2.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.architecture import expected_shapes
from adalink_jax.checkpoints.formats.companions import (
    GENERATION,
    IDS,
    check_ids,
    keep,
    read_settings,
)
from adalink_jax.checkpoints.formats.safetensors_files import (
    SHARD_INDEX,
    WEIGHTS,
    Tensor,
    open_folder,
    write_tensors,
)
from adalink_jax.checkpoints.lazy import Array, StoredBase, Transposed, open_arrays
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

CONFIG = "config.json"
OTHER_WEIGHTS = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "tf_model.h5",
)

# Values that are fixed in T5X, which a config.json must have.
_FIXED = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "is_encoder_decoder": True,
}
# Field of config.json → field of T5Config.
_FIELDS = {
    "d_model": "emb_dim",
    "d_kv": "head_dim",
    "num_heads": "num_heads",
    "d_ff": "mlp_dim",
    "num_layers": "num_encoder_layers",
    "num_decoder_layers": "num_decoder_layers",
}
# transformers' name of an activation → ours. T5X's "gelu" is the tanh formula.
_ACTIVATIONS = {
    "relu": "relu",
    "gelu_new": "gelu",
    "gelu": "gelu_exact",
    "silu": "silu",
    "swish": "swish",
}
_SHARED = "shared.weight"
_ENCODER_TABLE = "encoder.embed_tokens.weight"
_DECODER_TABLE = "decoder.embed_tokens.weight"
_HEAD = "lm_head.weight"
# In early checkpoints. transformers ignores it, because cross-attention has no such bias.
_IGNORED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
# In a folder of BLIP-2: its T5, its image encoder, and the layer between them.
_LANGUAGE = "language_model."
_IMAGE_ENCODER = re.compile(r"vision_model\.|qformer\.|query_tokens$")
_PROJECTION = {
    "encoder/image_projection/kernel": "language_projection.weight",
    "encoder/image_projection/bias": "language_projection.bias",
}
_SHARD_BYTES = 5_000_000_000
_COMPARED_ROWS = 4096

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
# For each stack: T5X's name of a block → (its number in Hugging Face's layer, its module, the norm
# before it).
_BLOCKS = {
    "encoder": {
        "attention": (0, "SelfAttention", "pre_attention_layer_norm"),
        "mlp": (1, "DenseReluDense", "pre_mlp_layer_norm"),
    },
    "decoder": {
        "self_attention": (0, "SelfAttention", "pre_self_attention_layer_norm"),
        "encoder_decoder_attention": (1, "EncDecAttention", "pre_cross_attention_layer_norm"),
        "mlp": (2, "DenseReluDense", "pre_mlp_layer_norm"),
    },
}
_TOP = {
    "token_embedder/embedding": ("shared.weight", False),
    "encoder/token_embedder/embedding": ("encoder.embed_tokens.weight", False),
    "decoder/logits_dense/kernel": ("lm_head.weight", True),
    **{
        f"{stack}/relpos_bias/rel_embedding": (
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            True,
        )
        for stack in _BLOCKS
    },
    **{
        f"{stack}/{stack}_norm/scale": (f"{stack}.final_layer_norm.weight", False)
        for stack in _BLOCKS
    },
}


def tensor_names(config: T5Config) -> Mapping[str, tuple[str, bool]]:
    """Returns each parameter's name in transformers' T5, and whether it is transposed there.

    Args:
      config: a T5's architecture.

    Returns:
      T5X's ``"/"``-joined name → (the name in ``T5ForConditionalGeneration.state_dict()``, whether
      that is the transpose), for every parameter of the architecture.
    """
    if config.image_width is not None:
        raise UserError(
            "the base takes images, and transformers' T5 has no place for their projection; "
            "formats t5x and native have"
        )
    return {name: _TOP.get(name) or _in_block(name) for name in expected_shapes(config)}


def linear_modules(config: T5Config) -> dict[str, str]:
    """Returns each linear layer's name here → its module's name in transformers' T5."""
    return {
        name.removesuffix("/kernel"): torch_name.removesuffix(".weight")
        for name, (torch_name, _) in tensor_names(config).items()
        if "/layers_" in name and name.endswith("/kernel")
    }


def _in_block(name: str) -> tuple[str, bool]:
    stack, layer, part, *rest = name.split("/")
    for block, (number, module, norm) in _BLOCKS[stack].items():
        prefix = f"{stack}.block.{layer.removeprefix('layers_')}.layer.{number}"
        if part == norm:
            return f"{prefix}.layer_norm.weight", False
        if part == block:
            return f"{prefix}.{module}.{_ATTENTION.get(rest[0], rest[0])}.weight", True
    raise ValueError(f"{name} is no parameter of a T5")


def find_checkpoint(folder: Folder, children: Collection[str]) -> Folder | None:
    """Returns `folder` if it is in Hugging Face's format, else None.

    Raises:
      UserError: it is, but has no safetensors.
    """
    if CONFIG not in children:
        return None
    if WEIGHTS in children or SHARD_INDEX in children:
        return folder
    others = [name for name in OTHER_WEIGHTS if name in children]
    if not others:
        return None
    raise UserError(
        f"{folder}: a Hugging Face folder with {others[0]} alone, and no {WEIGHTS}; save it again"
        " with transformers: T5ForConditionalGeneration.from_pretrained(FOLDER)"
        ".save_pretrained(NEW_FOLDER, safe_serialization=True)"
    )


def open_base(folder: Folder, configured: T5Config | None = None) -> StoredBase:
    """Opens a Hugging Face folder; reads only headers, and tables stored under several names.

    Args:
      folder: the folder with ``config.json`` and the safetensors.
      configured: the expected architecture, or None.

    Raises:
      UserError: a file is damaged; tensors are missing, unexpected or of another shape; the
        tensors, ``config.json`` and the configured architecture disagree; or its special ids are
        not T5's.
    """
    settings = read_settings(folder, CONFIG)
    with_images = settings.get("model_type") == "blip-2"
    if with_images:
        settings = settings.get("text_config")
        if not isinstance(settings, dict):
            raise UserError(f"{folder / CONFIG}: no text_config, which every BLIP-2 has")
    kind = settings.get("model_type")
    if kind == "umt5":
        raise UserError(
            f"{folder / CONFIG}: model_type 'umt5', whose layers have relative position biases of"
            " their own; expected 't5' or 'mt5'"
        )
    if kind not in ("t5", "mt5"):
        raise UserError(
            f"{folder / CONFIG}: model_type {kind!r}; expected 't5', 'mt5', or 'blip-2' around one"
        )
    check_ids(settings, str(folder / CONFIG))
    if folder.holds_file(GENERATION):
        check_ids(read_settings(folder, GENERATION), str(folder / GENERATION))
    arrays: dict[str, Array] = {}
    if with_images:
        tensors, arrays = _without_images(open_folder(folder, _IMAGE_ENCODER), folder)
    else:
        tensors = open_folder(folder)
    tensors.pop(_IGNORED, None)
    activations = _activations(settings, folder)
    arrays |= _token_tables(tensors, settings, folder)
    arrays |= _renamed(tensors, len(activations), folder)
    base = open_arrays(arrays, str(folder), configured, activations)
    _check_settings(settings, base.config, folder)
    return dataclasses.replace(base, beside=folder)


def _without_images(
    held: Mapping[str, Tensor], folder: Folder
) -> tuple[dict[str, Tensor], dict[str, Array]]:
    """Returns the tensors of BLIP-2's T5, and those of its projection by their names here."""
    found = {theirs: held[theirs] for theirs in _PROJECTION.values() if theirs in held}
    for name in held:
        if not name.startswith(_LANGUAGE) and name not in found:
            raise UserError(f"{folder}: tensor {name}, which no BLIP-2 has")
    if missing := [name for name in _PROJECTION.values() if name not in found]:
        raise UserError(f"{folder}: no tensor {missing[0]}, which every BLIP-2 has")
    kernel, bias = _PROJECTION
    projection: dict[str, Array] = {
        kernel: Transposed(found[_PROJECTION[kernel]]),
        bias: found[_PROJECTION[bias]],
    }
    text = {n.removeprefix(_LANGUAGE): tensor for n, tensor in held.items() if n not in found}
    return text, projection


def _activations(settings: Mapping[str, Any], folder: Folder) -> tuple[str, ...]:
    """Returns the MLP's activations, from the fields of ``config.json`` that define them."""
    stated = settings.get("feed_forward_proj", "relu")
    *gate, function = str(stated).split("-")
    gated = gate == ["gated"]
    if stated == "gated-gelu" and settings.get("dense_act_fn") != "gelu":
        function = "gelu_new"  # What every T5 1.1 means by it; the FLAN-T5 of BLIP-2 says both.
    implied = {"dense_act_fn": function, "is_gated_act": gated}
    for name, value in implied.items():
        if settings.get(name, value) != value:
            raise UserError(
                f"{folder / CONFIG}: {name} is {settings[name]!r}, but feed_forward_proj {stated!r}"
            )
    if function not in _ACTIVATIONS or gate not in ([], ["gated"]):
        known = ", ".join(f"{name}, gated-{name}" for name in _ACTIVATIONS)
        raise UserError(f"{folder / CONFIG}: feed_forward_proj {stated!r}; expected {known}")
    return (_ACTIVATIONS[function], "linear") if gated else (_ACTIVATIONS[function],)


def _token_tables(
    tensors: dict[str, Tensor], settings: Mapping[str, Any], folder: Folder
) -> dict[str, Array]:
    """Removes the tables and the output layer from `tensors`; returns them by T5X's names."""
    stored = {
        name: tensors.pop(name)
        for name in (_SHARED, _DECODER_TABLE, _ENCODER_TABLE, _HEAD)
        if name in tensors
    }
    shared = stored.get(_SHARED, stored.get(_DECODER_TABLE, stored.get(_ENCODER_TABLE)))
    if shared is None:
        raise UserError(f"{folder}: no tensor {_SHARED}, which every T5 has")
    tables: dict[str, Array] = {"token_embedder/embedding": shared}
    if _DECODER_TABLE in stored and not _equal(shared, stored[_DECODER_TABLE]):
        raise UserError(
            f"{folder}: {_DECODER_TABLE} differs from {_SHARED}; a T5's decoder has no table of"
            " its own"
        )
    if _ENCODER_TABLE in stored and not _equal(shared, stored[_ENCODER_TABLE]):
        tables["encoder/token_embedder/embedding"] = stored[_ENCODER_TABLE]
    head = stored.get(_HEAD)
    scaled, why = _scaled(settings)
    if not scaled and head is None and "scale_decoder_outputs" in settings:
        head = shared  # As transformers 5 reads it: tied, but not scaled.
    if not scaled and head is None:
        raise UserError(f"{folder}: no tensor {_HEAD}, which a T5 with {why} has")
    if scaled and head is not None and not _equal(shared, head):
        raise UserError(
            f"{folder}: {_HEAD} differs from {_SHARED}, but {CONFIG} has {why}, which scales the"
            " decoder's output as for T5 1.0's tied layer; a T5 1.1, FLAN-T5 or mT5 has"
            ' "scale_decoder_outputs": false'
        )
    if not scaled and head is not None:
        tables["decoder/logits_dense/kernel"] = Transposed(head)
    return tables


def _scaled(settings: Mapping[str, Any]) -> tuple[bool, str]:
    """Returns whether the decoder's output is scaled, as in T5 1.0, and the setting for it."""
    if settings["model_type"] == "mt5":
        return False, 'model_type "mt5"'
    if "scale_decoder_outputs" in settings:
        value = settings["scale_decoder_outputs"]
        return bool(value), f'"scale_decoder_outputs": {json.dumps(value)}'
    value = settings.get("tie_word_embeddings", True)
    return value is not False, f'"tie_word_embeddings": {json.dumps(value)}'


def _equal(one: Tensor, other: Tensor) -> bool:
    """Returns whether two matrices hold the same bits as float32; compares some rows at a time."""
    if one.shape != other.shape or len(one.shape) != 2:
        return False
    for row in range(0, one.shape[0], _COMPARED_ROWS):
        part = (slice(row, row + _COMPARED_ROWS), slice(None))
        first, second = (t[part].astype(np.float32).view(np.uint32) for t in (one, other))
        if not np.array_equal(first, second):
            return False
    return True


def _renamed(tensors: Mapping[str, Tensor], gates: int, folder: Folder) -> dict[str, Array]:
    """Returns the stacks' tensors by T5X's names; unknown tensors keep their names."""
    counts = {
        stack: len({m[1] for m in map(re.compile(rf"{stack}\.block\.(\d+)\.").match, tensors) if m})
        for stack in _BLOCKS
    }
    skeleton = T5Config(
        vocab_size=1,
        num_encoder_layers=counts["encoder"],
        num_decoder_layers=counts["decoder"],
        mlp_activations=("relu", "linear")[:gates],
        logits_via_embedding=True,
    )
    names = {theirs: (ours, turned) for ours, (theirs, turned) in tensor_names(skeleton).items()}
    arrays: dict[str, Array] = {}
    for name, tensor in tensors.items():
        ours, turned = names.get(name, (name, False))
        if turned and len(tensor.shape) != 2:
            raise UserError(f"{folder}: {name} has shape {list(tensor.shape)}, expected 2 axes")
        arrays[ours] = Transposed(tensor) if turned else tensor
    return arrays


def _check_settings(settings: Mapping[str, Any], config: T5Config, folder: Folder) -> None:
    """Checks that ``config.json`` agrees with the arrays."""
    expected = {name: getattr(config, field) for name, field in _FIELDS.items()} | _FIXED
    if settings.get("num_decoder_layers") is None:
        # It defaults to the encoder's number.
        settings = {**settings, "num_decoder_layers": settings.get("num_layers")}
    wrong = [
        f"{name} ({CONFIG} {settings[name]!r}, arrays {value!r})"
        for name, value in expected.items()
        if settings.get(name) is not None and settings[name] != value
    ]
    rows = settings.get("vocab_size", config.vocab_size)
    # Tables may have more rows than there are tokens, so that devices can share them evenly.
    if not isinstance(rows, int) or rows > config.vocab_size:
        wrong.append(f"vocab_size ({CONFIG} {rows!r}, arrays {config.vocab_size})")
    if wrong:
        raise UserError(f"{folder}: {CONFIG} and the arrays do not agree: {', '.join(wrong)}")


def write(
    folder: pathlib.Path,
    base: StoredBase,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes a base as transformers' T5 in float32, one array at a time.

    The folder loads in transformers 5 without changes. If the source is such a folder too, its
    tokenizer's files are copied. If the encoder has its own table, it is written as
    ``encoder.embed_tokens.weight``; transformers 4 ties that to ``shared.weight``.

    Args:
      folder: an empty folder.
      base: the base to write.
      shard_bytes: the most bytes of tensors in one file. Larger bases are written to numbered
        files with an index.

    Raises:
      UserError: transformers' T5 does not support the architecture, or an array cannot be read.
      OSError: the folder cannot be written.
    """
    settings = _settings(base)
    if base.beside is not None:
        settings |= keep(base.beside, read_settings(base.beside, CONFIG), folder)
    names = {theirs: (ours, turned) for ours, (theirs, turned) in tensor_names(base.config).items()}
    shapes = {
        theirs: base.shapes[ours][::-1] if turned else base.shapes[ours]
        for theirs, (ours, turned) in names.items()
    }

    def read(name: str) -> np.ndarray:
        ours, turned = names[name]
        array = base.read(ours)
        return array.T if turned else array

    files = _shards(shapes, shard_bytes)
    for file, held in files.items():
        part = {name: shapes[name] for name in held}
        write_tensors(folder / file, part, read, {"format": "pt"})
    if len(files) > 1:
        size = 4 * sum(math.prod(shape) for shape in shapes.values())
        places = {name: file for file, held in files.items() for name in held}
        _write_json(folder / SHARD_INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    _write_json(folder / CONFIG, settings)
    if not (folder / GENERATION).exists():
        _write_json(folder / GENERATION, IDS)


def _shards(shapes: Mapping[str, tuple[int, ...]], most: int) -> dict[str, list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        if groups[-1] and filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {
        f"model-{i:05d}-of-{len(groups):05d}.safetensors": held
        for i, held in enumerate(groups, start=1)
    }


def _settings(base: StoredBase) -> dict[str, Any]:
    """Returns a ``config.json`` with which transformers 4 and 5 both compute what T5X does."""
    config = base.config
    if config.relpos_bias_per_layer:
        raise UserError(
            f"{base.where}: each layer has relative position biases of its own, and transformers'"
            " T5 one table a stack; write format t5x or native"
        )
    functions = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    function, *gate = config.mlp_activations
    if gate not in ([], ["linear"]) or function not in functions:
        raise UserError(
            f"{base.where}: transformers' T5 has no MLP of {', '.join(config.mlp_activations)}"
        )
    name = functions[function]
    gated = "gated-gelu" if name in ("gelu", "gelu_new") else f"gated-{name}"
    tied = config.logits_via_embedding
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **{name: getattr(config, field) for name, field in _FIELDS.items()},
        **_FIXED,
        "vocab_size": config.vocab_size,
        "dropout_rate": config.dropout_rate,
        "feed_forward_proj": gated if gate else name,
        "dense_act_fn": name,
        "is_gated_act": bool(gate),
        "tie_word_embeddings": tied,
        "scale_decoder_outputs": tied,
        "initializer_factor": 1.0,
        "torch_dtype": "float32",
        "use_cache": True,
        **IDS,
    }


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
