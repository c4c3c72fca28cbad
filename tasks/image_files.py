"""Reads the official files of data sets of images: captions, questions and answers.

Every reader gets the paths of a split's files and the split, and returns its examples. Files are
read whole, and strictly: a fault is one line with the file and the field, or the line.
"""

import collections
import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tasks import tsv
from tasks.errors import DataError

_KARPATHY = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}


class Example(NamedTuple):
    """One example.

    Attributes:
      image: the picture's path below IMAGE_DIR.
      text: the question; empty for captions.
      target: the text to train on; empty where it is not known.
      references: all captions of the picture or all answers, without line feeds; none where they
        are not known.
    """

    image: str
    text: str
    target: str
    references: Sequence[str]


Reader = Callable[[Sequence[str], str], list[Example]]


@dataclasses.dataclass(frozen=True)
class Field:
    """A value of a JSON file, and its place there."""

    file: str
    place: str
    value: Any

    def fault(self, expected: str) -> DataError:
        """Returns the error that the value is not what was expected."""
        where = self.place or "its content"
        return DataError(f"{self.file}: {where} is {self.value!r:.60}; expected {expected}")

    def __getitem__(self, key: str) -> "Field":
        """Returns a field of an object."""
        if not isinstance(self.value, dict):
            raise self.fault("an object")
        if key not in self.value:
            found = ", ".join(self.value) or "nothing"
            where = f"{self.place} has " if self.place else ""
            raise DataError(f"{self.file}: {where}no '{key}'; it has {found:.200}")
        return Field(self.file, f"{self.place}.{key}".lstrip("."), self.value[key])

    def __iter__(self) -> Iterator["Field"]:
        """Yields the elements of a list."""
        if not isinstance(self.value, list):
            raise self.fault("a list")
        for number, value in enumerate(self.value):
            yield Field(self.file, f"{self.place}[{number}]", value)

    def number(self) -> int:
        """Returns a whole number."""
        if type(self.value) is not int:
            raise self.fault("a whole number")
        return self.value

    def line(self) -> str:
        """Returns a text of one line, which may be empty; vqaEval.py trims it in the same way."""
        if not isinstance(self.value, str):
            raise self.fault("a text")
        return self.value.replace("\n", " ").replace("\t", " ").strip()

    def text(self) -> str:
        """Returns a text of one line with single spaces."""
        if not (found := " ".join(self.line().split())):
            raise self.fault("a text that is not empty")
        return found


def read_json(path: str) -> Field:
    """Returns the content of a JSON file."""
    try:
        return Field(path, "", json.loads(tsv.read_bytes(path)))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text") from error


def karpathy(folder: str) -> Reader:
    """Returns a reader of Karpathy's splits, ``dataset_coco.json`` and its like.

    Training takes "train" and "restval", as all papers do, with one example for each caption. The
    other splits have one for each picture.

    Args:
      folder: where the pictures are below IMAGE_DIR; COCO's ``filepath`` follows.
    """

    def read(paths: Sequence[str], split: str) -> list[Example]:
        (path,) = paths
        examples = []
        for image in read_json(path)["images"]:
            if image["split"].line() not in _KARPATHY[split]:
                continue
            parts = [image["filepath"].text()] if "filepath" in image.value else []
            name = "/".join([folder, *parts, image["filename"].text()])
            captions = [one["raw"].text() for one in image["sentences"]]
            if not captions:
                raise image["sentences"].fault("captions")
            examples += _captions(name, captions, split)
        return examples

    return read


def _captions(image: str, captions: Sequence[str], split: str) -> list[Example]:
    shown = captions if split == "train" else captions[:1]
    return [Example(image, "", caption, captions) for caption in shown]


def textcaps(paths: Sequence[str], split: str) -> list[Example]:
    """Reads ``TextCaps_0.1_….json``, which has an entry for each caption; else as `karpathy`."""
    (path,) = paths
    captions: dict[str, list[str]] = {}
    for one in read_json(path)["data"]:
        found = captions.setdefault(_open_image(one, split), [])
        if split != "test":  # Its captions are not public.
            found.append(one["caption_str"].text())
    if split == "test":
        return [Example(image, "", "", ()) for image in captions]
    return [one for image, texts in captions.items() for one in _captions(image, texts, split)]


def _open_image(entry: Field, split: str) -> str:
    """Returns the path of a picture of TextVQA and TextCaps, which have the same ones."""
    part = "test_images" if split == "test" else "train_images"
    return f"textvqa/{part}/{entry['image_id'].text()}.jpg"


def captions_txt(folder: str) -> Reader:
    """Returns a reader of ``captions.txt``: a header `image,caption`, then a caption a line.

    The file has no splits. A hash of the picture's name puts a tenth into "validation", a tenth
    into "test" and the rest into "train".

    Args:
      folder: where the pictures are below IMAGE_DIR.
    """

    def read(paths: Sequence[str], split: str) -> list[Example]:
        (path,) = paths
        try:
            lines = tsv.read_bytes(path).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text") from error
        rows = csv.reader(lines)
        if (header := next(rows, None)) != ["image", "caption"]:
            raise DataError(f"{path}:1: the header is {header}; expected image,caption")
        captions: dict[str, list[str]] = {}
        for row in rows:
            if len(row) != 2 or not row[1].strip():
                raise DataError(f"{path}:{rows.line_num}: {row!r:.60}; expected image,caption")
            if _hashed_split(row[0]) == split:
                captions.setdefault(row[0], []).append(" ".join(row[1].split()))
        return [
            one
            for name, texts in captions.items()
            for one in _captions(f"{folder}/{name}", texts, split)
        ]

    return read


def _hashed_split(name: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def most_frequent(answers: Sequence[str]) -> str:
    """Returns the answer that most annotators gave; of several, the one that is first."""
    return max(collections.Counter(answers).items(), key=lambda item: (item[0] != "", item[1]))[0]


def vqa(paths: Sequence[str], split: str) -> list[Example]:
    """Reads a file of questions and one of annotations: VQA v2 and OK-VQA, on COCO's pictures.

    A question's target is the most frequent of its ten answers, the references are all ten. Test
    splits have no annotations.
    """
    questions, *annotated = map(read_json, paths)
    answers = {
        one["question_id"].number(): [answer["answer"].line() for answer in one["answers"]]
        for file in annotated
        for one in file["annotations"]
    }
    year = {"train": "train2014", "validation": "val2014"}.get(split, "test2015")
    examples = []
    for one in questions["questions"]:
        image = f"coco/{year}/COCO_{year}_{one['image_id'].number():012d}.jpg"
        number = one["question_id"].number()
        if annotated and not any(answers.get(number, ())):
            raise one["question_id"].fault(f"a question with answers in {paths[1]}")
        known = answers.get(number, [])
        target = most_frequent(known) if known else ""
        examples.append(Example(image, one["question"].text(), target, known))
    return examples


def textvqa(paths: Sequence[str], split: str) -> list[Example]:
    """Reads ``TextVQA_0.5.1_….json``; target and references as for `vqa`."""
    (path,) = paths
    return [
        _answered(one, _open_image(one, split), split, most_frequent)
        for one in read_json(path)["data"]
    ]


def stvqa(paths: Sequence[str], split: str) -> list[Example]:
    """Reads ``train_task_3.json`` of ST-VQA; the target is the first of a question's answers."""
    (path,) = paths
    return [
        _answered(one, f"stvqa/{one['file_path'].text()}", split, lambda answers: answers[0])
        for one in read_json(path)["data"]
    ]


def docvqa(paths: Sequence[str], split: str) -> list[Example]:
    """Reads ``val_v1.0_withQT.json`` and its like; target and references as for `stvqa`."""
    (path,) = paths
    return [
        _answered(one, f"docvqa/{one['image'].text()}", split, lambda answers: answers[0])
        for one in read_json(path)["data"]
    ]


def _answered(
    entry: Field, image: str, split: str, choose: Callable[[Sequence[str]], str]
) -> Example:
    question = entry["question"].text()
    if split == "test":  # Its answers are not public.
        return Example(image, question, "", ())
    answers = [one.line() for one in entry["answers"]]
    if not any(answers) or not (target := choose(answers)):
        raise entry["answers"].fault("answers")
    return Example(image, question, target, answers)


def easy_vqa(paths: Sequence[str], split: str) -> list[Example]:
    """Reads ``questions.json`` of easy-VQA: a list of [question, answer, number of the picture]."""
    (path,) = paths
    examples = []
    for one in read_json(path):
        row = list(one)
        if len(row) != 3:
            raise one.fault("[question, answer, number of the picture]")
        question, answer, number = row[0].text(), row[1].text(), row[2].number()
        image = f"easy_vqa/{split}/images/{number}.png"
        examples.append(Example(image, question, answer, (answer,)))
    return examples


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How a data set is stored.

    Attributes:
      folder: its folder below IMAGE_DIR.
      files: split → its files in the folder; names that a file may have are separated by "|".
      read: turns their paths into examples.
    """

    folder: str
    files: Mapping[str, Sequence[str]]
    read: Reader
