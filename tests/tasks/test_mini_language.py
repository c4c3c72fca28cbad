"""The mini world's words: every one has an id, and a fault is a fault."""

import copy
import pickle

import pytest
import seqio
import tensorflow as tf

import tasks
from tasks import mini_language as language
from tasks.mini_vocabulary import MiniVocabulary


@pytest.mark.slow
def test_every_word_has_an_id():
    vocabulary = tasks.MINI_VOCABULARY
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    used = set()
    for name in (*tasks.MINI_GLUE_TASKS, *tasks.MINI_INSTRUCTIONS, "mini_spans"):
        task = seqio.TaskRegistry.get(name)
        for example in task.get_dataset(None, "validation", shuffle=False).as_numpy_iterator():
            for feature in ("inputs", "targets"):
                assert 2 not in example[feature] and example[feature][-1] == 1
                if text := example.get(f"{feature}_pretokenized", b"").decode():
                    assert vocabulary.decode(example[feature]) == text
                    assert example[feature][:-1].tolist() == vocabulary.encode(text)
            used |= set(example["inputs"]) | set(example["targets"])
            assert len(example["inputs"]) <= 48
    # All but 20 of the 26 scores, and a sentinel or two.
    assert len(used) > 0.9 * vocabulary.vocab_size


def test_vocabulary_decodes_pickles_and_compares():
    vocabulary = tasks.MINI_VOCABULARY
    ids = vocabulary.encode("the film was unheard-of .")
    assert ids[3] == 2
    assert vocabulary.decode([*ids, 1, 7, 0]) == "the film was <unk> ."
    assert vocabulary.encode_tf(tf.constant("the film was unheard-of .")).numpy().tolist() == ids
    decoded = vocabulary.decode_tf(tf.constant([[*ids, 1, 7], [5, 1, 0, 0, 0, 0, 0]])).numpy()
    assert decoded.tolist() == [b"the film was <unk> .", vocabulary.decode([5]).encode()]
    for other in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
        assert other == vocabulary and hash(other) == hash(vocabulary)
        assert other.encode_tf(tf.constant("the film")).numpy().tolist() == ids[:2]
    assert vocabulary != MiniVocabulary(["the"])


def test_sentinels_are_the_last_ids_counted_down():
    """As in T5, where <extra_id_0> is 32,099."""
    vocabulary = MiniVocabulary(["one", "two"], extra_ids=3)
    assert vocabulary.vocab_size == 3 + 2 + 3
    assert vocabulary.encode("<extra_id_0> one <extra_id_2>") == [7, 3, 5]
    assert vocabulary.decode([7, 3, 5]) == "<extra_id_0> one <extra_id_2>"


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
