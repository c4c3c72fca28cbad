"""ReFT: edits of the stream in a low-rank subspace, at the first and last tokens of an input.

Wu et al. 2024 (arXiv 2404.03592). With ``h`` the stream after a layer:

* LoReFT: ``h' = h + (h · W + b − h · R) · Rᵀ``, R [D,r] with orthonormal columns;
* NoReFT: the same with any R;
* DiReFT: ``h' = h + (h · W + b) · Rᵀ`` with any R.

The encoder is edited. In the decoder the last tokens are not known while they are generated.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.linen.partitioning import param_with_axes
from jaxtyping import Bool, Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Context, Layers, Method, Params, Site
from adalink_jax.methods.lora import DOWN_INIT
from adalink_jax.methods.low_rank import routed_low_rank
from adalink_jax.values import OneOf, Range, Size

KINDS = ("loreft", "noreft", "direft")
Positions = Annotated[int, Range(0, 2**20)]


def orthonormal(matrix: Float[Array, "*K D R"]) -> Float[Array, "*K D R"]:
    """Returns Q of the decomposition QR with a positive diagonal; Q itself for an orthonormal Q."""
    with jax.default_matmul_precision("float32"):
        q, r = jnp.linalg.qr(matrix)
    signs = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return q * signs[..., None, :]


class _Edit(nn.Module):
    """The child scope with ``rotation [K,D,R]``, ``source [K,D,R]`` and ``bias [K,R]``."""

    rank: int
    kind: str
    routes: int

    @nn.compact
    def __call__(self, h: Float[Array, "B T D"], ctx: Context) -> Float[Array, "B T D"]:
        shape, axes = (self.routes, h.shape[-1], self.rank), ("routes", "adapter_embed", "rank")

        def random_rotation(key, shape, dtype):
            return orthonormal(jax.random.normal(key, shape, dtype))

        rotation = param_with_axes("rotation", random_rotation, shape, jnp.float32, axes=axes)
        source = param_with_axes("source", DOWN_INIT, shape, jnp.float32, axes=axes)
        bias = param_with_axes(
            "bias", nn.initializers.zeros, (self.routes, self.rank), jnp.float32,
            axes=("routes", "rank"),
        )  # fmt: skip
        if self.kind == "loreft":
            rotation = orthonormal(rotation)
        down = source if self.kind == "direft" else source - rotation
        down, up, bias = (x.astype(h.dtype) for x in (down, jnp.swapaxes(rotation, 1, 2), bias))
        return routed_low_rank(h, down, up, ctx.routes, ctx.route_slots, bias=bias)


@dataclasses.dataclass(frozen=True)
class ReFT(Method):
    """ReFT after chosen layers of the encoder.

    Attributes:
      rank: r, the dimensions of the edited subspace.
      kind: "loreft", "noreft" or "direft".
      first: number of edited tokens at the start of an input.
      last: number of edited tokens at its end.
      layers: numbers of the layers after which the stream is edited; None for all.
      routes: K, the number of modules; each token's route chooses one.
    """

    rank: Size
    kind: Annotated[str, OneOf(KINDS)] = "loreft"
    first: Positions = 3
    last: Positions = 0
    layers: Layers = None
    routes: Size = 1

    scope: ClassVar[str] = "reft"
    size_field: ClassVar[str] = "rank"
    stacks = ("encoder",)

    def __post_init__(self):
        super().__post_init__()
        if not self.first + self.last:
            raise UserError("ReFT.first and ReFT.last are 0: no token would be edited")

    @property
    def start(self) -> str:
        return "elsewhere"

    def layer(self, x: Float[Array, "B T D"], site: Site, ctx: Context) -> Float[Array, "B T D"]:
        if site.stack not in self.stacks:
            return x
        edit = _Edit(self.rank, self.kind, self.routes, name=self.scope)(x, ctx)
        where = (self._edited(ctx) * ctx.gate).astype(x.dtype)
        return x + where[..., None] * edit

    def _edited(self, ctx: Context) -> Bool[Array, "B T"]:
        """Returns True at the first and last tokens of each example."""
        positions = ctx.example_positions()
        edited = positions < self.first
        if self.last:
            same = ctx.mask[:, None, :]
            if ctx.segment_ids is not None:
                same = same & (ctx.segment_ids[:, :, None] == ctx.segment_ids[:, None, :])
            edited |= positions >= jnp.sum(same, axis=-1) - self.last
        return edited & ctx.mask

    def export(self, adapter: Params) -> tuple[Method, Params]:
        """Stores the orthonormal rotation itself."""
        if self.kind != "loreft":
            return self, adapter
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
        flat = {
            name: orthonormal(leaf) if name.endswith("/rotation") else leaf
            for name, leaf in flat.items()
        }
        return self, traverse_util.unflatten_dict(flat, sep="/")

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        """Needs no decomposition: a stored LoReFT computes as NoReFT does."""
        _, tree = self.export(adapter)
        return dataclasses.replace(
            self, kind="noreft" if self.kind == "loreft" else self.kind
        ), tree
