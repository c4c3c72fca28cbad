"""ProPETL: one prototype of a bottleneck adapter, of which each layer keeps other weights.

Zeng et al. 2023 (arXiv 2305.17682): ``A(z) = f(z·(D ∘ m) + d)·(U ∘ n) + u`` after each MLP, with
D, d, U and u of a whole stack and binary masks m and n of each layer. A mask keeps the weights with
the largest scores |s|, and scores are trained as if they were the mask (straight through). With
several routes, the prototype and the layers' masks serve all of them, and each route has masks of
its own, for all layers: a weight is kept that either of the two keeps.

Only training needs the prototype: what is stored are the layers' masked weights. The authors store
the prototype, and a bit for each weight and layer.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.methods.base import (
    Array,
    Context,
    Layers,
    Method,
    Params,
    RateFactors,
    Site,
    Stacks,
)
from adalink_jax.methods.blocks import BLOCKS, SOURCES, OnBlocks
from adalink_jax.methods.bottleneck import NEAR_ZERO
from adalink_jax.methods.low_rank import (
    ACTIVATIONS,
    routed_low_rank,
    routed_vector,
    used_modules,
)
from adalink_jax.values import OneOf, Range, Size

_LEAVES = {
    "down": ("adapter_embed", "rank"),
    "up": ("rank", "adapter_embed"),
    "down_bias": ("rank",),
    "up_bias": ("adapter_embed",),
}
_MATRICES = ("down", "up")


def kept_mask(scores: Float[Array, "*K A B"], kept: float) -> Float[Array, "*K A B"]:
    """Returns masks that are 1 for the share `kept` of each matrix, with the largest |scores|.

    The gradient is that of |scores|.
    """
    size = jnp.abs(scores)
    count = size.shape[-2] * size.shape[-1]
    dropped = min(int((1 - kept) * count), count - 1)
    order = jnp.sort(jax.lax.stop_gradient(size).reshape(*size.shape[:-2], count))
    hard = (size >= order[..., dropped, None, None]).astype(scores.dtype)
    return size + jax.lax.stop_gradient(hard - size)


def _either(a: Array, b: Array) -> Array:
    """Returns the union of two masks, in the authors' form, which has a gradient for both."""
    return 1 - (1 - a) * (1 - b)


def masked_weights(prototype: Mapping[str, Array], layer: Mapping[str, Array], kept: float):
    """Returns a layer's weights [K,A,B] and biases [K,A] by name.

    Args:
      prototype: the stack's leaves; "down_scores" and "up_scores" [K,A,B] with several routes only.
      layer: the layer's "down_scores" and "up_scores" [A,B].
      kept: the share of a matrix that each mask keeps.
    """
    made = {}
    for name in _MATRICES:
        mask = kept_mask(layer[f"{name}_scores"], kept)[None]
        if (own := prototype.get(f"{name}_scores")) is not None:
            mask = _either(mask, kept_mask(own, kept))
        made[name] = prototype[name] * mask
        bias = prototype[f"{name}_bias"]
        made[f"{name}_bias"] = jnp.broadcast_to(bias, (len(mask), *bias.shape))
    return made


def _score_init(key, shape, dtype=jnp.float32):
    """Uniform within ±1/√Din, torch's default for a linear layer."""
    limit = 1 / math.sqrt(shape[-2])
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def _param(name: str, init: Any, sizes: Mapping[str, int], modules: int | None = None) -> Array:
    axes = _LEAVES[name.removesuffix("_scores")]
    shape = tuple(sizes[axis] for axis in axes)
    if modules is not None:
        axes, shape = ("routes", *axes), (modules, *shape)
    return param_with_axes(name, init, shape, jnp.float32, axes=axes)


def _init(name: str) -> Any:
    return NEAR_ZERO if name in _MATRICES else nn.initializers.zeros


class _Prototype(nn.Module):
    """The stack's child scope: ``down [D,R]``, ``up``, their biases, and the routes' scores."""

    rank: int
    routes: int

    @nn.compact
    def __call__(self, width: int) -> dict[str, Array]:
        sizes = {"adapter_embed": width, "rank": self.rank}
        leaves = {name: _param(name, _init(name), sizes) for name in _LEAVES}
        if self.routes > 1:
            scores = [f"{name}_scores" for name in _MATRICES]
            leaves |= {name: _param(name, _score_init, sizes, self.routes) for name in scores}
        return leaves


class _Adapter(nn.Module):
    """A block's child scope: ``down_scores [D,R]`` and ``up_scores``.

    A stored adapter's has ``down [K,D,R]``, ``up [K,R,D]`` and their biases instead.
    """

    rank: int
    routes: int
    kept: float
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(
        self, z: Float[Array, "B T D"], prototype: Mapping[str, Array] | None, ctx: Context
    ) -> Float[Array, "B T D"]:
        sizes = {"adapter_embed": z.shape[-1], "rank": self.rank}
        routes = ctx.routes
        if prototype is None:
            made = {name: _param(name, _init(name), sizes, self.routes) for name in _LEAVES}
        else:
            names = [f"{name}_scores" for name in _MATRICES]
            layer = {name: _param(name, _score_init, sizes) for name in names}
            own = {name: leaf for name, leaf in prototype.items() if name in names}
            if own:
                own, routes = used_modules(own, ctx)
            made = masked_weights({**prototype, **own}, layer, self.kept)
        made = {name: leaf.astype(z.dtype) for name, leaf in made.items()}
        own_ctx = dataclasses.replace(ctx, routes=routes)
        y = routed_low_rank(
            z, made["down"], made["up"], routes, ctx.route_slots, self.activation, made["down_bias"]
        )
        return y + routed_vector(made["up_bias"], own_ctx)


@dataclasses.dataclass(frozen=True)
class ProPETL(OnBlocks):
    """ProPETL's adapters at chosen blocks.

    Attributes:
      rank: R, the width of the bottleneck.
      kept: the share of a matrix that each mask keeps.
      scored: whether masks are trained. A stored adapter has the masked weights instead.
      blocks: of "attention" (to the same sequence), "cross_attention" and "mlp".
      source: what the adapter reads: the block's "output", its normed "input", the "residual"
        stream before the block, or the "sum" of output and residual.
      activation: f.
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all.
      routes: K, the number of modules; each token's route chooses one.
      rate_factors: factors of the learning rate by shell pattern over the leaves' names. The
        authors train scores ten times as fast.
    """

    rank: Size
    kept: Annotated[float, Range(0, 1, open_start=True)] = 0.3
    scored: bool = True
    blocks: tuple[Annotated[str, OneOf(BLOCKS)], ...] = ("mlp",)
    source: Annotated[str, OneOf(SOURCES)] = "sum"
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "gelu"
    stacks: Stacks = ("encoder", "decoder")
    layers: Layers = None
    routes: Size = 1
    rate_factors: RateFactors = (("*_scores", 10.0),)

    scope: ClassVar[str] = "propetl"
    size_field: ClassVar[str] = "rank"
    training_only: ClassVar[tuple[str, ...]] = ("kept", "scored", "rate_factors")

    @property
    def start(self) -> str:
        return "near"

    def has_routes(self, name: str) -> bool:
        """Returns whether a leaf has the axis of routes: the stack's scores, and what is stored."""
        places = name.split("/")
        of_stack = len(places) == 3 and places[-1].endswith("_scores")
        return self.owns(name) and (of_stack or not self.scored)

    def prepare(self, ctx: Context) -> Any:
        if not self.scored or ctx.stack not in self.stacks:
            return None
        return _Prototype(self.rank, self.routes, name=self.scope)(ctx.width)

    def sublayer(
        self,
        y: Float[Array, "B T D"],
        x: Float[Array, "B T D"],
        residual: Float[Array, "B T D"],
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B T D"]:
        if not self.adapts(site):
            return y
        activation = ACTIVATIONS[self.activation]
        adapter = _Adapter(self.rank, self.routes, self.kept, activation, name=self.scope)
        return y + ctx.gate * adapter(self.read(y, x, residual), ctx.shared, ctx)

    def export(self, adapter: Params) -> tuple[Method, Params]:
        """Returns the layers' masked weights in place of prototype and scores."""
        stored = dataclasses.replace(self, scored=False, rate_factors=None)
        if not self.scored:
            return stored, adapter
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
        scopes: dict[str, dict[str, Array]] = {}
        for name, leaf in flat.items():
            place, _, inner = name.rpartition("/")
            scopes.setdefault(place, {})[inner] = jnp.asarray(leaf)
        made = {}
        for place, leaves in scopes.items():
            if "down" not in leaves:
                prototype = scopes[f"{place.partition('/')[0]}/{self.scope}"]
                made[place] = masked_weights(prototype, leaves, self.kept)
        tree = {f"{place}/{name}": x for place, own in made.items() for name, x in own.items()}
        return stored, traverse_util.unflatten_dict(tree, sep="/")

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        stored, tree = self.export(adapter)
        assert isinstance(stored, ProPETL)
        return dataclasses.replace(stored, kept=1.0), tree
