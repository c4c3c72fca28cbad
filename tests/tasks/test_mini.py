"""The mini world: reproducible, without overlap, and not to be solved by counting words."""

import copy
import hashlib
import pickle

import numpy as np
import pytest
import seqio
import tensorflow as tf
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import tasks
from tasks import mini
from tasks import mini_language as language

HELD_OUT = ("mini_sst2", "mini_cola")


def _texts(name, split):
    columns = mini.generate(name, split)
    return columns["sentence" if name in HELD_OUT else "inputs"].tolist()


def _bare(text: str) -> str:
    """The sentence inside an instruction."""
    for template, _ in (*mini.SENTIMENT_TEMPLATES, *mini.ACCEPTABILITY_TEMPLATES):
        before, after = template.split("{}")
        if text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
    raise AssertionError(f"no template of '{text}'")


def _filled(inputs: str, targets: str) -> str:
    """The sentence of a span corruption example, put together again."""
    words = targets.split()
    starts = [i for i, word in enumerate(words) if word in mini.SENTINELS]
    assert starts and [words[i] for i in starts] == list(mini.SENTINELS[: len(starts)])
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        assert words[start + 1 : stop]
        inputs = inputs.replace(words[start], " ".join(words[start + 1 : stop]))
    return inputs


def test_version_names_the_content():
    """Changing what is generated must raise VERSION: caches know the data by it."""
    digest = hashlib.sha256()
    for name, sizes in mini.SIZES.items():
        for split in sizes:
            for column in mini.generate(name, split).values():
                digest.update("\n".join(map(str, column)).encode())
    digest.update(mini.VOCABULARY.identity.encode())
    assert (mini.VERSION, digest.hexdigest()[:16]) == (1, "213c9e5614b3a6a0")


def test_sizes_and_balance():
    for name, sizes in mini.SIZES.items():
        for split, size in sizes.items():
            texts = _texts(name, split)
            assert len(texts) == size == seqio.TaskRegistry.get(name).num_input_examples(split)
    for name in HELD_OUT:
        for split in ("train", "validation"):
            assert mini.generate(name, split)["label"].mean() == 0.5


def test_every_word_has_an_id():
    vocabulary = mini.VOCABULARY
    assert vocabulary.vocab_size <= 256
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    used = set()
    for name in mini.SIZES:
        task = seqio.TaskRegistry.get(name)
        for example in task.get_dataset(None, "validation", shuffle=False).as_numpy_iterator():
            for feature in ("inputs", "targets"):
                assert 2 not in example[feature] and example[feature][-1] == 1
                text = example[f"{feature}_pretokenized"].decode()
                assert vocabulary.decode(example[feature]) == text
                assert example[feature][:-1].tolist() == vocabulary.encode(text)
            used |= set(example["inputs"]) | set(example["targets"])
            assert len(example["inputs"]) <= 32 and len(example["targets"]) <= 16
    assert len(used) > 0.5 * vocabulary.vocab_size


def test_vocabulary_decodes_pickles_and_compares():
    vocabulary = mini.VOCABULARY
    ids = vocabulary.encode("the film was unheard-of .")
    assert ids[3] == 2
    assert vocabulary.decode([*ids, 1, 7, 0]) == "the film was <unk> ."
    assert vocabulary.encode_tf(tf.constant("the film was unheard-of .")).numpy().tolist() == ids
    decoded = vocabulary.decode_tf(tf.constant([[*ids, 1, 7], [5, 1, 0, 0, 0, 0, 0]])).numpy()
    assert decoded.tolist() == [b"the film was <unk> .", vocabulary.decode([5]).encode()]
    for other in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
        assert other == vocabulary and hash(other) == hash(vocabulary)
        assert other.encode_tf(tf.constant("the film")).numpy().tolist() == ids[:2]
    assert vocabulary != mini.MiniVocabulary(["the"])


@pytest.mark.parametrize("name", HELD_OUT)
def test_splits_and_tasks_do_not_share_sentences(name):
    def contents(task, split):
        sentences = _texts(task, split)
        if task == "mini_instructions":
            sentences = [_bare(text) for text in sentences]
        if task == "mini_spans":
            targets = mini.generate(task, split)["targets"]
            sentences = [_filled(*pair) for pair in zip(sentences, targets, strict=True)]
        return set(sentences), {" ".join(sorted(s.split())) for s in sentences}

    others = [(name, "train"), ("mini_instructions", "train"), ("mini_spans", "train")]
    sentences, bags = contents(name, "validation")
    assert len(sentences) == 400
    for other in others:
        other_sentences, other_bags = contents(*other)
        assert not sentences & other_sentences
        # A faulty agreement changes a word, so that a few bags may meet by accident.
        assert len(bags & other_bags) <= (0 if name == "mini_sst2" and other[0] == name else 8)


def test_held_out_formats_are_new_and_their_labels_known():
    inputs = " ".join(_texts("mini_instructions", "train") + _texts("mini_spans", "train"))
    assert not set(mini.HELD_OUT_WORDS) & set(inputs.split())
    answers = mini.generate("mini_instructions", "train")["targets"]
    counts = {label: np.mean(answers == label) for label in (*mini.SENTIMENT, *mini.ACCEPTABILITY)}
    assert min(counts.values()) > 0.08
    task = seqio.TaskRegistry.get("mini_sst2")
    example = next(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
    text = example["inputs_pretokenized"].decode()
    assert text == f"sst2 sentence: {_texts('mini_sst2', 'train')[0]}"
    label = mini.generate("mini_sst2", "train")["label"][0]
    assert example["targets_pretokenized"].decode() == tasks.LABELS["mini_sst2"][label]


def test_labels_by_an_independent_reading():
    """Sentiment again, from the text alone: polarity words, negators, and which clause counts."""
    good = {"good", "great", "lovely", "brilliant", "funny", "charming", "clever", "moving"}
    good |= {"love", "loves", "enjoy", "enjoys", "admire", "admires"}
    bad = {"bad", "awful", "dull", "terrible", "boring", "clumsy", "weak", "ugly"}
    bad |= {"hate", "hates", "dislike", "dislikes", "regret", "regrets"}
    columns = mini.generate("mini_sst2", "train")
    for sentence, label in zip(columns["sentence"], columns["label"], strict=True):
        words = sentence.split()
        for mark in ("but", ","):
            if mark in words:
                words = words[words.index(mark) + 1 :]
        clauses = " ".join(words).split(" and ")
        for clause in clauses:
            words = set(clause.split())
            polarity = len(words & good) - len(words & bad)
            assert abs(polarity) == 1
            negated = bool(words & {"not", "never", "hardly"})
            assert ((polarity > 0) != negated) == bool(label), sentence


def test_faults_are_faults():
    """Every spoiled sentence differs from every faultless one."""
    draw = language.Draw(0)
    faultless, spoiled = set(), set()
    for _ in range(20_000):
        words = language.event(draw)
        faultless.add(language.text(words))
        worse = language.spoil(draw, words)
        assert len(words) - len(worse) in (0, 1)
        spoiled.add(language.text(worse))
    assert len(faultless) > 15_000 and not faultless & spoiled


def _baselines(name):
    """Validation accuracy of the majority, of the length, and of single words or word pairs."""
    train, validation = (mini.generate(name, split) for split in ("train", "validation"))

    def fit(features):
        model = make_pipeline(*features, LogisticRegression(max_iter=2000, C=0.1))
        model.fit(train["sentence"], train["label"])
        return model.score(validation["sentence"], validation["label"])

    length = FunctionTransformer(lambda texts: np.array([[len(t.split())] for t in texts], float))
    words = CountVectorizer(token_pattern=r"\S+", binary=True)
    majority = np.bincount(validation["label"]).max() / len(validation["label"])
    return {"majority": majority, "length": fit([length]), "words": fit([words])}


@pytest.mark.parametrize("name", HELD_OUT)
def test_counting_words_does_not_solve_it(name, record_property):
    scores = _baselines(name)
    record_property("baselines", scores)
    print(name, scores)
    assert scores["majority"] == 0.5
    assert scores["length"] < 0.6
    assert scores["words"] < 0.7


def test_spans_restore_a_sentence():
    columns = mini.generate("mini_spans", "train")
    sentences = [_filled(*pair) for pair in zip(columns["inputs"], columns["targets"], strict=True)]
    known = set(language.lexicon())
    assert all(sentence.endswith(" .") and set(sentence.split()) <= known for sentence in sentences)
    hidden = np.mean([len(t.split()) for t in columns["targets"]])
    assert 0.1 < hidden / np.mean([len(s.split()) for s in sentences]) < 0.5
    counts = [sum(word in mini.SENTINELS for word in t.split()) for t in columns["targets"]]
    assert set(counts) == {1, 2, 3}


def test_mixture_of_pretraining():
    mixture = seqio.MixtureRegistry.get("mini_pretrain")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {"mini_instructions": 0.7, "mini_spans": 0.3}
    dataset = mixture.get_dataset({"inputs": 32, "targets": 16}, "train", seed=0)
    examples = list(dataset.take(500).as_numpy_iterator())
    sentinels = set(mini.VOCABULARY.encode(" ".join(mini.SENTINELS)))
    spans = sum(bool(sentinels & set(example["targets"])) for example in examples)
    assert abs(spans - 150) < 4 * np.sqrt(500 * 0.7 * 0.3)


def test_unknown_split_is_one_line():
    with pytest.raises(tasks.DataError, match="mini_sst2 has no split 'test'; it has train, valid"):
        seqio.TaskRegistry.get("mini_sst2").source.get_dataset("test")
