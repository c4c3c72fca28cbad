"""LoRA in the adapter format of Hugging Face's PEFT.

Tensors are ``base_model.model.MODULE.lora_A.weight``, the transpose of W_down, and
``lora_B.weight``, the transpose of W_up.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.architecture import check_shapes, expected_shapes
from adalink_jax.checkpoints.formats.huggingface import linear_modules
from adalink_jax.checkpoints.formats.peft.format import PREFIX, Format, number
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method
from adalink_jax.methods.lora import LoRA
from adalink_jax.models.t5 import T5Config

_NAME = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight")
_PARTS = {"A": "down", "B": "up"}
# Initializations that leave the base unchanged; the others (PiSSA, OLoRA, …) change its weights.
_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_READ = frozenset(
    {
        *("alpha_pattern", "bias", "ensure_weight_tying", "eva_config", "exclude_modules"),
        *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha"),
        *("lora_dropout", "megatron_core", "qalora_group_size", "r", "rank_pattern"),
        *("target_modules", "use_rslora"),
    }
)


def _to_peft(
    method: LoRA, flat: Mapping[str, np.ndarray], config: T5Config
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if method.gated:
        raise UserError("PEFT has no format for LoRA with gates")
    modules = linear_modules(config)
    adapted = {name.split(f"/{LoRA.scope}/")[0] for name in flat}
    tensors = {
        f"{PREFIX}{modules[layer]}.lora_{letter}.weight": flat[f"{layer}/{LoRA.scope}/{part}"].T
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


def _from_peft(
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
        match = _NAME.fullmatch(name)
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
    dropout = number({"lora_dropout": 0.0, **settings}, "lora_dropout", float, where)
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
    rank = number(own, "r", int, where)
    alpha = number(own, "lora_alpha", float, where)
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


FORMAT = Format(LoRA, _READ, _to_peft, _from_peft)
