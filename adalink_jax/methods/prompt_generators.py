"""What a prompt is made of in training: its vectors, or parameters and layers that give them.

A stored adapter has the vectors alone. With K routes, P vectors of width D and inner width M:

* "residual": Razdaibiedina et al. 2023 (arXiv 2305.03937) as AdaLink's paper uses it,
  ``P + LayerNorm(relu(P · W1) · W2)``; "residual_biases" as its authors' code has it,
  ``P + LayerNorm(relu(P · W1 + b1) · W2 + b2)``.
* "mlp": P-tuning (Liu et al. 2021, arXiv 2103.10385) as peft has it,
  ``relu(relu(P · W1 + b1) · W2 + b2) · W3 + b3`` with W2 [M,M].
* "low_rank": ``U · V`` with U [P,M] and V [M,D].
* "ulpt": ULPT (Wu et al. 2025, arXiv 2502.04501), ``(Z · Q) ∘ s + t`` with Z [P,M], s and t [D],
  and Q [M,D] frozen, made from a seed.
* "mpt": MPT (Wang et al. 2023, arXiv 2303.02861) without its distillation, ``P ∘ (u_k · v_kᵀ)`` for
  route k, with u_k [P] and v_k [D] from one, and P the same for all routes.

All else is a route's own but Q, which all routes share too.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.methods.base import Array, Params
from adalink_jax.methods.seeded import seeded_uniform

Prompts = Float[Array, "K P D"]
Dropout = Callable[[Array], Array]

# The logical axes of a leaf whose shape is written in these letters; N is M too.
_AXES = {
    "K": "routes", "P": "prompt", "D": "adapter_embed", "M": "rank", "N": "adapter_embed",
}  # fmt: skip
_ZEROS, _ONES = nn.initializers.zeros, nn.initializers.ones
_FAN_IN = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=0
)


def _lester(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Lester et al.'s random initialization: uniform within ±0.5."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Generator:
    """A way to make prompts.

    Attributes:
      leaves: the initializer of each parameter, and its shape in the letters of `_AXES`.
      prompts: (parameters, dropout of a residual, seed) → the prompts.
    """

    leaves: Mapping[str, tuple[Callable[..., Array], str]]
    prompts: Callable[[Params, Dropout, int], Prompts]

    def has_routes(self, leaf: str) -> bool:
        """Returns whether a parameter has an axis of routes."""
        return self.leaves[leaf][1].startswith("K")


def _flat(params: Params, dropout: Dropout, seed: int) -> Prompts:
    return params["prompt"]


def _residual(params: Params, dropout: Dropout, seed: int) -> Prompts:
    prompt = params["prompt"]
    hidden = jnp.einsum("kpd,kdm->kpm", prompt, params["w1"])
    if "b1" in params:
        hidden += params["b1"][:, None]
    residual = jnp.einsum("kpm,kmd->kpd", nn.relu(hidden), params["w2"])
    if "b2" in params:
        residual += params["b2"][:, None]
    residual = dropout(residual)
    mean = residual.mean(axis=-1, keepdims=True)
    variance = residual.var(axis=-1, keepdims=True)
    normed = (residual - mean) * jax.lax.rsqrt(variance + 1e-6)
    return prompt + normed * params["scale"][:, None] + params["bias"][:, None]


def _mlp(params: Params, dropout: Dropout, seed: int) -> Prompts:
    x = params["prompt"]
    for i in (1, 2, 3):
        x = x @ params[f"w{i}"] + params[f"b{i}"][:, None]
        x = nn.relu(x) if i < 3 else x
    return x


def _low_rank(params: Params, dropout: Dropout, seed: int) -> Prompts:
    return params["codes"] @ params["basis"]


def _ulpt(params: Params, dropout: Dropout, seed: int) -> Prompts:
    rank, width = params["codes"].shape[-1], params["scale"].shape[-1]
    basis = seeded_uniform(seed, rank, width)[0] * math.sqrt(6 / (rank + width))
    return (params["codes"] @ basis) * params["scale"][:, None] + params["shift"][:, None]


def _mpt(params: Params, dropout: Dropout, seed: int) -> Prompts:
    return params["prompt"] * (params["rows"][:, :, None] * params["columns"][:, None])


_PROMPT = {"prompt": (_lester, "KPD")}
_RESIDUAL = {
    **_PROMPT,
    **{"w1": (_FAN_IN, "KDM"), "w2": (_FAN_IN, "KMD")},
    **{"scale": (_ONES, "KD"), "bias": (_ZEROS, "KD")},
}
# The numbers of U are of size 1, and those of U · V as large as Lester et al.'s.
_AS_LESTER = nn.initializers.variance_scaling(
    1 / 12, "fan_in", "uniform", in_axis=-2, out_axis=-1, batch_axis=0
)
_NORMAL = nn.initializers.normal(1.0)

FLAT = Generator(_PROMPT, _flat)
GENERATORS = {
    "residual": Generator(_RESIDUAL, _residual),
    "residual_biases": Generator(
        {**_RESIDUAL, "b1": (_ZEROS, "KM"), "b2": (_ZEROS, "KD")}, _residual
    ),
    "mlp": Generator(
        {
            **_PROMPT,
            **{"w1": (_FAN_IN, "KDM"), "w2": (_FAN_IN, "KNM"), "w3": (_FAN_IN, "KMD")},
            **{"b1": (_ZEROS, "KM"), "b2": (_ZEROS, "KM"), "b3": (_ZEROS, "KD")},
        },
        _mlp,
    ),
    "low_rank": Generator({"codes": (_NORMAL, "KPM"), "basis": (_AS_LESTER, "KMD")}, _low_rank),
    "ulpt": Generator(
        {"codes": (_NORMAL, "KPM"), "scale": (_ONES, "KD"), "shift": (_ZEROS, "KD")}, _ulpt
    ),
    "mpt": Generator(
        {"prompt": (_lester, "PD"), "rows": (_ONES, "KP"), "columns": (_ONES, "KD")}, _mpt
    ),
}


class Prompt(nn.Module):
    """The child scope with a generator's parameters; gives the prompts.

    Attributes:
      generator: how prompts are made.
      length: P.
      routes: K.
      bottleneck: M.
      dropout_rate: dropout of a residual.
      seed: of what is frozen.
    """

    generator: Generator
    length: int
    routes: int
    bottleneck: int
    dropout_rate: float
    seed: int

    @nn.compact
    def __call__(self, width: int, deterministic: bool) -> Prompts:
        inner = self.bottleneck
        sizes = {"K": self.routes, "P": self.length, "D": width, "M": inner, "N": inner}
        params = {
            name: param_with_axes(
                name,
                init,
                tuple(sizes[letter] for letter in letters),
                jnp.float32,
                axes=tuple(_AXES[letter] for letter in letters),
            )
            for name, (init, letters) in self.generator.leaves.items()
        }
        dropout = nn.Dropout(self.dropout_rate, name="dropout")
        return self.generator.prompts(
            params, lambda x: dropout(x, deterministic=deterministic), self.seed
        )
