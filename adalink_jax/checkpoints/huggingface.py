"""Hugging Face's folders of a T5: ``config.json`` and safetensors, single or sharded.

Its linear layers store the transpose of T5X's kernels, and each stack's relative position biases
stand in its first block, transposed likewise.
"""

from collections.abc import Mapping

from adalink_jax.checkpoints.architecture import expected_shapes
from adalink_jax.models.t5 import T5Config

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
# For each stack: its blocks under T5X's name to (number in Hugging Face's layer, module, the norm
# before it).
_BLOCKS = {
    "encoder": {
        "attention": (0, "SelfAttention", "pre_attention_layer_norm"),
        "mlp": (1, "DenseReluDense", "pre_mlp_layer_norm"),
    },
    "decoder": {
        "self_attention": (0, "SelfAttention", "pre_self_attention_layer_norm"),
        "encoder_decoder_attention": (1, "EncDecAttention", "pre_cross_attention_layer_norm"),
        "mlp": (2, "DenseReluDense", "pre_mlp_layer_norm"),
    },
}
_TOP = {
    "token_embedder/embedding": ("shared.weight", False),
    "encoder/token_embedder/embedding": ("encoder.embed_tokens.weight", False),
    "decoder/logits_dense/kernel": ("lm_head.weight", True),
    **{
        f"{stack}/relpos_bias/rel_embedding": (
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            True,
        )
        for stack in _BLOCKS
    },
    **{
        f"{stack}/{stack}_norm/scale": (f"{stack}.final_layer_norm.weight", False)
        for stack in _BLOCKS
    },
}


def tensor_names(config: T5Config) -> Mapping[str, tuple[str, bool]]:
    """Returns each parameter's name in transformers' T5, and whether it is transposed there.

    Args:
      config: a T5's architecture.

    Returns:
      T5X's ``"/"``-joined name → (the name in ``T5ForConditionalGeneration.state_dict()``,
      whether that holds the transpose), for every parameter of the architecture.
    """
    return {name: _TOP.get(name) or _in_block(name) for name in expected_shapes(config)}


def _in_block(name: str) -> tuple[str, bool]:
    stack, layer, part, *rest = name.split("/")
    for block, (number, module, norm) in _BLOCKS[stack].items():
        prefix = f"{stack}.block.{layer.removeprefix('layers_')}.layer.{number}"
        if part == norm:
            return f"{prefix}.layer_norm.weight", False
        if part == block:
            return f"{prefix}.{module}.{_ATTENTION.get(rest[0], rest[0])}.weight", True
    raise ValueError(f"{name} is no parameter of a T5")
