"""LoRA, prompt tuning and (IA)³ in the adapter format of Hugging Face's PEFT.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. LoRA's tensors are
``base_model.model.MODULE.lora_A.weight``, the transpose of W_down, and ``lora_B.weight``, the
transpose of W_up; a prompt is ``prompt_embeddings``. MODULE is the linear layer's name in
transformers' T5.

Source of the format: peft 0.21, ``utils/save_and_load.py``, ``tuners/lora/config.py`` and
``peft_model.py`` (PeftModelForSeq2SeqLM.forward).
"""

import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util

from adalink_jax.checkpoints.architecture import check_shapes, expected_shapes
from adalink_jax.checkpoints.fingerprint import as_float32
from adalink_jax.checkpoints.formats import peft_ia3
from adalink_jax.checkpoints.formats.huggingface import linear_modules
from adalink_jax.checkpoints.formats.safetensors_files import write_tensors
from adalink_jax.errors import UserError
from adalink_jax.files import new_folder
from adalink_jax.methods.base import Method, Params
from adalink_jax.methods.ia3 import IA3
from adalink_jax.methods.lora import LoRA
from adalink_jax.methods.prompt_tuning import PromptTuning
from adalink_jax.models.t5 import T5Config

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"

_PROMPT = "prompt_embeddings"
_LORA_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_PARTS = {"A": "down", "B": "up"}

# Fields of a PEFT configuration that do not change what an adapter computes, and fields that are
# read here. The tensors show which modules are adapted.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
    *("revision", "runtime_config", "task_type"),
}
_READ = {
    "LORA": {
        *("alpha_pattern", "bias", "ensure_weight_tying", "eva_config", "exclude_modules"),
        *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha"),
        *("lora_dropout", "megatron_core", "qalora_group_size", "r", "rank_pattern"),
        *("target_modules", "use_rslora"),
    },
    "IA3": {"exclude_modules", "feedforward_modules", "init_ia3_weights", "target_modules"},
    "PROMPT_TUNING": {
        *("num_attention_heads", "num_layers", "num_transformer_submodules"),
        *("num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text", "token_dim"),
        *("tokenizer_kwargs", "tokenizer_name_or_path"),
    },
}
# Initializations that leave the base unchanged; the others (PiSSA, OLoRA, …) change its weights.
_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def save_peft(
    folder: str | os.PathLike[str],
    method: Method,
    tree: Params,
    route: int,
    config: T5Config,
    check: Callable[[pathlib.Path], None] = lambda folder: None,
) -> None:
    """Writes one route of an adapter in PEFT's format.

    Args:
      folder: the folder to write; it must not exist.
      method: LoRA, (IA)³, or prompt tuning as exported.
      tree: the method's tree.
      route: which of the K modules, in [0, K).
      config: the base's architecture.
      check: called with the written folder before it is renamed to its final name. If it raises,
        nothing is left behind.

    Raises:
      UserError: PEFT has no such method, or the folder exists or cannot be written.
    """
    # Subclasses are refused: they may compute something else.
    write = next((write for kind, write, _ in _FORMATS.values() if type(method) is kind), None)
    if write is None:
        names = ", ".join(f"'{kind.scope}'" for kind, _, _ in _FORMATS.values())
        raise UserError(
            f"PEFT has no format for an adapter of method '{method.scope}'; it has one for {names}"
        )
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(tree), sep="/")
    flat = {name: np.asarray(leaf[route], np.float32) for name, leaf in flat.items()}
    settings, tensors = write(method, flat, config)
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


def load_peft(folder: str | os.PathLike[str], config: T5Config) -> tuple[Method, Params]:
    """Reads a PEFT adapter of LoRA, prompt tuning or (IA)³.

    Args:
      folder: the folder that PEFT wrote.
      config: the base's architecture.

    Returns:
      The method with its settings, and its tree: float32, one route. A LoRA whose modules are not
      the same in all layers and stacks, or of several ranks, is filled with zeros where LoRA here
      needs arrays; it computes the same.

    Raises:
      UserError: files are missing or damaged, or the adapter uses something that this project's
        methods do not have; the message names it.
    """
    folder = pathlib.Path(folder)
    settings = _read_config(folder)
    tensors = _read_tensors(folder)
    kind = settings.get("peft_type")
    if not isinstance(kind, str) or kind not in _FORMATS:
        read = ", ".join(_FORMATS)
        raise UserError(f"{folder / CONFIG}: peft_type {kind!r}; {read} are read")
    for name, value in settings.items():
        # A setting that is unknown and switched on may change what the adapter computes.
        if value and value != "none" and name not in _HARMLESS | _READ[kind]:
            shown = name if name.isprintable() else repr(name)
            raise UserError(f"{folder / CONFIG}: {shown} = {value!r}, which has no equal here")
    method, flat = _FORMATS[kind][2](settings, tensors, config, str(folder))
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


def _number(settings: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    value = settings.get(name)
    # By type, as True is an int too.
    if type(value) is int or (kind is float and type(value) is float):
        if math.isfinite(value) and (kind is float or value >= 1):
            return kind(value)
    raise UserError(f"{where}: {name} is {value!r}")


def _lora_to_peft(
    method: LoRA, flat: Mapping[str, np.ndarray], config: T5Config
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if method.gated:
        raise UserError("PEFT has no format for LoRA with gates")
    modules = linear_modules(config)
    adapted = {name.split(f"/{LoRA.scope}/")[0] for name in flat}
    tensors = {
        f"base_model.model.{modules[layer]}.lora_{letter}.weight": flat[
            f"{layer}/{LoRA.scope}/{part}"
        ].T
        for layer in adapted
        for letter, part in _PARTS.items()
    }
    alpha = int(method.alpha) if float(method.alpha).is_integer() else method.alpha
    settings = {
        "peft_type": "LORA",
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_alpha": alpha,
        "lora_dropout": method.dropout_rate,
        "r": method.rank,
        "use_rslora": method.scaling == "sqrt_rank",
        # Full names, because PEFT matches shorter ones at the end of any name.
        "target_modules": sorted(modules[layer] for layer in adapted),
    }
    return settings, tensors


def _prompt_to_peft(
    method: PromptTuning, flat: Mapping[str, np.ndarray], config: T5Config
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    prompt = flat[f"encoder/{PromptTuning.scope}/prompt"]
    settings = {
        "peft_type": "PROMPT_TUNING",
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prompt.shape[0],
        "prompt_tuning_init": "RANDOM",
        "token_dim": config.emb_dim,
    }
    return settings, {_PROMPT: prompt}


def _lora_from_peft(
    settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], config: T5Config, where: str
) -> tuple[Method, dict[str, np.ndarray]]:
    start = settings.get("init_lora_weights", True)
    if isinstance(start, list | dict) or start not in _INITIALIZATIONS:
        raise UserError(
            f"{where}: init_lora_weights = {start!r} moves the base's own weights, so that the "
            "adapter fits no base; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    # T5's linear layers have no bias, so "all" trains none; a tensor of one would be refused below.
    if (bias := settings.get("bias") or "none") not in ("none", "all", "lora_only"):
        raise UserError(f"{where}: bias is {bias!r}")
    layers = {module: layer for layer, module in linear_modules(config).items()}
    sizes: dict[str, tuple[int, float]] = {}
    flat = {}
    for name, array in tensors.items():
        match = _LORA_NAME.fullmatch(name)
        if match is None or match[1] not in layers:
            raise UserError(
                f"{where}: tensor {name!r} is no LoRA of a linear layer in this T5's blocks"
            )
        layer = layers[match[1]]
        sizes[layer] = _rank_and_alpha(settings, match[1], where)
        flat[f"{layer}/{LoRA.scope}/{_PARTS[match[2]]}"] = array.T
    chosen, meant = _chosen(sizes, config, where)
    kernels = expected_shapes(config)
    expected = {}
    for layer, (rank, _) in sizes.items():
        width, features = kernels[f"{layer}/kernel"]
        expected[f"{layer}/{LoRA.scope}/down"] = (width, rank)
        expected[f"{layer}/{LoRA.scope}/up"] = (rank, features)
    check_shapes(expected, {name: array.shape for name, array in flat.items()}, where)
    rank, alpha = max(sizes.values())
    if len(set(sizes.values())) > 1:  # LoRA here has one scale, so theirs go into the arrays.
        alpha = float(rank)
        for layer, (own_rank, own_alpha) in sizes.items():
            up = f"{layer}/{LoRA.scope}/up"
            flat[up] = flat[up] * np.float32(own_alpha / own_rank)
    dropout = _number({"lora_dropout": 0.0, **settings}, "lora_dropout", float, where)
    method = LoRA(rank=rank, alpha=alpha, dropout_rate=dropout, **chosen)
    return method, _filled(flat, meant, rank, kernels)


def _rank_and_alpha(settings: Mapping[str, Any], module: str, where: str) -> tuple[int, float]:
    """Returns a module's rank and alpha, by the first pattern that fits its name."""
    own = dict(settings)
    for field, name in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        values = settings.get(field) or {}
        # PEFT takes any pattern; a foreign file's could take for ever to match.
        if not isinstance(values, dict) or not all(re.fullmatch(r"[\w.]+", key) for key in values):
            raise UserError(f"{where}: {field} is {values!r}; only names of modules are read")
        fitting = (value for key, value in values.items() if re.match(rf"(.*\.)?{key}$", module))
        own[name] = next(fitting, own.get(name))
    rank = _number(own, "r", int, where)
    alpha = _number(own, "lora_alpha", float, where)
    # rsLoRA scales by alpha/√r instead of alpha/r.
    return rank, alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _filled(
    flat: Mapping[str, np.ndarray],
    layers: Collection[str],
    rank: int,
    kernels: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """Fills an adapter with zeros up to one rank and to all these layers; it computes the same."""
    filled = {}
    for layer in sorted(layers):
        width, features = kernels[f"{layer}/kernel"]
        for part, shape in (("down", (width, rank)), ("up", (rank, features))):
            name = f"{layer}/{LoRA.scope}/{part}"
            filled[name] = np.zeros(shape, np.float32)
            if (array := flat.get(name)) is not None:
                filled[name][: array.shape[0], : array.shape[1]] = array
    return filled


def _chosen(
    adapted: Collection[str], config: T5Config, where: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns LoRA's `linears`, `stacks` and `layers` that select these linear layers.

    LoRA here takes the same linear layers in all of its layers and stacks, so they may select more.
    Returned is the choice that selects fewest, and the names of all that it selects.
    """
    if not adapted:
        raise UserError(f"{where}: no tensors of LoRA")
    sites = [layer.split("/", 2) for layer in adapted]
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    stacks = tuple(stack for stack in depths if any(stack == one for one, _, _ in sites))
    linears = tuple(sorted({linear for _, _, linear in sites}))
    numbers = sorted({int(number.removeprefix("layers_")) for _, number, _ in sites})
    kernels = expected_shapes(config)

    def meant(layers: Iterable[int] | None) -> list[str]:
        names = (
            f"{stack}/layers_{number}/{linear}"
            for stack in stacks
            for number in (range(depths[stack]) if layers is None else layers)
            for linear in linears
        )
        return [name for name in names if f"{name}/kernel" in kernels]

    choices = [None, tuple(numbers)]
    if numbers[-1] >= min(depths[stack] for stack in stacks):
        choices = [None]  # A stack has no layer of that number.
    layers = min(choices, key=lambda choice: len(meant(choice)))
    return {"linears": linears, "stacks": stacks, "layers": layers}, meant(layers)


def _prompt_from_peft(
    settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], config: T5Config, where: str
) -> tuple[Method, dict[str, np.ndarray]]:
    length = _number(settings, "num_virtual_tokens", int, where)
    copies = _number(
        {**settings, "num_transformer_submodules": settings.get("num_transformer_submodules") or 2},
        "num_transformer_submodules", int, where,
    )  # fmt: skip
    shapes = {name: array.shape for name, array in tensors.items()}
    check_shapes({_PROMPT: (copies * length, config.emb_dim)}, shapes, where)
    # PEFT stores rows for the decoder too, but T5 uses only the first ones.
    method = PromptTuning(length=length, reparameterise=False, initialisation="random")
    return method, {f"encoder/{PromptTuning.scope}/prompt": tensors[_PROMPT][:length]}


# PEFT's name of a format → the method, its writer and its reader.
_FORMATS: Mapping[str, tuple[type[Method], Callable[..., Any], Callable[..., Any]]] = {
    "LORA": (LoRA, _lora_to_peft, _lora_from_peft),
    "PROMPT_TUNING": (PromptTuning, _prompt_to_peft, _prompt_from_peft),
    "IA3": (IA3, peft_ia3.to_peft, peft_ia3.from_peft),
}
