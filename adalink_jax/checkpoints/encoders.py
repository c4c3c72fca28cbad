"""Loads image encoders, and writes them in this project's own format.

A folder of our own has ``image_encoder.safetensors``, every parameter as float32 or bfloat16 under
its ``"/"``-joined name, and ``image_encoder.json``: the architecture, the preprocessing, the
fingerprint, and the SHA-256 of the first file and of all these fields.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from adalink_jax import files
from adalink_jax.checkpoints.architecture import check_shapes
from adalink_jax.checkpoints.bases import EMBEDDED_FOLDER
from adalink_jax.checkpoints.fingerprint import (
    as_float32,
    check_finite,
    combined_fingerprint,
    file_sha256,
    leaf_digest,
)
from adalink_jax.checkpoints.formats import efficientnet, vision
from adalink_jax.checkpoints.formats.safetensors_files import open_tensors, write_tensors
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError
from adalink_jax.models.vision.efficientnet import EfficientNetLite0
from adalink_jax.models.vision.encoder import (
    ImageEncoder,
    Network,
    check_pictures,
    parameter_shapes,
)
from adalink_jax.models.vision.preprocessing import Preprocessing
from adalink_jax.models.vision.qformer import Blip2Vision, QFormerConfig
from adalink_jax.models.vision.vit import ViT, ViTConfig

RECORD = "image_encoder.json"
TENSORS = "image_encoder.safetensors"
# The encoder that comes with the package; this name can be used as a path.
EMBEDDED_ENCODER = "mini_images_encoder"
_VERSION = 1

# Name of a network in a record → its class, and the class of each of its fields.
_NETWORKS: Mapping[str, tuple[type[Any], Mapping[str, type[Any]]]] = {
    "vit": (ViT, {"config": ViTConfig}),
    "blip2": (Blip2Vision, {"vision": ViTConfig, "queries": QFormerConfig}),
    efficientnet.NAME: (EfficientNetLite0, {}),
}


def load_image_encoder(
    path: str | os.PathLike[str], *, layer: int = -1, class_token: bool = True
) -> ImageEncoder:
    """Loads a frozen image encoder, one array at a time.

    Args:
      path: a Hugging Face folder of ViT, SigLIP, CLIP, DINOv2 or BLIP-2 with its
        ``preprocessor_config.json``; a folder that `save_image_encoder` wrote; or, if no such
        folder exists, ``efficientnet_lite0`` or ``mini_images_encoder``, which comes with the
        package. ``gs://BUCKET/PATH`` works too, but for our own format.
      layer: which layer's output the tokens are: -1, the last one; or -2, as LLaVA takes CLIP's,
        and so on, without a final norm.
      class_token: whether the class token is among the tokens, where there is one.

    Returns:
      The encoder. Its tokens are transformers' ``last_hidden_state``: of the image tower, and of
      the Q-Former for BLIP-2.

    Raises:
      UserError: one line: the path does not exist, is damaged, or of another family; a setting or
        an array is missing, unknown, or of another size; the package of ``efficientnet_lite0`` is
        not installed; or `layer` or `class_token` asks for what the encoder does not have.
    """
    if os.fspath(path) == efficientnet.NAME and not os.path.lexists(path):
        network, arrays = efficientnet.read_efficientnet()
        _check_whole(network, layer, class_token, str(path))
        made = efficientnet.PREPROCESSING
        return _loaded(network, made, lambda name, shape: arrays[name], str(path))
    if os.fspath(path) == EMBEDDED_ENCODER and not os.path.lexists(path):
        path = EMBEDDED_FOLDER / EMBEDDED_ENCODER
    folder = Folder.at(path)
    if folder.local and not os.path.isdir(folder.path):
        raise UserError(f"image encoder {folder} does not exist, or is no folder")
    children = folder.children()
    if RECORD in children:
        encoder = _load_own(pathlib.Path(folder.path))
        if (layer, class_token) == (-1, True):
            return encoder
        flat: dict[str, Any] = traverse_util.flatten_dict(encoder.params, sep="/")
        cut = _cut(encoder.network, layer, class_token, str(folder))
        return _loaded(cut, encoder.preprocessing, lambda name, shape: flat[name], str(folder))
    if vision.CONFIG not in children:
        shown = ", ".join(children[:5]) + (" …" if len(children) > 5 else "")
        raise UserError(
            f"image encoder {folder} is in no known format: looked for {vision.CONFIG} of a Hugging"
            f" Face folder and for {RECORD}; found {shown or 'nothing'}"
        )
    stored = vision.open_encoder(folder)
    network = _cut(stored.network, layer, class_token, str(folder))
    return _loaded(network, stored.preprocessing, stored.read, str(folder))


def _check_whole(network: Network, layer: int, class_token: bool, where: str) -> None:
    if (layer, class_token) != (-1, True):
        raise UserError(
            f"image encoder {where}: layer and class_token are for vision transformers, not for"
            f" {type(network).__name__}"
        )


def _cut(network: Network, layer: int, class_token: bool, where: str) -> Network:
    """Returns the network whose tokens are those that are asked for."""
    if not isinstance(network, ViT):
        _check_whole(network, layer, class_token, where)
        return network
    config = network.config
    if not -config.depth <= layer <= -1:
        raise UserError(
            f"image encoder {where}: layer is {layer}; it takes -1 to {-config.depth}, as there are"
            f" {config.depth} layers"
        )
    if layer < -1:
        config = dataclasses.replace(config, depth=config.depth + 1 + layer, final_norm=False)
    if not class_token and config.class_token == "kept":
        config = dataclasses.replace(config, class_token="dropped")
    return ViT(config)


def image_encoder(
    network: Network, params: Mapping[str, Any], preprocessing: Preprocessing
) -> ImageEncoder:
    """Returns an encoder of parameters in memory.

    Args:
      network: its architecture.
      params: its parameters, nested dicts of float32 arrays.
      preprocessing: how a picture becomes its input.

    Raises:
      UserError: the parameters are not those of the network, or the preprocessing makes pictures
        of another size.
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
    found = {name: tuple(leaf.shape) for name, leaf in flat.items()}
    check_shapes(parameter_shapes(network), found, "image encoder")

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(flat[name], np.float32)

    return _loaded(network, preprocessing, read, "in memory")


def _loaded(
    network: Network,
    preprocessing: Preprocessing,
    read: Callable[[str, tuple[int, ...]], np.ndarray],
    where: str,
) -> ImageEncoder:
    """Reads an encoder's parameters one by one, each to the device before the next one."""
    check_pictures(network, preprocessing, where)
    flat: dict[str, Any] = {}
    digests: list[bytes] = []
    for name, shape in parameter_shapes(network).items():
        array = np.ascontiguousarray(read(name, shape))
        digests.append(leaf_digest(name, array))
        flat[name] = jnp.asarray(array)
    params = traverse_util.unflatten_dict(flat, sep="/")
    kind = json.dumps(_described(network), sort_keys=True)
    fingerprint = hashlib.sha256(f"{kind}\n{combined_fingerprint(digests)}".encode()).hexdigest()
    return ImageEncoder(network, params, preprocessing, fingerprint)


def _described(network: Network) -> dict[str, Any]:
    """Returns an architecture as JSON values."""
    kind, fields = next(
        (kind, fields) for kind, (made, fields) in _NETWORKS.items() if type(network) is made
    )
    return {"kind": kind, **{name: dataclasses.asdict(getattr(network, name)) for name in fields}}


def _described_network(described: Any, where: str) -> Network:
    """Returns the network of a record's architecture."""
    try:
        made, fields = _NETWORKS[described["kind"]]
        if described.keys() != {"kind", *fields}:
            raise TypeError("other fields")
        return made(**{name: kind(**described[name]) for name, kind in fields.items()})
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where}: no architecture that is known here") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def save_image_encoder(
    path: str | os.PathLike[str], encoder: ImageEncoder, *, halved: bool = False
) -> None:
    """Writes an encoder into a new folder, atomically; equal encoders give equal bytes.

    Args:
      path: a local path that must not exist.
      encoder: the encoder.
      halved: whether its parameters, which have bfloat16's values, are stored as such.

    Raises:
      UserError: `path` exists or cannot be written.
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(encoder.params, sep="/")
    shapes = {name: tuple(flat[name].shape) for name in sorted(flat)}
    with files.new_folder(path) as folder:
        dtype = jnp.bfloat16 if halved else np.float32
        sha256 = write_tensors(
            folder / TENSORS,
            shapes,
            lambda name: np.asarray(flat[name], dtype),
            halved=halved,
        )
        record = {
            "format_version": _VERSION,
            "architecture": _described(encoder.network),
            "preprocessing": dataclasses.asdict(encoder.preprocessing),
            "fingerprint": encoder.fingerprint,
            "sha256": sha256,
        }
        files.write_sealed(folder / RECORD, record)


def _load_own(folder: pathlib.Path) -> ImageEncoder:
    """Loads an encoder in our own format, and checks all of its digests."""
    where = str(folder / RECORD)
    record = files.read_json(folder / RECORD)
    if record.get("format_version") != _VERSION:
        raise UserError(
            f"{where}: format_version is {record.get('format_version')!r}; expected {_VERSION}"
        )
    network = _described_network(record.get("architecture"), where)
    try:
        preprocessing = Preprocessing(**record["preprocessing"])
    except (TypeError, KeyError, UserError) as error:
        raise UserError(f"{where}: no preprocessing that is known here") from error
    tensors = open_tensors(Folder.at(folder), TENSORS)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    check_shapes(parameter_shapes(network), found, str(folder / TENSORS))
    if file_sha256(folder / TENSORS) != record.get("sha256"):
        raise UserError(f"{folder / TENSORS}: truncated or altered: {RECORD} has another SHA-256")

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = as_float32(np.asarray(tensors[name][...]))
        check_finite(array, f"{folder / TENSORS}: {name}")
        return array

    encoder = _loaded(network, preprocessing, read, str(folder))
    if encoder.fingerprint != record.get("fingerprint"):
        raise UserError(f"{where}: its fingerprint is not that of the arrays beside it")
    return encoder
