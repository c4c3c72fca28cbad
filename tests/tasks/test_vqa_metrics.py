"""Metrics of answers against the official script's, published examples and hand-made ones."""

import json

import pytest

import tasks
from tasks.vqa_metrics import anls, exact_match, normalized, relaxed_accuracy, soft_accuracy


def test_soft_accuracy_is_the_official_scripts(pytestconfig):
    """`golden/answers.json` holds questions of this project, and vqaEval.py's scores of them."""
    golden = json.loads((pytestconfig.rootpath / "tests/golden/answers.json").read_text())
    for one in golden["questions"]:
        found = soft_accuracy([one["answers"]], [one["prediction"]])
        assert found == {"vqa_accuracy": pytest.approx(one["accuracy"])}, one
    found = soft_accuracy(
        [one["answers"] for one in golden["questions"]],
        [one["prediction"] for one in golden["questions"]],
    )
    assert found["vqa_accuracy"] == pytest.approx(golden["accuracy"])


@pytest.mark.parametrize("matches, expected", [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100)])
def test_soft_accuracy_by_matches(matches, expected):
    """The mean over ten sets of nine of min(1, matches / 3)."""
    answers = ["red"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert soft_accuracy([answers], ["red"])["vqa_accuracy"] == pytest.approx(expected)


def test_too_few_annotators_are_said():
    with pytest.raises(tasks.DataError, match="^example 1 has 1 answer"):
        soft_accuracy([["a"] * 10, ["b"]], ["a", "b"])


def test_normalized_by_hand():
    assert normalized("The Two Dogs, and a cat!") == "2 dogs and cat"
    assert normalized("red/blue") == "red blue"
    assert normalized("1,000") == "1000"  # No space, as a number has a comma.
    # vqaEval.py means to keep the first of these periods, but does not.
    assert normalized("1.a 2.5 U.S.") == "1a 2.5 us"
    assert normalized("Dont youd've") == "don't you'd've"
    assert normalized("x." * 40) == "x" * 32 + "x." * 8  # Its limit, which is an accident.


def test_anls_by_hand():
    def one(answers, prediction):
        return anls([answers], [prediction])["anls"]

    assert one(["Coca  Cola"], "coca cola ") == 100
    assert one(["cat", "coat"], "coats") == pytest.approx(80)  # One of five, of the better one.
    assert one(["abcd"], "abxx") == 0  # Half is too far.
    assert one(["abcde"], "abcxx") == pytest.approx(60)
    assert one(["kitten"], "sitting") == pytest.approx(100 * (1 - 3 / 7))
    assert one([""], "") == 100


def test_anls_of_public_examples(shared_data):
    folder = shared_data / "vqa/anls/evaluation/evaluate_json"
    gold = json.loads((folder / "gold_label.json").read_text())["data"]
    said = json.loads((folder / "submission.json").read_text())
    answers = {one["questionId"]: one["answer"] for one in said}
    found = anls([one["answers"] for one in gold], [answers[one["questionId"]] for one in gold])
    assert found["anls"] == pytest.approx(37.778, abs=5e-4)


def test_exact_and_relaxed():
    targets = [["Yes"], ["42"], ["10%"], ["0"], ["a", "b"], ["100"]]
    predictions = ["yes", "44", "0.104", "0.0", "B", "106"]
    assert exact_match(targets, predictions) == {"exact_match": pytest.approx(100 * 2 / 6)}
    assert relaxed_accuracy(targets, predictions) == {
        "relaxed_accuracy": pytest.approx(100 * 4 / 6)
    }
    # Words that Python takes for numbers are words.
    found = relaxed_accuracy([["nan"], ["inf"], ["inf"]], ["NaN", "inf", "7"])
    assert found == {"relaxed_accuracy": pytest.approx(100 * 2 / 3)}
