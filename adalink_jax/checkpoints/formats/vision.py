"""Image encoders in Hugging Face's folders: ViT, SigLIP, CLIP, DINOv2 and BLIP-2.

A folder of SigLIP or CLIP may hold the image tower alone or both. Files keep the names of earlier
versions of transformers, which renames some arrays in memory only.

Source of the format: transformers 5.23, models/vit, siglip, clip, dinov2 and blip_2.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.architecture import check_names
from adalink_jax.checkpoints.fingerprint import as_float32, check_finite
from adalink_jax.checkpoints.formats.companions import read_settings
from adalink_jax.checkpoints.formats.positions import interpolated
from adalink_jax.checkpoints.formats.preprocessors import read_preprocessing
from adalink_jax.checkpoints.formats.safetensors_files import SHARD_INDEX, WEIGHTS, open_folder
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError, nearest
from adalink_jax.models.vision.encoder import Network, parameter_shapes
from adalink_jax.models.vision.preprocessing import Preprocessing
from adalink_jax.models.vision.qformer import Blip2Vision, QFormerConfig
from adalink_jax.models.vision.vit import ViT, ViTConfig

CONFIG = "config.json"

# transformers' name of an activation → ours.
_ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
_POSITIONS = "position_embedding"


@dataclasses.dataclass(frozen=True)
class _Family:
    """What sets one family apart.

    Attributes:
      defaults: the settings that its ``config.json`` may leave out.
      fields: fields of ViTConfig that all of its models have.
      prefixes: what its names may start with, in a folder of a whole model.
      unread: matches names, without the prefix, of arrays that the encoder does not have.
      layers: where a block's arrays are.
      names: our names of modules and arrays → theirs; those of a block as ``layers/NAME``. "A:1/3"
        is the second third of A.
    """

    defaults: Mapping[str, Any]
    fields: Mapping[str, Any]
    prefixes: tuple[str, ...]
    unread: str
    layers: str
    names: Mapping[str, str]


def _attention(where: str, query: str, key: str, value: str, out: str) -> dict[str, str]:
    theirs = {"query": query, "key": key, "value": value, "out": out}
    return {f"layers/attention/{ours}": f"{where}.{name}" for ours, name in theirs.items()}


_OWN = _attention(
    "attention", "attention.query", "attention.key", "attention.value", "output.dense"
)
_SIZES = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "num_channels": 3,
}
_OF_TOWERS = {
    "patch_embedding": "embeddings.patch_embedding",
    "class_token": "embeddings.class_embedding",
    _POSITIONS: "embeddings.position_embedding.weight",
    "pre_norm": "pre_layrnorm",
    "final_norm": "post_layernorm",
    "layers/norm_1": "layer_norm1",
    "layers/norm_2": "layer_norm2",
    "layers/mlp/wi": "mlp.fc1",
    "layers/mlp/wo": "mlp.fc2",
    **_attention("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
}
_OF_VIT = {
    "patch_embedding": "embeddings.patch_embeddings.projection",
    "class_token": "embeddings.cls_token",
    _POSITIONS: "embeddings.position_embeddings",
    "final_norm": "layernorm",
    **_OWN,
}
_UNREAD_TEXT = r"text_model\.|text_projection\.|visual_projection\.|logit_scale$|logit_bias$"
_UNREAD_POSITIONS = r"embeddings\.position_ids$"  # Counting numbers, in files of earlier versions.

_FAMILIES = {
    "vit": _Family(
        {**_SIZES, "intermediate_size": 3072, "patch_size": 16, "hidden_act": "gelu"}
        | {"layer_norm_eps": 1e-12, "qkv_bias": True},
        {"class_token": "kept"},
        ("vit.",),
        r"pooler\.|classifier\.",
        "encoder.layer.",
        {
            **_OF_VIT,
            "layers/norm_1": "layernorm_before",
            "layers/norm_2": "layernorm_after",
            "layers/mlp/wi": "intermediate.dense",
            "layers/mlp/wo": "output.dense",
        },
    ),
    "siglip": _Family(
        {**_SIZES, "intermediate_size": 3072, "patch_size": 16}
        | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        {},
        ("vision_model.",),
        rf"head\.|classifier\.|{_UNREAD_TEXT}|{_UNREAD_POSITIONS}",
        "encoder.layers.",
        _OF_TOWERS,
    ),
    "clip": _Family(
        {**_SIZES, "intermediate_size": 3072, "patch_size": 32}
        | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        # CLIP norms its class token alone after the last block; the others leave as they are.
        {"class_token": "kept", "patch_bias": False, "pre_norm": True, "final_norm": False},
        ("vision_model.",),
        rf"post_layernorm\.|classifier\.|{_UNREAD_TEXT}|{_UNREAD_POSITIONS}",
        "encoder.layers.",
        _OF_TOWERS,
    ),
    "dinov2": _Family(
        {**_SIZES, "mlp_ratio": 4, "patch_size": 14, "hidden_act": "gelu"}
        | {"layer_norm_eps": 1e-6, "qkv_bias": True, "use_swiglu_ffn": False},
        {"class_token": "kept", "layer_scale": True},
        ("dinov2.",),
        r"embeddings\.mask_token$|classifier\.",
        "encoder.layer.",
        {
            **_OF_VIT,
            "layers/norm_1": "norm1",
            "layers/norm_2": "norm2",
            "layers/scale_1": "layer_scale1.lambda1",
            "layers/scale_2": "layer_scale2.lambda1",
            "layers/mlp/wi": "mlp.fc1",
            "layers/mlp/wo": "mlp.fc2",
        },
    ),
    "blip-2": _Family(
        {**_SIZES, "hidden_size": 1408, "num_hidden_layers": 39, "num_attention_heads": 16}
        | {"intermediate_size": 6144, "patch_size": 14, "hidden_act": "gelu"}
        | {"layer_norm_eps": 1e-6, "qkv_bias": True},
        {"class_token": "kept"},
        (),
        r"language_model\.|language_projection\.",
        "encoder.layers.",
        {
            **_OF_TOWERS,
            _POSITIONS: "embeddings.position_embedding",
            **_attention("self_attn", "qkv:0/3", "qkv:1/3", "qkv:2/3", "projection"),
        },
    ),
}
_GATED = {
    "layers/mlp/gate": "mlp.weights_in:0/2",
    "layers/mlp/wi": "mlp.weights_in:1/2",
    "layers/mlp/wo": "mlp.weights_out",
}
_QFORMER = {
    "query_tokens": "query_tokens",
    "norm": "qformer.layernorm",
    **_OWN,
    "layers/attention_norm": "attention.output.LayerNorm",
    **{name.replace("attention", "cross_attention"): f"cross{_OWN[name]}" for name in _OWN},
    "layers/cross_attention_norm": "crossattention.output.LayerNorm",
    "layers/mlp/wi": "intermediate_query.dense",
    "layers/mlp/wo": "output_query.dense",
    "layers/mlp_norm": "output_query.LayerNorm",
}
_QFORMER_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
    "use_qformer_text_input": False,
}


@dataclasses.dataclass(frozen=True)
class StoredEncoder:
    """An image encoder on disk whose arrays are not yet read.

    Attributes:
      network: its architecture.
      preprocessing: how a picture becomes its input.
      read: reads an array by its ``"/"``-joined name here, given its shape; float32.
    """

    network: Network
    preprocessing: Preprocessing
    read: Callable[[str, tuple[int, ...]], np.ndarray]


def open_encoder(folder: Folder) -> StoredEncoder:
    """Opens the image encoder of a Hugging Face folder; reads headers and settings alone.

    Args:
      folder: the folder with ``config.json``, ``preprocessor_config.json`` and safetensors.

    Raises:
      UserError: the folder is of another family, or lacks a file; a file is damaged; a setting is
        one that changes the encoder and is not known here; or arrays are missing or unexpected.
    """
    settings = read_settings(folder, CONFIG)
    kind = str(settings.get("model_type"))
    name = kind.removesuffix("_vision_model")
    if name not in _FAMILIES:
        raise UserError(f"{folder / CONFIG}: model_type {kind!r}; {_other(kind)}")
    if not {WEIGHTS, SHARD_INDEX} & set(folder.children()):
        raise UserError(
            f"{folder}: no {WEIGHTS}; save it again with transformers:"
            " AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    family = _FAMILIES[name]
    whole = f"(?:{'|'.join(map(re.escape, ('', *family.prefixes)))})(?:{family.unread})"
    tensors = open_folder(folder, re.compile(whole))
    prefix = next(
        (p for p in family.prefixes if any(theirs.startswith(p) for theirs in tensors)), ""
    )
    own = settings.get("vision_config", settings if name != "blip-2" else {})
    config = _vit_config(family, own, folder)
    preprocessing = read_preprocessing(folder, name)
    stored_size = config.image_size
    if name == "dinov2":  # Its positions are stored for larger pictures than it is used with.
        config = dataclasses.replace(config, image_size=preprocessing.height)
    network: Network = ViT(config)
    names = {"": _of_family(family, config, prefix)}
    if name == "blip-2":
        queries = _qformer_config(settings, folder)
        network = Blip2Vision(config, queries)
        names = {"vision/": _of_family(family, config, "vision_model."), "qformer/": _of_qformer}
    places = {}
    for ours in parameter_shapes(network):
        start = next(start for start in names if ours.startswith(start))
        places[ours] = names[start](ours.removeprefix(start))
    check_names({place.partition(":")[0] for place in places.values()}, tensors, str(folder))

    def read(ours: str, shape: tuple[int, ...]) -> np.ndarray:
        theirs, _, part = places[ours].partition(":")
        array = as_float32(np.asarray(tensors[theirs][...]))
        check_finite(array, f"{folder}: {theirs}")
        stored = array.shape
        try:
            array = _turned(array, part, ours.endswith("/kernel"))
            if ours.endswith(_POSITIONS) and config.image_size != stored_size:
                first = int(config.class_token != "none")
                array = interpolated(array, first, stored_size // config.patch_size, config.grid)
        except ValueError as error:
            raise UserError(
                f"{folder}: {theirs} has shape {list(stored)}, which does not fit {CONFIG}"
            ) from error
        if array.shape != shape:
            raise UserError(
                f"{folder}: {theirs} has shape {list(stored)}, which does not fit {CONFIG}: here"
                f" {ours} is {list(array.shape)}, expected {list(shape)}"
            )
        return array

    return StoredEncoder(network, preprocessing, read)


def _other(kind: str) -> str:
    if kind == "instructblip":
        return "its image tokens depend on the question, so they cannot be computed once a picture"
    if kind in ("t5", "mt5"):
        return "a base without an image encoder"
    return f"expected one of {', '.join(_FAMILIES)}{nearest(kind, _FAMILIES)}"


def _vit_config(family: _Family, own: Any, folder: Folder) -> ViTConfig:
    """Returns the architecture that a folder's settings of its image tower describe."""
    where = str(folder / CONFIG)
    if not isinstance(own, Mapping):
        raise UserError(f"{where}: vision_config is no object of settings")
    values = dict(family.defaults) | {k: v for k, v in own.items() if v is not None}
    if values["num_channels"] != 3:
        raise UserError(f"{where}: num_channels is {values['num_channels']!r}; expected 3")
    for name in ("image_size", "patch_size"):
        if isinstance(values[name], list):  # [height, width]
            if len(set(values[name])) != 1:
                raise UserError(f"{where}: {name} is {values[name]}; expected equal sides")
            values[name] = values[name][0]
    fields = dict(family.fields)
    if "mlp_ratio" in values:
        values["intermediate_size"] = int(values["hidden_size"] * values["mlp_ratio"])
    if values.get("use_swiglu_ffn"):
        # Two thirds of the width, rounded up to a multiple of 8.
        values["intermediate_size"] = (int(values["intermediate_size"] * 2 / 3) + 7) // 8 * 8
        values["hidden_act"] = "silu"
        fields["gated_mlp"] = True
    if "qkv_bias" in values:
        fields["qkv_bias"] = values["qkv_bias"]
    try:
        return ViTConfig(
            width=values["hidden_size"],
            depth=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            mlp_dim=values["intermediate_size"],
            patch_size=values["patch_size"],
            image_size=values["image_size"],
            activation=_activation(values["hidden_act"], where),
            epsilon=values["layer_norm_eps"],
            **fields,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _qformer_config(settings: Mapping[str, Any], folder: Folder) -> QFormerConfig:
    where = str(folder / CONFIG)
    own = settings.get("qformer_config", {})
    if not isinstance(own, Mapping):
        raise UserError(f"{where}: qformer_config is no object of settings")
    values = _QFORMER_DEFAULTS | {k: v for k, v in own.items() if v is not None}
    if values["use_qformer_text_input"]:
        raise UserError(f"{where}: use_qformer_text_input is set, so its tokens depend on a text")
    try:
        return QFormerConfig(
            width=values["hidden_size"],
            depth=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            mlp_dim=values["intermediate_size"],
            queries=settings.get("num_query_tokens", 32),
            cross_every=values["cross_attention_frequency"],
            activation=_activation(values["hidden_act"], where),
            epsilon=values["layer_norm_eps"],
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _activation(name: Any, where: str) -> str:
    if name not in _ACTIVATIONS:
        raise UserError(f"{where}: hidden_act is {name!r}; expected {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _of_family(family: _Family, config: ViTConfig, prefix: str) -> Callable[[str], str]:
    names = {**family.names, **(_GATED if config.gated_mlp else {})}
    return lambda ours: prefix + _theirs(ours, names, family.layers)


def _of_qformer(ours: str) -> str:
    return _theirs(ours, _QFORMER, "qformer.encoder.layer.")


def _theirs(ours: str, names: Mapping[str, str], layers: str) -> str:
    """Returns an array's name in a folder."""
    where, module = "", ours
    if found := re.fullmatch(r"layers_(\d+)/(.+)", ours):
        where, module = f"{layers}{found[1]}.", f"layers/{found[2]}"
    if module in names:
        return where + names[module]
    module, _, leaf = module.rpartition("/")
    name, colon, part = names[module].partition(":")
    return f"{where}{name}.{'bias' if leaf == 'bias' else 'weight'}{colon}{part}"


def _turned(array: np.ndarray, part: str, kernel: bool) -> np.ndarray:
    """Returns a stored array, or a part of it, in the orientation it has here.

    Raises:
      ValueError: it cannot be divided or turned so.
    """
    if part:
        number, parts = map(int, part.split("/"))
        array = array.reshape(parts, -1, *array.shape[1:])[number]
    if kernel:  # Of a linear layer or of a convolution; outputs come first there.
        return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    return array
