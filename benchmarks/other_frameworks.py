"""Training steps of other implementations at the same shapes: T5X's network, transformers, peft.

All are optional; what cannot be imported is skipped with a message. Weights are random (a step's
time does not depend on them), optimizers are Adafactor, dropout is on, and the batch is the same
as for this project's steps.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax.methods.low_rank import routed_low_rank
from adalink_jax.models.t5 import T5Config
from adalink_jax.training import optimizers
from adalink_jax.training.step import loss_fn
from benchmarks import timing

Steps = dict[str, Callable[[], None]]


def t5x_steps(config: T5Config, base: Any, batch: Mapping[str, Any], rank: int) -> Steps:
    """Returns steps of T5X's minimal T5 with AdaLink (frozen base), and with full fine-tuning.

    AdaLink's product is added to the output of the encoder's embedding, because T5X has no hook.

    Args:
      config: the architecture.
      base: parameters; T5X's network has the same names.
      batch: as for `adalink_jax.training.step`.
      rank: AdaLink's rank.
    """
    try:
        from t5x.examples.t5 import network
    except ImportError as error:
        print(f"T5X's network is skipped: {error}")
        return {}
    fields = dataclasses.asdict(config)
    model = network.Transformer(network.T5Config(**fields))
    batch = {name: array for name, array in batch.items() if not name.endswith("routes")}
    key = jax.random.key(0) if config.dropout_rate else None

    def full_loss(trainable, frozen):
        return loss_fn(model, trainable, frozen, batch, key, 1e-4, 0.0)[0]

    def adalink_loss(trainable, frozen):
        calls = []

        def adapt(call, args, kwargs, context):
            x = call(*args, **kwargs)
            if type(context.module).__name__ == "Embed" and context.method_name == "__call__":
                calls.append(None)
                if len(calls) == 1:  # The encoder embeds first, then the decoder.
                    return x + routed_low_rank(x, trainable["down"], trainable["up"], None)
            return x

        with nn.intercept_methods(adapt):
            return full_loss({}, frozen)

    adapter = {
        "down": jax.random.normal(jax.random.key(1), (1, config.emb_dim, rank)),
        "up": jnp.zeros((1, rank, config.emb_dim)),
    }
    return {
        "T5X's network, adalink": _jax_step(adalink_loss, adapter, base, scaled=False),
        "T5X's network, full": _jax_step(full_loss, base, {}, scaled=True),
    }


def _jax_step(loss: Callable, trainable: Any, frozen: Any, *, scaled: bool) -> Callable[[], None]:
    optimizer = optimizers.adafactor(
        optimizers.factors(), multiply_by_parameter_scale=scaled, factored=scaled
    )

    def step(trainable, opt_state, frozen):
        value, gradients = jax.value_and_grad(loss)(trainable, frozen)
        updates, opt_state = optimizer.update(gradients, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    trainable = jax.tree.map(lambda x: jnp.array(x, copy=True), trainable)
    state = [trainable, optimizer.init(trainable)]

    def run() -> None:
        *state[:], value = compiled(*state, frozen)
        value.block_until_ready()

    return run


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
    networks = transformers_networks(config, rank, prompt_length)
    return {name: torch_step(network, batch) for name, network in networks.items()}


def transformers_networks(config: T5Config, rank: int, prompt_length: int) -> dict[str, Any]:
    """Returns transformers' T5, and peft's with LoRA and with a prompt, each of its own weights.

    LoRA is on the encoder's linear layers.

    Args:
      config: the architecture.
      rank: LoRA's rank.
      prompt_length: P.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"transformers and peft are skipped: {error}")
        return {}
    torch.set_num_threads(timing.cores())
    torch_config = transformers_config(config)

    def network():
        model = transformers.T5ForConditionalGeneration(torch_config)
        if not config.logits_via_embedding:
            # Version 5 always ties the output layer to the embedding.
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        return model

    networks = {"transformers, full": network()}
    try:
        import peft
    except ImportError as error:
        print(f"peft is skipped: {error}")
        return networks
    lora = lora_config(rank)
    prompt = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=prompt_length)
    for name, method in (("peft, lora", lora), ("peft, prompt_tuning", prompt)):
        networks[name] = peft.get_peft_model(network(), method)
    return networks


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
