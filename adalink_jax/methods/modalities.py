"""A module for each modality, on bases that take images."""

import dataclasses
from typing import Any, cast

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Context, Method, Stacks


class ByModality(Method):
    """A method with the fields `by_modality`, `stacks` and `routes`.

    Routes are tasks. With `by_modality` a route has a module for text and one for images, side by
    side in the leaves: a token's is ``2 · route + modality``. Banks, stacking and the optimizer's
    separate updates know nothing of it.
    """

    stacks = cast(Stacks, ("encoder",))
    by_modality = False

    def __post_init__(self):
        super().__post_init__()
        if self.by_modality and tuple(self.stacks) != ("encoder",):
            raise UserError(
                f"{type(self).__name__}.by_modality is True, but images are in the encoder alone; "
                "set stacks to ('encoder',)"
            )

    @property
    def needs_images(self) -> bool:
        """Whether images have a module of their own."""
        return self.by_modality

    def settings(self) -> dict[str, Any]:
        # Records of adapters of text say nothing of images, as before there were any.
        found = super().settings()
        return found if self.by_modality else {n: v for n, v in found.items() if n != "by_modality"}

    @property
    def modules(self) -> int:
        """How many modules all routes have."""
        return 2 * self.routes if self.by_modality else self.routes

    def of_modules(self, ctx: Context) -> Context:
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
