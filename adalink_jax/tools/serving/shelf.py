"""The adapters below one folder, read when they are asked for."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

from adalink_jax import files
from adalink_jax.adapters.load import adapter_folder, check_adapter
from adalink_jax.checkpoints import load_adapter
from adalink_jax.checkpoints.adapters import RECORD
from adalink_jax.errors import UserError, nearest
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.serving.bank import Module, module


@dataclasses.dataclass(frozen=True)
class Known:
    """A checked adapter.

    Attributes:
      modules: its routes, by name.
      labels: those of the only task it was trained on; none if there were several.
      written: which file its record was; another one means that the adapter was written anew.
    """

    modules: Mapping[str, Module]
    labels: tuple[str, ...]
    written: tuple[int, ...]


class Shelf:
    """Reads adapters by name, and keeps those that were asked for last."""

    def __init__(
        self,
        folder: str | None,
        config: T5Config,
        base_fingerprint: str,
        labels_of: Mapping[str, Sequence[str]],
        most: int,
    ):
        """Reads nothing yet.

        Args:
          folder: the folder of adapters (or of runs); None if there is none.
          config: the base's architecture.
          base_fingerprint: the base's `fingerprint`.
          labels_of: name of a task → its labels.
          most: the most adapters to keep.

        Raises:
          UserError: the folder does not exist.
        """
        if folder is not None and not pathlib.Path(folder).is_dir():
            raise UserError(f"no folder {folder} of adapters")
        self._folder = None if folder is None else pathlib.Path(folder)
        self._config, self._fingerprint = config, base_fingerprint
        self._labels_of, self._most = labels_of, most
        self._known: dict[str, Known] = {}  # Ordered by use, the most recent one last.

    def read(self, name: str) -> Known:
        """Returns the adapter of a name as it is on disk now.

        Symbolic links are followed: who may write into the folder decides what is served. A
        request can only name what lies directly in it.

        Raises:
          UserError: there is none; it is damaged, of another base, or cannot share a batch.
          OSError: it cannot be read.
        """
        known = self._known.pop(name, None)
        folder = self._place(name)
        written = _written(folder)
        if known is None or known.written != written:
            try:
                known = self._load(folder, written)
            except UserError:
                if written == (written := _written(folder)):
                    raise
                # Written anew meanwhile: the record was the old one's, the arrays the new one's.
                known = self._load(folder, written)
        self._known[name] = known
        if len(self._known) > self._most:
            del self._known[next(iter(self._known))]
        return known

    def _place(self, name: str) -> pathlib.Path:
        if self._folder is None:
            raise UserError(f"adapter '{name}' is asked for, but no folder of adapters was given")
        # Hidden folders are adapters that are being written; ".." is above the folder.
        plain = pathlib.PurePath(name).name == name and not name.startswith(".")
        if not plain or not files.present_folder(self._folder / name).is_dir():
            names = [child.name for child in self._folder.iterdir() if child.is_dir()]
            names = sorted(child for child in names if not child.startswith("."))
            raise UserError(f"no adapter '{name}' in {self._folder}{nearest(name, names)}")
        return adapter_folder(str(self._folder / name))

    def _load(self, folder: pathlib.Path, written: tuple[int, ...]) -> Known:
        adapter = load_adapter(
            folder, architecture=self._config, base_fingerprint=self._fingerprint
        )
        check_adapter(self._config, adapter.method, adapter.tree, str(folder))
        modules = {
            route: module(adapter.method, adapter.tree, i)
            for i, route in enumerate(adapter.route_names)
        }
        labels = tuple(self._labels_of.get(adapter.only_task.get("name", ""), ()))
        return Known(modules, labels, written)


def _written(folder: pathlib.Path) -> tuple[int, ...]:
    try:
        stat = os.stat(files.present_folder(folder) / RECORD)
    except FileNotFoundError:
        return ()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
