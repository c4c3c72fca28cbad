"""Metrics of captions against coco-caption's own, and closed formulas.

`golden/captions.json` holds sentences of this project, and what pycocoevalcap and Stanford's
tokenizer say of them. The photographs' captions are another's, so only their scores stand here.
"""

import csv
import json
import math
import re

import pytest

import tasks
from tasks import ptb
from tasks.caption_metrics import bleu, bleu4, cider, cider_d, rouge_l


@pytest.fixture(scope="module")
def golden(pytestconfig):
    return json.loads((pytestconfig.rootpath / "tests/golden/captions.json").read_text())


@pytest.fixture(scope="module")
def flickr(shared_data):
    """{photograph: its five captions}."""
    captions = {}
    with (shared_data / "captions/flickr8k_1000/captions.txt").open(newline="") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(row["caption"])
    return captions


def test_tokens_are_stanfords(golden):
    for text, tokens in golden["tokens"]:
        assert ptb.tokens(text) == tokens, text


def test_scores_are_coco_captions(golden):
    images = golden["images"]
    targets = [one["references"] for one in images]
    predictions = [one["prediction"] for one in images]
    for metric in (cider, bleu4, rouge_l):
        ((name, score),) = metric(targets, predictions).items()
        assert score == pytest.approx(100 * golden[name], rel=1e-9), name
    tokenized = [[ptb.tokens(text) for text in texts] for texts in targets]
    each = cider_d(tokenized, [ptb.tokens(text) for text in predictions])
    assert each == pytest.approx([one["cider"] for one in images], rel=1e-9)


def test_a_corpus_of_one_image_has_no_frequencies():
    assert cider([["a dog runs on grass"]], ["a dog runs on grass"]) == {"cider": 0.0}


def test_cider_by_hand():
    """Two images whose words differ, each caption its own reference: every cosine is 1."""
    texts = ["one two three four", "five six seven eight"]
    assert cider([[text] for text in texts], texts) == {"cider": pytest.approx(1000)}
    # Of two words of each image one is in both, which weighs nothing. So unigrams and bigrams agree
    # fully, and longer n-grams do not exist.
    texts = ["red dog", "red cat"]
    assert cider([[text] for text in texts], texts) == {"cider": pytest.approx(500)}
    # A longer caption of the same words, in disorder: unigrams alone, and the penalty of two
    # bigrams more.
    found = cider([["a b"], ["x y"]], ["b q a q", "x y"])["cider"]
    weight = math.log(2)
    cosine = 2 * weight**2 / math.sqrt(2 * weight**2 * (2 + 4) * weight**2)
    assert found == pytest.approx((1000 * cosine / 4 * math.exp(-4 / 72) + 500) / 2)


def test_bleu_of_nothing_in_common_is_nearly_zero_and_of_equals_one():
    assert bleu([[["a"]]], [["b", "c"]]) < 1e-3
    assert bleu([[[*"abcd"], [*"xyz"]]], [[*"abcd"]]) == pytest.approx(1)


def test_rouge_by_hand():
    # Three of four tokens in order; recall 3/5, the best of both references.
    found = rouge_l([["a b x c y", "q"]], ["a b c z"])["rouge_l"]
    precision, recall = 3 / 4, 3 / 5
    assert found == pytest.approx(100 * 2.44 * precision * recall / (recall + 1.44 * precision))
    assert rouge_l([["dog"]], [""]) == {"rouge_l": 0.0}


def test_examples_without_references_are_said():
    with pytest.raises(tasks.DataError, match="^example 1 has no reference"):
        cider([["a"], []], ["a", "b"])
    with pytest.raises(ValueError, match="1 predictions for 2 targets"):
        bleu4([["a"], ["b"]], ["a"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "tokens, expected",
    [(ptb.tokens, 0.765876), (lambda text: re.findall(r"[a-z0-9']+", text.lower()), 0.771884)],
    ids=["ptb", "words"],
)
def test_flickr8k(flickr, tokens, expected):
    """The first caption of each of a thousand photographs, against the other four."""
    tokenized = [[tokens(text) for text in texts] for texts in flickr.values()]
    scores = cider_d([texts[1:] for texts in tokenized], [texts[0] for texts in tokenized])
    assert sum(scores) / len(scores) == pytest.approx(expected, abs=5e-7)


def test_public_goldens(shared_data):
    folder = shared_data / "captions" / "eval"
    hypotheses, *references = (
        (folder / "nlg-eval" / f"{name}.txt").read_text().splitlines()
        for name in ("hyp", "ref1", "ref2")
    )
    targets = list(zip(*references, strict=True))
    assert cider(targets, hypotheses)["cider"] == pytest.approx(124.2192, abs=5e-5)
    assert bleu4(targets, hypotheses)["bleu4"] == pytest.approx(20.1143, abs=5e-5)
    assert rouge_l(targets, hypotheses)["rouge_l"] == pytest.approx(52.2104, abs=5e-5)
    golden = json.loads((folder / "flickr8k_cider_golden_20.json").read_text())
    scores = cider_d(
        [[text.split() for text in one["refs"]] for one in golden["items"]],
        [one["hyp"].split() for one in golden["items"]],
    )
    assert scores == pytest.approx([one["score"] for one in golden["items"]], rel=1e-9)
