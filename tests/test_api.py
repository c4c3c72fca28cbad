"""The public names, and the calls of a notebook."""

import dataclasses
import doctest
import functools
import json
import pathlib
import types

import jax
import numpy as np
import pytest

import adalink_jax as al
from adalink_jax.data import own
from adalink_jax.data.examples import held_out, pairs
from adalink_jax.errors import UserError

FILMS = [(f"a {word} film", label) for word, label in (("fine", "good"), ("dull", "bad"))] * 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run of the docstrings' examples, which is finished when they make it again."""
    folder = tmp_path_factory.mktemp("api") / "run"
    settings = {"validation": FILMS, "train_steps": 1, "model_dir": folder}
    return al.finetune("mini", al.AdaLink(rank=1), FILMS, **settings), settings


def test_every_public_name_is_there():
    for name in dir(al):
        assert getattr(al, name) is not None
    assert al.AdaLink(rank=4) == al.METHODS["adalink"](rank=4)
    with pytest.raises(AttributeError, match="has no attribute 'AdaLinc'"):
        _ = al.AdaLinc


def test_finetune_leaves_what_train_leaves(trained, capsys):
    run, settings = trained
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {"config.gin", "run.json", "metrics.jsonl", "results.json", "adapter"}
    assert run.adapter.method == al.AdaLink(rank=1)
    assert run.history[0]["step"] == 1 and np.isfinite(run.history[0]["train/loss"])
    record = json.loads((run.folder / "run.json").read_text())
    assert record["configuration"]["method"]["rank"] == 1
    assert record["data"]["tasks"][0]["source"]["labels"] == ["bad", "good"]
    again = al.finetune("mini", al.AdaLink(rank=1), FILMS, **settings)
    assert "nothing to do" in capsys.readouterr().out
    assert again.scores == run.scores
    with pytest.raises(UserError, match="eval_limit was None and is 4"):
        al.finetune("mini", al.AdaLink(rank=1), FILMS, **settings, options=[al.Evaluation(limit=4)])
    with pytest.raises(UserError, match="rank was 1 and is 2"):
        al.finetune("mini", al.AdaLink(rank=2), FILMS, **settings)
    for options, words in (
        ([al.Batches(few_shot=4), al.Batches(packing=True)], "options has two of Batches"),
        ([own.Table(path="a.csv")], "expected groups of settings: Batches, Evaluation, Images,"),
        (["few_shot"], "expected groups of settings"),
        (al.Batches(), "expected a list of groups"),
    ):
        with pytest.raises(UserError, match=words):
            al.finetune("mini", al.AdaLink(rank=1), FILMS, **settings, options=options)
    # Of a group, what is an argument of the call stays that.
    with pytest.raises(UserError, match="few_shot was None and is 4"):
        al.finetune("mini", al.AdaLink(rank=1), FILMS, **settings, options=[al.Batches(few_shot=4)])
    batches = [al.Batches(batch_size=8)]
    for more, words in (
        ({}, "batch_size was 32 and is 8"),
        ({"batch_size": 4}, "give one of them"),
    ):
        with pytest.raises(UserError, match=words):
            al.finetune("mini", al.AdaLink(rank=1), FILMS, **settings, **more, options=batches)


def test_a_base_in_memory_is_the_same_run(trained, capsys):
    from tasks import MINI_VOCABULARY

    run, settings = trained
    base = al.load_base("mini")
    al.finetune(base, al.AdaLink(rank=1), FILMS, vocabulary=MINI_VOCABULARY, **settings)
    assert "nothing to do" in capsys.readouterr().out


def test_predictions_are_those_of_the_network(trained):
    run, _ = trained
    config, base = al.load_base("mini")
    from tasks import MINI_VOCABULARY as vocabulary

    (found,) = al.predict("mini", run, ["a fine film"])
    assert found.prediction == max(found.scores, key=found.scores.get)
    ids = np.array([[*vocabulary.encode("a fine film"), vocabulary.eos_id]])
    params = al.merge(base, run.adapter.tree)
    model = al.Transformer(config, run.adapter.method)
    apply = jax.jit(functools.partial(model.apply, enable_dropout=False))
    for label, score in found.scores.items():
        target = np.array([[*vocabulary.encode(label), vocabulary.eos_id]])
        given = np.pad(target, ((0, 0), (1, 0)))[:, :-1]
        logits = np.asarray(apply({"params": params}, ids, given, target)[0], np.float64)
        normalizer = np.log(np.exp(logits).sum(-1))
        expected = sum(logits[i, t] - normalizer[i] for i, t in enumerate(target[0]))
        assert score == pytest.approx(expected, abs=1e-4)
    assert al.predict("mini", run, []) == []
    with pytest.raises(UserError, match="text 1 is ' '"):
        al.predict("mini", run, ["a film", " "])
    with pytest.raises(UserError, match="has no route .rte.*its routes are all"):
        al.predict("mini", run, ["a film"], route="rte")


def test_texts_that_are_cut_are_said(trained, monkeypatch):
    monkeypatch.setattr(
        "adalink_jax.data.examples._LONGEST", 16
    )  # As 512, whose program is slow here.
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 16 tokens"):
        al.predict("mini", trained[0], ["a fine film", "a fine film " * 9])


def test_what_does_not_belong_together_is_refused(trained):
    import seqio

    bytes_of_text = seqio.ByteVocabulary(extra_ids=200)  # 459 ids; the base has 384 rows.
    with pytest.raises(UserError, match="459 ids, but the base's table only 384 rows"):
        al.predict("mini", trained[0], ["a fine film"], vocabulary=bytes_of_text)
    with pytest.raises(UserError, match="route='rte' is given, but no adapter"):
        al.predict("mini", None, ["a fine film"], ["good", "bad"], route="rte")
    for texts in ({"text": ["a film"]}, types.SimpleNamespace(columns=["text"]), b"a film", None):
        with pytest.raises(UserError, match="expected a list of texts"):
            al.predict("mini", None, texts, ["good", "bad"])
    with pytest.raises(UserError, match="text 1 holds half of a character"):
        al.predict("mini", None, ["a film", "a \ud83d"], ["good", "bad"])
    with pytest.raises(UserError, match=r"lengths \(TASK_FEATURE_LENGTHS\) must be like"):
        al.finetune("mini", al.AdaLink(rank=1), FILMS, validation=FILMS, lengths={"inputs": 8})
    for labels in ("ab", {"good", "bad"}, [1, 2], ["good", ""]):
        with pytest.raises(UserError, match="^labels is"):
            al.predict("mini", None, ["a fine film"], labels)
    for labels in (["good"], ["good", "good"]):
        with pytest.raises(UserError, match="takes two or more, all different"):
            al.predict("mini", None, ["a fine film"], labels)
    with pytest.raises(UserError, match="labels is given, but the task mini_cola has its own"):
        al.finetune("mini", al.AdaLink(rank=1), "mini_cola", labels=["yes", "no"])


def test_another_base_is_refused(trained):
    with pytest.raises(UserError, match="another base"):
        al.predict("mini_raw", trained[0], ["a fine film"])


def test_docstrings_say_what_happens(trained, tmp_path):
    """In this order, each example goes on with the names of those before it."""
    run, _ = trained
    names = {"al": al, "jax": jax, "np": np, "folder": run.folder, "run": run}
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for name in ("finetune", "predict", "evaluate"):
        (example,) = finder.find(getattr(al, name), name, globs=names)
        assert runner.run(example, clear_globs=False).failed == 0
    names["folder"] = tmp_path
    order = ("load_base", "init_adapter", "merge", "Transformer", "fingerprint")
    for name in (*order, "save_adapter", "load_adapter"):
        (example,) = finder.find(getattr(al, name), name, globs=names)
        assert example.examples, f"{name} has no example"
        runner.run(example, clear_globs=False)
        names |= example.globs
    assert runner.failures == 0


class Table:
    """As a table of Hugging Face's datasets."""

    def __init__(self, columns, names):
        self.column_names, self._columns = list(columns), columns
        self.features = {name: type("Feature", (), {}) for name in columns}
        self.features["label"] = type("ClassLabel", (), {"names": names})

    def __getitem__(self, name):
        return self._columns[name]


def test_examples_of_every_kind_are_the_same_pairs():
    expected = (FILMS, ("bad", "good"))
    assert pairs(FILMS) == expected
    assert pairs([{"text": text, "label": label} for text, label in FILMS]) == expected
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(FILMS, columns=["sentence", "label"])
    assert pairs(frame) == expected
    numbers = [int(label == "good") for _, label in FILMS]
    table = Table({"text": [text for text, _ in FILMS], "label": numbers}, ["bad", "good"])
    assert pairs(table) == expected
    assert pairs(frame.assign(label=numbers), labels=["bad", "good"]) == expected
    assert pairs([("1 + 1", "2"), ("1 + 2", "3")]) == ([("1 + 1", "2"), ("1 + 2", "3")], ())
    assert pairs(FILMS, labels=())[1] == ()


@pytest.mark.parametrize(
    ("examples", "more", "message"),
    [
        ([], {}, "there are no examples"),
        ("films.tsv", {}, "examples are a str"),
        (["a film"], {}, "example 0 is 'a film'"),
        ([("a film", 1)], {}, "give the texts of the labels"),
        ([("a film", 2)], {"labels": ["a", "b"]}, "the target is 2; there are 2 labels"),
        ([("a film", None)], {}, "the target is None"),
        ([("", "good")], {}, "the text is ''"),
        ([("a film", "fine")], {"labels": ["good", "bad"]}, "none of the labels good, bad"),
        ([("a film", np.str_("fine"))], {"labels": ["good", "bad"]}, " 'fine' is a target, but"),
        ([{"film": "x", "label": "y"}], {}, "the columns are film, label"),
        ([{"film": "x", "label": "y"}], {"columns": ("text", "label")}, "no column 'text'"),
    ],
)
def test_examples_that_cannot_be_read(examples, more, message):
    with pytest.raises(UserError, match=message):
        pairs(examples, **more)


SHOWN = [(text, label, f"{i}.png") for i, (text, label) in enumerate(FILMS)]


def test_an_example_may_have_a_picture():
    pandas = pytest.importorskip("pandas")
    assert pairs(SHOWN) == (SHOWN, ("bad", "good"))
    frame = pandas.DataFrame(SHOWN, columns=["text", "label", "Image"])
    assert pairs(frame)[0] == SHOWN
    assert pairs(frame, columns=("text", "label"))[0] == FILMS
    named = frame.rename(columns={"Image": "photo"})
    assert pairs(named)[0] == FILMS and pairs(named, columns=("text", "label", "photo"))[0] == SHOWN
    some = [*SHOWN[:1], *FILMS[1:2], ("a film", "good", pathlib.Path("a/b.png"))]
    assert [key for _, _, key in pairs(some, ("bad", "good"))[0]] == ["0.png", "", "a/b.png"]
    some = pandas.DataFrame({"text": ["a", "b"], "label": ["1", "2"], "image": ["x.png", None]})
    assert [key for _, _, key in pairs(some)[0]] == ["x.png", ""]
    for more, words in (
        ({"columns": ("text", "label", "foto")}, "no column 'foto'; did you mean 'photo'"),
        ({"columns": ("text",)}, "columns is .*; it names those of text and target"),
    ):
        with pytest.raises(UserError, match=words):
            pairs(named, **more)
    with pytest.raises(UserError, match="example 0: the image is 7; expected a path below Images"):
        pairs([("a", "b", 7)])


def test_a_picture_is_held_out_with_all_that_is_said_of_it():
    many = [(f"what is {i}?", str(j), f"{i}.png") for i in range(30) for j in range(3)]
    rest, scored = held_out(many)
    assert sorted(rest + scored) == sorted(many)
    assert not {key for *_, key in rest} & {key for *_, key in scored}
    assert len(scored) == 9 and held_out(many[::-1])[1] == scored[::-1]


def test_pictures_that_nothing_sees_are_refused(trained):
    words = "have images, such as '0.png', to which a model of text alone is blind"
    with pytest.raises(UserError, match=words):
        al.finetune("mini", al.AdaLink(rank=1), SHOWN)
    with pytest.raises(UserError, match=words):
        al.evaluate("mini", trained[0], SHOWN)
    with pytest.raises(UserError, match="and `pictures` is given too"):
        al.evaluate("mini", trained[0], SHOWN, pictures=["0.png"] * len(SHOWN))
    with pytest.raises(UserError, match="only one has images"):
        al.finetune("mini", al.AdaLink(rank=1), SHOWN, validation=FILMS)


def test_a_label_is_never_held_out_whole(tmp_path):
    with pytest.raises(UserError, match="all examples of label '(good|bad)' would be held out"):
        al.finetune("mini", al.AdaLink(rank=1), FILMS, model_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tenth_is_held_out_and_nothing_is_in_both():
    many = [(f"text {i}", "a") for i in range(40)]
    rest, scored = held_out(many)
    assert len(scored) == 4 and sorted(rest + scored) == sorted(many)
    assert held_out(many[::-1])[1] == scored[::-1]
    assert not set(held_out(FILMS)[0]) & set(held_out(FILMS)[1])
    # Equal examples are on one side, and each counts.
    for labels in ((), ("a", "b")):
        copies = [(f"text {i}", "ab"[i % 2]) for i in range(200)] * 5
        assert 100 <= len(held_out(copies, labels)[1]) <= 105
    with pytest.raises(UserError, match="^20 example.s., 1 of them different, cannot be divided"):
        held_out([("a", "b")] * 20)


def test_a_result_is_shown_in_one_line(trained):
    shown = repr(trained[0])
    assert shown.startswith("Result(folder=") and "scores={" in shown and len(shown) < 300


def test_a_text_in_the_place_of_texts_and_a_slip_in_a_keyword_are_named(trained):
    with pytest.raises(UserError, match=r"texts is 'a film'; expected a list of texts"):
        al.predict("mini", trained[0], "a film")
    words = (
        r"finetune\(\) got an unexpected keyword argument 'train_step'; did you mean 'train_steps'"
    )
    with pytest.raises(TypeError, match=words):
        al.finetune("mini", al.AdaLink(rank=1), FILMS, train_step=2)


def test_a_routes_own_labels_are_ranked_and_another_vocabulary_is_refused(trained):
    run = trained[0]
    one = run.adapter
    method, tree = one.method.stack([one.tree, one.tree])
    data = {**one.data, "tasks": [{"name": "mini_sst2"}, {"name": "mine", "route": "b"}]}
    metadata = {"data": data}
    record = dataclasses.replace(
        one,
        settings=method.settings(),
        tree=tree,
        metadata=metadata,
        route_names=("mini_sst2", "b"),
    )
    (ranked,) = al.predict("mini", record, ["a fine film"], route="mini_sst2")
    assert set(ranked.scores) == {"negative", "positive"}
    (made,) = al.predict("mini", record, ["a fine film"], route="b")
    assert made.scores is None
    other = dataclasses.replace(one, metadata={"data": {**one.data, "vocabulary": "0" * 64}})
    with pytest.raises(UserError, match="trained with another vocabulary, 000000000000…"):
        al.predict("mini", other, ["a fine film"])
    config, params = al.load_base("mini")
    config = dataclasses.replace(config, mlp_activations=("silu", "linear"))
    with pytest.raises(UserError, match="another base: mlp_activations .*gelu.*silu"):
        al.predict((config, params), one, ["a fine film"])
