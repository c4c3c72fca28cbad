"""Winograd schemas as T5 asks them: which noun does the marked pronoun stand for?

`wsc: Mitchell asked Tom if *he* could lend some money.` is answered with a noun. WSC and WNLI say
of one noun whether it is the right one, so an answer counts as "yes" if it is that noun up to
articles, capitals and words that one of both leaves out, and the score is the share of right yes
and no (`wsc_simple` and `wnli_simple` of `t5/data/preprocessors.py` and `postprocessors.py`).
"""

import re
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import tensorflow as tf

from tasks import jsonl, tsv
from tasks.errors import DataError
from tasks.jsonl import Record
from tasks.registry import UNLABELED
from tasks.sources import dataset_from_columns

_DETERMINERS = frozenset(
    "a an few her his each every many much my our some that the their these this those which "
    "whose your".split()
)
_PRONOUNS = frozenset("he she they it her his their them him".split())
_PUNCTUATION = (".", ",", "?", "!")
# Nouns of WSC with other words between them, which are no part of their texts.
_APART = ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin")
# Two texts of WSC, word for word, whose index is not that of the pronoun's word, with the pronoun's
# place as T5 has it.
_MISPLACED = {
    "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out "
    'quite loud. "Good for him," he said. ': "The boy continued to whip the pony , and eventually "
    'the pony threw him over. John laughed out quite loud. "Good for X ," he said.',
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic "
    "pebble in an iron safe . Some day they might want to use it , but really for now, what more "
    "could they wish for?": "When they had eventually calmed down a bit , and had gotten home, Mr. "
    "Farley put the magic pebble in an iron safe . Some day they might want to use X , but really "
    "for now, what more could they wish for?",
}


def is_referent(text: str, *, example, is_target: bool = False) -> int:
    """Returns 1 if a text is the example's noun, 0 if it is another, -1 if it is empty.

    Args:
      text: a predicted text. That of a target is not read.
      example: has the noun, `referent`, and the `label`, 1 if it is the right one.
      is_target: whether to return the label instead.
    """
    if is_target:
        return int(example["label"])
    predicted, referent = _bare(text), _bare(example["referent"].decode())
    if not predicted:
        return -1
    if ("'" in predicted) != ("'" in referent):  # "Bob" is not "Bob's hat".
        return 0
    predicted, referent = set(predicted.split(" ")), set(referent.split(" "))
    return int(predicted <= referent or referent <= predicted)


def _bare(text: str) -> str:
    words = text.strip().lower().split(" ")
    return " ".join(word for word in words if word not in _DETERMINERS)


def wsc(path: str, split: str) -> Iterator[dict[str, Any]]:
    """Yields `inputs`, `targets` (the noun), `referent`, `label` and `idx` of SuperGLUE's WSC.

    In the training split, only those whose noun is the right one. In the test split, whose labels
    are not known, the target is `UNLABELED`, and `label` -1.
    """
    for record in jsonl.read_lines(path):
        label = -1
        if split != "test" or "label" in record:
            label = record.label(("False", "True"))
        inputs, referent = _marked(record)
        if split == "train" and label != 1:
            continue
        yield {
            "inputs": inputs,
            "targets": UNLABELED if label < 0 else referent,
            "referent": referent,
            "label": label,
            "idx": record.integer("idx"),
        }


def _marked(record: Record) -> tuple[str, str]:
    """Returns the prompt and the noun."""
    text, spans = record.text("text"), record.record("target")
    referent, _ = _mended(text, spans, "span1")
    pronoun, index = _mended(text, spans, "span2")
    words = text.split(" ")
    if not 0 < index < len(words):
        raise spans.fault("span2_index", f"the index of one of {len(words)} words, not the first")
    if text in _MISPLACED:
        blank = _MISPLACED[text]
    elif words[index] == pronoun:
        blank = " ".join([*words[:index], "X", *words[index + 1 :]])
    else:
        raise spans.fault("span2_text", f"'{words[index]}', the text's word {index}")
    return "wsc: " + blank.replace(" X ", f" *{pronoun}* "), referent


def _mended(text: str, spans: Record, name: str) -> tuple[str, int]:
    """Returns a span as it stands in the text, and its index, as TFDS's "wsc.fixed" has both."""
    span, index = spans.text(f"{name}_text"), spans.integer(f"{name}_index")
    if span in text or span in _APART:
        return span, index
    words = text.split()
    if not 0 <= index < len(words) or not span:
        raise spans.fault(f"{name}_index", f"the index of one of {len(words)} words")
    lower = words[index][0].islower()
    span = (span[0].lower() if lower else span[0].upper()) + span[1:]
    span = span.rstrip(".").replace("\n", " ")
    if span not in text:
        raise spans.fault(f"{name}_text", "a part of the text")
    return span, index


def dpr(path: str, split: str) -> Iterator[dict[str, str]]:
    """Yields `inputs` and `targets` of Definite Pronoun Resolution.

    The file has four lines for each example (sentence, pronoun, two candidates, the right one), and
    an empty line.
    """
    del split
    lines = [line.strip() for line in tsv.read_lines(path)]
    for start in range(0, len(lines), 5):
        place = f"{path}:{start + 1}"
        sentence, pronoun, named, answer, *rest = [*lines[start : start + 5], "", "", "", ""][:5]
        candidates = [one.strip() for one in named.split(",")]
        if not sentence or not pronoun or any(rest) or answer not in candidates:
            raise DataError(
                f"{place}: expected a sentence, a pronoun, candidates with a comma between, one of "
                f"them as the answer, and an empty line; the candidates are '{named}', the answer "
                f"'{answer}'"
            )
        marked = re.sub(f" ({re.escape(pronoun)})( |\\.|,)", r" *\1*\2", sentence, count=1)
        yield {"inputs": f"wsc: {marked}", "targets": answer}


def format_wnli(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Turns WNLI into Winograd schemas: finds the pronoun of `sentence1` that `sentence2` replaces.

    Args:
      dataset: examples of `sentence1`, `sentence2`, `label` and `idx`.

    Returns:
      Examples like those of `wsc`.

    Raises:
      DataError: a first sentence has no pronoun, or the second does not repeat it.
    """
    made: dict[str, list] = {name: [] for name in ("inputs", "targets", "referent", "label", "idx")}
    for example in cast(Iterator[dict[str, Any]], dataset.as_numpy_iterator()):
        premise, hypothesis = example["sentence1"].decode(), example["sentence2"].decode()
        try:
            inputs, referent = schema(premise, hypothesis)
        except ValueError as error:
            raise DataError(f"WNLI, example {int(example['idx'])}: {error}") from error
        label = int(example["label"])
        texts = (inputs, UNLABELED if label < 0 else referent, referent)
        for name, value in zip(made, (*texts, label, int(example["idx"])), strict=True):
            made[name].append(value)
    kinds = {"label": np.int32, "idx": np.int32}
    arrays = {name: np.array(values, kinds.get(name, object)) for name, values in made.items()}
    return dataset_from_columns(arrays, shuffle=False, seed=None, shard_info=None)


def schema(premise: str, hypothesis: str) -> tuple[str, str]:
    """Returns the prompt and the noun of a pair of sentences.

    The pronoun is the one whose neighbors on both sides agree with most words of the hypothesis;
    the noun is what the hypothesis has between these neighbors, "" if none agrees.

    Raises:
      ValueError: there is no pronoun, or what replaces it cannot be found.
    """
    words, replaced = _words(premise), " ".join(_words(hypothesis))
    backwards = " ".join(_words(hypothesis)[::-1])
    places = [i for i, word in enumerate(words) if word in _PRONOUNS]
    if not places:
        raise ValueError(f"no pronoun in '{premise}'")
    best, candidate = -1, ""
    for place in places:
        before, after = words[:place], words[place + 1 :]
        sizes = _common(before[::-1], backwards), _common(after, replaced)
        if sum(sizes) > best:
            best, index = sum(sizes), place
            candidate = _between(before, after, sizes, replaced) if best else ""
    marked = premise.split(" ")
    word = marked[index]
    end = word[-1] if word.endswith(_PUNCTUATION) else ""
    marked[index] = f"*{word.removesuffix(end)}*{' ' * bool(end)}{end}"
    return f"wsc: {' '.join(marked)}", _as_written(candidate, hypothesis)


def _words(text: str) -> list[str]:
    """Returns words in small letters without a mark at their ends, none of them empty."""
    words = (re.sub(r"[.,?!]$", "", word) for word in text.strip().lower().split(" "))
    return [word for word in words if word]


def _common(words: list[str], text: str) -> int:
    """Returns how many of the first words stand in a text one after the other."""
    sizes = range(1, len(words) + 1)
    return next((size - 1 for size in sizes if " ".join(words[:size]) not in text), len(words))


def _between(before: list[str], after: list[str], sizes: tuple[int, int], text: str) -> str:
    """Returns what stands between the words that agree, or else before or behind them."""
    left = [re.escape(word) for word in before[len(before) - sizes[0] :]]
    right = [re.escape(word) for word in after[: sizes[1]]]
    for pattern in ([*left, "(.+)", *right], ["^(.+)", *right], [*left, "(.+)$"]):
        if found := re.search(" ".join(pattern), text):
            return found[1]
    return ""


def _as_written(candidate: str, hypothesis: str) -> str:
    """Returns a candidate from its last article on, as the hypothesis writes it."""
    words = candidate.split(" ")
    words = words[
        max((words.index(one) for one in ("a", "an", "the") if one in words), default=0) :
    ]
    pattern = " ".join(f"{re.escape(word)}[.,?!]?" for word in words)
    found = re.search(pattern, hypothesis, re.IGNORECASE)
    if not found:
        raise ValueError(f"'{hypothesis}' has no '{candidate}'")
    noun = found[0].removesuffix(found[0][-1]) if found[0].endswith(_PUNCTUATION) else found[0]
    return noun.removesuffix("'") if noun.endswith("'") else noun.removesuffix("'s")
