"""LoRA and DoRA in the adapter format of Hugging Face's PEFT.

Tensors are ``base_model.model.MODULE.lora_A.weight``, the transpose of W_down, ``lora_B.weight``,
the transpose of W_up, and in DoRA ``lora_magnitude_vector``, the lengths of the kernel's columns.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.formats.huggingface import linear_modules
from adalink_jax.checkpoints.formats.peft import linears
from adalink_jax.checkpoints.formats.peft.format import Format, number
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method, Params
from adalink_jax.methods.dora import DoRA
from adalink_jax.methods.linears import kernel_of
from adalink_jax.methods.lora import LoRA
from adalink_jax.models.t5 import T5Config

_SWITCH = "use_dora"
_ENDINGS = {"down": "lora_A.weight", "up": "lora_B.weight"}
_LENGTHS = {"magnitude": "lora_magnitude_vector"}
# Initializations that leave the base unchanged; the others (PiSSA, OLoRA, …) change its weights.
_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_READ = frozenset(
    {
        *("alpha_pattern", "bias", "ensure_weight_tying", "eva_config", "init_lora_weights"),
        *("lora_alpha", "lora_dropout", "megatron_core", "qalora_group_size", "r"),
        *("rank_pattern", "use_rslora", *linears.TARGETS),
    }
)


def _to_peft(
    method: LoRA | DoRA, flat: Mapping[str, np.ndarray], config: T5Config, base: Params
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    plain = isinstance(method, LoRA)
    if plain and method.gated:
        raise UserError("PEFT has no format for LoRA with gates")
    tensors, targets = linears.to_peft(flat, method.scope, _ENDINGS | _LENGTHS, config)
    alpha = int(method.alpha) if float(method.alpha).is_integer() else method.alpha
    settings = {
        "peft_type": "LORA",
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_alpha": alpha,
        "lora_dropout": method.dropout_rate,
        "r": method.rank,
        "target_modules": targets,
        "use_rslora": plain and method.scaling == "sqrt_rank",
        _SWITCH: not plain,
    }
    return settings, tensors


def _from_peft(
    kind: type[LoRA] | type[DoRA],
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    config: T5Config,
    base: Params,
    where: str,
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
    endings = _ENDINGS if kind is LoRA else _ENDINGS | _LENGTHS
    modules = linears.from_peft(tensors, endings, kind.__name__, config, where)
    names, kernels = linear_modules(config), linears.kernels(config)
    sizes = {place: _rank_and_alpha(settings, names[place], where) for place in modules}

    def shapes(rank: int, place: str) -> dict[str, tuple[int, ...]]:
        width, features = kernels[place]
        of_all = {"down": (width, rank), "up": (rank, features), "magnitude": (features,)}
        return {inner: of_all[inner] for inner in endings}

    linears.check(modules, kind.scope, lambda place: shapes(sizes[place][0], place), where)
    rank, alpha = max(sizes.values())
    if len(set(sizes.values())) > 1:  # One scale here is of all layers, so theirs go into arrays.
        alpha = float(rank)
        for place, (own_rank, own_alpha) in sizes.items():
            modules[place]["up"] = modules[place]["up"] * np.float32(own_alpha / own_rank)
    fields, meant = linears.chosen(modules, config)
    for place in set(meant) - modules.keys() if kind is DoRA else ():
        modules[place] = {"magnitude": np.sqrt(np.sum(kernel_of(base, place) ** 2, axis=0))}
    dropout = number({"lora_dropout": 0.0, **settings}, "lora_dropout", float, where)
    method = kind(rank=rank, alpha=alpha, dropout_rate=dropout, **fields)
    flat = linears.filled(modules, kind.scope, meant, functools.partial(shapes, rank))
    return method, flat


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
    rank = number(own, "r", int, where)
    alpha = number(own, "lora_alpha", float, where)
    # rsLoRA scales by alpha/√r instead of alpha/r.
    return rank, alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


FORMAT = Format("LORA", LoRA, _READ, _to_peft, functools.partial(_from_peft, LoRA))
DORA = Format(
    "LORA", DoRA, _READ | {_SWITCH}, _to_peft, functools.partial(_from_peft, DoRA), _SWITCH
)
