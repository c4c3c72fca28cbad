"""The eight GLUE tasks in T5's text format.

`"mnli hypothesis: … premise: …"`: the name of TFDS's config, then the fields in alphabetical order
of their names, as in `t5/data/preprocessors.py`. T5's and FLAN's public checkpoints were trained
with this format.

Two more sets are for GLUE's server, and left out of the average, as in T5's and the paper's
results. `glue_ax` (the diagnostic set) has no labels: a model of MNLI answers it. `glue_wnli` is
what T5 makes of WNLI, a Winograd schema that is answered with a noun, for a model of WSC
(`tasks/pronouns.py`).
"""

import functools
import math
from collections.abc import Sequence

import seqio
import tensorflow as tf

from tasks import metrics, pronouns, tsv
from tasks.registry import UNLABELED, add_classification, add_generation
from tasks.sources import GlueDataSource, GlueFormat

SCORES = tuple(f"{i / 5:.1f}" for i in range(26))  # STS-B's labels: "0.0", "0.2" … "5.0"
_DEV = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
_MNLI_DEV = {
    "train": "train.tsv",
    "validation_matched": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test_matched": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
_SENTENCES = {"sentence1": "sentence1", "sentence2": "sentence2"}
_ENTAILMENT = ("entailment", "not_entailment")

# Labels are in the order of TFDS's class ids; training counts are those of T5's mixing rates.
# name, folder, {field: column}, label column, labels, training examples, metrics
_TABLE = (
    ("cola", "CoLA", {"sentence": "sentence"}, "is_acceptable",
     ("unacceptable", "acceptable"), 8_551, [metrics.matthews_corrcoef]),
    ("sst2", "SST-2", {"sentence": "sentence"}, "label",
     ("negative", "positive"), 67_349, [metrics.accuracy]),
    ("mrpc", "MRPC", {"sentence1": "#1 String", "sentence2": "#2 String"}, "Quality",
     ("not_equivalent", "equivalent"), 3_668, [metrics.f1, metrics.accuracy]),
    ("qqp", "QQP", {"question1": "question1", "question2": "question2"}, "is_duplicate",
     ("not_duplicate", "duplicate"), 363_849, [metrics.f1, metrics.accuracy]),
    ("stsb", "STS-B", _SENTENCES, "score",
     SCORES, 5_749, [metrics.pearson_corrcoef, metrics.spearman_corrcoef]),
    ("mnli", "MNLI", {"premise": "sentence1", "hypothesis": "sentence2"}, "gold_label",
     ("entailment", "neutral", "contradiction"), 392_702, [metrics.accuracy]),
    ("qnli", "QNLI", {"question": "question", "sentence": "sentence"}, "label",
     _ENTAILMENT, 104_743, [metrics.accuracy]),
    ("rte", "RTE", _SENTENCES, "label", _ENTAILMENT, 2_490, [metrics.accuracy]),
)  # fmt: skip

GLUE_TASKS = tuple(f"glue_{row[0]}" for row in _TABLE)
#: The text fields of each task, in the order of their names, as an input has them.
GLUE_FIELDS = {f"glue_{row[0]}": tuple(sorted(row[2])) for row in _TABLE}
#: The files that GLUE's server takes, in one zip.
GLUE_FILES = (
    *("AX.tsv", "CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "MRPC.tsv", "QNLI.tsv", "QQP.tsv"),
    *("RTE.tsv", "SST-2.tsv", "STS-B.tsv", "WNLI.tsv"),
)


def join_fields(example, *, prefix: str, fields: Sequence[str]) -> tf.Tensor:
    """Returns T5's input text: the prefix, then `name: text` of each field, sorted by name.

    Args:
      example: has a scalar string for each field.
      prefix: the benchmark's name, for instance "mnli".
      fields: names of the text fields, in any order.

    Returns:
      A scalar string. Spaces inside and at the ends of texts are kept.
    """
    parts = [prefix]
    for field in sorted(fields):
        parts += [f"{field}:", example[field]]
    return tf.strings.join(parts, separator=" ")


def format_classes(
    dataset: tf.data.Dataset, *, prefix: str, fields: Sequence[str], labels: Sequence[str]
) -> tf.data.Dataset:
    """Turns text fields and an integer `label` into `inputs` and `targets`; keeps `idx` (int32).

    A negative label is not known: its target is `UNLABELED`, as in T5.
    """

    def convert(example):
        place = tf.maximum(example["label"] + 1, 0)
        return {
            "inputs": join_fields(example, prefix=prefix, fields=fields),
            "targets": tf.gather(tf.constant((UNLABELED, *labels)), place),
            "idx": example["idx"],
        }

    return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def format_scores(
    dataset: tf.data.Dataset, *, prefix: str, fields: Sequence[str]
) -> tf.data.Dataset:
    """Does the same as `format_classes` for a float32 `label`, rounded to multiples of 0.2.

    As in T5, rounding is in float32 with halves to even (2.5 becomes "2.4", 1.5 becomes "1.6").
    """

    def convert(example):
        score = tf.strings.as_string(tf.round(example["label"] * 5) / 5, precision=1)
        return {
            "inputs": join_fields(example, prefix=prefix, fields=fields),
            "targets": tf.where(example["label"] < 0, UNLABELED, score),
            "idx": example["idx"],
        }

    return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def score_value(text: str, **unused) -> float:
    """Parses a number; returns T5's -1.0 if the text is not a finite number."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


def _format(name, folder, fields, label_column, labels, train_examples) -> GlueFormat:
    return GlueFormat(
        name=name,
        folder=folder,
        files=_MNLI_DEV if name == "mnli" else _DEV,
        fields=fields,
        label_column=label_column,
        parse_label=tsv.score_parser(0, 5) if labels is SCORES else tsv.class_parser(labels),
        train_examples=train_examples,
        # The only files without a header line: source, label, the author's mark, sentence.
        header=("source", label_column, "mark", "sentence") if name == "cola" else None,
        unknown=-1.0 if labels is SCORES else -1,
    )


#: How each benchmark is stored, its labels and its metrics.
FORMATS = {row[0]: _format(*row[:-1]) for row in _TABLE}
LABELS = {row[0]: row[4] for row in _TABLE}
METRICS = {row[0]: tuple(row[-1]) for row in _TABLE}


def add_benchmark(
    task_name: str,
    name: str,
    source: seqio.DataSource,
    eval_splits: Sequence[str],
    vocabulary: seqio.Vocabulary | None = None,
) -> None:
    """Registers a task in the text format of a GLUE benchmark, with its labels and metrics.

    Args:
      task_name: the task's name, new to SeqIO's registry.
      name: the GLUE benchmark, for instance "mnli".
      source: yields its fields, `label` (int64, or float32 scores) and `idx`.
      eval_splits: the splits for evaluation.
      vocabulary: by default the user's SentencePiece file.
    """
    labels, is_score = LABELS[name], LABELS[name] is SCORES
    keywords = {"prefix": name, "fields": tuple(FORMATS[name].fields)}
    add_classification(
        task_name,
        source,
        functools.partial(format_scores, **keywords)
        if is_score
        else functools.partial(format_classes, **keywords, labels=labels),
        labels,
        METRICS[name],
        eval_splits=eval_splits,
        vocabulary=vocabulary,
        postprocess_fn=score_value if is_score else None,
    )


for _name, _stored in FORMATS.items():
    _splits = tuple(split for split in _stored.files if split.startswith("validation"))
    add_benchmark(f"glue_{_name}", _name, GlueDataSource(_stored), _splits)

_AX = GlueFormat(
    name="ax",
    folder="diagnostic",
    files={"test": "diagnostic.tsv"},
    fields=FORMATS["mnli"].fields,
    label_column="label",
    parse_label=tsv.class_parser(LABELS["mnli"]),
    train_examples=0,
)
add_benchmark("glue_ax", "mnli", GlueDataSource(_AX), ("test",))
_WNLI = GlueFormat(
    name="wnli",
    folder="WNLI",
    files={"validation": "dev.tsv", "test": "test.tsv"},  # T5 trains on WSC in place of it.
    fields=_SENTENCES,
    label_column="label",
    parse_label=tsv.class_parser(("not_entailment", "entailment")),
    train_examples=0,
)
add_generation(
    "glue_wnli",
    GlueDataSource(_WNLI),
    pronouns.format_wnli,
    [metrics.accuracy],
    postprocess_fn=pronouns.is_referent,
)
_SUBMITTED = {task: FORMATS[task.removeprefix("glue_")].folder for task in GLUE_TASKS}
_SUBMITTED |= {"glue_ax": "AX", "glue_wnli": "WNLI"}


def glue_file(task_name: str, split: str) -> str | None:
    """Returns the name of GLUE's file for predictions of a split; None for other tasks and splits.

    It is one of `GLUE_FILES`.
    """
    if task_name not in _SUBMITTED or not split.startswith("test"):
        return None
    file = {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm"}.get(split)
    return f"{file or _SUBMITTED[task_name]}.tsv"


def glue_rows(task_name: str, split: str) -> tuple[int, ...] | None:
    """Returns the row of each example in GLUE's own test file; None for other tasks and splits.

    Examples from GLUE's files are in the order of the rows, those from TFDS are not.
    """
    if glue_file(task_name, split) is None:
        return None
    source = seqio.TaskRegistry.get(task_name).source
    numbers = source.get_dataset(split=split, shuffle=False).map(lambda example: example["idx"])
    return tuple(map(int, numbers.as_numpy_iterator()))


def glue_submission(
    task_name: str, split: str, predictions: Sequence[str], rows: Sequence[int]
) -> str:
    """Writes predictions of a test split as GLUE's server wants them.

    The server takes class ids for single sentences, MRPC, QQP and WNLI, names of labels for MNLI,
    AX, QNLI and RTE, and scores from 0 to 5 for STS-B. A generated text that is no label (or no
    number) becomes the first label. For WNLI, a text that is not the example's noun becomes 0.

    Args:
      task_name: a task of `GLUE_TASKS`, glue_ax or glue_wnli.
      split: its test split.
      predictions: texts of labels, of all examples.
      rows: the row of each in GLUE's file.

    Returns:
      The content of the file `glue_file`, row by row.
    """
    name = {"glue_ax": "mnli"}.get(task_name, task_name.removeprefix("glue_"))
    labels = LABELS.get(name, ())
    chosen = [text if text in labels else next(iter(labels), "") for text in predictions]
    if name == "wnli":
        task = seqio.TaskRegistry.get(task_name)
        read = task.preprocessors[0](task.source.get_dataset(split=split, shuffle=False))
        asked = zip(predictions, read.as_numpy_iterator(), strict=True)
        chosen = [str(max(0, pronouns.is_referent(text, example=one))) for text, one in asked]
    elif labels is SCORES:
        scores = (min(max(score_value(text), 0.0), 5.0) for text in predictions)
        chosen = [f"{score:.3f}" for score in scores]
    elif name not in ("mnli", "qnli", "rte"):
        chosen = [str(labels.index(text)) for text in chosen]
    lines = ["index\tprediction"]
    lines += [f"{row}\t{text}" for row, text in sorted(zip(rows, chosen, strict=True))]
    return "\n".join(lines) + "\n"


def train_examples(task: seqio.Task) -> int | None:
    """Returns a task's number of training examples, if it can be determined cheaply.

    The rows of GLUE's files are counted. For TFDS, whose metadata may not be downloaded yet, the
    official counts are returned. Other sources are asked for it.
    """
    ask = getattr(task.source, "train_examples", None)
    return ask() if ask else task.num_input_examples("train")
