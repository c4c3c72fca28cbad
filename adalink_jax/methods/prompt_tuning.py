"""Prompt tuning: P trained vectors in front of the encoder's input.

Lester et al. 2021 (arXiv 2104.08691), with the residual reparameterization of Razdaibiedina et
al. 2023 (arXiv 2305.03937) as AdaLink's paper uses it: ``P' = P + LayerNorm(W2 · relu(W1 · P))``,
with the same weights for all vectors of a route. The stored adapter holds the resulting P'.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Context, Method, Params
from adalink_jax.values import Length, OneOf, Rate, Size

INITIALISATIONS = ("random", "sampled_vocabulary", "class_labels", "text")

# Lester et al. sample from the 5,000 most common tokens; SentencePiece orders by frequency, and
# the first three ids are padding, EOS and unknown.
_FIRST_SAMPLED_ID, _LAST_SAMPLED_ID = 3, 5000


def reparameterised(
    params: Params, dropout: Callable[[Array], Array] = lambda x: x
) -> Float[Array, "K P D"]:
    """Returns P' = P + LayerNorm(dropout(W2 · relu(W1 · P))) per route, or P if there is no W1."""
    prompt = params["prompt"]
    if "w1" not in params:
        return prompt
    hidden = nn.relu(jnp.einsum("kpd,kdm->kpm", prompt, params["w1"]))
    residual = dropout(jnp.einsum("kpm,kmd->kpd", hidden, params["w2"]))
    mean = residual.mean(axis=-1, keepdims=True)
    variance = residual.var(axis=-1, keepdims=True)
    normed = (residual - mean) * jax.lax.rsqrt(variance + 1e-6)
    return prompt + normed * params["scale"][:, None] + params["bias"][:, None]


class Prompt(nn.Module):
    """The child scope with ``prompt [K,P,D]`` and the layers of its reparameterization."""

    length: int
    routes: int
    bottleneck: int | None
    dropout_rate: float

    @nn.compact
    def __call__(self, width: int, deterministic: bool) -> Float[Array, "K P D"]:
        sizes = {
            "routes": self.routes,
            "prompt": self.length,
            "adapter_embed": width,
            "rank": self.bottleneck,
        }

        def param(name, init, *axes):
            shape = tuple(sizes[axis] for axis in axes)
            return param_with_axes(name, init, shape, jnp.float32, axes=axes)

        # Lester et al.'s random initialization is uniform within ±0.5.
        def uniform(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -0.5, 0.5)

        params = {"prompt": param("prompt", uniform, "routes", "prompt", "adapter_embed")}
        if self.bottleneck is not None:
            fan_in = nn.initializers.variance_scaling(
                1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=0
            )
            ones, zeros = nn.initializers.ones, nn.initializers.zeros
            params["w1"] = param("w1", fan_in, "routes", "adapter_embed", "rank")
            params["w2"] = param("w2", fan_in, "routes", "rank", "adapter_embed")
            params["scale"] = param("scale", ones, "routes", "adapter_embed")
            params["bias"] = param("bias", zeros, "routes", "adapter_embed")
        dropout = nn.Dropout(self.dropout_rate, name="dropout")
        return reparameterised(params, lambda x: dropout(x, deterministic=deterministic))


@dataclasses.dataclass(frozen=True)
class PromptTuning(Method):
    """Prompt tuning at the encoder's input.

    Vectors are not put in front of the decoder's input, since its outputs are the predictions.
    Packed rows are refused.

    Attributes:
      length: P, the number of vectors.
      reparameterise: whether training uses the residual reparameterization.
      bottleneck: width between its two layers.
      dropout_rate: dropout on its residual.
      initialisation: "random"; "sampled_vocabulary" (embeddings of common tokens);
        "class_labels" (the mean embedding of each of the task's labels, then sampled ones);
        "text" (the embeddings of `text`, repeated to the length).
      text: the string for the initialization "text".
      routes: K, the number of prompts; a row takes the prompt of its first token's route.
    """

    length: Length = 64
    reparameterise: bool = True
    bottleneck: Size = 128
    dropout_rate: Rate = 0.05
    initialisation: Annotated[str, OneOf(INITIALISATIONS)] = "sampled_vocabulary"
    text: str = ""
    routes: Size = 1

    scope: ClassVar[str] = "prompt_tuning"
    size_field: ClassVar[str] = "length"
    training_only: ClassVar[tuple[str, ...]] = (
        *("reparameterise", "bottleneck", "dropout_rate", "initialisation", "text"),
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.initialisation == "text") != bool(self.text):
            raise UserError(
                "PromptTuning.text goes with PromptTuning.initialisation = 'text'; got "
                f"text {self.text!r} with initialisation {self.initialisation!r}"
            )

    @property
    def start(self) -> str:
        return "elsewhere"

    def inputs(
        self, x: Float[Array, "B T D"], ctx: Context
    ) -> tuple[Float[Array, "B T2 D"], Context]:
        if ctx.stack != "encoder":
            return x, ctx
        if ctx.segment_ids is not None:
            raise UserError(
                "prompt tuning puts vectors in front of a row, but the rows are packed with "
                "several examples; set packing to False"
            )
        prompts = Prompt(
            length=self.length,
            routes=self.routes,
            bottleneck=self.bottleneck if self.reparameterise else None,
            dropout_rate=self.dropout_rate,
            name=self.scope,
        )(x.shape[-1], ctx.deterministic).astype(x.dtype)
        if self.routes == 1:
            rows = jnp.broadcast_to(prompts, (x.shape[0], *prompts.shape[1:]))
        elif ctx.routes is None:
            raise ValueError(f"the adapter has {self.routes} routes, but the batch has none")
        else:
            rows = prompts[ctx.routes[:, 0]]
        return jnp.concatenate([rows, x], axis=1), ctx.lengthened(self.length)

    def texts(self, labels: Sequence[str]) -> tuple[str, ...]:
        if self.initialisation == "text":
            return (self.text,)
        return tuple(labels) if self.initialisation == "class_labels" else ()

    def initialise(
        self, adapter: Params, base: Params, token_ids: Sequence[Sequence[int]], key: Array
    ) -> Params:
        if self.initialisation == "random":
            return adapter
        if self.initialisation != "sampled_vocabulary" and not any(map(len, token_ids)):
            raise UserError(
                f"PromptTuning.initialisation is '{self.initialisation}', but there is nothing to "
                "take it from: the task has no labels, or the text has no tokens"
            )
        table = jnp.asarray(base["token_embedder"]["embedding"], jnp.float32)
        prompts = []
        for route_key in jax.random.split(key, self.routes):
            last = min(_LAST_SAMPLED_ID, table.shape[0])
            ids = jax.random.randint(route_key, (self.length,), _FIRST_SAMPLED_ID, last)
            prompt = table[ids]
            if self.initialisation == "text":
                prompt = table[jnp.resize(jnp.asarray(token_ids[0]), (self.length,))]
            elif self.initialisation == "class_labels":
                classes = jnp.stack([table[jnp.asarray(ids)].mean(0) for ids in token_ids if ids])
                prompt = jnp.concatenate([classes, prompt])[: self.length]
            prompts.append(prompt)
        scope = {**adapter["encoder"][self.scope], "prompt": jnp.stack(prompts)}
        return {"encoder": {self.scope: scope}}

    def export(self, adapter: Params) -> tuple[Method, Params]:
        prompt = reparameterised(adapter["encoder"][self.scope])
        plain = dataclasses.replace(self, reparameterise=False, initialisation="random", text="")
        return plain, {"encoder": {self.scope: {"prompt": prompt}}}

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        plain, tree = self.export(adapter)
        return dataclasses.replace(plain, bottleneck=1, dropout_rate=0.0), tree

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Raises `UserError`: a base has no parameter that holds vectors before its input."""
        raise UserError(
            "prompt tuning cannot be folded: its vectors stand in front of the input, and no "
            "parameter of the base holds them"
        )
