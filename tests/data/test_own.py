"""What a table of one's own is taken for, and what is wrong with it."""

import collections
import random

import numpy as np
import pytest
import scipy.stats

from adalink_jax.data import own
from adalink_jax.data.examples import Meaning, meant, pairs
from adalink_jax.data.own import Table
from adalink_jax.data.tables import Rows
from adalink_jax.errors import UserError
from tests.data.test_tables import NAMES, write

THINGS = ("film", "story", "song", "house", "garden", "play", "book", "picture", "poem", "walk")
REVIEWS = [
    {"text": f"the {thing} was {word}", "label": label}
    for thing in THINGS
    for word, label in (("good", "Positive"), ("lovely", "Positive"), ("bad", "Negative"))
]


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes lines or rows into a file of this folder; returns its name."""
    monkeypatch.chdir(tmp_path)

    def make(content, name="reviews.csv"):
        if isinstance(content, str):
            (tmp_path / name).write_text(content)
        else:
            write(tmp_path / name, content)
        return name

    return make


def lines(*rows: str, head="text,label") -> str:
    return "\n".join([head, *rows, ""])


def said(path, **settings) -> str:
    return "\n".join(own.read(Table(path, **settings)).lines)


def test_what_is_said_of_a_table_that_is_only_scored(file):
    rows = [{"text": f"t{i}", "label": "yes" if i % 4 else "no"} for i in range(40)]
    dev = file([*rows[:2], {"text": "new", "label": "no"}], "dev.csv")
    lines = own.read(Table(file(rows, "all.csv"), dev=dev), trains=False).lines
    assert "all.csv: 3 to score (dev.csv)" in lines
    assert "all.csv: no 66.7%, yes 33.3%" in lines  # Of those to score.
    seen = "all.csv: 2 of the texts to score are also trained on, 2 of them with the same target"
    assert seen in lines and not any("to train on" in line for line in lines)


def test_every_format_gives_the_same_division_in_the_same_order(file):
    found = [own.read(Table(file(REVIEWS, name))) for name in NAMES]
    assert all(one.splits == found[0].splits for one in found)
    assert all(one.files == found[0].files for one in found)
    train, dev = found[0].splits["train"], found[0].splits["validation"]
    everything = [(row["text"], row["label"]) for row in REVIEWS]
    assert len(dev) == 3 and sorted(train + dev) == sorted(everything)
    assert [pair for pair in everything if pair in train] == train
    # The order of the rows decides the order of the examples, and not who is held out.
    mixed = random.Random(0).sample(REVIEWS, len(REVIEWS))
    again = own.read(Table(file(mixed))).splits
    assert sorted(again["validation"]) == sorted(dev)
    assert again["train"] == [p for p in ((r["text"], r["label"]) for r in mixed) if p in train]


def test_what_it_is_taken_for_is_said(file):
    text = said(file(REVIEWS))
    assert "reviews.csv: cells between commas; columns text, label" in text
    assert "input from 'text', target from 'label': classification, as there are 2" in text
    assert "27 examples to train on, 3 to score (a tenth, chosen by a hash)" in text
    train = own.read(Table("reviews.csv")).splits["train"]
    share = sum(label == "Positive" for _, label in train) / 27
    assert f"Negative {1 - share:.1%}, Positive {share:.1%}" in text
    assert "always answering 'Positive' is right in" in text
    file(REVIEWS[:6], "dev.csv")
    text = said("reviews.csv", dev="dev.csv")
    assert "30 examples to train on, 6 to score (dev.csv)" in text
    assert "always answering 'Positive' is right in 66.7% of those to score" in text
    assert "6 of the texts to score are also trained on, 6 of them with the same target" in text
    twice = [*REVIEWS, REVIEWS[0], {**REVIEWS[1], "label": "Negative"}]
    text = said(file(twice), dev="dev.csv")
    assert "1 examples to train on repeat another one" in text
    assert "1 texts to train on stand with several targets" in text


@pytest.mark.parametrize(
    ("rows", "settings", "kind", "labels"),
    [
        (REVIEWS, {}, "classification", ("Negative", "Positive")),
        (REVIEWS, {"labels": ("Positive", "Negative")}, "classification", ("Positive", "Negative")),
        (REVIEWS, {"kind": "text"}, "text", ()),
        ([{"text": f"{i}", "label": f"{i} more"} for i in range(40)], {}, "text", ()),
        # Few numbers are labels, many are numbers, unless they are said to be texts.
        (
            [{"text": f"t{i}", "label": i % 3} for i in range(40)],
            {},
            "classification",
            tuple("012"),
        ),
        ([{"text": f"t{i}", "label": i / 8} for i in range(41)], {"kind": "text"}, "text", ()),
        (
            [{"text": f"t{i}", "label": i / 8} for i in range(41)],
            {},
            "regression",
            tuple(f"{i / 5:.1f}" for i in range(26)),
        ),
        (
            [{"text": f"t{i}", "label": -i} for i in range(41)],
            {"step": 10.0},
            "regression",
            ("-40", "-30", "-20", "-10", "0"),
        ),
    ],
)
def test_the_kind_is_inferred_and_can_be_said(file, rows, settings, kind, labels):
    found = own.read(Table(file(rows), **settings))
    assert (found.meaning.kind, found.labels) == (kind, labels)


def test_numbers_are_rounded_as_those_of_stsb(file):
    """To the nearest 0.2, halves to the even one, as T5 and TensorFlow do."""
    import tensorflow as tf

    from tasks import glue

    values = [i / 20 for i in range(101)]
    found = own.read(Table(file([{"text": f"t{v}", "label": v} for v in values])))
    assert found.labels == glue.SCORES
    rounded = dict(found.files["path"])
    # In float32 some ties are none, and others become ties; halves are ties in both.
    for value in (*values[::4], *values[::10]):
        text = tf.strings.as_string(tf.round(np.float32(value) * 5) / 5, precision=1)
        assert rounded[f"t{value}"] == text.numpy().decode()
    worst = max(abs(float(rounded[f"t{value}"]) - value) for value in values)
    assert worst <= 0.1 + 1e-9


def test_class_ids_become_the_labels_that_are_named(file):
    rows = [{"sentence": f"a {i}", "label": i % 2} for i in range(40)]
    found = own.read(Table(file(rows, "a.tsv"), labels=("negative", "positive")))
    assert found.files["path"][:2] == [("a 0", "negative"), ("a 1", "positive")]
    assert "as its numbers are class ids of negative, positive" in "\n".join(found.lines)


def test_spaces_around_a_target_are_none_of_it(file):
    path = file(lines("a fine film, good", "a dull film, bad", "b, good ", "c,bad"))
    found = own.read(Table(path, dev=path))
    assert found.labels == ("bad", "good") and found.files["path"][2] == ("b", "good")


def test_several_columns_are_joined_with_their_names(file):
    rows = [
        {"idx": i, "premise": f"a {i}", "hypothesis": f"b {i}", "label": f"l{i % 2}"}
        for i in range(20)
    ]
    expected = ("premise: a 0 hypothesis: b 0", "l0")
    assert own.read(Table(file(rows))).files["path"][0] == expected
    found = own.read(Table("reviews.csv", inputs=("hypothesis", "idx"), target="label"))
    assert found.files["path"][0] == ("hypothesis: b 0 idx: 0", "l0")


def test_two_columns_of_any_name_are_text_and_target(file):
    rows = [{"film": row["text"], "verdict": row["label"]} for row in REVIEWS]
    assert own.read(Table(file(rows))).meaning.inputs == ("film",)
    assert own.read(Table("reviews.csv", inputs=("verdict",))).meaning.target == "film"
    both = [{"Label": row["label"], "Text": row["text"]} for row in REVIEWS]
    assert own.read(Table(file(both))).meaning.inputs == ("Text",)


def test_a_folders_split_is_scored(file, tmp_path):
    for split in ("train", "dev"):
        write(tmp_path / "films" / split, REVIEWS if split == "train" else REVIEWS[:4])
    (tmp_path / "films/dataset_dict.json").write_text('{"splits": ["train", "dev"]}')
    found = own.read(Table("films"))
    assert {split: len(some) for split, some in found.splits.items()} == {
        "train": 30, "validation": 4,
    }  # fmt: skip
    assert "30 examples to train on, 4 to score (films/dev)" in "\n".join(found.lines)
    assert len(own.read(Table("films", dev="train")).splits["validation"]) == 30


POSITIVE = ["a,Positive", "b,Positive", "c,Positive", "d,Negative", "e,Negative", "f,Negative"]
FAULTS = {
    "a label in other letters": (
        lines(*POSITIVE, "g,negative"),
        {},
        "reviews.csv:8: the label is 'negative', where 3 others are 'Negative'; it may be one",
    ),
    "a number in two ways": (
        lines("a,1", "b,1", "c,0", "d,0", "e,0", "f,1.0"),
        {},
        "reviews.csv:7: the label is '1.0', where 2 others are '1'; it may be one label",
    ),
    "no label": (
        lines(*POSITIVE, "g,negative", "h,negative", "i,bad"),
        {"labels": ("Negative", "Positive")},
        "reviews.csv, lines 8, 9: 'negative' is a target, but none of the labels Negative, "
        "Positive (1 more is none); did you mean 'Negative'?",
    ),
    "an empty text": (
        lines(*POSITIVE, " ,Positive", ",Negative"),
        {},
        "reviews.csv, lines 8, 9: the text is ' '; expected a non-empty string",
    ),
    "an empty target": (lines(*POSITIVE, "g,"), {}, "reviews.csv:8: the target is ''"),
    "the header again": (
        lines(*POSITIVE, "text,label", "g,Positive"),
        {},
        "reviews.csv:8: the header again, as an example",
    ),
    "unknown columns": (
        lines("1,a,Positive", head="no,film,verdict"),
        {},
        "reviews.csv: the columns are no, film, verdict; say which hold the text and the target: "
        "--input=… --target=…",
    ),
    "a column that is not there": (
        lines(*POSITIVE),
        {"inputs": ("texts",), "target": "label"},
        "reviews.csv: no column 'texts'; did you mean 'text'? there are text, label",
    ),
    "one target": (lines("a,x", "b,x", "c,x"), {}, "all targets are 'x': nothing to learn"),
    "no number": (
        lines("a,1", "b,2", "c,three"),
        {"kind": "regression"},
        "reviews.csv:4: the target is 'three'; expected a number",
    ),
    "a label held out whole": (
        lines(*(f"{c},l{c}" for c in "abcdefgh"), *(f"{c},l{c}" for c in "abcdefgh")),
        {"kind": "classification"},
        "would be held out to be scored; give more of them, or the examples to score: --dev",
    ),
}


@pytest.mark.parametrize(("content", "settings", "line"), FAULTS.values(), ids=FAULTS)
def test_faults_are_one_line_with_their_places(file, content, settings, line):
    with pytest.raises(UserError) as raised:
        own.read(Table(file(content), **settings))
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_targets_to_score_are_those_that_are_trained_on(file):
    file(REVIEWS)
    dev = file(lines("a,Positive", "b,negative", "c,positive"), "dev.csv")
    with pytest.raises(UserError) as raised:
        own.read(Table("reviews.csv", dev))
    assert str(raised.value) == (
        "dev.csv:3: 'negative' is a target, but none of the labels Negative, Positive (1 more is "
        "none); did you mean 'Negative'?"
    )
    rows = [{"text": f"t{i}", "label": i / 8} for i in range(41)]
    file(rows, "numbers.csv")
    dev = file(lines("a,2.2", "b,5.3"), "dev.csv")
    with pytest.raises(UserError, match="dev.csv:3: the target is 5.3, outside of the numbers"):
        own.read(Table("numbers.csv", dev))


def test_a_rare_label_that_is_nearly_another_is_said(file):
    rows = [*REVIEWS * 3, {"text": "a slip", "label": "Postive"}]
    assert "reviews.csv:92: the label is 'Postive'; is it 'Positive'?" in said(
        file(rows), dev="reviews.csv"
    )
    names = [*REVIEWS * 3, {"text": "no slip", "label": "not_Positive"}]
    assert "is it" not in said(file(names), dev="reviews.csv")


def test_half_of_a_character_is_refused(file):
    path = file('{"text": "a \\ud83d", "label": "x"}\n{"text": "b", "label": "y"}\n', "a.jsonl")
    with pytest.raises(UserError, match="a.jsonl:1: holds half of a character"):
        own.read(Table(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ("a", "a")}, "takes two or more, all different"),
        ({"labels": ("a", "b"), "kind": "text"}, "Table.kind is text, which has no labels"),
        ({"delimiter": ",,"}, "it takes one character"),
        ({"kind": "texts"}, "did you mean 'text'"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UserError, match=message):
        Table("reviews.csv", **settings)


def test_settings_of_a_table_that_is_not_there():
    with pytest.raises(UserError, match="Table.path is not set, but other settings of the table"):
        Table(target="label")
    assert not Table().given and Table(dev="dev.csv").given


def test_python_and_files_mean_the_same(file):
    path = file(REVIEWS)
    examples = [(row["text"], row["label"]) for row in REVIEWS]
    assert pairs(REVIEWS) == pairs(examples) == (examples, ("Negative", "Positive"))
    found = own.read(Table(path))
    assert (found.files["path"], found.labels) == pairs(examples)
    with pytest.raises(UserError, match="example 30: the label is 'positive', where 20 others"):
        pairs([*examples, ("a film", "positive")])


def test_registered_it_is_a_task_with_metrics_of_its_kind(file):
    import seqio

    import tasks
    from tasks.examples import number

    found = own.read(Table(file(REVIEWS)))
    record = found.register("own_reviews", tasks.MINI_VOCABULARY)
    assert tasks.LABELS["own_reviews"] == ("Negative", "Positive")
    source = tasks.source_identity("own_reviews", "validation")
    assert source["table"] == record and source["labels"] == ["Negative", "Positive"]
    rows = [{"text": f"t{i}", "label": i / 8} for i in range(41)]
    own.read(Table(file(rows))).register("own_reviews", tasks.MINI_VOCABULARY)  # In its place.
    task = seqio.TaskRegistry.get("own_reviews")
    assert task.num_input_examples("train") == 37
    targets, predictions = [0.2, 4.0, 3.0, 1.0], [0.4, 3.0, 3.2, 1.0]
    values = {k: v for f in task.metric_fns for k, v in f(targets, predictions).items()}
    assert values == pytest.approx(
        {
            "pearson_corrcoef": 100 * scipy.stats.pearsonr(targets, predictions)[0],
            "spearman_corrcoef": 100 * scipy.stats.spearmanr(targets, predictions)[0],
        }
    )
    assert task.postprocess_fn("2.4") == 2.4
    assert number("none", labels=("1.0", "2.0")) == 1.0
    for name in ("mini_cola", "mini_glue_equal", "a b"):
        with pytest.raises(tasks.DataError, match="another MIXTURE_OR_TASK_NAME|cannot be a task"):
            found.register(name, tasks.MINI_VOCABULARY)


def test_targets_that_cannot_be_generated_are_counted(file):
    import tasks

    rows = [{"text": f"{i}", "label": "good"} for i in range(3)]
    rows += [{"text": "a", "label": "Good"}, {"text": "b", "label": "good\nbad"}]
    table = Table(file(rows), dev="reviews.csv", kind="text")
    *_, line = own.read(table).remarks_of(tasks.MINI_VOCABULARY)
    assert line.startswith("2 of the 5 targets to score cannot be generated as they stand")
    lines = own.read(Table(file(REVIEWS))).remarks_of(tasks.MINI_VOCABULARY)
    assert not any("generated" in line for line in lines)


def test_a_record_of_a_table_says_what_is_left_open(file):
    import tasks

    found = own.read(Table(file(REVIEWS), labels=("Positive", "Negative")))
    found.register("own_known", tasks.MINI_VOCABULARY)
    known = tasks.source_identity("own_known", "train")
    test = file(
        [{"label": "Positive", "text": "one"}, {"label": "Positive", "text": "two"}], "t.csv"
    )
    scored = own.read(Table(dev=test), known)
    assert scored.labels == ("Positive", "Negative") and set(scored.splits) == {"validation"}
    with pytest.raises(UserError, match="t.csv:2: 'positive' is a target, but none of the labels"):
        own.read(Table(dev=file(lines("one,positive"), "t.csv")), known)
    with pytest.raises(UserError, match="record of the table it was trained on is damaged"):
        own.read(Table(dev=test), {**known, "table": {"inputs": 3}})


def test_rows_of_python_have_no_names_of_files():
    rows = Rows({"text": ["a", ""], "label": ["x", "y"]}, numbers=range(2))
    with pytest.raises(UserError, match=r"^example 1: the text is ''"):
        meant(rows, Meaning())


def test_words_that_the_base_does_not_know_are_said():
    import tasks

    known = [("the film was good", "good"), ("the film was bad", "bad")]
    assert own.unknown(tasks.MINI_VOCABULARY, known, ("good", "bad")) == []
    lines = own.unknown(tasks.MINI_VOCABULARY, [("the xylophone was good", "")], ("Praise",))
    assert lines[0].startswith("25.0% of the inputs' tokens are unknown to the base's vocabulary")
    assert lines[1] == "the base's vocabulary does not know the label 'Praise'"


def test_a_tenth_holds_the_labels_in_their_shares(file):
    rows = [{"text": f"text {i}", "label": "rare" if i % 4 == 0 else "usual"} for i in range(80)]
    found = own.read(Table(file(rows)))
    assert collections.Counter(t for _, t in found.splits["validation"]) == {"rare": 2, "usual": 6}
    text = said("reviews.csv")
    assert "always answering 'usual' is right in 75.0% of those to score" in text
    assert "with 8 to score, one example is 12.5 points" in text


def test_a_score_on_one_label_alone_is_said_to_say_nothing():
    train = [("a", "x"), ("b", "y")] * 30
    lines = own.remarks(train, [("c", "y")] * 60, ("x", "y"))
    assert "always answering 'y' is right in 100.0% of those to score" in lines
    assert "all examples to score have one label, 'y': a score says nothing" in lines
    assert not any("one example is" in line for line in lines)


def test_a_letter_that_is_missing_is_a_slip_and_a_compound_is_none(file):
    rows = [{"text": f"{i}", "label": "positive"} for i in range(19)]
    rows += [{"text": f"n{i}", "label": "negative"} for i in range(20)]
    text = said(file([*rows, {"text": "last", "label": "positiv"}], "pn.csv"))
    assert "pn.csv:41: the label is 'positiv'; is it 'positive'?" in text
    names = [{"text": f"{i}", "label": "entailment"} for i in range(60)]
    names.append({"text": "one", "label": "not_entailment"})
    assert "is it" not in said(file(names, "rte.csv"), dev="pn.csv", kind="text")
