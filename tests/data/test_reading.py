"""SeqIO tasks as others write them: what SeqIO promises of a task holds."""

import collections
import functools
import logging

import numpy as np
import pytest
import seqio
import tensorflow as tf

import tasks
from adalink_jax.data import EvalExamples, TrainBatches, corpus, reading, tokens
from adalink_jax.errors import UserError

from .conftest import byte_tokens

LENGTHS = {"inputs": 12, "targets": 8}
BYTES = seqio.ByteVocabulary()
TEXTS = ("one", "three", "and a longer text", "x", "seventeen", "fine", "ab")


def features(eos=True):
    return {name: seqio.Feature(BYTES, add_eos=eos) for name in ("inputs", "targets")}


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Forgets what a test registers."""
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    for name in ("LABELS", "EVAL_SPLITS"):
        before = dict(getattr(tasks, name))
        monkeypatch.setattr(tasks.registry, name, before)
        monkeypatch.setattr(tasks, name, before)


def add(name, preprocessors, columns=None, splits=("train", "validation"), count=True, **given):
    """Registers a task over columns in memory; its function takes no seed, as many do not."""
    columns = columns or {"inputs": list(TEXTS), "targets": ["yes"] * len(TEXTS)}
    size = len(next(iter(columns.values())))
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(dict(columns)),
        splits=splits,
        num_input_examples=dict.fromkeys(splits, size) if count else None,
    )
    given = {"output_features": features(), "metric_fns": [], **given}
    return seqio.TaskRegistry.add(name, source=source, preprocessors=preprocessors, **given)


TAIL = (seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim)


@seqio.map_over_dataset(num_seeds=1)
def template(example, seed):
    """Puts one of four letters in front."""
    which = tf.random.stateless_uniform([], seed, 0, 4, tf.int32)
    start = tf.gather(tf.constant(["p ", "q ", "rr ", "sss "]), which)
    return {**example, "inputs": tf.strings.join([start, example["inputs"]])}


@seqio.map_over_dataset
def noisy(example):
    """Draws with TensorFlow's own generator, not with SeqIO's seeds."""
    which = tf.random.uniform([], 0, 4, tf.int32)
    start = tf.gather(tf.constant(["p ", "q ", "rr ", "sss "]), which)
    return {**example, "inputs": tf.strings.join([start, example["inputs"]])}


def halves(dataset, sequence_length, output_features):
    """The first half of what fits is the input, the rest the target."""
    assert set(output_features) == set(sequence_length)
    half = sequence_length["inputs"] // 2
    return dataset.map(lambda x: {"inputs": x["targets"][:half], "targets": x["targets"][half:]})


def test_preprocessors_get_the_lengths(tmp_path):
    cut = [seqio.preprocessors.tokenize, halves, seqio.preprocessors.append_eos_after_trim]
    add("spans", cut, {"targets": ["abcdefgh", "ij"]})
    found = tokens("spans", "train", tmp_path, LENGTHS)
    assert [row.tolist() for row in found.inputs] == [byte_tokens("abcdef"), byte_tokens("ij")]
    assert [row.tolist() for row in found.targets] == [byte_tokens("gh"), byte_tokens("")]
    other = tokens("spans", "train", tmp_path, {"inputs": 8, "targets": 8})
    assert other.inputs[0].tolist() == byte_tokens("abcd")
    assert len(EvalExamples("spans", "validation", LENGTHS)) == 2
    with pytest.raises(UserError, match="'spans'.* takes sequence_length"):
        tokens("spans", "train", tmp_path)


@pytest.mark.parametrize("late_eos", [False, True])
def test_a_task_may_keep_the_end_of_its_inputs(late_eos):
    """As SeqIO does: the end-of-sequence token, too, wherever it is appended."""
    steps = [seqio.preprocessors.append_eos, seqio.preprocessors.truncate_inputs_left]
    if late_eos:
        steps = [seqio.preprocessors.truncate_inputs_left, TAIL[1]]
    task = add("left", [TAIL[0], *steps], {"inputs": ["abcdefgh"], "targets": ["y"]})
    lengths = {"inputs": 5, "targets": 4}
    made = TrainBatches("left", lengths, 1, 0, False)
    (expected,) = task.get_dataset(lengths, "train", shuffle=False).as_numpy_iterator()
    row = made.batch(0)["encoder_input_tokens"][0]
    assert row.tolist() == expected["inputs"].tolist()
    assert BYTES.decode(row.tolist()) == ("defg" if late_eos else "efgh")


def test_what_is_cut_behind_a_preprocessor_with_lengths_is_counted():
    def mark(dataset, sequence_length):
        return dataset.map(lambda x: {**x, "room": sequence_length["inputs"]})

    add("marked", [TAIL[0], mark, TAIL[1]])
    made = TrainBatches("marked", LENGTHS, 1, 0, False)
    assert made.truncated["marked"] == {"inputs": 1, "targets": 0}


def inputs_of(batch) -> list[str]:
    """The input texts of a batch, packed or not."""
    rows = batch["encoder_input_tokens"].tolist()
    ended = (part for row in rows for part in "".join(map(chr, row)).split("\x01"))
    return [BYTES.decode(list(map(ord, text))) for text in ended if text.strip("\0")]


@pytest.mark.parametrize(
    "step, packing",
    [(template, False), pytest.param(template, True, marks=pytest.mark.slow), (noisy, True)],
)
def test_what_draws_at_random_is_drawn_anew_each_epoch(step, packing):
    """Reference: SeqIO, which repeats a dataset before its random preprocessors."""
    add("drawn", [step, *TAIL])
    lengths = {"inputs": 24, "targets": 24}
    made = TrainBatches("drawn", lengths, 2, 3, packing)
    often = made.steps_per_draw
    batches = [made.batch(n) for n in range(4 * often)]
    starts = collections.defaultdict(set)
    for text in (text for batch in batches for text in inputs_of(batch)):
        start, _, rest = text.partition(" ")
        starts[rest].add(start)
    assert sum(len(found) > 1 for found in starts.values()) > 3
    # A function of seed and step: a run that starts again at any step has the same batches.
    again = TrainBatches("drawn", lengths, 2, 3, packing)
    for n in (2 * often, often - 1):
        now = again.batch(n)
        assert all(np.array_equal(now[name], batches[n][name]) for name in now)
    other = TrainBatches("drawn", lengths, 2, 4, packing)
    assert not np.array_equal(
        other.batch(0)["encoder_input_tokens"], batches[0]["encoder_input_tokens"]
    )
    (task,) = made.identity["tasks"]
    assert task["drawn"]["anew_every_steps"] == often <= len(TEXTS) // 2
    assert f"drawn at random every {often} steps: drawn" in made.summary


def test_what_draws_nothing_is_read_once_beside_what_does(monkeypatch):
    add("drawn", [template, *TAIL])
    plain = [f"plain {n}" for n in range(len(TEXTS))]
    add("plain", [*TAIL], {"inputs": plain, "targets": ["no"] * len(plain)})
    seqio.MixtureRegistry.add("both", ["drawn", "plain"], default_rate=1.0)
    read = []
    tokenize = reading.tokenize
    monkeypatch.setattr(
        reading, "tokenize", lambda task, *rest: read.append(task.name) or tokenize(task, *rest)
    )
    made = TrainBatches("both", {"inputs": 24, "targets": 8}, 1, 0, False)
    seen = [text for n in range(3 * made.epoch_size) for text in inputs_of(made.batch(n))]
    assert read.count("plain") == 1 and read.count("drawn") == 3
    # The stream goes on over draws: every example of either once an epoch.
    assert collections.Counter(text for text in seen if text in plain) == dict.fromkeys(plain, 3)
    of_drawn = collections.Counter(
        text.partition(" ")[2] for text in seen if not text.startswith("plain")
    )
    assert of_drawn == dict.fromkeys(TEXTS, 3)
    assert TrainBatches("plain", LENGTHS, 1, 0, False).steps_per_draw is None


def test_few_shots_are_drawn_once_and_say_so():
    add("drawn", [template, *TAIL])
    made = TrainBatches("drawn", {"inputs": 24, "targets": 8}, 1, 0, False, few_shot=2)
    assert len({text for n in range(12) for text in inputs_of(made.batch(n))}) == 2
    assert "drawn at random once: drawn" in made.summary


def test_nothing_is_held_out_of_what_is_drawn():
    add("drawn", [template, *TAIL])
    with pytest.raises(UserError, match="held_out is 0.5, but the task draws its texts at random"):
        TrainBatches("drawn", {"inputs": 24, "targets": 8}, 1, 0, False, held_out=0.5)


def test_random_numbers_from_the_example_itself_draw_nothing(tmp_path):
    """As span corruption of this project does: a hash of the text is the seed."""
    texts = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices({"text": ["a b c"] * 2}),
        splits=("train",),
    )
    tasks.add_span_corruption("corrupted", texts, tasks.MINI_VOCABULARY, max_tokens=16)
    assert not tokens("corrupted", "train", tmp_path).drawn
    shuffled = [lambda dataset: dataset.shuffle(10), *TAIL]
    add("shuffled", shuffled)
    assert tokens("shuffled", "train").drawn


def test_examples_have_all_features_in_the_order_of_the_tokens():
    def to_text(dataset):
        return dataset.map(
            lambda x: {"inputs": x["q"], "targets": x["answers"][0], "answers": x["answers"]}
        )

    columns = {"q": ["who?", "where?"], "answers": [["Ann", "Ann B."], ["Lima", "in Lima"]]}
    add("qa", [to_text, template, *TAIL], columns)
    found = EvalExamples("qa", "validation", {"inputs": 24, "targets": 8})
    examples = found.features()
    assert [list(one["answers"]) for one in examples] == [
        [b"Ann", b"Ann B."],
        [b"Lima", b"in Lima"],
    ]
    for one, text, row in zip(examples, found.input_texts, found.targets, strict=True):
        assert one["inputs_pretokenized"].decode() == text
        assert one["targets"].tolist() == row.tolist()


def test_a_task_or_a_mixture_need_not_have_every_split():
    add("alone", [*TAIL], splits=("train",))
    add("for_scoring", [*TAIL], splits=("dev", "test"))
    seqio.MixtureRegistry.add("mixed", ["alone", "for_scoring"], default_rate=1.0)
    made = TrainBatches("mixed", LENGTHS, 2, 0, False)
    assert (made.tasks, made.untrained) == (("alone",), ("for_scoring",))
    assert "not trained on, without a train split: for_scoring" in made.summary
    assert len(EvalExamples("for_scoring", "dev", LENGTHS)) == len(TEXTS)
    with pytest.raises(UserError, match="for_scoring has no split 'train' to train on"):
        TrainBatches("for_scoring", LENGTHS, 2, 0, False)


def test_what_cannot_be_trained_is_said_in_one_line():
    image = seqio.ContinuousFeature(rank=3)
    add("seen", [*TAIL], output_features={**features(), "image": image})
    for name in ("one", "two"):
        add(name, [*TAIL], count=False)
    seqio.MixtureRegistry.add("sized", ["one", "two"], seqio.mixing_rate_num_examples)
    add("cached", [TAIL[0], seqio.CacheDatasetPlaceholder(required=True), TAIL[1]])
    add("untold", [*TAIL], {"inputs": ["a"]})
    absent = seqio.TextLineDataSource({"train": "/nowhere/*.txt"})
    seqio.TaskRegistry.add("absent", absent, features(), [*TAIL])
    for call, message in (
        (lambda: corpus.mixture("seen"), "blind to 'image'"),
        (
            lambda: corpus.mixture("sized"),
            "rate of task 'one' cannot be computed.*num_input_examples={'train': …}",
        ),
        (lambda: tokens("cached", "train"), "task 'cached', split 'train': .*cache"),
        (lambda: tokens("untold", "train"), "'untold', split 'train': .*missing.*targets"),
        (lambda: tokens("absent", "train"), "'absent', split 'train': No file is found"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_mixtures_own_way_to_sample_is_not_dropped_in_silence(caplog):
    add("one", [*TAIL])
    sample = functools.partial(tf.data.Dataset.choose_from_datasets, stop_on_empty_dataset=True)
    seqio.MixtureRegistry.add("usual", ["one"], default_rate=1.0)
    seqio.MixtureRegistry.add("special", ["one"], default_rate=1.0, sample_fn=sample)
    with caplog.at_level(logging.WARNING, "adalink_jax"):
        corpus.mixture("usual")
        assert not caplog.records
        corpus.mixture("special")
    assert "'special' has a sample_fn, which is not used" in caplog.text


def test_targets_that_are_no_labels_are_an_error_with_the_nearest():
    source = add(
        "raw", [*TAIL], {"inputs": ["a", "b", "c"], "targets": ["yes", "no", "yes"]}
    ).source
    for name, labels in (("cased", ("Yes", "no")), ("right", ("yes", "no"))):
        tasks.add_classification(name, source, None, labels, [], vocabulary=BYTES)
    message = "2 of 3 targets are none of its labels Yes, no: .* 'yes'; did you mean 'Yes'"
    for call in (
        lambda: TrainBatches("cased", LENGTHS, 1, 0, False),
        lambda: EvalExamples("cased", "validation", LENGTHS),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert EvalExamples("right", "validation", LENGTHS).labeled
    with pytest.raises(UserError, match="2 targets of task 'right' are longer than the 3 tokens"):
        TrainBatches("right", {"inputs": 12, "targets": 3}, 1, 0, False)


def test_targets_that_nobody_knows_are_no_labels_to_score():
    source = add("raw", [*TAIL], {"inputs": ["a", "b"], "targets": [tasks.UNLABELED] * 2}).source
    tasks.add_classification("blank", source, None, ("no", "yes"), [], vocabulary=BYTES)
    assert not EvalExamples("blank", "validation", LENGTHS).labeled
    with pytest.raises(UserError, match="2 of 2 targets are none of its labels"):
        TrainBatches("blank", LENGTHS, 1, 0, False)
