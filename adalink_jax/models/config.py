"""The architecture of a T5, under T5X's field names."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from adalink_jax.errors import UserError, nearest

ACTIVATIONS = ("relu", "gelu", "linear", "silu", "swish")
REMATS = ("none", "minimal", "full")

# More layers than this in a stack are scanned unless the configuration says otherwise.
_UNSCANNED_LAYERS = 12


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The architecture, with T5X's field names.

    Attributes:
      vocab_size: V, rows of the token table.
      dtype: dtype of the activations, float32 or bfloat16; parameters are float32.
      emb_dim: D, width of the embedding.
      num_heads: N, heads of an attention.
      num_encoder_layers: blocks of the encoder.
      num_decoder_layers: blocks of the decoder.
      head_dim: K, width of a head; N·K need not be D.
      mlp_dim: width inside the MLP.
      mlp_activations: ("relu",) in T5 1.0, ("gelu", "linear") in T5 1.1 and FLAN.
      dropout_rate: rate of all dropouts.
      logits_via_embedding: whether the token table is also the output layer (T5 1.0).
      separate_encoder_embedding: whether the encoder has its own token table. Folding AdaLink
        into the embedding needs it; no published T5 has it.
      relpos_bias_per_layer: whether each layer has its own table of relative position biases, as
        in T5X's scalable_t5 and umT5, instead of one per stack.
      float32_attention_logits: whether attention logits are float32 for any `dtype`.
      scan_layers: whether training and evaluation stack the layers, so that the network scans
        over them; None does so if a stack has more than 12. The function is the same, but
        dropout draws other masks.
      remat: what the backward pass recomputes in each layer: "none"; "minimal", all but the
        products with weights; "full", everything between its input and its output.

    Fields that only say how the network runs (`dtype`, `dropout_rate`, `scan_layers`, `remat`) are
    not part of the architecture: they are neither stored nor compared.
    """

    vocab_size: int
    dtype: Any = jnp.float32
    emb_dim: int = 512
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    head_dim: int = 64
    mlp_dim: int = 2048
    mlp_activations: tuple[str, ...] = ("relu",)
    dropout_rate: float = 0.1
    logits_via_embedding: bool = False
    separate_encoder_embedding: bool = False
    relpos_bias_per_layer: bool = False
    float32_attention_logits: bool = False
    scan_layers: bool | None = None
    remat: str = "none"

    def __post_init__(self):
        dtype = jnp.dtype(self.dtype)
        if dtype == jnp.float16:
            raise UserError(
                "dtype is float16, in which T5's activations overflow (its MLP's outputs pass "
                "65504); use bfloat16 or float32"
            )
        if dtype not in (jnp.float32, jnp.bfloat16):
            raise UserError(f"dtype is {self.dtype!r}; it takes float32 or bfloat16")
        object.__setattr__(self, "dtype", dtype)
        activations = tuple(self.mlp_activations)
        object.__setattr__(self, "mlp_activations", activations)
        for name in activations:
            if name not in ACTIVATIONS:
                raise UserError(
                    f"mlp_activations has {name!r}; it takes {', '.join(ACTIVATIONS)}"
                    f"{nearest(str(name), ACTIVATIONS)}"
                )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(f"dropout_rate is {self.dropout_rate!r}; it must be in [0, 1)")
        if self.scan_layers not in (None, True, False):
            raise UserError(f"scan_layers is {self.scan_layers!r}; it takes True, False or None")
        if self.remat not in REMATS:
            raise UserError(
                f"remat is {self.remat!r}; it takes one of {', '.join(REMATS)}"
                f"{nearest(str(self.remat), REMATS)}"
            )

    def check_vocabulary(self, size: int) -> None:
        """Raises `UserError` if a vocabulary has more ids than the token table has rows."""
        if size > self.vocab_size:
            raise UserError(
                f"the vocabulary has {size} ids, but the base's table only {self.vocab_size} rows: "
                "it is not this base's vocabulary"
            )

    @property
    def stacks_layers(self) -> bool:
        """Whether layers are stacked and scanned; see `scan_layers`."""
        if self.scan_layers is None:
            return max(self.num_encoder_layers, self.num_decoder_layers) > _UNSCANNED_LAYERS
        return self.scan_layers
