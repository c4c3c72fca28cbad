"""Bases and adapters on disk: detects formats, reads, checks and writes."""

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
    "leaf_digest",
    "load_adapter",
    "load_base",
    "open_base",
    "read_record",
    "save_adapter",
    "save_base",
    "shapes_of",
]
