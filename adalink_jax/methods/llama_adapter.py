"""LLaMA-Adapter: a prompt in the attention of each layer, with gates that start at zero.

Zhang et al. 2023 (arXiv 2303.16199): ``y' = y + tanh(g) · softmax(q · K_pᵀ) · V_p`` for each head,
with K_p and V_p the layer's own keys and values of a trained prompt [P,D], and g zero at the start.
As everywhere in T5, logits are not divided by √C.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.methods.base import Array, Context, Layers, Method, Site, Stacks
from adalink_jax.methods.low_rank import routed_vector, row_routes
from adalink_jax.values import Length, Size


class _Prompt(nn.Module):
    """The child scope with ``prompt [K,P,D]`` and ``gate [K,N]``."""

    length: int
    routes: int

    @nn.compact
    def __call__(self, width: int, heads: int) -> tuple[Array, Array]:
        prompt = param_with_axes(
            "prompt",
            nn.initializers.normal(1.0),
            (self.routes, self.length, width),
            jnp.float32,
            axes=("routes", "prompt", "adapter_embed"),
        )
        gate = param_with_axes(
            "gate",
            nn.initializers.zeros,
            (self.routes, heads),
            jnp.float32,
            axes=("routes", "adapter_embed"),
        )
        return prompt, gate


@dataclasses.dataclass(frozen=True)
class LLaMAAdapter(Method):
    """Zero-init attention in the self-attention of chosen layers.

    Attributes:
      length: P, the number of vectors of each layer's prompt.
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all. The authors leave out the
        first two.
      routes: K, the number of modules; each token's route chooses one.
    """

    length: Length = 10
    stacks: Stacks = ("encoder",)
    layers: Layers = None
    routes: Size = 1

    scope: ClassVar[str] = "llama_adapter"
    size_field: ClassVar[str] = "length"

    def attended(
        self,
        q: Float[Array, "B T N C"],
        y: Float[Array, "B T N C"],
        project,
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B T N C"]:
        if site.stack not in self.stacks or site.block == "encoder_decoder_attention":
            return y
        with jax.named_scope(self.scope):
            return self._second_look(q, y, project, ctx)

    def _second_look(self, q, y, project, ctx: Context) -> Float[Array, "B T N C"]:
        batch, _, heads, _ = q.shape
        prompts, gates = _Prompt(self.length, self.routes, name=self.scope)(ctx.width, heads)
        prompts = prompts.astype(y.dtype)
        mask = None
        if self.routes == 1:
            ids = jnp.zeros((batch, 1), jnp.int32)
        else:
            ids, slot = row_routes(ctx.routes, self.routes, ctx.route_slots)
            if ids.shape[1] > 1:
                mask = slot[..., None] == jnp.repeat(jnp.arange(ids.shape[1]), self.length)
        rows = prompts[ids].reshape(batch, -1, ctx.width)
        routes = None if ctx.routes is None else jnp.repeat(ids, self.length, axis=1)
        k, v = project(rows, routes)
        logits = jnp.einsum("bqnk,bsnk->bnqs", q.astype(jnp.float32), k.astype(jnp.float32))
        if mask is not None:
            logits = jnp.where(mask[:, None], logits, -1e10)
        weights = jax.nn.softmax(logits).astype(y.dtype)
        seen = jnp.einsum("bnqs,bsnk->bqnk", weights, v)
        gate = nn.tanh(routed_vector(gates, ctx)).astype(y.dtype)
        return y + ctx.gate * gate[..., None] * seen
