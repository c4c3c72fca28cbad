"""The adapter format of Hugging Face's PEFT, one module per method that it has."""

from adalink_jax.checkpoints.formats.peft.folder import load_peft, save_peft

__all__ = ["load_peft", "save_peft"]
