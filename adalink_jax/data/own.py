"""A user's own table as a task: its settings, what is said of it, and its registration."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from adalink_jax.data import tables
from adalink_jax.data.examples import (
    KINDS,
    Examples,
    Meaning,
    Pairs,
    check_division,
    held_out,
    longest,
    meant,
    slips,
)
from adalink_jax.errors import UserError
from adalink_jax.values import Checked, LocalPath, OneOf, Range

# The splits of a folder that are scored if none is named.
_SCORED = ("validation", "dev", "valid")
# With fewer examples to score, it is said how much one of them weighs.
_FEW = 50
# Of the tokens of the inputs, more unknown ones than this are said.
_UNKNOWN = 0.01
_SAMPLE = 1000
# So many labels are named with their shares.
_SHOWN = 8


def _recorded(name: str) -> Any:
    metadata = {"recorded_as": f"table_{name}", "later": True}
    return dataclasses.field(default=None, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Table(Checked):
    """A table of your own, in the place of a registered task. What is None is inferred, and said.

    Attributes:
      path: the examples to train on: a .csv, .tsv, .jsonl or .parquet file, or a folder that
        `save_to_disk` of `datasets` wrote.
      dev: the examples to score: another such file, or the name of a split of the folder. None is
        the folder's split "validation", else a tenth of the examples, chosen by a hash of them.
      inputs: the columns of the input. Several are joined, each with its name in front.
      target: the column of the target.
      labels: the possible targets, in the order of their class ids.
      kind: "classification", "regression" or "text", which is any text, to be generated.
      step: the step between the numbers that a regression tells apart.
      header: the names of the columns of a text file without a header line.
      delimiter: what stands between the cells of a text file.
      quotes: whether quotation marks around a cell are none of its text.
    """

    path: LocalPath | None = _recorded("path")
    dev: LocalPath | None = _recorded("dev")
    inputs: tuple[str, ...] | None = _recorded("inputs")
    target: str | None = _recorded("target")
    labels: tuple[str, ...] | None = _recorded("labels")
    kind: Annotated[str, OneOf(KINDS)] | None = _recorded("kind")
    step: Annotated[float, Range(1e-9)] | None = _recorded("step")
    header: tuple[str, ...] | None = _recorded("header")
    delimiter: str | None = _recorded("delimiter")
    quotes: bool | None = _recorded("quotes")

    def __post_init__(self):
        super().__post_init__()
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise UserError(
                f"Table.labels is {list(self.labels)}; it takes two or more, all different"
            )
        if self.labels is not None and self.kind not in (None, "classification"):
            raise UserError(
                f"Table.kind is {self.kind}, which has no labels; leave Table.labels out"
            )
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise UserError(f"Table.delimiter is {self.delimiter!r}; it takes one character")
        if not self.given and any(vars(self).values()):
            raise UserError("Table.path is not set, but other settings of the table are")

    @property
    def given(self) -> bool:
        """Whether there is a table."""
        return self.path is not None or self.dev is not None


@dataclasses.dataclass(frozen=True)
class Own:
    """A table that was read and checked.

    Attributes:
      splits: the examples of "train" and "validation", of those that there are.
      files: all examples of "path" and "dev", of those that there are.
      meaning: what its columns are.
      lines: what it was taken for, and what to know of it, one line each.
    """

    splits: Mapping[str, Pairs]
    files: Mapping[str, Pairs]
    meaning: Meaning
    lines: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The possible targets; none if they are any texts."""
        return self.meaning.labels or ()

    def lengths(self, vocabulary: Any) -> dict[str, int]:
        """Returns the longest lengths of its texts in tokens; see `examples.longest`."""
        return longest(vocabulary, [pair for split in self.splits.values() for pair in split])

    def remarks_of(self, vocabulary: Any) -> list[str]:
        """Returns a line for what the vocabulary lacks: in texts, labels, targets to generate."""
        lines = unknown(vocabulary, [*itertools.chain(*self.splits.values())], self.labels)
        scored = self.splits["validation"] if self.meaning.kind == "text" else []
        if lost := [t for _, t in scored if vocabulary.decode(vocabulary.encode(t)) != t]:
            lines.append(
                f"{len(lost):,} of the {len(scored):,} targets to score cannot be generated as they"
                " stand (line breaks, or characters that the vocabulary lacks), such as "
                f"{lost[0]!r:.80}"
            )
        return lines

    def register(self, name: str, vocabulary: Any) -> dict[str, Any]:
        """Registers it as a SeqIO task, in the place of an earlier table of this name.

        Args:
          name: the task's name.
          vocabulary: the base's vocabulary.

        Returns:
          What a run records of the table.

        Raises:
          tasks.DataError: the name is another task's.
        """
        from tasks import add_examples
        from tasks.examples import examples_digest

        digests = {file: examples_digest(pairs) for file, pairs in self.files.items()}
        known = {
            "inputs": list(self.meaning.inputs or ()),
            "target": self.meaning.target,
            "kind": self.meaning.kind,
            "step": self.meaning.step,
            "sha256": digests,
        }
        add_examples(
            self.splits,
            self.labels,
            vocabulary,
            name=name,
            numbers=self.meaning.kind == "regression",
            record={"table": known},
        )
        return known


def read(table: Table, known: Mapping[str, Any] | None = None, trains: bool = True) -> Own:
    """Reads a table, and checks it.

    Args:
      table: where it is, and what is known of it.
      known: what the record of an adapter says of the table that it was trained on, whose columns,
        labels and kind hold where `table` does not say others.
      trains: whether its examples are trained on; else what is said is of those to score.

    Raises:
      UserError: any mistake in it, with the line or row.
    """
    meaning = Meaning(table.inputs, table.target, table.labels, table.kind, table.step)
    if known is not None:
        settled = {name: value for name, value in vars(meaning).items() if value is not None}
        meaning = dataclasses.replace(_of_record(known), **settled)
    lines: list[str] = []
    train = scored = None
    if table.path is not None:
        train = _examples(table, table.path, "train", meaning)
        lines += _said(train)
        meaning = train.meaning
        if len({target for _, target in train.pairs}) < 2:
            only = train.pairs[0][1]
            raise UserError(f"{train.rows.name}: all targets are {only!r:.80}: nothing to learn")
    among = tables.splits(table.path) if table.path is not None else ()
    dev = table.dev or next((split for split in _SCORED if split in among), None)
    if dev is not None:
        place, split = (table.path, dev) if dev in among else (dev, None)
        scored = _examples(table, place or dev, split, meaning)
        lines += _said(scored) if train is None else [*_said(scored)[:1], *slips(scored)]
        meaning = scored.meaning
    read_files = {"path": train, "dev": scored}
    files = {name: one.pairs for name, one in read_files.items() if one is not None}
    splits = {"train": train.pairs} if train else {}
    if scored:
        splits["validation"] = scored.pairs
    elif train:
        rest, tenth = held_out(train.pairs, train.labels)
        splits = {"train": rest, "validation": tenth}
        remedy = "give more of them, or the examples to score: --dev"
        if meaning.kind == "classification":
            check_division(rest, tenth, meaning.labels or (), remedy)
    if (first := train or scored) is not None:
        of = scored.rows.name if scored else "a tenth, chosen by a hash"
        lines += _about(first, of, splits, trains)
    return Own(splits, files, meaning, tuple(lines))


def recorded(record: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Returns what a record of data says of its only task, if that was a table; else None."""
    tasks = (record or {}).get("tasks")
    task = tasks[0] if isinstance(tasks, list) and len(tasks) == 1 else None
    source = task.get("source") if isinstance(task, Mapping) else None
    known = source.get("table") if isinstance(source, Mapping) else None
    return (
        source if isinstance(known, Mapping) and isinstance(known.get("sha256"), Mapping) else None
    )


def _examples(table: Table, path: str, split: str | None, meaning: Meaning) -> Examples:
    """Reads the examples of one file, or of one split of a folder."""
    form = {"delimiter": table.delimiter, "header": table.header, "quotes": table.quotes}
    known = (*(meaning.inputs or ()), *([meaning.target] if meaning.target else []))
    several = tables.splits(path)
    rows = tables.read(path, split if several else None, known=known, **form)
    return meant(rows, meaning)


def _of_record(known: Mapping[str, Any]) -> Meaning:
    """Returns the meaning that an adapter's record has."""
    try:
        table, labels = known["table"], tuple(known["labels"])
        meaning = Table("-", None, tuple(table["inputs"]), table["target"], kind=table["kind"])
        return Meaning(meaning.inputs, meaning.target, labels, meaning.kind, table["step"])
    except (KeyError, TypeError, UserError) as error:
        raise UserError("the adapter's record of the table it was trained on is damaged") from error


def _said(examples: Examples) -> list[str]:
    """Returns what a file was taken for."""
    name, rows, meaning = examples.rows.name, examples.rows, examples.meaning
    columns = " and ".join(f"'{column}'" for column in meaning.inputs or ())
    kind = {"text": "any text, to be generated"}.get(str(meaning.kind), str(meaning.kind))
    if meaning.kind == "regression":
        kind += f" from {examples.labels[0]} to {examples.labels[-1]} in steps of {meaning.step:g}"
    because = f", as {examples.reason}" if examples.reason else ""
    return [
        f"{name}: {rows.form}",
        f"{name}: input from {columns}, target from '{meaning.target}': {kind}{because}",
        *slips(examples),
    ]


def _about(first: Examples, of: str, splits: Mapping[str, Pairs], trains: bool) -> list[str]:
    """Returns how many examples there are, then what `remarks` says of them."""
    name, train, dev = first.rows.name, splits.get("train", []), splits["validation"]
    known = f"{len(train):,} examples to train on, " if train and trains else ""
    labels = first.labels if first.meaning.kind == "classification" else ()
    baseline = first.meaning.kind != "regression"
    said = remarks(train if trains else [], dev, labels, baseline)
    said += [] if trains else _seen(train, dev)
    return [f"{name}: {known}{len(dev):,} to score ({of})", *(f"{name}: {line}" for line in said)]


def unknown(vocabulary: Any, examples: Pairs, labels: Sequence[str] = ()) -> list[str]:
    """Returns a line for tokens that the vocabulary lacks, which the base cannot tell apart."""
    lines, unk = [], vocabulary.unk_id
    tokens = [token for text, _ in examples[:_SAMPLE] for token in vocabulary.encode(text)]
    share = tokens.count(unk) / max(1, len(tokens))
    if share > _UNKNOWN:
        lines.append(
            f"{share:.1%} of the inputs' tokens are unknown to the base's vocabulary: to the model "
            "they are all the same"
        )
    if lost := [label for label in labels if unk in vocabulary.encode(label)]:
        lines.append(f"the base's vocabulary does not know the label {lost[0]!r}")
    return lines


def remarks(
    train: Pairs, dev: Pairs, labels: Sequence[str] = (), baseline: bool = True
) -> list[str]:
    """Returns what to know of examples before they are trained on.

    Args:
      train: the examples to train on; may be empty.
      dev: the examples to score.
      labels: the labels, whose shares are said.
      baseline: whether to say what the best constant answer would score.

    Returns:
      Lines: the shares of labels, the baseline, and how much stands in both, or twice.
    """
    counts = collections.Counter(target for _, target in train or dev)
    lines = []
    if labels:
        shares = [f"{label} {counts[label] / counts.total():.1%}" for label in labels]
        more = f" and {len(labels) - _SHOWN} more labels" if len(labels) > _SHOWN else ""
        lines.append(", ".join(shares[:_SHOWN]) + more)
    if baseline:
        # The best of all constant answers, whatever is the most frequent one to train on.
        (usual, right), *others = collections.Counter(t for _, t in dev).most_common()
        share = right / len(dev)
        lines.append(f"always answering {usual!r:.80} is right in {share:.1%} of those to score")
        if labels and not others:
            lines.append(f"all examples to score have one label, {usual!r}: a score says nothing")
    if len(dev) < _FEW:
        lines.append(f"with {len(dev)} to score, one example is {100 / len(dev):.1f} points")
    distinct, seen = {*train}, {text for text, _ in train}
    lines += _seen(train, dev)
    if len(train) > len(distinct):
        lines.append(f"{len(train) - len(distinct):,} examples to train on repeat another one")
    if len(distinct) > len(seen):
        lines.append(f"{len(distinct) - len(seen):,} texts to train on stand with several targets")
    return lines


def _seen(train: Pairs, dev: Pairs) -> list[str]:
    """Returns a line for texts to score that are also trained on."""
    distinct, texts = {*train}, {text for text, _ in train}
    both = [pair for pair in dev if pair[0] in texts]
    same = sum(pair in distinct for pair in both)
    said = f"{len(both):,} of the texts to score are also trained on, {same:,} of them with the "
    return [f"{said}same target"] if both else []
