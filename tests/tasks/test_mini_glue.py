"""Mini-GLUE: reproducible, balanced, held out, solved by its rules and by nothing less."""

import collections
import hashlib

import numpy as np
import pytest
import seqio

import tasks
from tasks import glue, mini_glue, mini_world
from tasks.mini_templates import TEMPLATES
from tasks.mini_vocabulary import GLUE_WORDS
from tests.tasks import mini_baselines, mini_reading
from tests.tiers import mostly_slow

NAMES = tuple(glue.FORMATS)
PAIRS = tuple(name for name in NAMES if name not in ("cola", "sst2"))
SPLITS = ("train", "validation")


def _columns(name, split):
    return mini_glue.SOURCES[name].columns(split)


def _texts(name, split):
    columns = _columns(name, split)
    return [columns[field].tolist() for field in glue.FORMATS[name].fields]


def _pretraining(skill):
    source = seqio.TaskRegistry.get(f"mini_instruct_{skill}").source
    return source.columns("train")


@pytest.mark.slow
def test_version_names_the_content():
    """Changing what is generated must raise VERSION: caches know the data by it."""
    digest = hashlib.sha256()
    for name in NAMES:
        for split in SPLITS:
            for column in _columns(name, split).values():
                digest.update("\n".join(map(str, column)).encode())
    digest.update(tasks.MINI_VOCABULARY.identity.encode())
    assert (mini_world.VERSION, digest.hexdigest()[:16]) == (2, "93ac4a13500937d3")


@pytest.mark.slow
def test_sizes_balance_and_labels():
    for name in NAMES:
        assert tasks.LABELS[f"mini_{name}"] == tasks.LABELS[f"glue_{name}"]
        for split, size in mini_glue.SIZES.items():
            columns = _columns(name, split)
            assert {len(column) for column in columns.values()} == {size}
            assert seqio.TaskRegistry.get(f"mini_{name}").num_input_examples(split) == size
            counts = collections.Counter(columns["label"].tolist())
            assert len(counts) == {"stsb": 6, "mnli": 3}.get(name, 2)
            assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_labels_by_an_independent_reading(name):
    for split in SPLITS:
        for *texts, label in zip(*_texts(name, split), _columns(name, split)["label"], strict=True):
            assert mini_reading.label(name, texts) == label, texts
            assert texts[0] != texts[1]


def test_opinions_by_an_independent_reading():
    """Polarity words, negators, and which clause counts."""
    good = {"good", "great", "lovely", "brilliant", "funny", "charming", "clever", "moving"}
    good |= {"love", "loves", "enjoy", "enjoys", "admire", "admires"}
    bad = {"bad", "awful", "dull", "terrible", "boring", "clumsy", "weak", "ugly"}
    bad |= {"hate", "hates", "dislike", "dislikes", "regret", "regrets"}
    columns = _columns("sst2", "train")
    for sentence, label in zip(columns["sentence"], columns["label"], strict=True):
        words = sentence.split()
        for mark in ("but", ","):
            if mark in words:
                words = words[words.index(mark) + 1 :]
        for clause in " ".join(words).split(" and "):
            words = set(clause.split())
            polarity = len(words & good) - len(words & bad)
            assert abs(polarity) == 1
            assert ((polarity > 0) != bool(words & {"not", "never", "hardly"})) == bool(label)


def _meanings(texts) -> set:
    return {tuple(mini_reading.read(text)[slot] for slot in mini_reading.SLOTS) for text in texts}


@pytest.mark.slow
def test_no_meaning_is_in_two_places():
    """Neither in both splits nor in mini-GLUE and in pre-training, in whatever words."""
    glue_parts = {
        split: _meanings(t for name in PAIRS for side in _texts(name, split) for t in side)
        for split in SPLITS
    }
    trained = set()
    for skill in ("paraphrase", "duplicates", "answers", "inference"):
        columns = _pretraining(skill)
        trained |= _meanings(t for field in ("first", "second") for t in columns[field].tolist())
    assert len(trained) > 5_000 and len(glue_parts["train"]) > 3_000
    assert not glue_parts["train"] & glue_parts["validation"]
    assert not trained & (glue_parts["train"] | glue_parts["validation"])


@pytest.mark.parametrize("name", ["cola", "sst2"])
def test_no_sentence_is_in_two_places(name):
    skill = {"cola": "acceptability", "sst2": "sentiment"}[name]
    validation, train = (set(_columns(name, split)["sentence"]) for split in SPLITS[::-1])
    assert not validation & train
    trained = _pretraining(skill)
    both = (validation | train) & set(trained["sentence"])
    # Sentences of two places can lose their verb, or an agreement, to the same faulty one.
    faultless = set(trained["sentence"][trained["label"] == 1])
    assert len(both) <= (6 if name == "cola" else 0) and not both & faultless


def test_formats_are_held_out_and_labels_are_known():
    """No instruction has a word of mini-GLUE's formats; every label is an answer to some."""
    asked = {word for skill in TEMPLATES.values() for text, _ in skill for word in text.split()}
    assert not asked & set(GLUE_WORDS)
    answers = {answer for skill in TEMPLATES.values() for _, given in skill for answer in given}
    for name in NAMES:
        labels = glue.LABELS[name]
        used = set(labels[::5] if name == "stsb" else labels)
        assert used <= answers
    for skill, templates in TEMPLATES.items():
        assert len(templates) >= 6 and len({len(answers) for _, answers in templates}) == 1, skill


@pytest.mark.parametrize("name", mostly_slow(NAMES, ["mnli", "stsb"]))
def test_formats_are_glues(name):
    task = seqio.TaskRegistry.get(f"mini_{name}")
    example = next(task.get_dataset(None, "validation", shuffle=False).as_numpy_iterator())
    assert not {2} & {*example["inputs"], *example["targets"]}
    text, target = (example[f"{key}_pretokenized"].decode() for key in ("inputs", "targets"))
    if name == "mnli":
        first = {field: column[0] for field, column in _columns("mnli", "validation").items()}
        assert text == f"mnli hypothesis: {first['hypothesis']} premise: {first['premise']}"
        assert target == "entailment"
    if name == "stsb":
        assert target == "0.0"


@pytest.mark.slow
def test_glue_dir_reads_the_folder_back(tmp_path, monkeypatch):
    mini_glue.write_glue_folder(tmp_path)
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    for name in NAMES:
        for split in SPLITS:
            stored = "validation_matched" if (name, split) == ("mnli", "validation") else split
            assert _raw(f"glue_{name}", stored) == _raw(f"mini_{name}", split)
    assert tasks.available_splits("glue_mnli") == ("train", "validation_matched")


def _raw(task, split):
    dataset = seqio.TaskRegistry.get(task).source.get_dataset(split, shuffle=False)
    return [sorted(example.items()) for example in dataset.as_numpy_iterator()]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_neither_length_nor_words_solve_it(name, record_property):
    scores = mini_baselines.baselines(name)
    record_property("baselines", scores)
    print(name, scores)
    chance = {"stsb": 0.0, "mnli": 1 / 3}.get(name, 0.5)
    assert abs(scores["majority"] - chance) < 0.01
    assert scores["length"] < chance + 0.12
    assert scores["words"] < {"mnli": 0.6}.get(name, 0.75)


def test_the_mixture_draws_all_tasks_equally():
    mixture = seqio.MixtureRegistry.get("mini_glue_equal")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == dict.fromkeys((f"mini_{name}" for name in NAMES), 1.0)


def test_unknown_split_is_one_line():
    with pytest.raises(tasks.DataError, match="mini_sst2 has no split 'test'; it has train, valid"):
        seqio.TaskRegistry.get("mini_sst2").source.get_dataset("test")


def test_generators_give_the_same_again():
    again = mini_world.MiniSource(
        "mini_mrpc", "glue", mini_glue.GENERATORS["mrpc"], {"validation": 50}
    ).columns("validation")
    assert np.array_equal(again["sentence1"], _columns("mrpc", "validation")["sentence1"][:50])
