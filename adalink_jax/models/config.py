"""The architecture of a T5, under T5X's field names."""

import contextlib
import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp

from adalink_jax.errors import UserError
from adalink_jax.values import Checked, Depth, OneOf, Rate, Size, shown

ACTIVATIONS = ("relu", "gelu", "gelu_exact", "linear", "silu", "swish")
REMATS = ("none", "minimal", "full")
ATTENTIONS = ("xla", "cudnn")
IMAGE_POSITIONS = ("joint", "none")

# More layers than this in a stack are scanned unless the configuration says otherwise.
_UNSCANNED_LAYERS = 12


def activations_dtype(dtype: Any) -> jnp.dtype:
    """Returns a dtype of activations.

    Raises:
      UserError: it is neither float32 nor bfloat16.
    """
    name = dtype if isinstance(dtype, str) else None
    with contextlib.suppress(TypeError, ValueError):
        name = name or jnp.dtype(dtype).name
    if name == "float16":
        raise UserError(
            "dtype is float16, in which T5's activations overflow (its MLP's outputs pass "
            "65504); use bfloat16 or float32"
        )
    if name not in ("float32", "bfloat16"):
        raise UserError(f"dtype is {shown(dtype)}; it takes float32 or bfloat16")
    return jnp.dtype(name)


@dataclasses.dataclass(frozen=True)
class T5Config(Checked):
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
      mlp_activations: ("relu",) in T5 1.0, ("gelu", "linear") in T5 1.1 and FLAN. "gelu" is the
        tanh formula; ("gelu_exact", "linear") is the FLAN-T5 inside BLIP-2.
      dropout_rate: rate of all dropouts.
      logits_via_embedding: whether the token table is also the output layer (T5 1.0).
      separate_encoder_embedding: whether the encoder has its own token table. Folding AdaLink
        into the embedding needs it; no published T5 has it.
      relpos_bias_per_layer: whether each layer has its own table of relative position biases, as
        in T5X's scalable_t5 and umT5, instead of one per stack.
      image_width: Dv, the width of the vectors that an image encoder gives; a linear layer takes
        them to D, and they stand in front of the encoder's text. None: the base reads text alone.
      image_positions: where images stand for the relative position biases: "joint", in one
        sequence with the text (BLIP-2); "none", no bias where an image is involved (VL-T5).
      float32_attention_logits: whether attention logits are float32 for any `dtype`.
      scan_layers: whether training and evaluation stack the layers, so that the network scans
        over them; None does so if a stack has more than 12. The function is the same, but
        dropout draws other masks.
      remat: what the backward pass recomputes in each layer: "none"; "minimal", all but the
        products with weights; "full", everything between its input and its output.
      attention: what computes attention: "xla"; or "cudnn", one kernel of NVIDIA's cuDNN, which
        keeps no logits in memory, and needs bfloat16 and jax 0.11. Where it does not apply (an odd
        number of queries or keys, one token at a time, a method's gated memory) XLA computes it.

    Fields that only say how the network runs (`dtype`, `dropout_rate`, `scan_layers`, `remat`,
    `attention`) are not part of the architecture: they are neither stored nor compared.
    """

    vocab_size: Size
    dtype: Any = jnp.float32
    emb_dim: Size = 512
    num_heads: Size = 8
    num_encoder_layers: Depth = 6
    num_decoder_layers: Depth = 6
    head_dim: Size = 64
    mlp_dim: Size = 2048
    mlp_activations: tuple[Annotated[str, OneOf(ACTIVATIONS)], ...] = ("relu",)
    dropout_rate: Rate = 0.1
    logits_via_embedding: bool = False
    separate_encoder_embedding: bool = False
    relpos_bias_per_layer: bool = False
    image_width: Size | None = None
    image_positions: Annotated[str, OneOf(IMAGE_POSITIONS)] = "joint"
    float32_attention_logits: bool = False
    scan_layers: bool | None = None
    remat: Annotated[str, OneOf(REMATS)] = "none"
    attention: Annotated[str, OneOf(ATTENTIONS)] = "xla"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "dtype", activations_dtype(self.dtype))
        if self.image_width is None and self.image_positions != "joint":
            raise UserError(
                f"image_positions is '{self.image_positions}', but image_width is None: there are "
                "no images to place"
            )
        if self.attention == "cudnn" and (self.dtype != jnp.bfloat16 or self.head_dim % 8):
            raise UserError(
                "attention is 'cudnn', which takes bfloat16 and a head_dim that is a multiple of "
                f"8; dtype is {self.dtype} and head_dim is {self.head_dim}: use 'xla'"
            )

    def check_vocabulary(self, size: int) -> None:
        """Raises `UserError` if a vocabulary has more ids than the token table has rows."""
        if size > self.vocab_size:
            raise UserError(
                f"the vocabulary has {size} ids, but the base's table only {self.vocab_size} rows: "
                "it is not this base's vocabulary, and a task's texts must be made with that (the "
                "bases that come with the package take the mini_* tasks and tables of your own)"
            )

    @property
    def stacks_layers(self) -> bool:
        """Whether layers are stacked and scanned; see `scan_layers`."""
        if self.scan_layers is None:
            return max(self.num_encoder_layers, self.num_decoder_layers) > _UNSCANNED_LAYERS
        return self.scan_layers
