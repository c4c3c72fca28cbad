"""Folders of adapters in the format of Hugging Face's PEFT.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. Names of tensors have the
linear layer's name in transformers' T5.

Source of the format: peft 0.21, ``utils/save_and_load.py``, ``tuners/lora/config.py`` and
``peft_model.py`` (PeftModelForSeq2SeqLM.forward).
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util

from adalink_jax.checkpoints.fingerprint import as_float32
from adalink_jax.checkpoints.formats.peft import (
    bitfit,
    ia3,
    lora,
    norm_tuning,
    peanut,
    prompt_tuning,
    vera,
)
from adalink_jax.checkpoints.formats.peft.format import Format
from adalink_jax.checkpoints.formats.safetensors_files import write_tensors
from adalink_jax.errors import UserError
from adalink_jax.files import new_folder
from adalink_jax.methods.base import Method, Params
from adalink_jax.models.t5 import T5Config

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"

# The first one that holds a configuration reads it, so one with a switch precedes its kind's other.
FORMATS: Sequence[Format] = (
    lora.DORA,
    lora.FORMAT,
    vera.FORMAT,
    peanut.FORMAT,
    prompt_tuning.FORMAT,
    ia3.FORMAT,
    bitfit.FORMAT,
    norm_tuning.FORMAT,
)
# Fields of any configuration that do not change what an adapter computes.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
    *("revision", "runtime_config", "task_type"),
}


def save_peft(
    folder: str | os.PathLike[str],
    method: Method,
    tree: Params,
    route: int,
    config: T5Config,
    base: Params,
    check: Callable[[pathlib.Path], None] = lambda folder: None,
) -> None:
    """Writes one route of an adapter in PEFT's format.

    Args:
      folder: the folder to write; it must not exist.
      method: one of `FORMATS`, prompt tuning as exported.
      tree: the method's tree.
      route: which of the K modules, in [0, K).
      config: the base's architecture.
      base: the base's parameters.
      check: called with the written folder before it is renamed to its final name. If it raises,
        nothing is left behind.

    Raises:
      UserError: PEFT has no such method, the base takes images, or the folder exists or cannot be
        written.
    """
    if config.image_width is not None:
        raise UserError(
            "the base takes images, and PEFT's adapters here are of transformers' T5, without any"
        )
    # Subclasses are refused: they may compute something else.
    found = next((one for one in FORMATS if type(method) is one.method), None)
    if found is None:
        names = ", ".join(f"'{one.method.scope}'" for one in FORMATS)
        raise UserError(
            f"PEFT has no format for an adapter of method '{method.scope}'; it has one for {names};"
            " --format=huggingface folds what can be folded into the base"
        )
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(tree), sep="/")
    flat = {name: np.asarray(leaf[route], np.float32) for name, leaf in flat.items()}
    settings, tensors = found.write(method, flat, config, base)
    settings |= {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "task_type": "SEQ_2_SEQ_LM",
    }
    with new_folder(folder) as partial:
        text = json.dumps(settings, indent=2, sort_keys=True)
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
        shapes = {name: tensors[name].shape for name in sorted(tensors)}
        write_tensors(partial / TENSORS, shapes, tensors.__getitem__, {"format": "pt"})
        check(partial)


def load_peft(
    folder: str | os.PathLike[str], config: T5Config, base: Params
) -> tuple[Method, Params]:
    """Reads a PEFT adapter of one of `FORMATS`.

    Args:
      folder: the folder that PEFT wrote.
      config: the base's architecture.
      base: the base's parameters.

    Returns:
      The method with its settings, and its tree: float32, one route. An adapter whose modules are
      not the same in all layers and stacks, or of several ranks, is filled up where the method here
      needs arrays; it computes the same. VeRA with random matrices of PEFT's own is a LoRA.

    Raises:
      UserError: files are missing or damaged, or the adapter uses something that this project's
        methods do not have; the message names it.
    """
    folder = pathlib.Path(folder)
    settings = _read_config(folder)
    tensors = _read_tensors(folder)
    found = next((one for one in FORMATS if one.holds(settings)), None)
    if found is None:
        kind, read = settings.get("peft_type"), ", ".join(dict.fromkeys(f.kind for f in FORMATS))
        raise UserError(f"{folder / CONFIG}: peft_type {kind!r}; {read} are read")
    for name, value in settings.items():
        # A setting that is unknown and switched on may change what the adapter computes.
        if value and value != "none" and name not in _HARMLESS | found.read:
            shown = name if name.isprintable() else repr(name)
            raise UserError(f"{folder / CONFIG}: {shown} = {value!r}, which has no equal here")
    method, flat = found.load(settings, tensors, config, base, str(folder))
    tree = {name: np.ascontiguousarray(array)[None] for name, array in flat.items()}
    return method, traverse_util.unflatten_dict(tree, sep="/")


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_bytes())
    except OSError as error:
        raise UserError(f"{folder} holds no PEFT adapter: {CONFIG} cannot be read") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG}: no JSON; truncated or damaged") from error
    if not isinstance(settings, dict):
        raise UserError(f"{folder / CONFIG}: not the configuration of a PEFT adapter")
    return settings


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    path = folder / TENSORS
    if not path.is_file():
        pickled = " (PEFT's older adapter_model.bin may run code when read)"
        raise UserError(
            f"{path}: no such file{pickled if path.with_name('adapter_model.bin').exists() else ''}"
        )
    try:
        tensors = safetensors.numpy.load_file(path)
    except Exception as error:  # Damaged headers raise several unrelated classes.
        raise UserError(f"{path}: no safetensors file; truncated or damaged") from error
    tensors = {name: as_float32(array) for name, array in tensors.items()}
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise UserError(f"{path}: {name!r} is {array.dtype}; expected floating point")
    return tensors
