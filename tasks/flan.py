"""The eight GLUE tasks in FLAN's prompts, beside T5's format.

`flan_rte` and so on have the examples of `glue_rte`, with a template of `flan_templates.py` around
each, and FLAN's words for the labels ("yes" and "no", say). The environment variable TEMPLATE_SEED
says which template:

* If it is not set, all: a hash of a training example's texts chooses its template, and every
  evaluated example is asked in each of them. Metrics are then computed for each template, and
  their means over the templates reported, as `mean_accuracy` and so on.
* If it is a number, one for the whole task, for training and evaluation, which it chooses.

It is read when a task is opened, and part of the identity of its data.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import seqio
import tensorflow as tf

from tasks import glue, metrics
from tasks.errors import DataError
from tasks.flan_templates import TEMPLATES
from tasks.mixtures import add_equal_mixtures, proportional_rate
from tasks.registry import UNLABELED, add_classification, label_id
from tasks.sources import GlueDataSource

VARIABLE = "TEMPLATE_SEED"

_NO_YES, _YES_NO = ("no", "yes"), ("yes", "no")
# FLAN's answers in the order of GLUE's class ids; of STS-B, the rounded scores.
_ANSWERS = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": _NO_YES,
    "qqp": _NO_YES,
    "stsb": ("0", "1", "2", "3", "4", "5"),
    "mnli": ("yes", "it is not possible to tell", "no"),
    "qnli": _YES_NO,
    "rte": _YES_NO,
}
FLAN_TASKS = tuple(f"flan_{name}" for name in _ANSWERS)
# FLAN takes RTE from SuperGLUE, whose fields have other names.
_FIELDS = {"rte": {"premise": "sentence1", "hypothesis": "sentence2"}}


class FlanSource(seqio.DataSource):
    """GLUE's examples with the number of a template: one each, or each example in all of them.

    Args:
      name: the GLUE benchmark, for instance "rte".
    """

    def __init__(self, name: str):
        self._name = name
        self._source = cast(GlueDataSource, seqio.TaskRegistry.get(f"glue_{name}").source)
        super().__init__(splits=self._source.splits)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Whether any number of shards can be read: as GLUE's source."""
        return self._source.supports_arbitrary_sharding

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        """Returns the examples of GLUE's source with an int32 `template`.

        Raises:
          DataError: as GLUE's source; or TEMPLATE_SEED is no whole number from 0.
        """
        chosen, count = self._chosen(), len(TEMPLATES[self._name])
        dataset = self._source.get_dataset(split, shuffle, seed, shard_info)
        fields = sorted(glue.FORMATS[self._name].fields)

        def hashed(example):
            text = tf.strings.join([example[field] for field in fields], "\t")
            place = tf.strings.to_hash_bucket_fast(text, count)
            return {**example, "template": tf.cast(place, tf.int32)}

        def repeated(example):
            numbers = tf.data.Dataset.range(count, output_type=tf.int32)
            return numbers.map(lambda number: {**example, "template": number})

        if chosen is not None:
            return dataset.map(lambda example: {**example, "template": chosen})
        return dataset.map(hashed) if split == "train" else dataset.flat_map(repeated)

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns the shards of GLUE's source."""
        return self._source.list_shards(split)

    def num_input_examples(self, split: str) -> int | None:
        """Returns the number of examples of a split, each counted in all of its templates."""
        count = self._source.num_input_examples(split)
        in_all = self._chosen() is None and split != "train"
        return count * len(TEMPLATES[self._name]) if count and in_all else count

    def train_examples(self) -> int:
        """Returns the number of training examples, as GLUE's source does."""
        return self._source.train_examples()

    def available_splits(self) -> tuple[str, ...]:
        """Returns the splits that GLUE's source has."""
        return self._source.available_splits()

    def identity(self, split: str) -> dict[str, Any]:
        """Identifies a split's data; JSON-able: that of GLUE's source, and which templates."""
        chosen = self._chosen()
        which = {"templates": "all" if chosen is None else TEMPLATES[self._name][chosen]}
        return {**self._source.identity(split), **which}

    def _chosen(self) -> int | None:
        given = os.environ.get(VARIABLE, "")
        if not given:
            return None
        if not re.fullmatch("[0-9]{1,10}", given):
            raise DataError(f"{VARIABLE}={given}: expected a whole number from 0, or nothing")
        digest = hashlib.sha256(f"{int(given)} {self._name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % len(TEMPLATES[self._name])


def format_prompts(dataset: tf.data.Dataset, *, name: str) -> tf.data.Dataset:
    """Turns examples of `FlanSource` into prompts.

    Args:
      dataset: examples with the fields of the benchmark, `label` and `template`.
      name: the benchmark.

    Returns:
      Examples with the strings `inputs` and `targets`, `label`, `template` and `idx`. The target of
      an example without a label is `UNLABELED`.
    """
    answers = _ANSWERS[name]
    options = "OPTIONS:\n- " + "\n- ".join(answers)
    named = {field: field for field in glue.FORMATS[name].fields} | _FIELDS.get(name, {})

    def convert(example):
        texts = {place: example[field] for place, field in named.items()}
        if name == "qqp":  # As in FLAN, whose files quote the quotes inside questions.
            texts = {k: tf.strings.regex_replace(v, '""', "'") for k, v in texts.items()}
        prompts = [_filled(one, {**texts, "options_": options}) for one in TEMPLATES[name]]
        label = example["label"]
        if name == "stsb":
            known = tf.strings.as_string(label, precision=0)
        else:
            known = tf.gather(tf.constant(answers), tf.maximum(label, 0))
        return {
            "inputs": tf.stack(prompts)[example["template"]],
            "targets": tf.where(label < 0, UNLABELED, known),
            "label": label,
            "template": example["template"],
            "idx": example["idx"],
        }

    return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def _filled(template: str, texts: Mapping[str, Any]) -> tf.Tensor:
    parts = re.split(r"\{(\w+)\}", template)  # Literals and names in turn.
    return tf.strings.join([texts[part] if i % 2 else part for i, part in enumerate(parts)])


def value(
    text: str, *, labels: Sequence[str], numbers: bool, example, is_target: bool = False
) -> dict[str, Any]:
    """Returns what metrics compare as `value`; of a target, its template as `group`.

    Args:
      text: the text of a target or prediction.
      labels: the answers in the order of their class ids.
      numbers: whether labels are scores. That of a target is then the example's own, not rounded.
      example: has `template` and `label`.
      is_target: whether the text is a target.
    """
    if not numbers:
        found: float = label_id(text, labels=labels)
    else:
        found = float(example["label"]) if is_target else glue.score_value(text)
    return {"value": found} | ({"group": int(example["template"])} if is_target else {})


def over_templates(metric: Callable) -> Callable:
    """Returns a metric's mean over templates: `mean_accuracy`, say; of one, `accuracy`."""

    def averaged(targets, predictions) -> dict[str, float]:
        found = metrics.mean_over_groups(metric, targets, predictions)
        several = len({target["group"] for target in targets}) > 1
        return {f"mean_{name}": one for name, one in found.items()} if several else found

    return averaged


def _add(name: str) -> None:
    answers = _ANSWERS[name]
    add_classification(
        f"flan_{name}",
        FlanSource(name),
        functools.partial(format_prompts, name=name),
        answers,
        [over_templates(metric) for metric in glue.METRICS[name]],
        eval_splits=tuple(s for s in glue.FORMATS[name].files if s.startswith("validation")),
        postprocess_fn=functools.partial(value, labels=answers, numbers=name == "stsb"),
    )


for _name in _ANSWERS:
    _add(_name)
seqio.MixtureRegistry.add("flan_glue_proportional", FLAN_TASKS, default_rate=proportional_rate())
add_equal_mixtures("flan_glue_equal", FLAN_TASKS)
