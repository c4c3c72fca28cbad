"""SuperGLUE's eight tasks in T5's text format, from the folder SUPER_GLUE_DIR.

The folder has the official layout: `BoolQ/train.jsonl`, `val.jsonl`, `test.jsonl` and so on.
Prompts, target words and metrics are those of T5: `preprocessors.py`, `postprocessors.py` and
`glue_utils.py` of `t5/data`, and `t5/evaluation/metrics.py`. Three tasks are more than a prompt:

* ReCoRD is one example for each right answer, and scored once for each query.
* MultiRC is scored over all answers (F1) and by question (all of its answers right).
* WSC asks for the noun that a marked pronoun stands for, as a text ("wsc_simple" in T5). Only the
  training examples whose noun is the right one are trained on.

`dpr` is Definite Pronoun Resolution, which T5 trains on beside WSC: `DPR/train.c.txt` and
`DPR/test.c.txt` in the same folder.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import seqio

from tasks import jsonl, metrics, pronouns
from tasks.folders import FolderSource
from tasks.jsonl import Record
from tasks.registry import UNLABELED, add_classification, add_generation, label_id

VARIABLE = "SUPER_GLUE_DIR"
TRUTH = ("False", "True")
_ENTAILMENT = ("entailment", "not_entailment")
_FILES = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
# Of ReCoRD's passages: a highlight is a line of its own, which may lack its full stop.
_HIGHLIGHT = re.compile(r"([.?!\"'])?\n@highlight\n")

# Task → its number of training examples, T5's mixing rate.
_RATES = {
    "super_glue_boolq": 9_427,
    "super_glue_cb": 250,
    "super_glue_copa": 400,
    "super_glue_multirc": 27_243,
    "super_glue_record": 138_854,
    "super_glue_rte": 2_490,
    "super_glue_wic": 5_428,
    "super_glue_wsc": 259,
}
_DPR_RATE = 1_322

SUPER_GLUE_TASKS = tuple(_RATES)


def target(record: Record, labels: Sequence[str], split: str) -> str:
    """Returns the text of a record's label; `UNLABELED` where a test split has none.

    Args:
      record: may have a field `label`.
      labels: the names of the classes.
      split: the split's name.

    Raises:
      DataError: the label is missing in another split, or is none of the labels.
    """
    if split == "test" and "label" not in record:
        return UNLABELED
    return labels[record.label(labels)]


def classes(
    path: str, split: str, *, prefix: str, fields: Sequence[str], labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields `inputs`, `targets` and `idx` of a file with one example in each line.

    Args:
      path: the file.
      split: the split's name.
      prefix: the first word of the prompt.
      fields: the text fields in the prompt's order.
      labels: the target words by class.
    """
    for record in jsonl.read_lines(path):
        named = (f"{field}: {record.text(field)}" for field in fields)
        yield {
            "inputs": " ".join([prefix, *named]),
            "targets": target(record, labels, split),
            "idx": record.integer("idx"),
        }


def multirc_answers(path: str, split: str) -> Iterator[dict[str, Any]]:
    """Yields an example for each answer of each question: `inputs`, `targets`, `question`.

    `question` is a text that is the same for the answers of one question, by which they are scored.
    """
    for record in jsonl.read_lines(path):
        passage = record.record("passage")
        for question in passage.records("questions"):
            for answer in question.records("answers"):
                texts = (question.text("question"), answer.text("text"), passage.text("text"))
                text = "multirc question: {} answer: {} paragraph: {}".format(*texts)
                yield {
                    "inputs": re.sub("</?b>", "", text.replace("<br>", " ")),
                    "targets": target(answer, TRUTH, split),
                    "question": f"{record.integer('idx')} {question.integer('idx')}",
                    "answer": answer.integer("idx"),
                }


def record_queries(path: str, split: str) -> Iterator[dict[str, Any]]:
    """Yields an example for each right answer of each query.

    They have `inputs`, `targets`, `answers` (all that are right) and `query`, a text that is the
    same for the examples of one query.
    """
    for line in jsonl.read_lines(path):
        passage = line.record("passage")
        text = passage.text("text")
        entities = {_entity(one, text) for one in passage.records("entities")}
        listed = ", ".join(sorted(entities))
        shown = _HIGHLIGHT.sub(lambda found: f"{found[1]} " if found[1] else ". ", text)
        for query in line.records("qas"):
            answers = []
            if split != "test" or "answers" in query:
                answers = sorted({one.text("text") for one in query.records("answers")})
            for answer in answers or [UNLABELED]:
                yield {
                    "inputs": f"record query: {query.text('query')} entities: {listed} "
                    f"passage: {shown}",
                    "targets": answer,
                    "answers": answers,
                    "query": f"{line.integer('idx')} {query.integer('idx')}",
                }


def _entity(place: Record, text: str) -> str:
    start, end = place.integer("start"), place.integer("end")
    if not 0 <= start <= end < len(text):
        raise place.fault("end", f"the place of a text in the passage of {len(text)} characters")
    return text[start : end + 1]


def multirc_value(text: str, *, example, is_target: bool = False) -> dict[str, Any]:
    """Returns an answer's class as `value` and, of a target, its question as `group`."""
    value = {"value": label_id(text, labels=TRUTH)}
    return value | ({"group": example["question"]} if is_target else {})


def record_value(text: str, *, example, is_target: bool = False) -> dict[str, Any]:
    """Returns a text as `value`; of a target, all right answers, and its query as `group`."""
    if not is_target:
        return {"value": text}
    return {"value": [one.decode() for one in example["answers"]], "group": example["query"]}


def _add_classes(name: str, folder: str, fields: str, labels, metric_fns) -> None:
    read = functools.partial(classes, prefix=name, fields=fields.split(), labels=labels)
    add_classification(f"super_glue_{name}", _source(folder, read), None, labels, metric_fns)


def _source(folder: str, read: Callable) -> FolderSource:
    files = {split: (f"{folder}/{file}",) for split, file in _FILES.items()}
    return FolderSource(VARIABLE, files, read)


_CB = ("entailment", "contradiction", "neutral")
_CHOICES = ("choice1", "choice2")
for _row in (
    ("boolq", "BoolQ", "passage question", TRUTH, [metrics.accuracy]),
    ("cb", "CB", "hypothesis premise", _CB, [metrics.mean_3class_f1, metrics.accuracy]),
    ("copa", "COPA", "choice1 choice2 premise question", _CHOICES, [metrics.accuracy]),
    ("rte", "RTE", "hypothesis premise", _ENTAILMENT, [metrics.accuracy]),
    ("wic", "WiC", "sentence1 sentence2 word", TRUTH, [metrics.accuracy]),
):
    _add_classes(*_row)
add_classification(
    "super_glue_multirc",
    _source("MultiRC", multirc_answers),
    None,
    TRUTH,
    [metrics.f1_of_values, metrics.exact_match_of_groups],
    postprocess_fn=multirc_value,
)
add_generation(
    "super_glue_record",
    _source("ReCoRD", record_queries),
    None,
    [metrics.squad_of_groups],
    postprocess_fn=record_value,
)
add_generation(
    "super_glue_wsc",
    _source("WSC", pronouns.wsc),
    None,
    [metrics.accuracy],
    postprocess_fn=pronouns.is_referent,
)
_DPR = {"train": ("DPR/train.c.txt",), "test": ("DPR/test.c.txt",)}
_source_of_dpr = FolderSource(VARIABLE, _DPR, pronouns.dpr)
add_generation("dpr", _source_of_dpr, None, [metrics.accuracy], eval_splits=("test",))
seqio.MixtureRegistry.add("super_glue_proportional", list(_RATES.items()))
seqio.MixtureRegistry.add("super_glue_dpr_proportional", [*_RATES.items(), ("dpr", _DPR_RATE)])
seqio.MixtureRegistry.add("super_glue_equal", SUPER_GLUE_TASKS, default_rate=1.0)
