"""A source of examples that are read from the files of a folder, as their authors publish it."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tasks import tsv
from tasks.errors import DataError
from tasks.sources import ColumnsSource


class FolderSource(ColumnsSource):
    """Examples from the files of a folder that an environment variable names.

    The variable is read whenever the source is used, never at import. Files are read when a dataset
    is made, not while it is iterated, so that errors in them are not wrapped by TensorFlow.

    Args:
      variable: the environment variable, for instance "SUPER_GLUE_DIR".
      files: split → the names that its file may have in the folder; the first that is there counts.
      read: (path as the user wrote it, split) → the split's examples, each with the same fields:
        texts, whole numbers, or lists of texts.
    """

    def __init__(
        self,
        variable: str,
        files: Mapping[str, Sequence[str]],
        read: Callable[[str, str], Iterable[Mapping[str, Any]]],
    ):
        super().__init__(splits=tuple(files))
        self._variable, self._files, self._read = variable, dict(files), read

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """Returns a split's examples: strings, int32, and string sequences.

        Raises:
          DataError: the folder or file is missing, there is no such split, or the file is faulty.
        """
        examples = self._examples(split)
        return {name: _column([one[name] for one in examples]) for name in examples[0]}

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns the file of a split."""
        return [self._path(split)]

    def num_input_examples(self, split: str) -> int:
        """Returns the number of examples of a split, which takes reading its file."""
        return len(self._examples(split))

    def available_splits(self) -> tuple[str, ...]:
        """Returns the splits whose files are in the folder.

        Raises:
          DataError: the variable is not set, or is no folder.
        """
        return tuple(split for split in self.splits if self._present(split))

    def identity(self, split: str) -> dict[str, str]:
        """Identifies a split's data; JSON-able, without absolute paths."""
        path = self._path(split)
        digest = hashlib.sha256(tsv.read_bytes(path)).hexdigest()
        # Splits may share a file.
        return {"kind": "file", "file": os.path.basename(path), "sha256": digest, "split": split}

    def _examples(self, split: str) -> list[Mapping[str, Any]]:
        path = self._path(split)
        examples = list(self._read(path, split))
        if not examples:
            raise DataError(f"{path}: no examples of split '{split}'")
        return examples

    def _root(self) -> str:
        root = os.environ.get(self._variable, "")
        if not root:
            raise DataError(
                f"no data: set {self._variable} to the folder that holds {self._names()} "
                f"(an environment variable, or --gin.{self._variable}='…')"
            )
        if not tf.io.gfile.isdir(os.path.expanduser(root)):
            raise DataError(
                f"{self._variable}={root}: no such folder; expected one that holds {self._names()}"
            )
        return root

    def _names(self) -> str:
        return next(iter(self._files.values()))[0]

    def _present(self, split: str) -> str | None:
        paths = (os.path.join(self._root(), name) for name in self._files[split])
        return next((p for p in paths if tf.io.gfile.exists(os.path.expanduser(p))), None)

    def _path(self, split: str) -> str:
        if split not in self._files:
            raise DataError(f"there is no split '{split}'; there are {', '.join(self._files)}")
        if path := self._present(split):
            return path
        first, *others = (os.path.join(self._root(), name) for name in self._files[split])
        hint = f" (nor {', '.join(others)})" if others else ""
        raise DataError(f"{first}: no such file{hint}")


def _column(values: list[Any]) -> Any:
    if isinstance(values[0], list):
        flat = [text for texts in values for text in texts]
        lengths = np.array([len(texts) for texts in values], np.int64)
        ragged: Any = tf.RaggedTensor  # Its makers are missing in the types.
        return ragged.from_row_lengths(tf.constant(flat, tf.string), lengths)
    if isinstance(values[0], int):
        return np.array(values, np.int32)
    return np.array(values, object)
