"""Networks and training steps of transformers and peft at the same shapes.

Both are optional; what cannot be imported is skipped with a message. Weights are random (a step's
time does not depend on them), optimizers are Adafactor, dropout is on, and the batch is the same
as for this project's steps. JAX is not imported here, so that a process of theirs has none.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import timing

if TYPE_CHECKING:
    from adalink_jax.models.t5 import T5Config

Steps = dict[str, Callable[[], None]]
# Package, method.
NETWORKS = ("transformers, full", "peft, lora", "peft, prompt_tuning")


def transformers_steps(
    config: T5Config, batch: Mapping[str, np.ndarray], rank: int, prompt_length: int
) -> Steps:
    """Returns steps of transformers (full fine-tuning) and peft (LoRA, prompt tuning).

    LoRA is on the encoder's linear layers.

    Args:
      config: the architecture.
      batch: as for `adalink_jax.training.step`, on the host.
      rank: LoRA's rank.
      prompt_length: P.
    """
    networks = {name: transformers_network(name, config, rank, prompt_length) for name in NETWORKS}
    return {
        name: torch_step(network, batch)
        for name, network in networks.items()
        if network is not None
    }


def transformers_network(name: str, config: T5Config, rank: int, prompt_length: int) -> Any:
    """Returns transformers' T5 or peft's around it; None, with a message, if it is not installed.

    LoRA is on the encoder's linear layers.

    Args:
      name: one of `NETWORKS`.
      config: the architecture.
      rank: LoRA's rank.
      prompt_length: P.
    """
    package, method = name.split(", ")
    try:
        import torch
        import transformers

        peft = importlib.import_module(package)
    except ImportError as error:
        print(f"{name} is skipped: {error}")
        return None
    torch.set_num_threads(timing.cores())
    model = transformers.T5ForConditionalGeneration(transformers_config(config))
    if not config.logits_via_embedding:
        # Version 5 always ties the output layer to the embedding.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    if method == "full":
        return model
    prompt = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=prompt_length)
    return peft.get_peft_model(model, lora_config(rank) if method == "lora" else prompt)


def transformers_config(config: T5Config) -> Any:
    """Returns transformers' configuration of an architecture."""
    import transformers

    gated = len(config.mlp_activations) > 1
    return transformers.T5Config(
        vocab_size=config.vocab_size,
        d_model=config.emb_dim,
        d_kv=config.head_dim,
        d_ff=config.mlp_dim,
        num_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        num_heads=config.num_heads,
        feed_forward_proj=f"gated-{config.mlp_activations[0]}" if gated else "relu",
        tie_word_embeddings=config.logits_via_embedding,
        dropout_rate=config.dropout_rate,
        decoder_start_token_id=0,
        use_cache=False,
    )


def lora_config(rank: int) -> Any:
    """Returns peft's LoRA on every linear layer of the encoder."""
    import peft

    return peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM",
        r=rank,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=r"encoder\..*\.(q|k|v|o|wi|wi_0|wi_1|wo)",
    )


def torch_step(model: Any, batch: Mapping[str, np.ndarray]) -> Callable[[], None]:
    """Returns a training step of a network of PyTorch on a batch, with Adafactor."""
    import torch

    tokens = torch.from_numpy(np.array(batch["encoder_input_tokens"], np.int64))
    targets = torch.from_numpy(np.array(batch["decoder_target_tokens"], np.int64))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adafactor(trainable, lr=1e-3)
    model.train()

    def run() -> None:
        optimizer.zero_grad()
        output = model(input_ids=tokens, attention_mask=(tokens > 0).long(), labels=targets)
        output.loss.backward()
        optimizer.step()

    return run


def padded(sequences: Sequence[Sequence[int]], length: int | None = None) -> np.ndarray:
    """Returns token sequences as int32 [B, T], with 0 behind them.

    Args:
      sequences: tokens of each row.
      length: T; the longest sequence's by default.
    """
    array = np.zeros((len(sequences), length or max(map(len, sequences))), np.int32)
    for row, tokens in zip(array, sequences, strict=True):
        row[: len(tokens)] = tokens
    return array
