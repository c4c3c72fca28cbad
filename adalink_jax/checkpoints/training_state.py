"""The training state on disk, one folder per step, written by Orbax.

Orbax and TensorStore see only some damage of their files. Other damage gives other numbers, or a
wait without end. So each step has a ``SHA256SUMS``, which is checked before they read anything.
"""

import contextlib
import functools
import itertools
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from adalink_jax.checkpoints import sums
from adalink_jax.checkpoints.architecture import check_shapes
from adalink_jax.errors import UserError

# TensorStore reports errors of the operating system as ValueError with this in the message.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")

_ITEM = "default"  # Orbax's folder in that of a step.
_DECADES = 1_000_000_000  # In seconds.


class _Handler(ocp.StandardCheckpointHandler):
    """Orbax's handler of trees, which also writes ``SHA256SUMS``."""

    def finalize(self, directory: Any) -> None:
        """Ends a save. All hosts have written, and the step is not visible yet."""
        super().finalize(directory)
        sums.write(pathlib.Path(directory))


# Orbax finds a handler by the classes of its arguments.
@ocp.args.register_with_handler(_Handler, for_save=True)
class _Save(ocp.args.StandardSave):
    pass


@ocp.args.register_with_handler(_Handler, for_restore=True)
class _Restore(ocp.args.StandardRestore):
    pass


class Store:
    """Training checkpoints ``FOLDER/STEP``; only the latest `keep` are kept.

    A damaged step is never restored. If an earlier one is whole, it is renamed to ``STEP.damaged``.

    A save returns as soon as the arrays are on the host; threads write them while training goes on.
    It is atomic: the step is written under a temporary name and renamed when complete. If the
    process is killed, the previous step stays and no unfinished step is visible. With several JAX
    processes, all must make the same calls in the same order.

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
        self._pending: int | None = None  # The step that is being written.
        # Where a folder cannot be made, the threads that write into it would wait for it.
        threads = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        if jax.process_count() == 1:
            # Orbax measures its patience by a clock that may be set while it writes.
            threads.timeout_secs = _DECADES
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            async_options=threads,
            cleanup_tmp_directories=True,
        )
        try:
            self._manager = ocp.CheckpointManager(
                self._folder, item_handlers=_Handler(), options=options
            )
        except Exception as error:
            self._raise_if_refused("cannot be used", error)
            raise

    def save(self, step: int, tree: Any) -> None:
        """Begins to write the state after `step` steps, when the save before is done.

        Steps beyond `keep` are deleted after it.

        Args:
          step: steps done; must be higher than every step in the store.
          tree: any pytree of arrays; for training only the trainable part. They may be donated
            after the call.

        Raises:
          ValueError: the store has this step or a later one.
          UserError: there is no space or no permission for this step or the one before; earlier
            steps stay. What is found later is raised by `wait`.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} after step {latest} in {self._folder}")
        arguments = _Save(_named(tree))
        _drop_echoes()
        self._pending = step
        with self._refusals():
            if not self._manager.save(step, args=arguments):
                raise RuntimeError(f"Orbax skipped step {step} in {self._folder}")

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          UserError: there was no space or no permission; earlier steps stay.
        """
        if self._pending is not None:
            with self._refusals():
                self._manager.wait_until_finished()
            self._pending = None

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        step = self._pending
        try:
            yield
        except Exception as error:
            self._pending = None
            self._manager.reload()  # It took the step for written.
            self._raise_if_refused(f"step {step} cannot be written", error)
            raise

    def latest_step(self) -> int | None:
        """Returns the highest finished step, or None if there is none; waits for a save."""
        self.wait()
        return self._manager.latest_step()

    def restore_latest(self, like: Any, say: Callable[[str], None]) -> Any | None:
        """Returns the state of the latest step that is whole, and renames damaged later ones.

        Args:
          like: as in `restore`.
          say: called with one line for each damaged step, and for a step that has no sums.

        Returns:
          The state, or None if there is no step.

        Raises:
          UserError: all steps are damaged, and stay as they are; or the state is another one.
        """
        self.wait()
        damaged: dict[int, sums.Damaged] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(step, like)
            except sums.Damaged as error:
                damaged[step] = error
                continue
            for later, error in damaged.items():
                say(f"{error}; it is now called {self._put_aside(later)}, and can be deleted")
            if damaged:
                self._manager.reload()
            if not sums.are_in(self._folder / str(step) / _ITEM):
                say(f"{self._where(step)} has no {sums.NAME}: not checked for damage")
            return state
        if damaged:
            raise UserError(
                f"{damaged[max(damaged)]}; no other checkpoint is whole: put back a copy of it, or"
                " use another MODEL_DIR"
            )
        return None

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state of `step`, bit for bit.

        Args:
          step: a step in the store.
          like: a tree of arrays or ``jax.ShapeDtypeStruct`` with the expected structure. Its
            shardings, on any mesh, place the result (default: this process's first device).

        Returns:
          A tree of jax arrays with the structure of `like`.

        Raises:
          sums.Damaged: the step is damaged.
          UserError: the step does not exist, or has other names, shapes or dtypes.
        """
        self.wait()
        if step not in self._manager.all_steps():
            raise UserError(f"{self._where(step)} does not exist")
        _on_all_hosts(self._where(step), lambda: self._check_sums(step))
        wanted = {name: _abstract(leaf) for name, leaf in _named(like).items()}
        arrays = _on_all_hosts(self._where(step), lambda: self._read(step, wanted))
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])

    def _check_sums(self, step: int) -> None:
        folder = self._folder / str(step) / _ITEM
        try:
            if sums.are_in(folder):  # Earlier versions wrote none.
                sums.check(folder)
        except sums.Damaged as error:
            raise sums.Damaged(f"{self._where(step)} is damaged: {error}") from error

    def _read(self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> Any:
        where = self._where(step)
        try:
            stored = self._manager.item_metadata(step)
            stored = {
                name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in stored.items()
            }
        except Exception as error:
            raise sums.Damaged(f"{where} is damaged: its metadata cannot be read") from error
        shapes = {name: shape for name, (shape, _) in stored.items()}
        check_shapes({name: leaf.shape for name, leaf in wanted.items()}, shapes, where)
        for name, leaf in wanted.items():
            # Orbax would convert silently.
            if stored[name][1] != leaf.dtype:
                raise UserError(f"{where}: {name} is {stored[name][1]}, expected {leaf.dtype}")
        try:
            return self._manager.restore(step, args=_Restore(wanted))
        except Exception as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise sums.Damaged(f"{where} is damaged: {reason}") from error

    def _put_aside(self, step: int) -> str:
        """Renames a step's folder, so that there is no such step; returns its new name."""
        folder = self._folder / str(step)
        others = (f"{step}.damaged.{number}" for number in itertools.count(2))
        names = map(folder.with_name, itertools.chain([f"{step}.damaged"], others))
        free = next(path for path in names if not path.exists())
        if jax.process_index() == 0:
            try:
                folder.rename(free)
            except OSError as error:
                self._raise_if_refused(f"step {step} cannot be renamed", error)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"renamed {folder}")
        return free.name

    def close(self) -> None:
        """Waits for a save and stops Orbax's threads. The store must not be used afterwards."""
        self.wait()
        self._manager.close()

    def _where(self, step: int) -> str:
        return f"training checkpoint {self._folder / str(step)}"

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


@functools.cache
def _drop_echoes() -> None:
    """Keeps what a save raises from being said again, for each array and with tracebacks.

    Orbax's threads log it, and how long the save before takes. The first write that fails ends
    Orbax's event loop, of which TensorStore's threads then tell, and asyncio, which looks for
    errors that nobody took.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed" or unraisable.object is not None:
            before(unraisable)

    def is_no_echo(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        untaken = "exception was never retrieved" in message and "orbax" in message
        return not untaken and "orbax" not in record.pathname

    sys.unraisablehook = hook
    for name in ("asyncio", "absl"):
        logging.getLogger(name).addFilter(is_no_echo)


def _on_all_hosts(what: str, call: Callable[[], Any]) -> Any:
    """Returns what a call returns; raises `sums.Damaged` on all hosts if it does on one."""
    damaged, result = None, None
    try:
        result = call()
    except sums.Damaged as error:
        damaged = error
    if jax.process_count() > 1:
        others = multihost_utils.process_allgather(np.array(damaged is not None))
        if damaged is None and others.any():
            damaged = sums.Damaged(f"host {int(np.argmax(others))} found {what} damaged")
    if damaged is not None:
        raise damaged
    return result


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
