"""Span corruption and instructions as SeqIO tasks, on any text."""

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks
from adalink_jax.data.corpus import tokens
from tasks import pretraining
from tasks.mini_vocabulary import MiniVocabulary
from tasks.sources import dataset_from_columns

WORDS = [f"w{i}" for i in range(50)]
VOCABULARY = MiniVocabulary(WORDS, extra_ids=20)


class Columns(seqio.DataSource):
    """Examples from columns, as both splits."""

    def __init__(self, **columns):
        super().__init__(splits=("train", "validation"))
        self._columns = columns

    supports_arbitrary_sharding = True

    def list_shards(self, split):
        return [split]

    def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None, **unused):
        return dataset_from_columns(self._columns, shuffle, seed, shard_info)


@pytest.fixture
def registered():
    """Names to register tasks under, which are free again afterwards."""
    names = [f"test_pretraining_{i}" for i in range(3)]
    yield names
    for name in names:
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)


def _examples(name, shuffle=False, **given):
    dataset = seqio.TaskRegistry.get(name).get_dataset(None, "train", shuffle=shuffle, **given)
    return list(dataset.as_numpy_iterator())


def _restored(inputs, targets, vocabulary) -> list[int]:
    """The text of a span corruption example, put together by a plain loop."""
    last = vocabulary.vocab_size - 1
    is_sentinel = [last - vocabulary.extra_ids < i <= last for i in range(last + 1)]
    spans, text = {}, []
    for token in targets:
        if is_sentinel[token]:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    assert list(spans) == [last - i for i in range(len(spans))]  # counted down, each once
    for token in inputs:
        text += spans.pop(token) if is_sentinel[token] else [token]
    assert not spans
    return text


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 300), st.integers(0, 1000), st.sampled_from([(0.15, 3.0), (0.25, 1.5), (0.5, 1)])
)
def test_noise_mask_hides_as_many_spans_and_tokens_as_t5(length, seed, noise):
    density, mean_span = noise
    mask = pretraining.noise_mask(
        tf.constant(length), tf.constant([seed, 0]), density, float(mean_span), 100
    ).numpy()
    hidden = min(max(int(np.round(np.float32(length * density))), 1), length - 1)
    spans = max(int(np.round(np.float32(hidden / mean_span))), 1)
    assert mask.shape == (length,)
    assert abs(mask.sum() - hidden) <= 1  # float32 against float64 at a half
    assert not mask[0] and mask[-1]
    runs = (mask & ~np.concatenate([[False], mask[:-1]])).sum()
    assert abs(runs - min(spans, hidden, length - hidden, 100)) <= 1


@pytest.mark.slow
def test_every_division_is_equally_frequent():
    """Of 6 kept and 3 hidden tokens in 2 spans: 5 · 2 masks, each a tenth."""
    masks = [
        tuple(pretraining.noise_mask(tf.constant(9), tf.constant([seed, 0]), 1 / 3, 1.5, 9).numpy())
        for seed in range(1000)
    ]
    counts = [masks.count(mask) for mask in set(masks)]
    assert len(counts) == 10
    assert max(abs(count - 100) for count in counts) < 4 * np.sqrt(1000 * 0.1 * 0.9)


def test_spans_restore_the_text_and_depend_on_it_alone(registered):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, n)) for n in rng.integers(2, 70, 200)]
    source = Columns(text=texts)
    pretraining.add_span_corruption(registered[0], source, VOCABULARY, max_tokens=70)
    examples = _examples(registered[0])
    assert [len(example["inputs"]) > 1 for example in examples] == [True] * len(texts)
    for text, example in zip(texts, examples, strict=True):
        assert example["inputs"][-1] == example["targets"][-1] == 1
        found = _restored(example["inputs"][:-1], example["targets"][:-1], VOCABULARY)
        assert found == VOCABULARY.encode(text)
    shuffled = _examples(registered[0], shuffle=True, seed=3)
    as_set = lambda many: {(e["inputs"].tobytes(), e["targets"].tobytes()) for e in many}  # noqa: E731
    assert as_set(shuffled) == as_set(examples)
    assert tasks.EVAL_SPLITS[registered[0]] == ("validation",)


def test_long_texts_are_cut(registered):
    text = " ".join(WORDS)
    pretraining.add_span_corruption(
        registered[0], Columns(text=[text, "w1"]), VOCABULARY, max_tokens=16
    )
    pieces = _examples(registered[0])
    restored = [_restored(e["inputs"][:-1], e["targets"][:-1], VOCABULARY) for e in pieces]
    # A text of one token cannot keep and hide one; it is left out.
    assert [len(piece) for piece in restored] == [16, 16, 16, 2]
    assert sum(restored, []) == VOCABULARY.encode(text)


def test_text_file(tmp_path, monkeypatch, registered):
    lines = [f"w{i % 50} w{i // 50} w1" if i % 7 else "" for i in range(350)]
    path = tmp_path / "some.txt"
    lines[0] = "w0 w1"
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("TEXT_FILE", str(path))
    source = pretraining.TextFileSource()
    found = {
        split: [e["text"].decode() for e in source.get_dataset(split, False).as_numpy_iterator()]
        for split in ("train", "validation")
    }
    assert found["validation"] == [line for line in lines[::100] if line]
    assert found["train"] == [line for i, line in enumerate(lines) if line and i % 100]
    identity = source.identity("train")
    assert identity["file"] == "some.txt" and str(tmp_path) not in str(identity)
    assert identity != source.identity("validation")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "no text: set TEXT_FILE to a text file"),
        ("nowhere.txt", "TEXT_FILE=nowhere.txt: no such file"),
    ],
)
def test_mistakes_of_a_text_file_are_one_line(monkeypatch, value, expected):
    monkeypatch.delenv("TEXT_FILE", raising=False)
    if value:
        monkeypatch.setenv("TEXT_FILE", value)
    with pytest.raises(tasks.DataError, match=expected) as caught:
        pretraining.TextFileSource().get_dataset("train")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_text_spans_of_real_text(shared_data, tmp_path, monkeypatch):
    """Real lines with T5's vocabulary; the texts are those that SentencePiece gives back."""
    lines = (shared_data / "text" / "english_valid.txt").read_text().splitlines()[:300]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    monkeypatch.setenv("TEXT_FILE", str(tmp_path / "text.txt"))
    monkeypatch.setenv("VOCABULARY", str(shared_data / "vocab" / "spiece.model"))
    vocabulary = tasks.UserVocabulary()
    found = tokens("text_spans", "train", tmp_path)
    joined = []
    for inputs, targets in zip(found.inputs, found.targets, strict=True):
        assert 1 <= sum(i > 31_999 for i in inputs) <= 100 and len(inputs) <= 129
        joined += _restored(inputs[:-1].tolist(), targets[:-1].tolist(), vocabulary)
    expected = [i for n, line in enumerate(lines) if n % 100 for i in vocabulary.encode(line)]
    # Only pieces of a single token are missing.
    assert 0 <= len(expected) - len(joined) <= 10
    again = tokens("text_spans", "train", tmp_path / "other")
    assert again.identity["sha256"] == found.identity["sha256"]


def test_instructions_take_every_template_and_its_answers(registered):
    templates = (
        ("is {} true", ("no", "yes")),
        ("{1} then {0}", ("bad", "good")),
        ("what {} {}", None),
    )
    n = 300
    columns = {
        "first": [f"a{i}" for i in range(n)],
        "second": [f"b{i}" for i in range(n)],
        "label": np.arange(n) % 2,
        "answer": [f"c{i}" for i in range(n)],
    }
    dataset = dataset_from_columns(columns, False, None, None)
    made = pretraining.instruct(dataset, templates=templates, fields=("first", "second"))
    counts = [0, 0, 0]
    for i, example in enumerate(made.as_numpy_iterator()):
        asked, answer = example["inputs"].decode(), example["targets"].decode()
        possible = [
            (f"is a{i} true", ("no", "yes")[i % 2]),
            (f"b{i} then a{i}", ("bad", "good")[i % 2]),
            (f"what a{i} b{i}", f"c{i}"),
        ]
        counts[possible.index((asked, answer))] += 1
    assert min(counts) > n / 3 - 4 * np.sqrt(n * 2 / 9)


def test_instructions_are_a_task(registered):
    source = Columns(text=["w1 w2", "w3"], label=[0, 1])
    pretraining.add_instructions(
        registered[0], source, [("w9 {}", ("w7", "w8"))], ("text",), VOCABULARY
    )
    texts = [
        (VOCABULARY.decode(e["inputs"]), VOCABULARY.decode(e["targets"]))
        for e in _examples(registered[0])
    ]
    assert texts == [("w9 w1 w2", "w7"), ("w9 w3", "w8")]
    assert registered[0] not in tasks.LABELS  # evaluated by generation
