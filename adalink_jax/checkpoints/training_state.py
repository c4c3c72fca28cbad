"""The training state on disk, one folder per step, by Orbax."""

import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from adalink_jax.checkpoints.architecture import check_shapes
from adalink_jax.errors import UserError

# TensorStore reports failures of the operating system as ValueError, with this in the message.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


class Store:
    """Training checkpoints ``FOLDER/STEP``, of which the latest `keep` stay.

    A save is synchronous and atomic: it is written under a temporary name and renamed when it is
    whole, so a process killed at any moment leaves the step before it, and an unfinished step is
    never seen. With several JAX processes, all make the same calls in the same order.

    Orbax gets a flat dict of named arrays, so what is on disk depends neither on the classes in
    the tree (optax's named tuples) nor on the mesh it was saved from.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 1):
        """Opens the store; makes its folder, and removes what killed saves left behind.

        Args:
          folder: where the steps are; one run at a time writes there.
          keep: how many of the latest steps stay, at least 1.

        Raises:
          UserError: `keep` < 1, or the folder cannot be made or listed.
        """
        if keep < 1:
            raise UserError(f"keep_checkpoints is {keep}; at least 1 is needed to resume")
        self._folder = pathlib.Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        try:
            self._manager = ocp.CheckpointManager(
                self._folder, item_handlers=ocp.StandardCheckpointHandler(), options=options
            )
        except Exception as error:
            self._raise_if_refused("cannot be used", error)
            raise

    def save(self, step: int, tree: Any) -> None:
        """Writes the state after `step` steps, then deletes the steps beyond `keep`.

        Args:
          step: steps done, above every step in the store.
          tree: any pytree of arrays; for training the trainable side only.

        Raises:
          ValueError: the store holds this step or a later one.
          UserError: no space or no permission; the steps before stay.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} after step {latest} in {self._folder}")
        arguments = ocp.args.StandardSave(_named(tree))
        try:
            saved = self._manager.save(step, args=arguments)
        except Exception as error:
            self._raise_if_refused(f"step {step} cannot be written", error)
            raise
        if not saved:
            raise RuntimeError(f"Orbax skipped step {step} in {self._folder}")

    def latest_step(self) -> int | None:
        """Returns the highest finished step, or None where there is none."""
        return self._manager.latest_step()

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state of `step`, bit for bit.

        Args:
          step: a step in the store.
          like: the tree as it is to be: arrays or ``jax.ShapeDtypeStruct``, whose shardings
            place the result (default: this process's first device); any mesh will do.

        Returns:
          A tree of the structure of `like`, of jax arrays.

        Raises:
          UserError: the step is not there or damaged, or holds other names, shapes or dtypes.
        """
        where = f"training checkpoint {self._folder / str(step)}"
        if step not in self._manager.all_steps():
            raise UserError(f"{where} does not exist")
        wanted = {name: _abstract(leaf) for name, leaf in _named(like).items()}
        try:
            found = self._manager.item_metadata(step)
            found = {
                name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in found.items()
            }
        except Exception as error:
            raise UserError(f"{where} is damaged: its metadata cannot be read") from error
        shapes = {name: shape for name, (shape, _) in found.items()}
        check_shapes({name: leaf.shape for name, leaf in wanted.items()}, shapes, where)
        for name, leaf in wanted.items():
            # Orbax would convert in silence.
            if found[name][1] != leaf.dtype:
                raise UserError(f"{where}: {name} is {found[name][1]}, expected {leaf.dtype}")
        try:
            arrays = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        except Exception as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(f"{where} is damaged: {reason}") from error
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _named(like)])

    def close(self) -> None:
        """Frees Orbax's threads. The store is not used afterwards."""
        self._manager.close()

    def _raise_if_refused(self, what: str, error: Exception) -> None:
        """Raises UserError if the operating system refused: that is the user's to mend."""
        code = _OS_ERROR.search(str(error))
        if code is not None:
            reason = os.strerror(int(code[1]))
        elif isinstance(error, OSError):
            reason = str(error)
        else:
            return
        raise UserError(f"training checkpoints {self._folder}: {what}: {reason}") from error


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by their path, "a/b/0/c", in the order of ``jax.tree.leaves``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the tree have the same path")
    return named


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
