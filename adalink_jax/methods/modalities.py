"""A module for each modality, on bases that take images."""

import dataclasses
from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import IMAGE, Array, Context, Method, Params, Stacks
from adalink_jax.methods.low_rank import LowRank


class ByModality(Method):
    """A low-rank method with the fields `rank`, `by_modality`, `image_rank`, `stacks` and `routes`.

    Routes are tasks. With `by_modality` a route has a module for text and one for images. Of one
    rank they lie side by side in the leaves: a token's is ``2 · route + modality``. With an
    `image_rank` those for images are in a scope of their own, SCOPE_images. Banks, stacking and the
    optimizer's separate updates know nothing of either.
    """

    rank: int
    stacks = cast(Stacks, ("encoder",))
    by_modality = False
    image_rank = cast(int | None, None)

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if self.by_modality and tuple(self.stacks) != ("encoder",):
            raise UserError(
                f"{name}.by_modality is True, but images are in the encoder alone; "
                "set stacks to ('encoder',)"
            )
        if self.image_rank is not None and not self.by_modality:
            raise UserError(
                f"{name}.image_rank is {self.image_rank}, but {name}.by_modality is False: images "
                "have no module of their own"
            )

    @property
    def needs_images(self) -> bool:
        """Whether images have a module of their own."""
        return self.by_modality

    @property
    def scopes(self) -> tuple[str, ...]:
        own = (self.scope,)
        return own if self.image_rank is None else (*own, f"{self.scope}_images")

    def settings(self) -> dict[str, Any]:
        # Records of adapters of text say nothing of images, as before there were any.
        found = super().settings()
        unsaid = {"by_modality": not self.by_modality, "image_rank": self.image_rank is None}
        return {name: value for name, value in found.items() if not unsaid.get(name, False)}

    def low_rank(
        self, x: Float[Array, "B T D"], ctx: Context, **settings: Any
    ) -> Float[Array, "B T F"]:
        """Returns what each token's own module makes of it.

        Args:
          x: the tokens.
          ctx: their context.
          **settings: the fields of `LowRank`, but `rank`, `routes` and `name`.
        """
        if self.image_rank is None:
            modules = 2 * self.routes if self.by_modality else self.routes
            made = LowRank(rank=self.rank, routes=modules, name=self.scope, **settings)
            return made(x, self._of_modules(ctx))
        assert ctx.modalities is not None  # The network asks `needs_images`.
        ranks = zip(self.scopes, (self.rank, self.image_rank), strict=True)
        text, images = (
            LowRank(rank=rank, routes=self.routes, name=scope, **settings)(x, ctx)
            for scope, rank in ranks
        )
        return jnp.where((ctx.modalities == IMAGE)[..., None], images, text)

    def leaves_of(self, stack: Params, route: int, modality: int) -> dict[str, Array]:
        """Returns the leaves [1, …] of the module of a route and a modality.

        Args:
          stack: the part of the method's tree in which its scopes are.
          route: which of the K.
          modality: `TEXT` or `IMAGE`.
        """
        place, scope = route, self.scope
        if self.image_rank is not None:
            scope = self.scopes[modality]
        elif self.by_modality:
            place = 2 * route + modality
        return {name: leaf[place : place + 1] for name, leaf in stack[scope].items()}

    def _of_modules(self, ctx: Context) -> Context:
        """Returns the context in which each token's route is the number of its module."""
        if not self.by_modality:
            return ctx
        assert ctx.modalities is not None  # The network asks `needs_images`.
        own, slots = ctx.modalities, 2
        if self.routes > 1:
            if ctx.routes is None:
                raise ValueError(f"the adapter has {self.routes} routes, but the batch has none")
            own, slots = 2 * ctx.routes + own, 2 * ctx.route_slots
        return dataclasses.replace(ctx, routes=own, route_slots=slots)
