"""The training state on disk, one folder per step, written by Orbax."""

import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from adalink_jax.checkpoints.architecture import check_shapes
from adalink_jax.errors import UserError

# TensorStore reports errors of the operating system as ValueError with this in the message.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


class Store:
    """Training checkpoints ``FOLDER/STEP``; only the latest `keep` are kept.

    A save is synchronous and atomic: the step is written under a temporary name and renamed when
    complete. If the process is killed, the previous step stays and no unfinished step is visible.
    With several JAX processes, all must make the same calls in the same order.

    Orbax stores a flat dict of named arrays, so the files depend neither on the tree's classes
    (optax's named tuples) nor on the mesh the state was saved from.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 1):
        """Opens the store: creates its folder, and deletes what interrupted saves left behind.

        Args:
          folder: the folder of the steps; only one run at a time may write there.
          keep: how many of the latest steps to keep, at least 1.

        Raises:
          UserError: `keep` < 1, or the folder cannot be created or listed.
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
        """Writes the state after `step` steps, then deletes steps beyond `keep`.

        Args:
          step: steps done; must be higher than every step in the store.
          tree: any pytree of arrays; for training only the trainable part.

        Raises:
          ValueError: the store has this step or a later one.
          UserError: there is no space or no permission; earlier steps stay.
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
        """Returns the highest finished step, or None if there is none."""
        return self._manager.latest_step()

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state of `step`, bit for bit.

        Args:
          step: a step in the store.
          like: a tree of arrays or ``jax.ShapeDtypeStruct`` with the expected structure. Its
            shardings, on any mesh, place the result (default: this process's first device).

        Returns:
          A tree of jax arrays with the structure of `like`.

        Raises:
          UserError: the step does not exist, is damaged, or has other names, shapes or dtypes.
        """
        where = f"training checkpoint {self._folder / str(step)}"
        if step not in self._manager.all_steps():
            raise UserError(f"{where} does not exist")
        wanted = {name: _abstract(leaf) for name, leaf in _named(like).items()}
        try:
            stored = self._manager.item_metadata(step)
            stored = {
                name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in stored.items()
            }
        except Exception as error:
            raise UserError(f"{where} is damaged: its metadata cannot be read") from error
        shapes = {name: shape for name, (shape, _) in stored.items()}
        check_shapes({name: leaf.shape for name, leaf in wanted.items()}, shapes, where)
        for name, leaf in wanted.items():
            # Orbax would convert silently.
            if stored[name][1] != leaf.dtype:
                raise UserError(f"{where}: {name} is {stored[name][1]}, expected {leaf.dtype}")
        try:
            arrays = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        except Exception as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(f"{where} is damaged: {reason}") from error
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _named(like)])

    def close(self) -> None:
        """Stops Orbax's threads. The store must not be used afterwards."""
        self._manager.close()

    def _raise_if_refused(self, what: str, error: Exception) -> None:
        """Raises UserError if the operating system refused, which the user can fix."""
        code = _OS_ERROR.search(str(error))
        if code is not None:
            reason = os.strerror(int(code[1]))
        elif isinstance(error, OSError):
            reason = str(error)
        else:
            return
        raise UserError(f"training checkpoints {self._folder}: {what}: {reason}") from error


def _named(tree: Any) -> dict[str, Any]:
    """Returns the leaves by path, "a/b/0/c", in the order of ``jax.tree.leaves``."""
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
