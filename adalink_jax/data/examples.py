"""Converts a user's Python examples to pairs of input and target text."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from adalink_jax.errors import UserError

# Columns that are used if none are named; the first match wins.
_INPUTS = ("text", "inputs", "input", "sentence", "question", "prompt")
_TARGETS = ("label", "labels", "target", "targets", "output", "answer")
# More distinct targets than this are texts to generate, not labels to choose among.
_MOST_LABELS = 26

Pairs = list[tuple[str, str]]


def pairs(
    examples: Any, labels: Sequence[str] | None = None, columns: tuple[str, str] | None = None
) -> tuple[Pairs, tuple[str, ...]]:
    """Reads examples in any of the supported forms.

    Args:
      examples: a sequence of (text, target) pairs or of dicts, a pandas frame, or a table of
        Hugging Face's `datasets`.
      labels: the possible targets, in the order of their class ids; ``()`` if targets are free
        texts. None takes the class names of a `datasets` table. If it has none, it takes the
        distinct targets, if there are at most 26 and at most half as many as examples.
      columns: names of the input's and the target's column; None looks for common names.

    Returns:
      The pairs, and the labels (none if targets are free texts).

    Raises:
      UserError: no examples, columns that cannot be found, or targets that are neither texts nor
        numbers of given labels.
    """
    rows, names = _rows(examples, columns)
    if not rows:
        raise UserError("there are no examples")
    labels = tuple(labels) if labels is not None else names
    result = [(_text(text, row), _target(target, labels, row)) for row, (text, target) in rows]
    distinct = sorted({target for _, target in result})
    if labels is None:
        few = 2 <= len(distinct) <= min(_MOST_LABELS, len(result) // 2)
        return result, tuple(distinct) if few else ()
    if unknown := [target for target in distinct if labels and target not in labels]:
        raise UserError(f"{unknown[0]!r} is a target, but none of the labels {', '.join(labels)}")
    return result, labels


def held_out(examples: Pairs) -> tuple[Pairs, Pairs]:
    """Splits pairs by their hash into nine tenths for training and one tenth for validation."""

    def key(pair: tuple[str, str]) -> str:
        return hashlib.sha256("\n".join(pair).encode()).hexdigest()

    scored = set(sorted(examples, key=key)[: max(1, len(examples) // 10)])
    rest = [pair for pair in examples if pair not in scored]
    if not rest:
        raise UserError(f"{len(examples)} example(s) cannot be divided; give `validation` examples")
    return rest, [pair for pair in examples if pair in scored]


def _rows(
    examples: Any, columns: tuple[str, str] | None
) -> tuple[list[tuple[int, tuple[Any, Any]]], tuple[str, ...] | None]:
    """Returns numbered (input, target) values, and the table's class names if it has any."""
    if hasattr(examples, "column_names") and hasattr(examples, "features"):  # datasets.Dataset
        text, target = _columns(examples.column_names, columns)
        names = getattr(examples.features[target], "names", None)
        values = zip(examples[text], examples[target], strict=True)
        return list(enumerate(values)), None if names is None else tuple(names)
    if hasattr(examples, "columns") and hasattr(examples, "itertuples"):  # pandas.DataFrame
        text, target = _columns(list(examples.columns), columns)
        return list(enumerate(zip(examples[text], examples[target], strict=True))), None
    if isinstance(examples, str | bytes | Mapping) or not hasattr(examples, "__iter__"):
        raise UserError(
            f"examples are a {type(examples).__name__}; expected pairs (text, target), dicts, a "
            "pandas frame or a table of Hugging Face's datasets"
        )
    rows = []
    for number, one in enumerate(examples):
        if isinstance(one, Mapping):
            text, target = _columns(list(one), columns)
            rows.append((number, (one[text], one[target])))
        elif isinstance(one, Sequence) and not isinstance(one, str) and len(one) == 2:
            rows.append((number, (one[0], one[1])))
        else:
            raise UserError(f"example {number} is {one!r:.80}; expected a pair (text, target)")
    return rows, None


def _columns(present: Sequence[str], wanted: tuple[str, str] | None) -> tuple[str, str]:
    if wanted is None:
        text, target = (
            next((c for c in known if c in present), None) for known in (_INPUTS, _TARGETS)
        )
        if text is not None and target is not None:
            return text, target
        raise UserError(
            f"the columns are {', '.join(map(str, present))}; say which hold the text and the "
            "target: columns=('…', '…')"
        )
    if missing := [column for column in wanted if column not in present]:
        raise UserError(f"no column '{missing[0]}'; there are {', '.join(map(str, present))}")
    return wanted


def _text(value: Any, row: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"example {row}: the text is {value!r:.80}; expected a non-empty string")
    return value


def _target(value: Any, labels: tuple[str, ...] | None, row: int) -> str:
    if isinstance(value, str):
        return value
    if hasattr(value, "item"):  # A NumPy number.
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool):
        if not labels:
            raise UserError(f"example {row}: the target is {value}; give the texts of the labels")
        if 0 <= value < len(labels):
            return labels[value]
        raise UserError(f"example {row}: the target is {value}; there are {len(labels)} labels")
    raise UserError(f"example {row}: the target is {value!r:.80}; expected a text or a class id")
