"""Mini-GLUE: GLUE's eight tasks about the embedded mini world, with GLUE's formats and labels.

* `mini_cola`: is the sentence correct English? Order, agreement, a missing verb.
* `mini_sst2`: is the opinion favorable? Negation, and which clause the author agrees with.
* `mini_mrpc`: do two statements say the same? Synonyms and free word order, against one changed
  concept or exchanged roles.
* `mini_qqp`: do two questions ask the same? As in mini_mrpc, and what is asked for may differ.
* `mini_stsb`: how similar are two statements? The number of equal concepts of five, "0.0" … "5.0".
* `mini_mnli`: does a statement follow, or its denial? As in mini_mrpc, and vague words, denials.
* `mini_qnli`: does the sentence answer the question? It must be about the same event and contain
  what is asked for.
* `mini_rte`: does a statement follow? Synonyms and vaguer words, against other or more exact ones.

Scores without understanding, in percent of the validation examples (for stsb, Pearson's
correlation): the majority label, a linear model of lengths, and one of the words in each text, in
both, and in only one. `PYTHONPATH=. python tests/tasks/mini_baselines.py` prints them.

             cola  sst2  mrpc   qqp  stsb  mnli  qnli   rte
    majority 50.0  50.0  50.0  50.0   0.0  33.5  50.0  50.0
    length   49.2  50.2  50.0  50.7   0.0  39.0  60.0  46.5
    words    55.5  64.0  47.2  62.0  56.5  53.0  61.3  68.5

Every task has 2,000 training and 400 validation examples with balanced labels, which share no
meaning (`mini_world`). One exception: six of mini_cola's faulty sentences, one of them in
validation, also occur in pre-training as faulty forms of other sentences. MNLI has one validation
split. `write_glue_folder` writes the tasks in GLUE's layout.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tasks import glue, mini_language, mini_pairs
from tasks.mini_vocabulary import VOCABULARY
from tasks.mini_world import MiniSource
from tasks.mixtures import add_equal_mixtures

SIZES = {"train": 2_000, "validation": 400}


def judged_sentences(judge: str, plain: float = 0.0) -> Callable:
    """Returns a generator of sentences with a label; see `mini_language.sentences`."""

    def examples(draw, parts) -> Iterator[dict]:
        for sentence, label in mini_language.sentences(draw, parts, judge, plain):
            yield {"sentence": sentence, "label": label}

    return examples


def judged_pairs(
    pair: Callable, labels: int, fields: tuple[str, str], plain: float = 0.0
) -> Callable:
    """Returns a generator of distinct pairs with alternating labels; see `mini_pairs`."""

    def examples(draw, parts) -> Iterator[dict]:
        seen, label = set(), 0
        while True:
            texts = pair(draw, parts, label, plain)[:2]
            if texts not in seen:
                seen.add(texts)
                yield dict(zip(fields, texts, strict=True)) | {"label": label}
                label = (label + 1) % labels

    return examples


_SENTENCES = ("sentence1", "sentence2")
#: GLUE's name → the generator of its examples.
GENERATORS = {
    "cola": judged_sentences("acceptability"),
    "sst2": judged_sentences("sentiment"),
    "mrpc": judged_pairs(mini_pairs.paraphrase, 2, _SENTENCES),
    "qqp": judged_pairs(mini_pairs.duplicate, 2, ("question1", "question2")),
    "stsb": judged_pairs(mini_pairs.similarity, 6, _SENTENCES),
    "mnli": judged_pairs(mini_pairs.inference, 3, ("premise", "hypothesis")),
    "qnli": judged_pairs(mini_pairs.answers, 2, ("question", "sentence")),
    "rte": judged_pairs(mini_pairs.entails, 2, _SENTENCES),
}
MINI_GLUE_TASKS = tuple(f"mini_{name}" for name in GENERATORS)
SOURCES = {
    name: MiniSource(
        f"mini_{name}",
        "glue",
        generator,
        SIZES,
        {"label": np.float32 if name == "stsb" else np.int64},
    )
    for name, generator in GENERATORS.items()
}


def write_glue_folder(folder: str | pathlib.Path) -> None:
    """Writes mini-GLUE as a folder in GLUE's layout, which can be used as GLUE_DIR.

    The `glue_…` tasks then read the same texts, labels and indices as the `mini_…` ones. Columns
    have GLUE's names; those that no reader needs are left out. MNLI's validation examples are in
    `dev_matched.tsv`; there is no mismatched part.

    Args:
      folder: created if it does not exist; files in it are replaced.
    """
    for name, stored in glue.FORMATS.items():
        target = pathlib.Path(folder) / stored.folder
        target.mkdir(parents=True, exist_ok=True)
        header = stored.header or ("index", *stored.fields.values(), stored.label_column)
        for split in SIZES:
            columns = SOURCES[name].columns(split)
            cells: dict[str, Any] = {
                column: columns[field] for field, column in stored.fields.items()
            }
            cells[stored.label_column] = [_label_text(name, label) for label in columns["label"]]
            rows = [[str(i) for i in columns["idx"]]]
            rows += [cells.get(column, [""] * len(columns["idx"])) for column in header[1:]]
            lines = ["\t".join(row) for row in zip(*rows, strict=True)]
            lines = lines if stored.header else ["\t".join(header), *lines]
            file = stored.files.get(split, "dev_matched.tsv")
            text = "".join(f"{line}\n" for line in lines)
            (target / file).write_text(text, encoding="utf-8", newline="\n")


def _label_text(name: str, label) -> str:
    """Returns a label as in GLUE's files: a name in the inference tasks, else a number."""
    if name == "stsb":
        return f"{label:.3f}"
    return glue.LABELS[name][label] if name in ("mnli", "qnli", "rte") else str(label)


for _name, _source in SOURCES.items():
    glue.add_benchmark(f"mini_{_name}", _name, _source, ("validation",), VOCABULARY)
add_equal_mixtures("mini_glue_equal", MINI_GLUE_TASKS)
