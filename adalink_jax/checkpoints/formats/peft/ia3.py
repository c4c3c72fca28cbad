"""(IA)³ in the adapter format of Hugging Face's PEFT.

``….ia3_l`` is [Dout,1] where a layer's output is scaled, and [1,Din] where its input is. PEFT has
the scales themselves, `IA3` here has them less one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.architecture import expected_shapes
from adalink_jax.checkpoints.formats.huggingface import linear_modules
from adalink_jax.checkpoints.formats.peft.format import PREFIX, Format
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method, Params
from adalink_jax.methods.ia3 import IA3
from adalink_jax.models.t5 import T5Config

_SUFFIX = ".ia3_l"
# The layers whose outputs are scaled, and the one whose input is.
_OUTPUTS, _INPUT = ("key", "value"), "wo"
_READ = frozenset({"exclude_modules", "feedforward_modules", "init_ia3_weights", "target_modules"})


def _to_peft(
    method: IA3, flat: Mapping[str, np.ndarray], config: T5Config, base: Params
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns PEFT's settings and tensors of one route."""
    modules = linear_modules(config)
    tensors, inputs = {}, []
    for name, scale in flat.items():
        place = name.removesuffix(f"/{IA3.scope}/scale")
        of_input = place.endswith(f"/{_INPUT}")
        tensors[f"{PREFIX}{modules[place]}{_SUFFIX}"] = 1 + (
            scale[None] if of_input else scale[:, None]
        )
        inputs += [modules[place]] if of_input else []
    settings = {
        "peft_type": "IA3",
        "fan_in_fan_out": False,
        "feedforward_modules": sorted(inputs),
        "target_modules": sorted(
            name.removeprefix(PREFIX).removesuffix(_SUFFIX) for name in tensors
        ),
    }
    return settings, tensors


def _from_peft(
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    config: T5Config,
    base: Params,
    where: str,
) -> tuple[Method, dict[str, np.ndarray]]:
    """Returns the method and its leaves; layers that PEFT leaves out are scaled by one."""
    places = {module: place for place, module in linear_modules(config).items()}
    kernels = expected_shapes(config)
    found = {}
    for name, array in tensors.items():
        place = places.get(name.removeprefix(PREFIX).removesuffix(_SUFFIX), "")
        layer = place.rpartition("/")[2]
        inputs, outputs = kernels.get(f"{place}/kernel", (0, 0))
        expected = {_INPUT: (1, inputs), **dict.fromkeys(_OUTPUTS, (outputs, 1))}.get(layer)
        if not name.endswith(_SUFFIX) or array.shape != expected:
            raise UserError(
                f"{where}: tensor {name!r} of shape {list(array.shape)} is no scale of keys, of "
                "values or of what the MLP's last layer reads"
            )
        found[f"{place}/{IA3.scope}/scale"] = array.reshape(-1) - 1
    if not found:
        raise UserError(f"{where}: no tensors of (IA)³")
    stacks = [stack for stack in ("encoder", "decoder") if any(n.startswith(stack) for n in found)]
    method = IA3(feed_forward=any(f"/{_INPUT}/" in name for name in found), stacks=tuple(stacks))
    scaled = (*_OUTPUTS, *([_INPUT] if method.feed_forward else []))
    for place in places.values():
        layer = place.rpartition("/")[2]
        if place.partition("/")[0] in stacks and layer in scaled:
            width = kernels[f"{place}/kernel"][layer != _INPUT]
            found.setdefault(f"{place}/{IA3.scope}/scale", np.zeros(width, np.float32))
    return method, found


FORMAT = Format("IA3", IA3, _READ, _to_peft, _from_peft)
