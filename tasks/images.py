"""Tasks of images and text: captions and questions, from official files below IMAGE_DIR.

An example has the texts `inputs` and `targets`, the string `image` (the picture's path below
IMAGE_DIR) and `references`, the list of all captions or answers. Pictures are not opened here.
docs/howto/image_tasks.md says where each data set comes from, and its layout.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from tasks import image_files, metrics, tsv
from tasks.caption_metrics import CAPTION_METRICS
from tasks.errors import DataError
from tasks.image_files import ImageFormat
from tasks.mixtures import proportional_rate
from tasks.registry import (
    SCORED_BY,
    UNLABELED,
    add_classification,
    add_generation,
)
from tasks.sources import ColumnsSource
from tasks.vqa_metrics import anls, exact_match, soft_accuracy

VARIABLE = "IMAGE_DIR"

EASY_VQA_ANSWERS = (
    *("black", "blue", "brown", "circle", "gray", "green", "no", "rectangle", "red", "teal"),
    *("triangle", "yellow", "yes"),
)


class ImageDataSource(ColumnsSource):
    """Examples of a data set of images from the folder IMAGE_DIR, an environment variable.

    The variable is read whenever the source is used, never at import. Examples are strings:
    `image`, `text`, `target`, and `references` with line feeds between them.

    Args:
      name: the task's name, for errors.
      image_format: how the data set is stored.
    """

    def __init__(self, name: str, image_format: ImageFormat):
        super().__init__(splits=tuple(image_format.files))
        self._name, self._format = name, image_format

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """Returns a split's examples.

        Raises:
          DataError: IMAGE_DIR, a folder or a file does not exist; a file has a fault.
        """
        examples = self._examples(split)
        return {
            "image": np.array([one.image for one in examples], object),
            "text": np.array([one.text for one in examples], object),
            "target": np.array([one.target or UNLABELED for one in examples], object),
            "references": np.array(["\n".join(one.references) for one in examples], object),
        }

    def num_input_examples(self, split: str) -> int:
        """Returns the number of examples of a split."""
        return len(self._examples(split))

    def available_splits(self) -> tuple[str, ...]:
        """Returns the splits whose files are there.

        Raises:
          DataError: IMAGE_DIR is not set, or has no folder of this data set.
        """
        present = self._content()
        return tuple(
            split
            for split, files in self._format.files.items()
            if all(_present(file, present) for file in files)
        )

    def identity(self, split: str) -> dict:
        """Identifies a split's data; JSON-able, without absolute paths."""
        digest = hashlib.sha256()
        paths = self._files(split)
        for path in paths:
            digest.update(hashlib.sha256(tsv.read_bytes(path)).digest())
        names = [os.path.basename(path) for path in paths]
        return {"kind": "files", "files": names, "split": split, "sha256": digest.hexdigest()}

    def _examples(self, split: str) -> list[image_files.Example]:
        paths = self._files(split)
        examples = self._format.read(paths, split)
        if not examples:
            raise DataError(f"{paths[0]}: no examples of split '{split}' of {self._name}")
        return examples

    def _content(self) -> set[str]:
        root = os.environ.get(VARIABLE, "")
        if not root:
            raise DataError(
                f"{VARIABLE} is not set; {self._name} is read from its folder "
                f"'{self._format.folder}', with {self._expected()}"
            )
        folder = os.path.join(root, self._format.folder)
        if not tf.io.gfile.isdir(os.path.expanduser(folder)):
            raise DataError(
                f"{VARIABLE}={root}: no folder {folder}; {self._name} is read from there, with "
                f"{self._expected()}"
            )
        present = tf.io.gfile.listdir(os.path.expanduser(folder))
        # A file in a folder of a split, as easy-VQA's.
        nested = {os.path.dirname(f) for files in self._format.files.values() for f in files}
        for part in nested - {""}:
            path = os.path.expanduser(os.path.join(folder, part))
            if tf.io.gfile.isdir(path):
                present += [f"{part}/{name}" for name in tf.io.gfile.listdir(path)]
        return set(present)

    def _expected(self) -> str:
        first = next(iter(self._format.files.values()))
        return " and ".join(file.split("|")[0] for file in first)

    def _files(self, split: str) -> list[str]:
        if split not in self.splits:
            raise DataError(f"{self._name} has no split '{split}'; it has {', '.join(self.splits)}")
        present, paths = self._content(), []
        folder = os.path.join(os.environ[VARIABLE], self._format.folder)
        for file in self._format.files[split]:
            if (found := _present(file, present)) is None:
                raise DataError(
                    f"{os.path.join(folder, file.split('|')[0])}: no such file for split '{split}' "
                    f"of {self._name}"
                )
            paths.append(os.path.join(folder, found))
        return paths


def _present(file: str, present: set[str]) -> str | None:
    return next((name for name in file.split("|") if name in present), None)


def format_examples(dataset: tf.data.Dataset, *, prefix: str) -> tf.data.Dataset:
    """Turns `text` and `target` into `inputs`, with the prefix in front, and `targets`.

    `references` becomes a list of strings, and `image` stays.
    """

    def convert(example):
        joined = example["references"]
        references = tf.strings.split(joined, "\n")
        known = tf.cast(tf.strings.length(joined) > 0, tf.int32)
        return {
            "inputs": tf.strings.strip(tf.strings.join([prefix, example["text"]], " ")),
            "targets": example["target"],
            "image": example["image"],
            "references": references[: known * tf.size(references)],
        }

    return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def references(text: str, *, example=None, is_target: bool = False, **unused) -> str | list[str]:
    """Returns the references of an example as its target, and a prediction as it is.

    This is a `postprocess_fn` for metrics of several references: they get `targets`, a list of
    texts for each example. An example without `references` has its target as the only one.
    """
    if not is_target:
        return text
    found = (example or {}).get("references")
    if found is None:
        return [text]
    return [one.decode() if isinstance(one, bytes) else str(one) for one in found]


def add_image_task(
    name: str,
    source: seqio.DataSource,
    preprocess: Callable | None,
    metric_fns: Sequence[Callable],
    *,
    scored_by: str | None = None,
    eval_splits: Sequence[str] = ("validation",),
    vocabulary: seqio.Vocabulary | None = None,
) -> seqio.Task:
    """Registers a task of images whose metrics compare a text with several references.

    Args:
      name: the task's name, new to SeqIO's registry.
      source: any SeqIO data source.
      preprocess: turns its examples into ones with the strings `inputs`, `targets` and `image`, and
        the list of strings `references`; None if they already have these.
      metric_fns: functions of (targets, predictions): lists of references, and texts.
      scored_by: the metric that is the task's score; None for the mean of all.
      eval_splits: the source's splits for evaluation.
      vocabulary: by default the user's SentencePiece file.

    Returns:
      The registered task.
    """
    task = add_generation(
        name,
        source,
        preprocess,
        metric_fns,
        eval_splits=eval_splits,
        vocabulary=vocabulary,
        postprocess_fn=references,
    )
    if scored_by is not None:
        SCORED_BY[name] = scored_by
    return task


def _one_file(name: str, splits: Sequence[str]) -> dict[str, tuple[str]]:
    return {split: (name,) for split in splits}


_SPLITS = ("train", "validation", "test")
_KARPATHY = {
    name: ImageFormat(
        name,
        _one_file(f"dataset_{name}.json", _SPLITS),
        image_files.karpathy("coco" if name == "coco" else f"{name}/images"),
    )
    for name in ("coco", "flickr8k", "flickr30k")
}
_CAPTIONS = {
    **_KARPATHY,
    "flickr8k_hashed": ImageFormat(
        "flickr8k",
        _one_file("captions.txt", _SPLITS),
        image_files.captions_txt("flickr8k/images"),
    ),
    "textcaps": ImageFormat(
        "textcaps",
        {
            "train": ("TextCaps_0.1_train.json",),
            "validation": ("TextCaps_0.1_val.json",),
            "test": ("TextCaps_0.1_test.json",),
        },
        image_files.textcaps,
    ),
}


def _questions(prefix: str, year: str) -> tuple[str, str]:
    return (
        f"{prefix}OpenEnded_mscoco_{year}_questions.json",
        f"{prefix}mscoco_{year}_annotations.json",
    )


# Prefix of the input, how it is stored, metrics. The first metric is the score.
_QUESTIONS = {
    "okvqa": (
        ImageFormat(
            "okvqa",
            {"train": _questions("", "train2014"), "validation": _questions("", "val2014")},
            image_files.vqa,
        ),
        (soft_accuracy,),
    ),
    "v2": (
        ImageFormat(
            "vqa_v2",
            {
                "train": _questions("v2_", "train2014"),
                "validation": _questions("v2_", "val2014"),
                "test": _questions("v2_", "test2015")[:1],
                "test-dev": _questions("v2_", "test-dev2015")[:1],
            },
            image_files.vqa,
        ),
        (soft_accuracy,),
    ),
    "textvqa": (
        ImageFormat(
            "textvqa",
            {
                "train": ("TextVQA_0.5.1_train.json",),
                "validation": ("TextVQA_0.5.1_val.json",),
                "test": ("TextVQA_0.5.1_test.json",),
            },
            image_files.textvqa,
        ),
        (soft_accuracy,),
    ),
    "stvqa": (
        ImageFormat(
            "stvqa",
            {"train": ("train_task_3.json",), "test": ("test_task_3.json",)},
            image_files.stvqa,
        ),
        (anls, exact_match),
    ),
    "docvqa": (
        ImageFormat(
            "docvqa",
            {
                "train": ("train_v1.0_withQT.json|train_v1.0.json",),
                "validation": ("val_v1.0_withQT.json|val_v1.0.json",),
                "test": ("test_v1.0.json",),
            },
            image_files.docvqa,
        ),
        (anls, exact_match),
    ),
}

CAPTION_TASKS = tuple(f"caption_{name}" for name in _CAPTIONS)
VQA_TASKS = (*(f"vqa_{name}" for name in _QUESTIONS), "vqa_easy")

for _name, _stored in _CAPTIONS.items():
    _prefix = f"{_name.removesuffix('_hashed')} caption:"
    add_image_task(
        f"caption_{_name}",
        ImageDataSource(f"caption_{_name}", _stored),
        functools.partial(format_examples, prefix=_prefix),
        CAPTION_METRICS,
        scored_by="cider",
    )
for _name, (_stored, _metrics) in _QUESTIONS.items():
    _prefix = f"{'vqa' if _name == 'v2' else _name} question:"
    add_image_task(
        f"vqa_{_name}",
        ImageDataSource(f"vqa_{_name}", _stored),
        functools.partial(format_examples, prefix=_prefix),
        _metrics,
        scored_by="anls" if anls in _metrics else "vqa_accuracy",
    )
add_classification(
    "vqa_easy",
    ImageDataSource(
        "vqa_easy",
        ImageFormat(
            "easy_vqa",
            {"train": ("train/questions.json",), "test": ("test/questions.json",)},
            image_files.easy_vqa,
        ),
    ),
    functools.partial(format_examples, prefix="easy_vqa question:"),
    EASY_VQA_ANSWERS,
    [metrics.accuracy],
    eval_splits=("test",),
)

seqio.MixtureRegistry.add(
    "caption_proportional",
    ["caption_coco", "caption_textcaps"],
    default_rate=proportional_rate(),
)
seqio.MixtureRegistry.add(
    "vqa_proportional",
    ["vqa_okvqa", "vqa_textvqa", "vqa_stvqa", "vqa_docvqa"],
    default_rate=proportional_rate(),
)
