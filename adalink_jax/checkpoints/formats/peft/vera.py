"""VeRA in the adapter format of Hugging Face's PEFT.

``….vera_lambda_d`` is d and ``….vera_lambda_b`` is b. ``base_model.vera_A`` [R,Din] and
``base_model.vera_B`` [Dout,R] are the random matrices, transposed, of the largest adapted layers.
PEFT draws them from PyTorch's generator, VeRA here from a hash. What is written holds them, and
says the seed. PEFT's own are of no seed here: its adapter becomes the LoRA that it is equal to,
with W_down = A·diag(d) and W_up = B·diag(b).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.formats.peft import linears
from adalink_jax.checkpoints.formats.peft.format import Format, number
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method, Params
from adalink_jax.methods.lora import LoRA
from adalink_jax.methods.vera import VeRA, frozen_pair
from adalink_jax.models.t5 import T5Config

_ENDINGS = {"inner": "vera_lambda_d", "outer": "vera_lambda_b"}
_A, _B = "base_model.vera_A", "base_model.vera_B"
# Added to the seed to make ``projection_prng_key``. PEFT lets all adapters of one key in a model
# share the matrices of the first, so the keys here must not be those of PEFT's own adapters.
_OURS = 2**32
_READ = frozenset(
    {
        *("d_initial", "init_weights", "projection_prng_key", "r", "save_projection"),
        *("vera_dropout", *linears.TARGETS),
    }
)


def _to_peft(
    method: VeRA, flat: Mapping[str, np.ndarray], config: T5Config, base: Params
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    tensors, targets = linears.to_peft(flat, VeRA.scope, _ENDINGS, config)
    kernels = linears.kernels(config)
    adapted = [kernels[name.partition(f"/{VeRA.scope}/")[0]] for name in flat]
    largest = [max(sizes) for sizes in zip(*adapted, strict=True)]
    down, up = map(np.asarray, frozen_pair(method.seed, method.rank, config.emb_dim, *largest))
    settings = {
        "peft_type": "VERA",
        "bias": "none",
        "fan_in_fan_out": False,
        "projection_prng_key": _OURS + method.seed,
        "r": method.rank,
        "save_projection": True,
        "target_modules": targets,
        "vera_dropout": 0.0,
    }
    return settings, tensors | {_A: down.T, _B: up.T}


def _from_peft(
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    config: T5Config,
    base: Params,
    where: str,
) -> tuple[Method, dict[str, np.ndarray]]:
    rank, kernels = number(settings, "r", int, where), linears.kernels(config)
    own = {name: array for name, array in tensors.items() if name not in (_A, _B)}
    modules = linears.from_peft(own, _ENDINGS, "VeRA", config, where)

    def shapes(place: str) -> dict[str, tuple[int, ...]]:
        return {"inner": (rank,), "outer": (kernels[place][1],)}

    linears.check(modules, VeRA.scope, shapes, where)
    down, up = _projections(tensors, rank, [kernels[place] for place in modules], where)
    fields, meant = linears.chosen(modules, config)
    key = settings.get("projection_prng_key")
    if type(key) is int and _OURS <= key < 2 * _OURS:
        seed = key - _OURS
        ours = frozen_pair(seed, rank, config.emb_dim, len(down), up.shape[1])
        if np.array_equal(ours[0], down) and np.array_equal(ours[1], up):
            method = VeRA(rank=rank, seed=seed, **fields)
            return method, linears.filled(modules, VeRA.scope, meant, shapes)
    products = {}
    for place, leaves in modules.items():
        width, features = kernels[place]
        outer = up[:, :features] * leaves["outer"]
        products[place] = {"down": down[:width] * leaves["inner"], "up": outer}
    dropout = number({"vera_dropout": 0.0, **settings}, "vera_dropout", float, where)
    method = LoRA(rank=rank, alpha=float(rank), dropout_rate=dropout, **fields)

    def of_lora(place: str) -> dict[str, tuple[int, ...]]:
        return {"down": (kernels[place][0], rank), "up": (rank, kernels[place][1])}

    return method, linears.filled(products, LoRA.scope, meant, of_lora)


def _projections(
    tensors: Mapping[str, np.ndarray], rank: int, kernels: list[tuple[int, int]], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns A [Din,R] and B [R,Dout], which must be as large as the largest layer needs."""
    if _A not in tensors or _B not in tensors:
        raise UserError(
            f"{where}: no {_A} and {_B}, the random matrices; save it with save_projection = True"
        )
    down, up = tensors[_A].T, tensors[_B].T
    inputs, outputs = (max(sizes) for sizes in zip(*kernels, strict=True))
    fits = down.ndim == up.ndim == 2 and down.shape[1] == len(up) == rank
    if not fits or len(down) < inputs or up.shape[1] < outputs:
        raise UserError(
            f"{where}: {_A} is {list(tensors[_A].shape)} and {_B} {list(tensors[_B].shape)}; "
            f"expected at least [{rank}, {inputs}] and [{outputs}, {rank}]"
        )
    return down, up


FORMAT = Format("VERA", VeRA, _READ, _to_peft, _from_peft)
