"""Bases, adapters and image encoders on disk: detects formats, reads, checks and writes."""

from adalink_jax.checkpoints.adapters import (
    Adapter,
    AdapterRecord,
    check_tensors,
    load_adapter,
    read_record,
    save_adapter,
)
from adalink_jax.checkpoints.architecture import check_architecture, shapes_of
from adalink_jax.checkpoints.bases import load_base, open_base, save_base
from adalink_jax.checkpoints.encoders import (
    image_encoder,
    load_image_encoder,
    save_image_encoder,
)
from adalink_jax.checkpoints.fingerprint import combined_fingerprint, fingerprint, leaf_digest
from adalink_jax.checkpoints.lazy import StoredBase

__all__ = [
    "Adapter",
    "AdapterRecord",
    "StoredBase",
    "check_architecture",
    "check_tensors",
    "combined_fingerprint",
    "fingerprint",
    "image_encoder",
    "leaf_digest",
    "load_adapter",
    "load_base",
    "load_image_encoder",
    "open_base",
    "read_record",
    "save_adapter",
    "save_base",
    "save_image_encoder",
    "shapes_of",
]
