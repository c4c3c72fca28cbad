"""What trainings of bases share: the state of a stage that goes on, and the base it ends with."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from adalink_jax import files
from adalink_jax.checkpoints.adapters import save_adapter
from adalink_jax.checkpoints.fingerprint import fingerprint
from adalink_jax.errors import UserError
from adalink_jax.models.config import T5Config


def save(path: pathlib.Path, begun: str, progress: Mapping[str, float], *trees: Any) -> None:
    """Writes a stage's state.

    Args:
      path: its file, which is replaced.
      begun: identifies what the stage began from: its parameters and data.
      progress: how far it is, such as the number of its steps.
      *trees: arrays.
    """
    leaves = jax.device_get(jax.tree.leaves(trees))
    arrays = {f"{i:04}": np.asarray(leaf, order="C") for i, leaf in enumerate(leaves)}
    about = {"begun": begun, **{name: repr(value) for name, value in progress.items()}}
    with files.replaced_file(path) as file:
        file.write(safetensors.numpy.save(arrays, about))


def restored(path: pathlib.Path, begun: str, *trees: Any) -> tuple[Any, ...]:
    """Returns what `save` wrote: progress, then the trees. Without a file: {} and those given.

    Raises:
      UserError: the file is damaged, or the stage began from something else.
    """
    if not path.exists():
        return {}, *trees
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = dict(file.metadata())
            leaves = [jnp.asarray(file.get_tensor(name)) for name in sorted(file.keys())]
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged; remove it to train this stage anew") from error
    if about.pop("begun", None) != begun:
        raise UserError(
            f"{path} was begun from other parameters or data; remove it, or choose another OUT"
        )
    progress = {name: float(value) for name, value in about.items()}
    return progress, *jax.tree.unflatten(jax.tree.structure(trees), leaves)


def rounded(params: Any) -> Any:
    """Returns float32 parameters with bfloat16's values, so that half the bytes hold them."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)


def write_base(
    folder: pathlib.Path, params: Any, config: T5Config, metadata: Mapping[str, Any]
) -> None:
    """Writes a base as full fine-tuning does, in bfloat16; `load_base` reads it.

    Args:
      folder: its folder, which is replaced.
      params: its tree, float32.
      config: its architecture.
      metadata: JSON values, without times or paths.
    """
    params = rounded(params)
    save_adapter(
        folder,
        params,
        method_name="full",
        settings={},
        architecture=config,
        base_fingerprint=fingerprint(params),
        metadata=metadata,
        halved=True,
    )
