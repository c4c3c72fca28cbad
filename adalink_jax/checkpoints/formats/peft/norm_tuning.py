"""Norm tuning in the adapter format of Hugging Face's PEFT, which calls it LN tuning.

``….ln_tuning_layers.weight`` [D] is the norm's whole scale; `NormTuning` here has d of
``scale ∘ (1 + d)``. So the base's scales are needed both ways.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from adalink_jax.checkpoints.architecture import check_shapes
from adalink_jax.checkpoints.formats.huggingface import tensor_names
from adalink_jax.checkpoints.formats.peft.format import PREFIX, Format
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method, Params
from adalink_jax.methods.norm_tuning import NormTuning
from adalink_jax.models.t5 import T5Config

_SUFFIX = ".ln_tuning_layers.weight"
_READ = frozenset({"exclude_modules", "target_modules"})


def _modules(config: T5Config) -> dict[str, str]:
    """Returns each norm's name here → its module's name in transformers' T5."""
    return {
        name.removesuffix("/scale"): torch_name.removesuffix(".weight")
        for name, (torch_name, _) in tensor_names(config).items()
        if name.endswith("_norm/scale")
    }


def _scales(config: T5Config, base: Params) -> dict[str, np.ndarray]:
    """Returns each norm's name and the base's scale [D]."""
    flat = traverse_util.flatten_dict(dict(base), sep="/")
    return {norm: np.asarray(flat[f"{norm}/scale"], np.float32) for norm in _modules(config)}


def _to_peft(
    method: NormTuning, flat: Mapping[str, np.ndarray], config: T5Config, base: Params
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    modules, scales = _modules(config), _scales(config, base)
    tensors = {}
    for name, change in flat.items():
        norm = name.removesuffix(f"/{NormTuning.scope}/scale")
        tensors[f"{PREFIX}{modules[norm]}{_SUFFIX}"] = scales[norm] * (1 + change)
    targets = sorted(name.removeprefix(PREFIX).removesuffix(_SUFFIX) for name in tensors)
    return {"peft_type": "LN_TUNING", "target_modules": targets}, tensors


def _from_peft(
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    config: T5Config,
    base: Params,
    where: str,
) -> tuple[Method, dict[str, np.ndarray]]:
    """Returns the method and its leaves; norms that PEFT leaves out keep the base's scales."""
    norms = {f"{PREFIX}{module}{_SUFFIX}": norm for norm, module in _modules(config).items()}
    found = {}
    for name, array in tensors.items():
        if name not in norms:
            raise UserError(f"{where}: tensor {name!r} is no scale of a layer norm of this T5")
        found[norms[name]] = array
    if not found:
        raise UserError(f"{where}: no tensors of LN tuning")
    shapes = {norm: array.shape for norm, array in found.items()}
    check_shapes(dict.fromkeys(found, (config.emb_dim,)), shapes, where)
    stacks = tuple(s for s in ("encoder", "decoder") if any(n.startswith(f"{s}/") for n in found))
    flat = {}
    for norm, scale in _scales(config, base).items():
        if norm.partition("/")[0] not in stacks:
            continue
        tuned = found.get(norm, scale)
        if np.any(tuned[scale == 0] != 0):
            raise UserError(
                f"{where}: {norm} has a scale that is zero in the base, where a factor cannot "
                "change it"
            )
        change = np.divide(tuned, scale, out=np.ones_like(scale), where=scale != 0) - 1
        flat[f"{norm}/{NormTuning.scope}/scale"] = change
    return NormTuning(stacks=stacks), flat


FORMAT = Format("LN_TUNING", NormTuning, _READ, _to_peft, _from_peft)
