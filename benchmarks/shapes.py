"""The architectures used by the benchmarks."""

from adalink_jax.models.t5 import T5Config


def flan_t5_small(dropout_rate: float) -> T5Config:
    """Returns FLAN-T5 small's architecture."""
    return T5Config(
        vocab_size=32128,
        emb_dim=512,
        num_heads=6,
        num_encoder_layers=8,
        num_decoder_layers=8,
        head_dim=64,
        mlp_dim=1024,
        mlp_activations=("gelu", "linear"),
        dropout_rate=dropout_rate,
    )


def t5_1_1(size: str, dropout_rate: float) -> T5Config:
    """Returns T5 1.1's architecture of a size: "base", "large", "xl" or "xxl"."""
    layers, emb_dim, num_heads, mlp_dim = {
        "base": (12, 768, 12, 2048),
        "large": (24, 1024, 16, 2816),
        "xl": (24, 2048, 32, 5120),
        "xxl": (24, 4096, 64, 10240),
    }[size]
    return T5Config(
        vocab_size=32128,
        emb_dim=emb_dim,
        num_heads=num_heads,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        head_dim=64,
        mlp_dim=mlp_dim,
        mlp_activations=("gelu", "linear"),
        dropout_rate=dropout_rate,
    )


def toy(dropout_rate: float) -> T5Config:
    """Returns an architecture that runs in seconds."""
    return T5Config(
        vocab_size=48,
        emb_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=24,
        mlp_activations=("gelu", "linear"),
        dropout_rate=dropout_rate,
    )
