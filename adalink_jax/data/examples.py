"""What a table of a user's own means: which columns are text and target, and what the targets are.

`meant` reads the tables of files and Python's objects alike, and checks all that can be checked
before a text becomes tokens.
"""

import collections
import dataclasses
import decimal
import difflib
import hashlib
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from adalink_jax.data import tables
from adalink_jax.data.tables import INPUTS, PAIRS, TARGETS, Rows
from adalink_jax.errors import UserError, nearest

KINDS = ("classification", "regression", "text")

# More distinct targets than this are numbers or texts, not labels to choose among.
_MOST_LABELS = 26
# A label of at most this share of the examples may be another one with a slip in it.
_RARE = 0.02
_ALIKE = 0.8
# Longer texts are truncated, as in T5's training.
_LONGEST = 512

Pairs = list[tuple[str, str]]
# Input and target text, and perhaps the key of a picture, which is "" for none.
Shown = list[tuple[str, ...]]
_Example = TypeVar("_Example", bound=tuple[str, ...])
# The column of pictures.
_IMAGE = "image"


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What a table's columns are; None where the table decides.

    Attributes:
      inputs: the columns of the input. Several are joined, each with its name in front.
      target: the column of the target.
      labels: the possible targets in the order of their class ids; ``()`` for any texts.
      kind: one of `KINDS`.
      step: the step between the numbers that a regression tells apart.
    """

    inputs: tuple[str, ...] | None = None
    target: str | None = None
    labels: tuple[str, ...] | None = None
    kind: str | None = None
    step: float | None = None


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of a table.

    Attributes:
      pairs: input and target text of each.
      rows: the table.
      meaning: what its columns are, with nothing left open but the step of what is no regression.
      reason: why it is of its kind; "" where the user said so.
    """

    pairs: Pairs
    rows: Rows
    meaning: Meaning
    reason: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The possible targets; none if they are any texts."""
        return self.meaning.labels or ()


def pairs(
    examples: Any, labels: Sequence[str] | None = None, columns: tuple[str, ...] | None = None
) -> tuple[Shown, tuple[str, ...]]:
    """Reads examples in any of Python's forms.

    Args:
      examples: a sequence of (text, target) pairs, of (text, target, image) or of dicts, a pandas
        frame, or a table of Hugging Face's `datasets`.
      labels: the possible targets, in the order of their class ids; ``()`` if targets are free
        texts. None takes the class names of a `datasets` table. If it has none, it takes the
        distinct targets, if there are at most 26 and at most half as many as examples.
      columns: names of the input's and the target's column, and perhaps of that of pictures; None
        looks for common names.

    Returns:
      The pairs, with the key of a picture each where there are some; and the labels (none if
      targets are free texts).

    Raises:
      UserError: no examples, columns that cannot be found, targets that are neither texts nor
        numbers of given labels, or pictures that are no keys.
    """
    if columns is not None and len(columns) not in (2, 3):
        raise UserError(
            f"columns is {columns!r}; it names those of text and target, and perhaps of the image"
        )
    inputs, target = ((columns[0],), columns[1]) if columns else (None, None)
    labels = None if labels is None else tuple(labels)
    kind = "text" if labels == () else None
    rows = _rows(examples)
    found = meant(rows, Meaning(inputs, target, labels, kind))
    if columns is None:
        usual = [name for name in rows.columns if str(name).casefold() == _IMAGE]
        image = usual[0] if usual else None
    else:
        image = columns[2] if len(columns) > 2 else None
    if image is None:
        return list(found.pairs), found.labels
    keys = _pictures(rows, image)
    return [(*pair, key) for pair, key in zip(found.pairs, keys, strict=True)], found.labels


def divided(examples: Shown) -> tuple[Pairs, list[str] | None]:
    """Returns the pairs of examples, and the keys of their pictures; None where there are none."""
    keys = [one[2] for one in examples if len(one) > 2]
    return [(text, target) for text, target, *_ in examples], keys or None


def held_out(
    examples: Sequence[_Example], labels: Sequence[str] = ()
) -> tuple[list[_Example], list[_Example]]:
    """Splits examples by their hash into nine tenths for training and one tenth for validation.

    The order of the examples does not matter, and equal ones are on one side. Of those with a
    picture it is the hash of its key, so that no picture is on both sides. With ten
    examples to a label or more, and no pictures, each label has its share of the tenth.
    """

    def key(example: tuple[str, ...]) -> str:
        told = example[2] if len(example) > 2 and example[2] else "\n".join(example[:2])
        return hashlib.sha256(told.encode()).hexdigest()

    keys = [key(example) for example in examples]
    counts = collections.Counter(keys)
    order = sorted(counts)
    many = labels and len(examples) >= 10 * len(labels)
    if many and not any(len(one) > 2 and one[2] for one in examples):
        order = _by_share({key: one[1] for key, one in zip(keys, examples, strict=True)})
    # Equal examples are one key, but each is a row of the tenth.
    rows, wanted = itertools.accumulate(counts[its] for its in order), max(1, len(examples) // 10)
    scored = {its for its, upto in zip(order, rows, strict=True) if upto - counts[its] < wanted}
    rest = [one for one, its in zip(examples, keys, strict=True) if its not in scored]
    if not rest:
        raise UserError(
            f"{len(examples)} example(s), {len(set(keys))} of them different, cannot be divided: "
            "equal ones stay on one side; give `validation` examples"
        )
    return rest, [one for one, its in zip(examples, keys, strict=True) if its in scored]


def _by_share(targets: Mapping[str, str]) -> list[str]:
    """Returns keys in an order whose every beginning holds the labels in about their shares."""
    ranks: dict[str, int] = collections.defaultdict(int)
    places = []
    counts = collections.Counter(targets.values())
    for key in sorted(targets):
        label = targets[key]
        places.append(((ranks[label] + 0.5) / counts[label], key))
        ranks[label] += 1
    return [key for _, key in sorted(places)]


def check_division(train: Pairs, scored: Pairs, labels: Sequence[str], remedy: str) -> None:
    """Raises `UserError` if no example of a label is left to train on."""
    trained = {target for _, target in train}
    if lost := [label for _, label in scored if labels and label not in trained]:
        raise UserError(
            f"all examples of label '{lost[0]}' would be held out to be scored; {remedy}"
        )


def longest(vocabulary: Any, examples: Pairs) -> dict[str, int]:
    """Returns the longest lengths in tokens with EOS, rounded up to a multiple of 8."""
    lengths = {}
    for feature, texts in zip(("inputs", "targets"), zip(*examples, strict=True), strict=True):
        most = max(len(vocabulary.encode(text)) for text in set(texts)) + 1
        lengths[feature] = min(-(-most // 8) * 8, _LONGEST)
    return lengths


def meant(rows: Rows, meaning: Meaning) -> Examples:
    """Reads a table's examples.

    Args:
      rows: the table.
      meaning: what is known of its columns; the rest is inferred.

    Raises:
      UserError: columns that cannot be found, a text or target that is missing, targets that do not
        fit the labels or the kind; each with all its places.
    """
    inputs, target = _columns(rows, meaning)
    texts = _texts(rows, inputs)
    given = _targets(rows, target, meaning.labels)
    if rows.of_file:
        cells = zip(*(rows.columns[name] for name in (*inputs, target)), strict=True)
        if again := [i for i, one in enumerate(cells) if one == (*inputs, target)]:
            raise UserError(f"{rows.at(again)}: the header again, as an example; remove it")
    known = rows.classes.get(target) if meaning.labels is None else meaning.labels
    kind, reason = _kind(given, rows, dataclasses.replace(meaning, labels=known))
    labels, step = (), None
    if kind == "classification":
        labels = known or tuple(sorted(set(given)))
        _check_labels(rows, given, labels, known=bool(known))
        if rows.of_file and given[0] != rows.columns[target][0].strip():
            reason = f"its numbers are class ids of {', '.join(labels)}"
    elif kind == "regression":
        given, labels, step = _rounded(rows, given, meaning)
    return Examples(
        list(zip(texts, given, strict=True)),
        rows,
        Meaning(inputs, target, labels, kind, step),
        reason,
    )


def _rows(examples: Any) -> Rows:
    """Returns Python's objects as a table."""
    if isinstance(examples, os.PathLike):
        return tables.read(os.fspath(examples))
    classes = {}
    if hasattr(examples, "column_names") and hasattr(examples, "features"):  # datasets.Dataset
        columns = {name: examples[name] for name in examples.column_names}
        names = {name: getattr(examples.features[name], "names", None) for name in columns}
        classes = {name: tuple(one) for name, one in names.items() if one is not None}
    elif hasattr(examples, "columns") and hasattr(examples, "itertuples"):  # pandas.DataFrame
        if twice := [name for name in examples.columns if list(examples.columns).count(name) > 1]:
            raise UserError(f"two columns of the frame are called '{twice[0]}'")
        columns = {name: list(examples[name]) for name in examples.columns}
    elif isinstance(examples, str | bytes | Mapping) or not hasattr(examples, "__iter__"):
        raise UserError(
            f"examples are a {type(examples).__name__}; expected pairs (text, target), dicts, a "
            "pandas frame or a table of Hugging Face's datasets"
        )
    else:
        columns = _columns_of(list(examples))
    count = len(next(iter(columns.values()), ()))
    if not count:
        raise UserError("there are no examples")
    return Rows(columns, numbers=range(count), classes=classes)


def _columns_of(examples: list[Any]) -> dict[str, list[Any]]:
    """Returns the columns of a list of pairs, of dicts, or of both."""
    found = []
    for row, one in enumerate(examples):
        if isinstance(one, Mapping):
            found.append(one)
        elif isinstance(one, Sequence) and not isinstance(one, str) and len(one) in (2, 3):
            found.append(dict(zip((INPUTS[0], TARGETS[0], _IMAGE), one, strict=False)))
        else:
            raise UserError(
                f"example {row} is {one!r:.80}; expected a pair (text, target), or (text, target, "
                "image)"
            )
    names = [*(found[0] if found else ()), *(_IMAGE for one in found if _IMAGE in one)]
    return {name: [one.get(name) for one in found] for name in dict.fromkeys(names)}


def _columns(rows: Rows, meaning: Meaning) -> tuple[tuple[str, ...], str]:
    """Returns the columns of the input and the target."""
    present = list(rows.columns)
    usual = {str(name).casefold(): name for name in reversed(present)}
    inputs, target = meaning.inputs, meaning.target
    for column in (*(inputs or ()), *([] if target is None else [target])):
        if column not in present:
            guess = nearest(str(column), map(str, present))
            raise UserError(
                f"{rows.name}{': ' * bool(rows.name)}no column '{column}'{guess or ';'} there are "
                f"{', '.join(map(str, present))}"
            )
    if target is None:
        target = next((usual[name] for name in TARGETS if name in usual), None)
    if inputs is None:
        pair = next((one for one in PAIRS if {*one} <= usual.keys()), None)
        one = next(((usual[name],) for name in INPUTS if name in usual), None)
        inputs = tuple(usual[name] for name in pair) if pair else one
    if rows.of_file and len(present) == 2 and (inputs is None or target is None):
        # The other one of the two; of two that nothing is known of, the target is the last.
        target = target or next(one for one in reversed(present) if (one,) != inputs)
        inputs = inputs or tuple(one for one in present if one != target)
    if inputs is None or target is None or target in inputs:
        how = "--input=… --target=…" if rows.of_file else "columns=('…', '…')"
        how += ", or separate them by tabs in a .tsv, by commas in a .csv" * (len(present) == 1)
        name, columns = f"{rows.name}: " if rows.name else "", ", ".join(map(str, present))
        raise UserError(
            f"{name}the columns are {columns}; say which hold the text and the target: {how}"
        )
    return inputs, target


def _texts(rows: Rows, inputs: tuple[str, ...]) -> list[str]:
    """Returns the input texts; of several columns, each text has its column's name in front."""
    for column in inputs:
        values = rows.columns[column]
        bad = [
            i for i, value in enumerate(values) if not isinstance(value, str) or not value.strip()
        ]
        if bad:
            what = "the text" if len(inputs) == 1 else f"the text of '{column}'"
            raise UserError(
                f"{rows.at(bad)}: {what} is {values[bad[0]]!r:.80}; expected a non-empty string"
            )
        _check_characters(rows, values)
    if len(inputs) == 1:
        return list(rows.columns[inputs[0]])
    parts = [[f"{column}: {value}" for value in rows.columns[column]] for column in inputs]
    return [" ".join(one) for one in zip(*parts, strict=True)]


def _pictures(rows: Rows, column: str) -> list[str]:
    """Returns the keys of pictures, "" for none."""
    if column not in rows.columns:
        guess = nearest(column, map(str, rows.columns))
        raise UserError(f"no column '{column}'{guess or ';'} there are {', '.join(rows.columns)}")
    keys = []
    for row, value in enumerate(rows.columns[column]):
        if value is None or (isinstance(value, float) and math.isnan(value)):  # In a frame.
            keys.append("")
        elif isinstance(value, str | os.PathLike):
            keys.append(os.fspath(value))
        else:
            raise UserError(
                f"{rows.at([row])}: the image is {value!r:.80}; expected a path below Images.folder"
            )
    return keys


def _check_characters(rows: Rows, texts: Sequence[str]) -> None:
    bad = [i for i, text in enumerate(texts) if any("\ud800" <= c <= "\udfff" for c in text)]
    if bad:
        raise UserError(f"{rows.at(bad)}: holds half of a character (a lone surrogate)")


def _targets(rows: Rows, column: str, labels: tuple[str, ...] | None) -> list[str]:
    """Returns the targets as texts; a class id becomes its label."""
    values = rows.columns[column]
    names = labels or rows.classes.get(column)
    if not rows.of_file:
        return [_target(value, names, rows.at([i])) for i, value in enumerate(values)]
    # Spaces around a target are never generated.
    texts = [value.strip() if isinstance(value, str) else value for value in values]
    bad = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text]
    if bad:
        raise UserError(f"{rows.at(bad)}: the target is {values[bad[0]]!r:.80}; expected a text")
    _check_characters(rows, texts)
    ids = {str(i) for i in range(len(names or ()))}
    if names and not ids & {*names} and {*texts} <= ids:
        return [names[int(text)] for text in texts]
    if column in rows.classes:
        bad = [i for i, text in enumerate(texts) if text not in ids]
        raise UserError(
            f"{rows.at(bad)}: the target is {texts[bad[0]]}; there are {len(ids)} labels"
        )
    return texts


def _target(value: Any, labels: tuple[str, ...] | None, where: str) -> str:
    """Returns a target of Python's as a text."""
    if hasattr(value, "item"):  # NumPy's number or text.
        value = value.item()
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if not labels:
            raise UserError(f"{where}: the target is {value}; give the texts of the labels")
        if 0 <= value < len(labels):
            return labels[value]
        raise UserError(f"{where}: the target is {value}; there are {len(labels)} labels")
    raise UserError(f"{where}: the target is {value!r:.80}; expected a text or a class id")


def _kind(targets: list[str], rows: Rows, meaning: Meaning) -> tuple[str, str]:
    """Returns the kind of the targets, and why."""
    if meaning.kind is not None:
        return meaning.kind, ""
    if meaning.labels is not None:
        return ("classification" if meaning.labels else "text"), ""
    distinct = set(targets)
    if 2 <= len(distinct) <= min(_MOST_LABELS, len(targets) // 2):
        return "classification", f"there are {len(distinct)} different targets"
    if rows.of_file and len(distinct) > _MOST_LABELS and all(map(_is_number, distinct)):
        return "regression", f"the targets are {len(distinct):,} different numbers"
    return "text", f"there are {len(distinct):,} different targets"


def _is_number(text: str) -> bool:
    return tables.number(text) is not None


def _check_labels(rows: Rows, targets: list[str], labels: tuple[str, ...], known: bool) -> None:
    """Refuses targets that are no labels, and labels that differ in capitals, spaces, digits."""
    if known:
        bad = [i for i, target in enumerate(targets) if target not in labels]
        if bad:
            first = targets[bad[0]]
            same = [i for i in bad if targets[i] == first]
            others = len(bad) - len(same)
            more = f" ({others:,} more {'are' if others > 1 else 'is'} none)" if others else ""
            raise UserError(
                f"{rows.at(same)}: {first!r} is a target, but none of the labels "
                f"{', '.join(labels)}{more}{nearest(first, labels)}"
            )
        return
    counts = collections.Counter(targets)
    seen: dict[str | float, str] = {}
    for label, count in counts.most_common():
        number, plain = tables.number(label), " ".join(label.split()).casefold()
        usual = seen.setdefault(plain if number is None else number, label)
        if usual != label:
            where = rows.at([i for i, target in enumerate(targets) if target == label])
            raise UserError(
                f"{where}: the label is {label!r}, where {counts[usual]:,} others are {usual!r}; "
                f"{'it' if count == 1 else 'they'} may be one label: mend them, or give both as "
                f"{'--labels' if rows.of_file else 'labels'}"
            )


def slips(examples: Examples) -> list[str]:
    """Returns a line for each rare label that may be another one with a slip in it."""
    counts = collections.Counter(target for _, target in examples.pairs)
    rare = max(1, int(_RARE * len(examples.pairs)))
    lines = []
    for label in sorted(label for label in counts if counts[label] <= rare):
        if examples.meaning.kind != "classification" or _is_number(label):
            continue
        usual = [one for one in counts if counts[one] >= 10 * counts[label]]
        alike = difflib.get_close_matches(label, usual, n=1, cutoff=_ALIKE)
        if alike and not _is_compound(label, alike[0]):
            where = [i for i, (_, target) in enumerate(examples.pairs) if target == label]
            lines.append(f"{examples.rows.at(where)}: the label is {label!r}; is it {alike[0]!r}?")
    return lines


def _is_compound(label: str, other: str) -> bool:
    """Whether one is a part of the other, as entailment is of not_entailment, and no slip."""
    return (label in other or other in label) and abs(len(label) - len(other)) > 2


def _rounded(
    rows: Rows, targets: list[str], meaning: Meaning
) -> tuple[list[str], tuple[str, ...], float]:
    """Returns numbers rounded to a step as texts, all numbers between them, and the step.

    As T5 does with STS-B, whose 26 numbers are 0.0, 0.2 … 5.0.
    """
    bad = [i for i, target in enumerate(targets) if not _is_number(target)]
    if bad:
        raise UserError(f"{rows.at(bad)}: the target is {targets[bad[0]]!r}; expected a number")
    values = [decimal.Decimal(target) for target in targets]
    if meaning.labels:
        labels = tuple(meaning.labels)
        step = decimal.Decimal(labels[1]) - decimal.Decimal(labels[0])
    else:
        step = _step(max(values) - min(values), meaning.step)
        first, last = (_steps(end, step) for end in (min(values), max(values)))
        labels = tuple(_written(count, step) for count in range(first, last + 1))
    texts = [_written(_steps(value, step), step) for value in values]
    bad = [i for i, text in enumerate(texts) if text not in labels]
    if bad:
        raise UserError(
            f"{rows.at(bad)}: the target is {targets[bad[0]]}, outside of the numbers that are "
            f"trained on, {labels[0]} to {labels[-1]}"
        )
    return texts, labels, float(step)


def _step(span: decimal.Decimal, wanted: float | None) -> decimal.Decimal:
    """Returns the smallest of 1, 2 and 5 times a power of ten that gives at most 26 numbers."""
    if wanted is not None:
        return decimal.Decimal(str(wanted))
    power = decimal.Decimal(1).scaleb(span.adjusted() - 2) if span else decimal.Decimal(1)
    while True:
        for factor in (1, 2, 5):
            if span / (factor * power) <= _MOST_LABELS - 1:
                return factor * power
        power *= 10


def _steps(value: decimal.Decimal, step: decimal.Decimal) -> int:
    return int((value / step).to_integral_value(decimal.ROUND_HALF_EVEN))


def _written(count: int, step: decimal.Decimal) -> str:
    exponent = step.normalize().as_tuple().exponent
    decimals = max(0, -exponent) if isinstance(exponent, int) else 0
    return f"{count * step:.{decimals}f}"
