"""Tasks with pictures: what their tokens carry, their batches, and what is refused."""

import hashlib
import json
import os

import numpy as np
import pytest

from adalink_jax.data import EvalExamples, TrainBatches, corpus
from adalink_jax.data.images import Pictures
from adalink_jax.errors import UserError

from .conftest import byte_tokens
from .conftest import register as register_text
from .seeing import Eye, color, drawn, register, save

LENGTHS = {"inputs": 32, "targets": 8}
# Two questions of each picture, one the same for all.
TRIPLES = [(f"{i}.png", text, color(i)) for i in range(12) for text in ("color?", f"what is {i}?")]


@pytest.fixture(scope="module")
def tasks_of_pictures(tmp_path_factory):
    """Registers tasks of pictures, one of text, and a mixture; returns the folder of pictures."""
    import seqio
    import tensorflow as tf

    register("pictures", TRIPLES)
    register(
        "some_pictures", [(one if i % 3 else "", *rest) for i, (one, *rest) in enumerate(TRIPLES)]
    )
    references = [[answer, f"a {answer}"][: 1 + i % 2] for i, (_, _, answer) in enumerate(TRIPLES)]
    register("captions_of_pictures", TRIPLES, references=tf.ragged.constant(references))
    register(
        "raw_pictures",
        [(None, text, answer) for _, text, answer in TRIPLES],
        image=np.zeros((24, 2, 2)),
    )
    register_text("words_beside", [(f"word {i}", "red") for i in range(24)])
    seqio.MixtureRegistry.add("pictures_and_words", ["pictures", "words_beside"], default_rate=1.0)
    folder = tmp_path_factory.mktemp("seen") / "pictures"
    save(folder, range(12))
    return folder


@pytest.fixture
def pictures(tasks_of_pictures, tmp_path):
    return Pictures(Eye(), tasks_of_pictures, cache_dir=tmp_path, batch_size=8)


def train(name, pictures, seed=0, packing=False, **given):
    return TrainBatches(name, LENGTHS, 8, seed, packing, pictures=pictures, **given)


def examples_in(batch):
    """Each row's input and target as texts, its picture's features, and its mask."""

    def text(tokens):
        return bytes(token - 3 for token in tokens[tokens > 1].tolist()).decode()

    return [
        (text(given), text(target), images, mask.tolist())
        for given, target, images, mask in zip(
            batch["encoder_input_tokens"],
            batch["decoder_target_tokens"],
            batch["encoder_images"],
            batch["encoder_image_mask"],
            strict=True,
        )
    ]


FEATURES = {i: Eye().expected(drawn(i)) for i in range(12)}


def number_of(images) -> int:
    """The picture that a row's features are of."""
    (found,) = [i for i, one in FEATURES.items() if np.allclose(images, one, atol=1e-5)]
    return found


def test_tokens_carry_the_picture_and_the_references(tasks_of_pictures, tmp_path):
    found = corpus.tokens("captions_of_pictures", "train", tmp_path)
    assert list(found.images) == [image for image, *_ in TRIPLES]
    assert [json.loads(one) for one in found.references][:3] == [
        ["red"],
        ["red", "a red"],
        ["green"],
    ]
    assert [one.tolist() for one in found.inputs] == [byte_tokens(text) for _, text, _ in TRIPLES]
    plain = corpus.tokens("words_beside", "train", tmp_path)
    assert plain.images is None and plain.references is None and "images" not in plain.identity


def test_the_cache_of_tokens_keeps_them(tmp_path, monkeypatch):
    import seqio
    import tensorflow as tf

    class Known(seqio.FunctionDataSource):
        def identity(self, split):
            return {"kind": "known", "split": split}

    columns = {"inputs": ["a", "b"], "targets": ["c", "d"], "image": ["1.png", ""]}
    columns["references"] = [["x", "y"], ["z", "ü"]]
    seqio.TaskRegistry.add(
        "known_pictures",
        source=Known(
            lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(columns),
            splits=["train"],
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={
            one: seqio.Feature(seqio.ByteVocabulary()) for one in ("inputs", "targets")
        },
    )
    first = corpus.tokens("known_pictures", "train", tmp_path)
    assert len(os.listdir(tmp_path)) == 1
    monkeypatch.setattr(corpus.reading, "tokenize", None)
    again = corpus.tokens("known_pictures", "train", tmp_path)
    for found in (first, again):
        assert list(found.images) == columns["image"]
        assert [json.loads(one) for one in found.references] == columns["references"]
    assert first.identity == again.identity


def test_a_batch_has_the_features_of_each_row_s_picture(pictures):
    made = train("pictures", pictures)
    assert made.image_tokens == 4
    for step in range(4):
        batch = made.batch(step)
        for text, target, images, mask in examples_in(batch):
            number = number_of(images)
            assert mask == [1] * 4 and (f"{number}.png", text, target) in TRIPLES
        some = made.batch(step, np.array([1, 4, 5]))
        for name, array in batch.items():
            assert np.array_equal(some[name], array[[1, 4, 5]]), name
    assert "12 pictures of 4 tokens" in made.summary
    assert made.shapes == ((4 + 16, 8),)
    batch, (tokens, shape) = made.batch(0), made.size(0)
    text = sum(
        np.count_nonzero(batch[f"{one}_tokens"]) for one in ("encoder_input", "decoder_target")
    )
    assert tokens == text + 8 * 4 and shape == (8, 4 + 16, 8)


def test_rows_without_a_picture_have_a_mask_of_zeros(pictures):
    made = train("pictures_and_words", pictures)
    rows = [row for step in range(4) for row in examples_in(made.batch(step))]
    blind = [row for row in rows if row[0].startswith("word")]
    assert 0 < len(blind) < len(rows)
    for text, _, images, mask in rows:
        assert mask == [int((text, "red") not in [row[:2] for row in blind])] * 4
        assert images.any() == bool(mask[0])
    some = train("some_pictures", pictures)
    shown = {
        (text, bool(mask[0]))
        for step in range(9)
        for text, _, _, mask in examples_in(some.batch(step))
    }
    named = {(text, i % 3 > 0) for i, (_, text, _) in enumerate(TRIPLES)}
    assert shown == named


def test_evaluation_sees_each_example_once_with_its_picture(pictures):
    found = EvalExamples("captions_of_pictures", "validation", LENGTHS, limit=21, pictures=pictures)
    assert found.references[:2] == [["red"], ["red", "a red"]] and len(found.references) == 21
    indices = []
    for batch in found.batches(8, targets=True):
        seen = batch | found.images(batch)
        for index, row in zip(batch["indices"], examples_in(seen), strict=True):
            if index < 0:
                assert row[:2] == ("", "") and not row[2].any() and row[3] == [0] * 4
                continue
            indices.append(index)
            assert TRIPLES[index] == (f"{number_of(row[2])}.png", *row[:2])
    assert sorted(indices) == list(range(21))
    plain = EvalExamples("words_beside", "validation", LENGTHS, pictures=pictures)
    assert plain.images(next(plain.batches(8))) == {} and "image_encoder" not in plain.identity


def test_the_identity_of_data_is_that_of_its_pictures(pictures, tasks_of_pictures, tmp_path):
    identity = train("pictures", pictures).identity
    contents = [(tasks_of_pictures / f"{i}.png").read_bytes() for i in range(12) for _ in range(2)]
    digests = [hashlib.sha256(one).digest() for one in contents]
    expected = {"pictures": 12, "sha256": hashlib.sha256(b"".join(digests)).hexdigest()}
    assert identity["tasks"][0]["images"] == expected
    assert identity["image_encoder"]["fingerprint"] == Eye().fingerprint
    assert json.loads(json.dumps(identity)) == identity and str(tasks_of_pictures) not in str(
        identity
    )
    other = tmp_path / "other"
    save(other, [*range(11), 12])
    (other / "12.png").rename(other / "11.png")
    changed = train("pictures", Pictures(Eye(), other, cache_dir=tmp_path)).identity
    assert changed["tasks"][0]["sha256"] == identity["tasks"][0]["sha256"]  # The same tokens.
    assert changed["tasks"][0]["images"]["sha256"] != expected["sha256"]
    scored = EvalExamples("pictures", "validation", LENGTHS, pictures=pictures).identity
    assert scored["images"] == expected and scored["image_encoder"] == identity["image_encoder"]
    blind = train("words_beside", None).identity
    assert "image_encoder" not in blind and "images" not in blind["tasks"][0]


@pytest.mark.slow
def test_few_shots_and_held_out_examples_are_chosen_by_the_picture(pictures):
    """With equal texts, as of captions, only the pictures tell examples apart."""
    register("one_caption", [(f"{i}.png", "caption:", "a picture") for i in range(12)])
    reverse = [(f"{i}.png", "caption:", "a picture") for i in reversed(range(12))]
    register("one_caption_reversed", reverse)

    def chosen(name, **given):
        made = train(name, pictures, **given)
        return {number_of(row[2]) for step in range(6) for row in examples_in(made.batch(step))}

    few = chosen("one_caption", few_shot=3)
    assert len(few) == 3 and few < chosen("one_caption", few_shot=6)
    assert (
        few
        == chosen("one_caption_reversed", few_shot=3)
        != chosen("one_caption", few_shot=3, seed=1)
    )
    made = train("one_caption", pictures, few_shot=3).identity["tasks"][0]
    assert made["images"]["pictures"] == 3
    kept = chosen("one_caption", held_out=0.4)
    held = EvalExamples("one_caption", "held_out", LENGTHS, held_out=0.4, pictures=pictures)
    out = {
        number_of(images)
        for batch in held.batches(4)
        for images in held.images(batch)["encoder_images"]
        if images.any()
    }
    assert kept | out == set(range(12)) and not kept & out and out
    # Of a picture with two questions, both are on one side.
    sides = [
        EvalExamples("pictures", split, LENGTHS, held_out=0.4, pictures=pictures)
        for split in ("train", "held_out")
    ]
    assert [len(side) for side in sides] == [2 * len(kept), 2 * len(out)]


def test_what_has_no_place_for_a_picture_is_refused(pictures, tasks_of_pictures):
    blind = "task 'pictures' has pictures, such as '0.png', .* is blind; set Images.encoder"
    for call, message in (
        (lambda: train("pictures", None), blind),
        (lambda: train("pictures_and_words", None), blind),
        (lambda: EvalExamples("pictures", "validation", LENGTHS), blind),
        (lambda: train("pictures", pictures, packing=True), "set Batches.packing to False"),
        (
            lambda: EvalExamples(
                "pictures", "validation", LENGTHS, in_context=2, pictures=pictures
            ),
            "leave in_context out",
        ),
        (
            lambda: train("words_beside", pictures),
            "Images.encoder is set, but no task of words_beside has",
        ),
        (
            lambda: train("raw_pictures", pictures),
            "'image' is float64 of shape .2, 2.; expected a string",
        ),
        (lambda: train("raw_pictures", None), "leave it out to train on the text alone"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
