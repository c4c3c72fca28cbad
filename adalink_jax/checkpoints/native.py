"""Reads this project's own bases: what a run of full fine-tuning leaves in its ``adapter`` folder.

Full fine-tuning's adaptation is the whole model, so its file is a base: ``adapter.safetensors``
with every parameter under T5X's name, and ``adapter.json`` with the architecture.
"""

import pathlib

from adalink_jax.checkpoints import adapters, architecture
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config


def find_checkpoint(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the adapter folder that `folder` is, or (a run's folder) has inside; or None."""
    for candidate in (folder, folder / "adapter"):
        if any((candidate / name).is_file() for name in (adapters.TENSORS, adapters.RECORD)):
            return candidate
    return None


def load(folder: pathlib.Path, configured: T5Config | None = None) -> tuple[T5Config, dict]:
    """Reads the model that full fine-tuning wrote.

    Args:
      folder: the folder that holds ``adapter.safetensors`` and ``adapter.json``.
      configured: the architecture it is expected to have, or None.

    Returns:
      The architecture and nested dicts of float32 NumPy arrays under T5X's names.

    Raises:
      UserError: the files are damaged, of another method than full fine-tuning, or hold other
        arrays than their architecture has; or that is not the configured one.
    """
    adapter = adapters.load_adapter(folder)
    if adapter.method_name != "full":
        raise UserError(
            f"{folder}: an adapter of method '{adapter.method_name}', not a base: load the base"
            " it was trained on and give this as its adapter"
        )
    config = adapter.architecture
    if configured is not None:
        architecture.check_architecture(configured, config, str(folder))
    expected = architecture.expected_shapes(config)
    architecture.check_shapes(expected, architecture.shapes_of(adapter.tree), str(folder))
    return config, adapter.tree
