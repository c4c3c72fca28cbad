"""Prompt tuning in the adapter format of Hugging Face's PEFT: the tensor ``prompt_embeddings``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.architecture import check_shapes
from adalink_jax.checkpoints.formats.peft.format import Format, number
from adalink_jax.methods.base import Method, Params
from adalink_jax.methods.prompt_tuning import PromptTuning
from adalink_jax.models.t5 import T5Config

_PROMPT = "prompt_embeddings"
_READ = frozenset(
    {
        *("num_attention_heads", "num_layers", "num_transformer_submodules"),
        *("num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text", "token_dim"),
        *("tokenizer_kwargs", "tokenizer_name_or_path"),
    }
)


def _to_peft(
    method: PromptTuning, flat: Mapping[str, np.ndarray], config: T5Config, base: Params
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    prompt = flat[f"encoder/{PromptTuning.scope}/prompt"]
    settings = {
        "peft_type": "PROMPT_TUNING",
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prompt.shape[0],
        "prompt_tuning_init": "RANDOM",
        "token_dim": config.emb_dim,
    }
    return settings, {_PROMPT: prompt}


def _from_peft(
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    config: T5Config,
    base: Params,
    where: str,
) -> tuple[Method, dict[str, np.ndarray]]:
    length = number(settings, "num_virtual_tokens", int, where)
    copies = number(
        {**settings, "num_transformer_submodules": settings.get("num_transformer_submodules") or 2},
        "num_transformer_submodules", int, where,
    )  # fmt: skip
    shapes = {name: array.shape for name, array in tensors.items()}
    check_shapes({_PROMPT: (copies * length, config.emb_dim)}, shapes, where)
    # PEFT stores rows for the decoder too, but T5 uses only the first ones.
    method = PromptTuning(length=length, reparameterise=False, initialisation="random")
    return method, {f"encoder/{PromptTuning.scope}/prompt": tensors[_PROMPT][:length]}


FORMAT = Format("PROMPT_TUNING", PromptTuning, _READ, _to_peft, _from_peft)
