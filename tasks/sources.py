"""Sources of raw examples: GLUE's files, TFDS, or columns in memory."""

import dataclasses
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from tasks import tsv
from tasks.errors import DataError

VARIABLE = "GLUE_DIR"
TFDS_VERSION = "2.0.0"


def dataset_from_columns(
    columns: Mapping[str, Sequence | np.ndarray],
    shuffle: bool,
    seed: int | None,
    shard_info: seqio.ShardInfo | None,
) -> tf.data.Dataset:
    """Returns examples from columns of equal length N.

    A shard is every `num_shards`-th example of the unshuffled order, so shards are disjoint
    whatever their seeds. Shuffling is uniform over the whole shard.
    """
    # TensorFlow's types leave out that it takes dicts.
    dataset = tf.data.Dataset.from_tensor_slices(cast(Any, dict(columns)))
    if shard_info and shard_info.num_shards > 1:
        dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
        dataset = dataset.shuffle(len(next(iter(columns.values()))), seed=seed)
    return dataset


class ColumnsSource(seqio.DataSource):
    """Examples that are in memory once they are asked for; a source of them says its `columns`."""

    def columns(self, split: str) -> Mapping[str, Sequence | np.ndarray]:
        """Returns a split's examples as columns of equal length, by the fields' names.

        Raises:
          DataError: there is no such split, or what the examples come from is missing or faulty.
        """
        raise NotImplementedError

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Yes, because every example can be read separately."""
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns one shard, named after the split."""
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        """Returns a split's examples.

        Raises:
          DataError: as `columns`.
        """
        return dataset_from_columns(self.columns(split), shuffle, seed, shard_info)


@dataclasses.dataclass(frozen=True)
class GlueFormat:
    """How one GLUE task is stored, in files and in TFDS.

    Attributes:
      name: the config of TFDS's `glue` dataset, for instance "sst2".
      folder: its subfolder in the official layout, for instance "SST-2".
      files: split name → file name. Files of test splits have no labels, and all have a header.
      fields: field name (TFDS's) → its column in the files.
      label_column: the column of the label.
      parse_label: turns a label's text into an int class or a float score; raises ValueError for
        an invalid one.
      header: the columns of files without a header line, else None.
      train_examples: number of training examples in the official release.
      unknown: the label of an example without one, as in TFDS.
    """

    name: str
    folder: str
    files: Mapping[str, str]
    fields: Mapping[str, str]
    label_column: str
    parse_label: Callable[[str], int | float]
    train_examples: int
    header: tuple[str, ...] | None = None
    unknown: int | float = -1


class GlueDataSource(seqio.DataSource):
    """A GLUE task's examples from the folder GLUE_DIR or, if that is not set, from TFDS.

    GLUE_DIR (an environment variable) is read whenever the source is used, never at import. It is
    the path of a folder in the official layout: `CoLA/train.tsv`, `MNLI/dev_matched.tsv` and so on.
    Examples have the fields and types of TFDS's `glue/<name>:2.0.0`. The only difference is that
    `idx` of MRPC is the row in GLUE's file, not in Microsoft's.

    Args:
      glue_format: how the task is stored.
    """

    def __init__(self, glue_format: GlueFormat):
        super().__init__(splits=glue_format.files)
        self._format, self._said = glue_format, False
        # Splits are given explicitly, because TFDS silently returns none when offline.
        self._tfds = seqio.TfdsDataSource(
            f"glue/{glue_format.name}:{TFDS_VERSION}", splits=tuple(glue_format.files)
        )

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Whether any number of shards can be read: yes for files, no for TFDS."""
        return bool(self._root())

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        """Returns a split's examples: text fields, `label` (int64 or float32) and `idx` (int32).

        Files are read here and not while the dataset is iterated, so that errors in them are not
        wrapped by TensorFlow.

        Raises:
          DataError: see `tsv.read_examples`; also if a folder, file or split does not exist, or if
            TFDS data is not prepared and cannot be downloaded.
        """
        if not self._root():
            return self._prepared_tfds(split).get_dataset(split, shuffle, seed, shard_info)
        path, form = self._file(split), self._format
        header = None if self._is_test(split) else form.header
        column, parse = form.label_column, form.parse_label
        if self._is_test(split) and column not in tsv.header_of(path):
            column, parse = None, lambda _: form.unknown
        columns = tsv.read_examples(path, form.fields, column, parse, header=header)
        is_class = isinstance(columns["label"][0], int)
        arrays = {
            "label": np.asarray(columns["label"], np.int64 if is_class else np.float32),
            "idx": np.asarray(columns["idx"], np.int32),
        }
        return dataset_from_columns({**columns, **arrays}, shuffle, seed, shard_info)

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns the files of a split."""
        return (
            [self._file(split)] if self._root() else self._prepared_tfds(split).list_shards(split)
        )

    def num_input_examples(self, split: str) -> int | None:
        """Returns the number of examples of a split in the current source."""
        if self._root():
            header = None if self._is_test(split) else self._format.header
            return tsv.count_rows(self._file(split), columns=len(header) if header else None)
        return self._prepared_tfds(split).num_input_examples(split)

    def train_examples(self) -> int:
        """Returns the number of training examples; for TFDS the official count, without TFDS."""
        counted = self.num_input_examples("train") if self._root() else None
        return self._format.train_examples if counted is None else counted

    def available_splits(self) -> tuple[str, ...]:
        """Returns the splits that the current source has; for TFDS, all of them.

        Raises:
          DataError: GLUE_DIR is not a folder or lacks the task's subfolder.
        """
        if not self._root():
            return tuple(self.splits)
        present = self._folder_content()
        return tuple(split for split, file in self._format.files.items() if file in present)

    def identity(self, split: str) -> dict[str, str]:
        """Identifies a split's data; JSON-able, without absolute paths."""
        if self._root():
            path = self._file(split)
            digest = hashlib.sha256(tsv.read_bytes(path)).hexdigest()
            return {"kind": "file", "file": os.path.basename(path), "sha256": digest}
        self._check_split(split)
        return {
            "kind": "tfds",
            "name": f"glue/{self._format.name}",
            "version": TFDS_VERSION,
            "split": split,
        }

    def _is_test(self, split: str) -> bool:
        return split.startswith("test")

    def _root(self) -> str:
        return os.environ.get(VARIABLE, "")

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise DataError(
                f"glue_{self._format.name} has no split '{split}'; it has {', '.join(self.splits)}"
            )

    def _folder_content(self) -> list[str]:
        root = self._root()
        folder = os.path.join(root, self._format.folder)
        for path in (root, folder):
            if not tf.io.gfile.isdir(os.path.expanduser(path)):
                raise DataError(
                    f"{VARIABLE}={root}: no folder {path}; expected the official GLUE layout, "
                    f"{os.path.join(folder, next(iter(self._format.files.values())))} and so on"
                    "; docs/howto/files.md says where to get it"
                )
        return sorted(tf.io.gfile.listdir(os.path.expanduser(folder)))

    def _file(self, split: str) -> str:
        self._check_split(split)
        present = self._folder_content()
        file = self._format.files[split]
        folder = os.path.join(self._root(), self._format.folder)
        if file not in present:
            raise DataError(
                f"{os.path.join(folder, file)}: no such file for split '{split}' of "
                f"glue_{self._format.name}; {folder} holds {', '.join(present) or 'nothing'}"
            )
        return os.path.join(folder, file)

    def _prepared_tfds(self, split: str) -> seqio.TfdsDataSource:
        """Returns the TFDS source after preparing its data, which defines its splits and sizes."""
        self._check_split(split)
        name = f"glue/{self._format.name}"
        # The error says what its retries met.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        if not self._said:  # The next lines may take minutes, without a network too.
            self._said = True
            of = f"{name}:{TFDS_VERSION} is read by TensorFlow Datasets"
            print(f"{VARIABLE} is not set: {of}", file=sys.stderr, flush=True)
        try:
            builder = self._tfds.tfds_dataset.builder
            if not builder.is_prepared():
                print(f"it downloads to {builder.data_path}", file=sys.stderr, flush=True)
            builder.download_and_prepare()
        except Exception as error:  # downloads fail in many ways
            cause = (str(error).splitlines() or [""])[0][:200]
            raise DataError(
                f"TFDS's {name}:{TFDS_VERSION} is not prepared and could not be downloaded "
                f"({type(error).__name__}: {cause}); set {VARIABLE} to a folder in GLUE's official "
                f"layout, or run 'tfds build {name}' where there is a network"
            ) from error
        return self._tfds


def examples_digest(source: seqio.DataSource, split: str) -> str:
    """Returns the SHA-256 of a split's raw examples in unshuffled order; reads all of them."""
    digest = hashlib.sha256()
    for example in tfds.as_numpy(source.get_dataset(split=split, shuffle=False)):
        for name in sorted(example):
            value = np.asarray(example[name])
            content = repr(value.tolist()) if value.dtype == object else value.tobytes().hex()
            digest.update(f"{name}\0{value.dtype}\0{value.shape}\0{content}\n".encode())
    return digest.hexdigest()
