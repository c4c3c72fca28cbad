"""Public sets that ask what an adapter of a GLUE task has learned, from the folder ROBUSTNESS_DIR.

Each has the prompt and the target words of the GLUE task that it belongs to, so that an adapter of
that task answers it. The folder holds what the authors publish, each archive unpacked in it.

HANS has two classes, entailment or not, and an adapter of MNLI three answers: "neutral" and
"contradiction" both count as not. Its three heuristics are three splits, each scored where the
premise entails the hypothesis and where it does not, as its authors report it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import seqio

from tasks import glue, jsonl, tsv
from tasks.errors import DataError
from tasks.folders import FolderSource
from tasks.mixtures import proportional_rate
from tasks.registry import add_classification, label_id

VARIABLE = "ROBUSTNESS_DIR"

_MNLI = glue.LABELS["mnli"]
HEURISTICS = ("lexical_overlap", "subsequence", "constituent")


def table(
    path: str,
    split: str,
    *,
    columns: Mapping[str, str],
    label: str,
    labels: Mapping[str, int],
    header: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the texts, `label` and `idx` of a tab-separated file, or of one of JSON Lines.

    Args:
      path: the file; of JSON Lines if its name ends so.
      split: the split's name.
      columns: field → its column, or field of JSON.
      label: the label's column.
      labels: what stands there → the class id; -1 for examples that are left out.
      header: the columns of a table without a header line.

    Raises:
      DataError: see `tsv.read_rows` and `jsonl.read_lines`; also for a label that is none, and for
        texts that are written as Python writes bytes.
    """
    del split
    rows = _lines if path.endswith(".jsonl") else functools.partial(tsv.read_rows, header=header)
    for index, (number, cells) in enumerate(rows(path, (*columns.values(), label))):
        *texts, given = cells
        if given not in labels:
            raise DataError(
                f"{path}:{number}: {label} is '{given}'; expected one of {', '.join(labels)}"
            )
        for column, text in zip(columns.values(), texts, strict=True):
            if text[:2] in ("b'", 'b"') and text[-1] == text[1]:
                raise DataError(
                    f"{path}:{number}: {column} is {text[:40]}, the bytes of a text as Python "
                    "writes them; write the text itself"
                )
        if labels[given] >= 0:
            yield {**dict(zip(columns, texts, strict=True)), "label": labels[given], "idx": index}


def _lines(path: str, columns: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    for number, record in enumerate(jsonl.read_lines(path), start=1):
        yield number, tuple(record.text(column) for column in columns)


def adv_glue(
    path: str, split: str, *, name: str, parts: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Yields the fields, `label` and `idx` of a part of AdvGLUE's one file.

    Args:
      path: the file: an object with a list of examples for each part.
      split: the split's name.
      name: the GLUE benchmark, for instance "mnli".
      parts: split → the part, for instance "mnli-mm".
    """
    for index, record in enumerate(jsonl.read_object(path).records(parts[split])):
        texts = {field: record.text(field) for field in glue.FORMATS[name].fields}
        yield {**texts, "label": record.label(glue.LABELS[name]), "idx": index}


def hans(path: str, split: str) -> Iterator[dict[str, Any]]:
    """Yields HANS's examples of one heuristic: `inputs`, `targets`, and `label`, 1 for entailed.

    The target of those that are not entailed is "neutral", which is as right as "contradiction".
    """
    columns = ("sentence1", "sentence2", "gold_label", "heuristic")
    for number, (premise, hypothesis, given, heuristic) in tsv.read_rows(path, columns):
        for column, text, known in (
            ("gold_label", given, ("entailment", "non-entailment")),
            ("heuristic", heuristic, HEURISTICS),
        ):
            if text not in known:
                raise DataError(
                    f"{path}:{number}: {column} is '{text}'; expected one of {', '.join(known)}"
                )
        if heuristic == split:
            yield {
                "inputs": f"mnli hypothesis: {hypothesis} premise: {premise}",
                "targets": _MNLI[0 if given == "entailment" else 1],
                "idx": number - 2,
            }


def entailed(text: str, **unused) -> int:
    """Returns 1 for "entailment", 0 for MNLI's other labels, -1 for another text."""
    return {0: 1, 1: 0, 2: 0}.get(label_id(text, labels=_MNLI), -1)


def recalls(targets, predictions) -> dict[str, float]:
    """Returns the percentages of right predictions among examples entailed, and not entailed.

    A class that does not occur, as in the first examples of a split, has none.
    """
    names = {1: "entailed_accuracy", 0: "not_entailed_accuracy"}
    pairs = list(zip(targets, predictions, strict=True))
    found = {name: [p == t for t, p in pairs if t == label] for label, name in names.items()}
    return {name: 100 * sum(right) / len(right) for name, right in found.items() if right}


def _add(task: str, name: str, files: Mapping[str, Sequence[str]], read: Callable) -> None:
    """Registers a set in the format of a GLUE benchmark."""
    evaluated = [split for split in files if split.startswith("validation")] or ["test"]
    glue.add_benchmark(task, name, FolderSource(VARIABLE, files, read), evaluated)


def _splits(*patterns: str) -> dict[str, tuple[str, ...]]:
    names = {"train": "train", "validation": "dev", "test": "test"}
    return {
        split: tuple(pattern.format(file) for pattern in patterns) for split, file in names.items()
    }


for _name in ("sst2", "qqp", "mnli", "qnli", "rte"):
    _parts = {"validation": _name}
    if _name == "mnli":
        _parts = {"validation_matched": "mnli", "validation_mismatched": "mnli-mm"}
    _files = dict.fromkeys(_parts, ("AdvGLUE/dev.json", "dev/dev.json", "dev.json"))
    _read = functools.partial(adv_glue, name=_name, parts=_parts)
    _add(f"adv_glue_{_name}", _name, _files, _read)
ADV_GLUE_TASKS = tuple(f"adv_glue_{name}" for name in ("sst2", "qqp", "mnli", "qnli", "rte"))

_PAIR = {"premise": "sentence1", "hypothesis": "sentence2"}
_anli = functools.partial(
    table,
    columns={"premise": "context", "hypothesis": "hypothesis"},
    label="label",
    labels={"e": 0, "n": 1, "c": 2},
)
for _round in (1, 2, 3):
    _files = _splits(f"anli_v1.0/R{_round}/{{}}.jsonl", f"ANLI/R{_round}/{{}}.jsonl")
    _add(f"anli_r{_round}", "mnli", _files, _anli)
ANLI_TASKS = ("anli_r1", "anli_r2", "anli_r3")
_snli = functools.partial(
    table,
    columns=_PAIR,
    label="gold_label",
    labels={**{text: i for i, text in enumerate(_MNLI)}, "-": -1},  # No majority of annotators.
)
_files = _splits("snli_1.0/snli_1.0_{}.jsonl", "snli_1.0/snli_1.0_{}.txt", "SNLI/{}.tsv")
_add("snli", "mnli", _files, _snli)
_scitail = functools.partial(
    table,
    columns={"sentence1": "premise", "sentence2": "hypothesis"},
    label="label",
    labels={"entails": 0, "neutral": 1},
    header=("premise", "hypothesis", "label"),
)
_add("scitail", "rte", _splits("SciTailV1.1/tsv_format/scitail_1.0_{}.tsv"), _scitail)
_paws = functools.partial(table, label="label", labels={"0": 0, "1": 1})
_wiki = functools.partial(_paws, columns={"sentence1": "sentence1", "sentence2": "sentence2"})
_add("paws_wiki", "mrpc", _splits("paws_wiki/{}.tsv", "final/{}.tsv"), _wiki)
_qqp = functools.partial(_paws, columns={"question1": "sentence1", "question2": "sentence2"})
_files = {"train": ("paws_qqp/train.tsv",), "validation": ("paws_qqp/dev_and_test.tsv",)}
_add("paws_qqp", "qqp", _files, _qqp)
add_classification(
    "hans",
    FolderSource(
        VARIABLE, dict.fromkeys(HEURISTICS, ("hans/heuristics_evaluation_set.txt",)), hans
    ),
    None,
    _MNLI,
    [recalls],
    eval_splits=HEURISTICS,
    postprocess_fn=entailed,
)
seqio.MixtureRegistry.add("adv_glue", ADV_GLUE_TASKS, default_rate=1.0)
seqio.MixtureRegistry.add("anli", ANLI_TASKS, default_rate=proportional_rate())
