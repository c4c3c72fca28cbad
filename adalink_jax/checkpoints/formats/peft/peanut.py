"""PEANuT in the adapter format of Hugging Face's PEFT.

``….peanut_A.weight`` is the transpose of A, ``….peanut_B.weight`` that of B. PEFT's hidden layers
(``depth``) are not read.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.formats.peft import linears
from adalink_jax.checkpoints.formats.peft.format import Format, number
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method, Params
from adalink_jax.methods.peanut import PEANuT
from adalink_jax.models.t5 import T5Config

_ENDINGS = {"down": "peanut_A.weight", "up": "peanut_B.weight"}
_READ = frozenset({"act_fn", "init_weights", "r", "scaling", *linears.TARGETS})
# Our name of an activation → transformers'. Its "gelu" is exact GELU, ours is the approximation.
_ACTIVATIONS = {"identity": "linear", "relu": "relu", "gelu": "gelu_new", "silu": "silu",
                "tanh": "tanh"}  # fmt: skip


def _to_peft(
    method: PEANuT, flat: Mapping[str, np.ndarray], config: T5Config, base: Params
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    tensors, targets = linears.to_peft(flat, PEANuT.scope, _ENDINGS, config)
    settings = {
        "peft_type": "PEANUT",
        "act_fn": _ACTIVATIONS[method.activation],
        "depth": 0,
        "r": method.rank,
        "scaling": 1.0,
        "target_modules": targets,
    }
    return settings, tensors


def _from_peft(
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    config: T5Config,
    base: Params,
    where: str,
) -> tuple[Method, dict[str, np.ndarray]]:
    wanted = settings.get("act_fn", "relu")
    activation = next((ours for ours, name in _ACTIVATIONS.items() if name == wanted), None)
    if activation is None:
        known = ", ".join(_ACTIVATIONS.values())
        raise UserError(f"{where}: act_fn is {wanted!r}; {known} are read")
    rank = number(settings, "r", int, where)
    scaling = number({"scaling": 1.0, **settings}, "scaling", float, where)
    kernels = linears.kernels(config)

    def shapes(place: str) -> dict[str, tuple[int, ...]]:
        features = kernels[place][1]
        return {"down": (features, rank), "up": (rank, features)}

    modules = linears.from_peft(tensors, _ENDINGS, "PEANuT", config, where)
    linears.check(modules, PEANuT.scope, shapes, where)
    for leaves in modules.values():
        leaves["up"] = leaves["up"] * np.float32(scaling)
    fields, meant = linears.chosen(modules, config)
    method = PEANuT(rank=rank, activation=activation, **fields)
    return method, linears.filled(modules, PEANuT.scope, meant, shapes)


FORMAT = Format("PEANUT", PEANuT, _READ, _to_peft, _from_peft)
