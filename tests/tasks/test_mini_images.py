"""The image world: pictures show what is said of them, by a reading of pixels written apart."""

import collections
import hashlib
import itertools
import json
import re

import numpy as np
import pytest
import seqio

import tasks
from tasks import mini_images
from tasks.mini_images import downstream, raw, scenes, templates, tuned
from tasks.mini_images.albums import VERSION
from tests.tasks import mini_seeing

SOURCES = raw.SOURCES | tuned.SOURCES | downstream.SOURCES
SPLITS = ("train", "validation")
WRITTEN = ("mini_textvqa", "mini_stvqa", "mini_docvqa")


def _examples(name, split, count):
    return [SOURCES[name].example(split, index) for index in range(count)]


def _picture(key):
    name, index = key.split(":")
    return tasks.PICTURES[name](int(index))


def _read(key):
    picture = _picture(key)
    if "docvqa" in key:
        return mini_seeing.document(picture)
    return mini_seeing.scene(picture)


@pytest.mark.parametrize("name", SOURCES)
def test_pictures_show_their_meaning(name):
    for album in SOURCES[name].albums.values():
        for index in range(30):
            meaning, picture = album.meaning(index), album.picture(index)
            assert picture.dtype == np.uint8 and picture.shape == (32, 32, 3)
            assert scenes.part(meaning) in album.parts
            if isinstance(meaning, scenes.Document):
                assert mini_seeing.document(picture) == list(meaning.lines)
            else:
                shown = {scenes.PLACES[place]: thing.text for place, thing in meaning.things}
                assert mini_seeing.scene(picture) == shown


def test_a_picture_is_drawn_from_its_index_alone():
    """The same bytes on every machine and in every order; changing them must raise VERSION."""
    names = sorted(album.name for source in SOURCES.values() for album in source.albums.values())
    keys = list(itertools.product(names, (0, 7, 10**17)))
    forwards = [tasks.PICTURES[name](index).tobytes() for name, index in keys]
    backwards = [tasks.PICTURES[name](index).tobytes() for name, index in keys[::-1]]
    assert forwards == backwards[::-1] and len(set(forwards)) == len(keys)
    digest = hashlib.sha256(b"".join(forwards)).hexdigest()[:16]
    assert (VERSION, digest) == (1, "8b09c97f757527ad")


def test_version_names_the_texts():
    digest = hashlib.sha256(mini_images.VOCABULARY.identity.encode())
    for name in sorted(SOURCES):
        for split in SPLITS:
            for example in _examples(name, split, 50):
                digest.update(json.dumps(example, sort_keys=True).encode())
    digest.update("\n".join(raw.TEXTS.columns("validation")["text"]).encode())
    assert (VERSION, digest.hexdigest()[:16]) == (1, "6c3d31fec0386bc5")


@pytest.mark.parametrize("name", WRITTEN)
def test_answers_follow_from_the_pixels(name):
    for split in SPLITS:
        for example in _examples(name, split, 60):
            answer = mini_seeing.answer(example["inputs"], _read(example["image"]))
            assert example["targets"] == answer, example
            if name == "mini_textvqa":
                counts = collections.Counter(example["references"])
                assert sum(counts.values()) == 10 and counts.pop(answer) >= 8
                assert set(counts) <= {"unanswerable"}
            else:
                assert list(example["references"]) == [answer]


def test_facts_are_asked_by_the_color_that_is_seen():
    known = {
        "ruby": "red", "cherry": "red", "emerald": "green", "lime": "green", "sapphire": "blue",
        "blueberry": "blue", "topaz": "yellow", "lemon": "yellow", "amber": "orange",
        "mango": "orange", "amethyst": "purple", "plum": "purple", "pearl": "white",
        "coconut": "white", "morganite": "pink", "peach": "pink",
    }  # fmt: skip
    for split in SPLITS:
        for example in _examples("mini_okvqa", split, 60):
            color = mini_seeing.asked_object(example["inputs"], _read(example["image"]))
            assert known[example["targets"]] == color
            (kind,) = re.findall("gem|fruit", example["inputs"])
            answers = collections.Counter(example["references"])
            assert sum(answers.values()) == 10 and answers[example["targets"]] >= 6
            assert set(answers) <= set(templates.FACTS[kind][color])


@pytest.mark.parametrize("name", downstream.CAPTIONS)
def test_captions_are_true(name):
    for split in SPLITS:
        for example in _examples(name, split, 60):
            seen = _read(example["image"])
            captions = list(example["references"])
            assert len(set(captions)) == 5 and example["targets"] in captions
            for caption in captions:
                assert mini_seeing.true_of(caption, seen), (caption, seen)
                assert not re.search(r"\ba [aeiou]", caption)
                if name == "mini_textcaps":
                    (word,) = [t.split()[1] for t in seen.values() if len(t.split()) == 2]
                    assert word in caption.split()


def test_the_oracle_tells_wrong_captions_from_right_ones():
    """It would be worth nothing if it agreed with everything."""
    seen = {"top left": "big red circle", "bottom right": "small blue cross"}
    assert mini_seeing.true_of("a red circle above a small blue cross .", seen)
    for wrong in (
        "a red circle below a blue cross .",
        "a small red circle .",
        "a red cross .",
        "a red circle and a blue circle .",
        "a red circle at the top right .",
    ):
        assert not mini_seeing.true_of(wrong, seen)


def _meanings(name, split, count):
    album = SOURCES[name].albums[split]
    return {album.meaning(index).meaning() for index in range(count)}


def _places():
    for name in SOURCES:
        for split in SPLITS:
            yield name, split, ("tasks" if name in downstream.SOURCES else "pretraining", split)


@pytest.mark.parametrize("count", [30, pytest.param(400, marks=pytest.mark.slow)])
def test_no_meaning_is_in_two_places(count):
    found = collections.defaultdict(set)
    for name, split, place in _places():
        found[place] |= _meanings(name, split, count)
    assert len(found) == 4
    for one, other in itertools.combinations(found.values(), 2):
        assert len(one) > count and not one & other


def test_no_template_is_in_two_groups():
    groups = {name: set(some) for name, some in templates.GROUPS.items()}
    for one, other in itertools.combinations(groups.values(), 2):
        assert not one & other
    formats = {word for text in groups["tasks"] for word in text.split() if word.endswith(":")}
    formats |= {name.removeprefix("mini_") for name in tasks.MINI_IMAGE_TASKS}
    for text in groups["raw"] | groups["tuned"]:
        assert not formats & set(text.split()) - {":"}
    # The tuned base explains other facts than those that the tasks ask for.
    assert not set(templates.ASKED_FACTS) & set(templates.TUNED_FACTS)


@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.slow)])
def test_no_text_of_a_task_is_in_training_texts(count):
    of_tasks, trained = set(), set()
    for name in downstream.SOURCES:
        for example in _examples(name, "train", count):
            of_tasks |= {example["inputs"]}
            if name in downstream.CAPTIONS:
                of_tasks |= set(example["references"])
    for name in raw.SOURCES | tuned.SOURCES:
        for example in _examples(name, "train", count):
            trained |= {example["inputs"], example["targets"]}
    assert len(of_tasks) > count and not of_tasks & trained


def test_every_word_is_in_the_vocabulary():
    vocabulary = mini_images.VOCABULARY
    assert vocabulary.vocab_size <= 256
    for name in SOURCES:
        for example in _examples(name, "train", 100):
            for text in (example["inputs"], example["targets"], *example.get("references", ())):
                ids = vocabulary.encode(text)
                assert vocabulary.unk_id not in ids and vocabulary.decode(ids) == text
    for text in raw.TEXTS.columns("validation")["text"]:
        assert vocabulary.unk_id not in vocabulary.encode(text)
    # The mini bases were trained with these ids.
    expected = "c9f8947f70f6e356c2539d566cd346bee4837ab86afa4f1b14d48947834f8ab1"
    assert tasks.MINI_VOCABULARY.identity == expected


def test_what_the_tasks_need_to_know_is_told_by_texts_alone():
    told = " ".join(raw.TEXTS.columns("train")["text"])
    for kind in templates.FACTS:
        for value, names in templates.FACTS[kind].items():
            for name in names:
                assert re.search(rf"\b{name} is {value}\b|\b{value} {kind} : {name}\b", told)
    shown = [template for group in ("raw", "tuned") for template in templates.GROUPS[group]]
    facts = [templates.FACTS[kind].values() for kind in templates.ASKED_FACTS]
    asked = {name for values in facts for names in values for name in names}
    assert not asked & {word for template in shown for word in template.split()}


def test_seqio_yields_pictures_keys_and_references():
    lengths = {"inputs": 32, "targets": 32}
    dataset = seqio.get_mixture_or_task("mini_coco").get_dataset(
        lengths, "validation", shuffle=False
    )
    example = next(dataset.as_numpy_iterator())
    assert example["image"] == b"mini_coco_validation:0"
    assert example["references"].shape == (5,)
    assert example["targets"][-1] == mini_images.VOCABULARY.eos_id
    for name in tasks.MINI_IMAGE_TASKS:
        assert tasks.EVAL_SPLITS[name] == ("validation",) and name in tasks.SCORED_BY
    for mixture, count in {"captions": 2, "questions": 4, "raw": 6, "instructions": 3}.items():
        found = seqio.get_mixture_or_task(f"mini_image_{mixture}")
        assert len(seqio.get_subtasks(found)) == count
