"""The operations of a training step, and what a chip could do: for the share that is used (MFU)."""

from adalink_jax.models.t5 import T5Config

# Peak bfloat16 FLOPs per second of one device, without sparsity, by the beginning of JAX's name of
# it. NVIDIA's data sheets: V100 (float16), A10, A100, L4, L40S, H100 (SXM; PCIe; NVL), H200. TPUs:
# cloud.google.com/tpu/docs, v2 to v6e, and system-architecture-tpu-vm. JAX has two devices for a
# chip of v2 and v3, so these have half of its 45 and 123 TFLOPs.
PEAKS = {
    "NVIDIA A10": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "Tesla V100": 125e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak FLOPs per second of a device; None if they are not in the table.

    Args:
      device_kind: JAX's name of it, e.g. "NVIDIA A100-SXM4-80GB".
    """
    words = device_kind.replace("-", " ").split()
    for count in range(len(words), 1, -1):
        if (peak := PEAKS.get(" ".join(words[:count]))) is not None:
            return peak
    return None


def step_flops(config: T5Config, rows: int, inputs: int, targets: int, trains_base: bool) -> float:
    """Returns the FLOPs of a step's matrix products, padding included; recomputing does not count.

    A layer's product is made once in the forward pass, once for the gradient of its input, and once
    for that of its weights where the base trains; a product of two activations has two gradients.
    A method's own products are left out, which are a small part.

    Args:
      config: the architecture.
      rows: rows of the batch.
      inputs: T, padded.
      targets: L, padded.
      trains_base: whether the base trains.
    """
    width, inner = config.emb_dim, config.num_heads * config.head_dim
    mlp = width * config.mlp_dim * (len(config.mlp_activations) + 1)
    projections = width * inner

    encoder = inputs * (4 * projections + mlp)
    decoder = targets * (6 * projections + mlp) + inputs * 2 * projections
    layers = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
    layers += targets * width * config.vocab_size
    # Queries times keys, for the logits, and as much again for the mean of the values.
    pairs = config.num_encoder_layers * inputs**2
    pairs += config.num_decoder_layers * targets * (targets + inputs)
    return 2.0 * rows * ((3 if trains_base else 2) * layers + 3 * 2 * inner * pairs)
