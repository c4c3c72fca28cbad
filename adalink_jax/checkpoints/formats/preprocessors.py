"""``preprocessor_config.json``: how a Hugging Face folder wants its pictures prepared.

Fields that a file leaves out have the values of the class that it names, or of the folder's family.
A field that would change the pixels and is not known here is an error.

Source of the format: transformers 5.23, image_processing_backends.py and the processors of the
families; feature extractors of earlier versions.
"""

from collections.abc import Mapping
from typing import Any

from adalink_jax.checkpoints.formats.companions import read_settings
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError
from adalink_jax.models.vision.preprocessing import FILTERS, Preprocessing

PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"  # transformers 5 writes processors into this one.

_HALF = [0.5, 0.5, 0.5]
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}
_CUT = {"do_center_crop": True, "size": {"shortest_edge": 224}, "crop_size": 224}
# Class of the processor → what it does unless told otherwise.
_CLASSES: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, "image_mean": _HALF, "image_std": _HALF},
    "Siglip": {"size": 224, "resample": 3, "image_mean": _HALF, "image_std": _HALF},
    "CLIP": {**_CLIP, **_CUT},
    "Bit": {**_CLIP, **_CUT},
    "Blip": {**_CLIP, "size": 384},
}
_OF_FAMILIES = {"vit": "ViT", "siglip": "Siglip", "clip": "CLIP", "dinov2": "Bit", "blip-2": "Blip"}
_ENDINGS = ("ImageProcessor", "FeatureExtractor")

_STEPS = ("do_resize", "do_rescale", "do_normalize")
_KNOWN = {*_STEPS, "do_center_crop", "size", "crop_size", "resample", "rescale_factor"}
_KNOWN |= {"image_mean", "image_std"}
# These change no pixel of a picture in red, green and blue.
_IDLE = {"do_convert_rgb", "image_processor_type", "feature_extractor_type", "processor_class"}
_IDLE |= {"data_format", "input_data_format", "return_tensors", "device", "default_to_square"}
_IDLE |= {"disable_grouping", "_valid_processor_keys", "image_seq_length"}
_IDLE |= {"num_query_tokens", "image_token", "backend"}


def read_preprocessing(folder: Folder, family: str) -> Preprocessing:
    """Reads how pictures are prepared.

    Args:
      folder: the folder of an image encoder.
      family: "vit", "siglip", "clip", "dinov2" or "blip-2".

    Raises:
      UserError: the folder does not say it, or says what is not known here.
    """
    children, name = set(folder.children()), PREPROCESSOR
    if name in children:
        given = read_settings(folder, name)
    elif _PROCESSOR in children:
        name = _PROCESSOR
        given = read_settings(folder, name).get("image_processor")
    else:
        given = None
    where = str(folder / name)
    if not isinstance(given, Mapping):
        raise UserError(
            f"{folder}: no {PREPROCESSOR}, which says how pictures are resized and scaled for this"
            " encoder; copy it from where the weights come from"
        )
    kind = _kind(given, family, where)
    values = _CLASSES[kind] | {k: v for k, v in given.items() if v is not None}
    odd = [k for k in values if k not in _KNOWN | _IDLE and values[k] not in (False, {}, [])]
    if odd:
        raise UserError(f"{where}: {odd[0]} is {values[odd[0]]!r}, a step that is not known here")
    skipped = [k for k in _STEPS[:2] if not values.get(k, True)]
    if skipped:
        raise UserError(f"{where}: {skipped[0]} is false; the encoder needs it")
    if not values.get("do_normalize", True):
        values |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    try:
        return _preprocessing(values, kind in ("CLIP", "Bit"))
    except (UserError, KeyError, TypeError, ValueError) as error:
        reason = error if isinstance(error, UserError) else "a size or number of another kind"
        raise UserError(f"{where}: {reason}") from error


def _kind(given: Mapping[str, Any], family: str, where: str) -> str:
    """Returns the name of the class that prepares the pictures."""
    stated = given.get("image_processor_type") or given.get("feature_extractor_type")
    if stated is None:
        return _OF_FAMILIES[family]
    kind = str(stated).removesuffix("Fast").removesuffix("Pil")
    for ending in _ENDINGS:
        kind = kind.removesuffix(ending)
    if kind not in _CLASSES:
        known = ", ".join(f"{name}ImageProcessor" for name in _CLASSES)
        raise UserError(f"{where}: image_processor_type {stated!r}; expected one of {known}")
    return kind


def _preprocessing(values: Mapping[str, Any], by_edge: bool) -> Preprocessing:
    """Returns the steps; `by_edge` says that one number as size is the shorter side."""
    size = values["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size} if by_edge else {"height": size, "width": size}
    result, edge = dict(size), None
    if "shortest_edge" in size:
        edge = size["shortest_edge"]
        if not values.get("do_center_crop"):
            raise UserError("size is a shortest_edge, but do_center_crop is not set")
        if set(size) != {"shortest_edge"}:
            raise UserError(f"size is {size}, which bounds the longer side too")
    elif set(size) != {"height", "width"}:
        raise UserError(f"size is {size}; expected height and width, or shortest_edge")
    if values.get("do_center_crop"):
        cut = values["crop_size"]
        result = {"height": cut, "width": cut} if isinstance(cut, int) else dict(cut)
        if edge is None and result != size:
            raise UserError(f"size is {size}, out of which crop_size {result} is cut")
    resample = values["resample"]
    if resample not in range(len(FILTERS)):
        raise UserError(f"resample is {resample!r}; expected Pillow's number of a filter, 0 to 5")
    return Preprocessing(
        height=result["height"],
        width=result["width"],
        resample=FILTERS[resample],
        shortest_edge=edge,
        scale=values.get("rescale_factor", 1 / 255),
        mean=_three(values["image_mean"]),
        std=_three(values["image_std"]),
    )


def _three(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else (float(value),) * 3
