"""States of a training, and bases: as small parts that travel, and as folders."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from adalink_jax import files
from adalink_jax.checkpoints.adapters import save_adapter
from adalink_jax.checkpoints.fingerprint import fingerprint
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

_PART_BYTES = 12 << 20


def save(path: pathlib.Path, tree: Any, state: Any, spent: float, step: int) -> None:
    """Writes a stage's state.

    Args:
      path: its file, which is replaced.
      tree: the weights.
      state: the optimizer's.
      spent: seconds of training.
      step: number of steps.
    """
    leaves = jax.device_get(jax.tree.leaves((tree, state)))
    arrays = {f"{i:04}": np.asarray(leaf, order="C") for i, leaf in enumerate(leaves)}
    with files.replaced_file(path) as file:
        file.write(safetensors.numpy.save(arrays, {"spent": repr(spent), "step": str(step)}))


def restored(path: pathlib.Path, tree: Any, state: Any) -> tuple[Any, Any, float, int]:
    """Returns weights, the optimizer's state, seconds and steps of a file; without one, the given.

    Raises:
      UserError: the file is damaged.
    """
    if not path.exists():
        return tree, state, 0.0, 0
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = file.metadata()
            leaves = [jnp.asarray(file.get_tensor(name)) for name in sorted(file.keys())]
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged; remove it to train this stage anew") from error
    tree, state = jax.tree.unflatten(jax.tree.structure((tree, state)), leaves)
    return tree, state, float(about["spent"]), int(about["step"])


def write_parts(out: pathlib.Path, name: str, params: Mapping[str, Any]) -> None:
    """Writes a base as files of at most 12 MiB: OUT/NAME.0.safetensors and so on.

    The numbers are bfloat16, as uint16 with the same bits: not every reader knows bfloat16.

    Args:
      out: the folder.
      name: the base's name.
      params: its tree.
    """
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    parts: list[dict[str, Any]] = [{}]
    size = 0
    for leaf, array in sorted(flat.items()):
        array = np.asarray(array).astype(jnp.bfloat16)
        if size + array.nbytes > _PART_BYTES:
            parts.append({})
            size = 0
        size += array.nbytes
        parts[-1][leaf] = np.ascontiguousarray(array).view(np.uint16)
    for i, part in enumerate(parts):
        with files.replaced_file(out / f"{name}.{i}.safetensors") as file:
            file.write(safetensors.numpy.save(part))


def read_parts(out: pathlib.Path, name: str) -> dict[str, Any]:
    """Reads what `write_parts` wrote; float32.

    Raises:
      UserError: there are no parts, or one is damaged.
    """
    flat = {}
    paths = sorted(out.glob(f"{name}.[0-9].safetensors"))
    if not paths:
        raise UserError(f"{out} has no {name}.0.safetensors")
    for path in paths:
        try:
            part = safetensors.numpy.load(path.read_bytes())
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} is damaged") from error
        for leaf, array in part.items():
            flat[leaf] = array.view(jnp.bfloat16).astype(np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def write_base(
    out: pathlib.Path, name: str, config: T5Config, data: pathlib.Path, about: Mapping[str, Any]
) -> None:
    """Writes a base as full fine-tuning does, of its parts; `load_base` reads it.

    Args:
      out: has the parts; the base is written to OUT/NAME.
      name: the base's name.
      config: its architecture.
      data: the folder of data, with its record and vocabulary.
      about: what else the record says.
    """
    params = read_parts(out, name)
    made = json.loads((data / "data.json").read_text())
    vocabulary = hashlib.sha256((data / "vocabulary.model").read_bytes()).hexdigest()
    save_adapter(
        out / name,
        params,
        method_name="full",
        settings={},
        architecture=config,
        base_fingerprint=fingerprint(params),
        metadata={
            **about,
            "data": {"name": "english", "vocabulary": vocabulary, "text": made["text_sha256"]},
        },
    )
