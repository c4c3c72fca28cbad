"""What the methods of chosen blocks have in common: which blocks, and what is read there."""

from typing import cast

from adalink_jax.methods.base import Array, Method, Site

# What a block's adapter reads.
SOURCES = ("output", "sum", "residual", "input")
BLOCKS = ("attention", "cross_attention", "mlp")
_BLOCK_OF = {
    "attention": "attention",
    "self_attention": "attention",
    "encoder_decoder_attention": "cross_attention",
    "mlp": "mlp",
}


class OnBlocks(Method):
    """A method with the fields `blocks`, `source`, `stacks` and `layers`.

    `blocks` has "attention" (to the same sequence), "cross_attention" and "mlp". `source` is what
    is read there: the block's "output", its normed "input", the "residual" stream before the block,
    or the "sum" of output and residual.
    """

    blocks = cast(tuple[str, ...], ("mlp",))
    source = "sum"

    def adapts(self, site: Site) -> bool:
        """Returns whether a block is adapted, in the layers that `gates` selects."""
        return _BLOCK_OF[site.block] in self.blocks and site.stack in self.stacks

    def read(self, y: Array, x: Array, residual: Array) -> Array:
        """Returns what the adapter reads, of the arguments of `sublayer`."""
        return {"output": y, "input": x, "residual": residual, "sum": y + residual}[self.source]
