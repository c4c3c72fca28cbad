"""Prefix tuning: trained keys and values in front of those of every attention block.

Li & Liang 2021 (arXiv 2101.00190) train them through an MLP: ``H = tanh(E · W1 + b1)`` with E [P,D]
is shared by the layers of a stack, and each block has ``(keys, values) = H · W2 + b2``. The stored
adapter holds the keys and values. Without the MLP this is P-tuning v2 (Liu et al. 2022, arXiv
2110.07602).

As in T-Few's code and in peft, the keys stand before position 0 of the text. They may also have no
position, i.e. no bias. Unlike a prompt, a prefix can be packed: no token moves.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Context, Layers, Memory, Method, Params, Site, Stacks
from adalink_jax.methods.low_rank import Gate, row_routes
from adalink_jax.values import Length, OneOf, Size

# The attention blocks of each stack that `PrefixTuning.blocks` names.
BLOCKS = ("attention", "cross_attention")
_FAN_IN = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=0
)


def _params(module: nn.Module, sizes: dict[str, int]):
    """Returns a function (name, init, *axes) that makes a parameter of these sizes."""

    def param(name: str, init: Any, *axes: str) -> Array:
        shape = tuple(sizes[axis] for axis in axes)
        named = tuple("adapter_embed" if axis == "width" else axis for axis in axes)
        return param_with_axes(name, init, shape, jnp.float32, axes=named, module=module)

    return param


class _Hidden(nn.Module):
    """The stack's part of the MLP: ``embedding [K,P,D]``, ``w1 [K,D,M]``, ``b1 [K,M]``."""

    length: int
    routes: int
    bottleneck: int

    @nn.compact
    def __call__(self, width: int) -> Float[Array, "K P M"]:
        param = _params(
            self,
            {"routes": self.routes, "prompt": self.length}
            | {"width": width, "rank": self.bottleneck},
        )
        embedding = param("embedding", nn.initializers.normal(1.0), "routes", "prompt", "width")
        w1 = param("w1", _FAN_IN, "routes", "width", "rank")
        b1 = param("b1", nn.initializers.zeros, "routes", "rank")
        return nn.tanh(embedding @ w1 + b1[:, None])


class _KeysValues(nn.Module):
    """A block's leaves: ``keys`` and ``values`` [K,P,W], or the MLP's last layer for both.

    With `gated` there is UniPELT's gate too.
    """

    length: int
    routes: int
    gated: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], width: int, hidden: Array | None, ctx: Context
    ) -> tuple[dict[str, Float[Array, "K P W"]], Float[Array, "B T 1"] | None]:
        gate = Gate(self.routes, of_example=True, name="gate")(x, ctx) if self.gated else None
        sizes = {"routes": self.routes, "prompt": self.length, "width": width}
        if hidden is None:
            param, normal = _params(self, sizes), nn.initializers.normal(1.0)
            return {n: param(n, normal, "routes", "prompt", "width") for n in _NAMES}, gate
        param, zeros = _params(self, sizes | {"rank": hidden.shape[-1]}), nn.initializers.zeros
        tables = {
            name: hidden @ param(f"{name}_w2", _FAN_IN, "routes", "rank", "width")
            + param(f"{name}_b2", zeros, "routes", "width")[:, None]
            for name in _NAMES
        }
        return tables, gate


_NAMES = ("keys", "values")


@dataclasses.dataclass(frozen=True)
class PrefixTuning(Method):
    """Prefix tuning of chosen attention blocks.

    Attributes:
      length: P, the number of keys.
      reparameterise: whether training goes through the MLP.
      bottleneck: M, the MLP's inner width.
      gated: whether keys and values are multiplied by UniPELT's gate.
      position: where the keys stand: "before" the text, or at "none", with no bias.
      blocks: of "attention" (to the same sequence) and "cross_attention".
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all.
      routes: K, the number of prefixes; each token's route chooses one.
    """

    length: Length = 30
    reparameterise: bool = False
    bottleneck: Size = 512
    gated: bool = False
    position: Annotated[str, OneOf(("before", "none"))] = "before"
    blocks: tuple[Annotated[str, OneOf(BLOCKS)], ...] = BLOCKS
    stacks: Stacks = ("encoder", "decoder")
    layers: Layers = None
    routes: Size = 1

    scope: ClassVar[str] = "prefix_tuning"
    size_field: ClassVar[str] = "length"
    training_only: ClassVar[tuple[str, ...]] = ("reparameterise", "bottleneck")

    def __post_init__(self):
        super().__post_init__()
        if self.stacks == ("encoder",) and "attention" not in self.blocks:
            raise UserError("PrefixTuning.blocks is cross_attention, which the encoder has not")

    @property
    def start(self) -> str:
        return "elsewhere"

    def prepare(self, ctx: Context) -> Any:
        if not self.reparameterise or ctx.stack not in self.stacks:
            return None
        return _Hidden(self.length, self.routes, self.bottleneck, name=self.scope)(ctx.width)

    def memory_positions(self, stack: str) -> int:
        here = stack in self.stacks and "attention" in self.blocks
        return self.length if here and self.position == "before" else 0

    def keys_values(
        self,
        x: Float[Array, "B Tq D"],
        k: Float[Array, "B T N C"],
        v: Float[Array, "B T N C"],
        site: Site,
        ctx: Context,
    ) -> Memory | None:
        cross = site.block == "encoder_decoder_attention"
        if BLOCKS[cross] not in self.blocks or site.stack not in self.stacks:
            return None
        batch, _, *heads = k.shape
        module = _KeysValues(self.length, self.routes, self.gated, name=self.scope)
        tables, gate = module(x, int(np.prod(heads)), ctx.shared, ctx)
        mask, bias, slots = None, None, 1
        if self.routes == 1:
            rows = {n: jnp.broadcast_to(t, (batch, *t.shape[1:])) for n, t in tables.items()}
        else:
            ids, slot = row_routes(ctx.routes, self.routes, ctx.route_slots)
            slots = ids.shape[1]
            rows = {name: table[ids] for name, table in tables.items()}
            if slots > 1:
                mask = slot[..., None] == jnp.repeat(jnp.arange(slots), self.length)
        if not isinstance(ctx.gate, float):  # In a layer without a prefix, its zeros are not seen.
            own = jnp.ones((1, 1, slots * self.length), bool) if mask is None else mask
            mask = own & (ctx.gate > 0)
        if ctx.memory_bias is not None and not cross:
            bias = ctx.memory_bias.astype(k.dtype)
            if ctx.segment_ids is not None:
                # [1,N,T,P] -> [B,N,T,P]: a packed token's distance is that in its own example.
                bias = jnp.moveaxis(bias[0][:, ctx.example_positions()], 0, 1)
            bias = jnp.tile(bias, slots)
        keys, values = (rows[name].reshape(batch, -1, *heads) for name in _NAMES)
        return Memory(keys, values, mask, bias, gate)

    def export(self, adapter: Params) -> tuple[Method, Params]:
        """Returns keys and values in place of the MLP."""
        plain = dataclasses.replace(self, reparameterise=False)
        if not self.reparameterise:
            return plain, adapter
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
        stored = {}
        for name, leaf in flat.items():
            place, _, inner = name.rpartition("/")
            if place.endswith("/gate"):
                stored[name] = leaf
            if not inner.endswith("_w2"):
                continue
            stack = {
                key: flat[f"{name.partition('/')[0]}/{self.scope}/{key}"]
                for key in ("embedding", "w1", "b1")
            }
            hidden = nn.tanh(stack["embedding"] @ stack["w1"] + stack["b1"][:, None])
            kind = inner.removesuffix("_w2")
            stored[f"{place}/{kind}"] = hidden @ leaf + flat[f"{place}/{kind}_b2"][:, None]
        return plain, traverse_util.unflatten_dict(stored, sep="/")

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        plain, tree = self.export(adapter)
        assert isinstance(plain, PrefixTuning)
        return dataclasses.replace(plain, bottleneck=1), tree

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Raises `UserError`: a base has no parameter that holds keys and values."""
        raise UserError(
            "prefix tuning cannot be folded: its keys and values stand beside those of the text, "
            "and no parameter of the base holds them"
        )
