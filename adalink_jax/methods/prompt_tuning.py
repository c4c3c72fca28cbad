"""Prompt tuning: P trained vectors in front of the encoder's input.

Lester et al. 2021 (arXiv 2104.08691). In training the vectors may come from a generator
(`prompt_generators`), as in AdaLink's paper. The stored adapter holds the resulting vectors.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Context, Method, Params
from adalink_jax.methods.prompt_generators import FLAT, GENERATORS, Generator, Prompt
from adalink_jax.values import Length, OneOf, Rate, Seed, Size

INITIALISATIONS = ("random", "sampled_vocabulary", "class_labels", "text")

# Lester et al. sample from the 5,000 most common tokens; SentencePiece orders by frequency, and
# the first three ids are padding, EOS and unknown.
_FIRST_SAMPLED_ID, _LAST_SAMPLED_ID = 3, 5000


@dataclasses.dataclass(frozen=True)
class PromptTuning(Method):
    """Prompt tuning at the encoder's input.

    Vectors are not put in front of the decoder's input, since its outputs are the predictions.
    Packed rows are refused.

    Attributes:
      length: P, the number of vectors.
      reparameterise: whether vectors come from the generator in training.
      bottleneck: M, the generator's inner width or rank.
      dropout_rate: dropout on the residual of a generator that has one.
      initialisation: "random"; "sampled_vocabulary" (embeddings of common tokens);
        "class_labels" (the mean embedding of each of the task's labels, then sampled ones);
        "text" (the embeddings of `text`, repeated to the length).
      text: the string for the initialization "text".
      routes: K, the number of prompts; a row takes the prompt of its first token's route.
      generator: "residual", "residual_biases", "mlp", "low_rank", "ulpt" or "mpt".
      seed: what the frozen matrix of "ulpt" is made from.
    """

    length: Length = 64
    reparameterise: bool = True
    bottleneck: Size = 128
    dropout_rate: Rate = 0.05
    initialisation: Annotated[str, OneOf(INITIALISATIONS)] = "sampled_vocabulary"
    text: str = ""
    routes: Size = 1
    generator: Annotated[str, OneOf(tuple(GENERATORS))] = "residual"
    seed: Seed = 0

    scope: ClassVar[str] = "prompt_tuning"
    size_field: ClassVar[str] = "length"
    training_only: ClassVar[tuple[str, ...]] = (
        *("reparameterise", "bottleneck", "dropout_rate", "initialisation", "text"),
        *("generator", "seed"),
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.initialisation == "text") != bool(self.text):
            raise UserError(
                "PromptTuning.text goes with PromptTuning.initialisation = 'text'; got "
                f"text {self.text!r} with initialisation {self.initialisation!r}"
            )
        if self.initialisation != "random" and "prompt" not in self._source.leaves:
            raise UserError(
                f"PromptTuning.initialisation is '{self.initialisation}', but the generator "
                f"'{self.generator}' has no vectors that could start from it; set it to 'random'"
            )

    @property
    def _source(self) -> Generator:
        """What the vectors come from."""
        return GENERATORS[self.generator] if self.reparameterise else FLAT

    @property
    def start(self) -> str:
        return "elsewhere"

    def has_routes(self, name: str) -> bool:
        return self.owns(name) and self._source.has_routes(name.rpartition("/")[2])

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
            generator=self._source,
            length=self.length,
            routes=self.routes,
            bottleneck=self.bottleneck,
            dropout_rate=self.dropout_rate,
            seed=self.seed,
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
        prompt = jnp.stack(prompts) if self._source.has_routes("prompt") else prompts[0]
        scope = {**adapter["encoder"][self.scope], "prompt": prompt}
        return {"encoder": {self.scope: scope}}

    def export(self, adapter: Params) -> tuple[Method, Params]:
        prompt = self._source.prompts(adapter["encoder"][self.scope], lambda x: x, self.seed)
        plain = dataclasses.replace(self, reparameterise=False, initialisation="random", text="")
        return plain, {"encoder": {self.scope: {"prompt": prompt}}}

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        plain, tree = self.export(adapter)
        assert isinstance(plain, PromptTuning)
        neutral = dataclasses.replace(
            plain, bottleneck=1, dropout_rate=0.0, generator="residual", seed=0
        )
        return neutral, tree

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Raises `UserError`: a base has no parameter that holds vectors before its input."""
        raise UserError(
            "prompt tuning cannot be folded: its vectors stand in front of the input, and no "
            "parameter of the base holds them"
        )
