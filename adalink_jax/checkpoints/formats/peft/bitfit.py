"""BitFit in the adapter format of Hugging Face's PEFT, whose BEFT adds biases to linear layers.

``….beft_bias`` is [1,Dout].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.formats.peft import linears
from adalink_jax.checkpoints.formats.peft.format import Format
from adalink_jax.methods.base import Method, Params
from adalink_jax.methods.bitfit import BitFit
from adalink_jax.models.t5 import T5Config

_ENDINGS = {"bias": "beft_bias"}
_READ = frozenset({"init_weights", *linears.TARGETS})


def _to_peft(
    method: BitFit, flat: Mapping[str, np.ndarray], config: T5Config, base: Params
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    tensors, targets = linears.to_peft(flat, BitFit.scope, _ENDINGS, config)
    settings = {"peft_type": "BEFT", "target_modules": targets}
    return settings, {name: bias[None] for name, bias in tensors.items()}


def _from_peft(
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    config: T5Config,
    base: Params,
    where: str,
) -> tuple[Method, dict[str, np.ndarray]]:
    kernels = linears.kernels(config)
    # The transpose of PEFT's: [Dout,1].
    modules = linears.from_peft(tensors, _ENDINGS, "bias", config, where)
    linears.check(modules, BitFit.scope, lambda at: {"bias": (kernels[at][1], 1)}, where)
    fields, meant = linears.chosen(modules, config)
    own = {place: {"bias": leaves["bias"][:, 0]} for place, leaves in modules.items()}
    flat = linears.filled(own, BitFit.scope, meant, lambda at: {"bias": kernels[at][1:]})
    return BitFit(**fields), flat


FORMAT = Format("BEFT", BitFit, _READ, _to_peft, _from_peft)
