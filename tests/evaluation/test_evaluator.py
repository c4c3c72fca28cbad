"""The evaluator on tasks and a model of which everything is known."""

import dataclasses
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from adalink_jax.errors import UserError
from adalink_jax.evaluation import Evaluator, report, write
from adalink_jax.models.t5 import T5Config, Transformer
from tasks.caption_metrics import cider
from tasks.vqa_metrics import exact_match

LENGTHS = {"inputs": 24, "targets": 12}
LABELS = ("no", "yes", "perhaps")
# Inputs of different lengths; their first letter decides what the model below says.
EXAMPLES = [
    ("a", "yes"),
    ("b bb bbb bbbb", "no"),
    ("c", "perhaps"),
    ("a aa aaa aaaa aaaaa", "no"),
    ("b", "no"),
    ("d and this text is longer than the configured length", "yes"),
    ("c cc", "yes"),
    ("a aaaa", "yes"),
    ("d", "no"),
    ("b bbbbbbbbbbbbbb", "perhaps"),
]
SAYS = {"a": "yes", "b": "no", "c": "perhaps", "d": "nonsense"}
# What the letters rank first: nonsense begins like no.
RANKS = {**SAYS, "d": "no"}


def tokens_of(text):
    return [byte + 3 for byte in text.encode()] + [1]


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """Stands in for the network: a table says which token follows at each position.

    The table [letters, L] is the parameters; its row is the first letter's, moved on by the
    route. The token in the table gets the logit `SURE`, all others 0.
    """

    traced: types.SimpleNamespace
    config: T5Config = T5Config(vocab_size=300)

    SURE = 5.0

    def apply(self, variables, *args, method, mutable=False, **kwargs):
        self.traced.calls += 1
        if method == "encode":
            tokens = kwargs["encoder_input_tokens"]
            rows = tokens[:, 0] - 3 + kwargs["encoder_routes"][:, 0]
            return jnp.broadcast_to(rows[:, None, None], (*tokens.shape, 1)).astype(jnp.float32)
        (encoded,), inputs = args, kwargs["decoder_input_tokens"]
        table = variables["params"]["table"]
        rows = table[encoded[:, 0, 0].astype(jnp.int32) % len(table)]
        cached = variables.get("cache", {"index": jnp.zeros((), jnp.int32)})
        positions = cached["index"] + jnp.arange(inputs.shape[1])
        says = jnp.take(rows, positions, axis=1)
        logits = self.SURE * jax.nn.one_hot(says, self.config.vocab_size)
        if mutable:
            return logits, {"cache": {"index": cached["index"] + 1}}
        return logits


def table(says):
    rows = np.zeros((256, LENGTHS["targets"]), np.int32)
    for letter, text in says.items():
        rows[ord(letter), : len(tokens_of(text))] = tokens_of(text)
    return {"table": jnp.asarray(rows)}


@pytest.fixture
def model():
    return Known(types.SimpleNamespace(calls=0))


def accuracy(targets, predictions):
    return {"accuracy": 100 * sklearn.metrics.accuracy_score(targets, predictions)}


SEEN = []


def seen(targets, predictions):
    SEEN.append((targets, predictions))
    return {}


def _with_references(dataset):
    """Adds two references to each example: its target, and "no"."""
    import tensorflow as tf

    def add(example):
        return {**example, "references": tf.stack([example["targets"], "no"])}

    return dataset.map(add)


def f1_macro(targets, predictions):
    score = sklearn.metrics.f1_score(targets, predictions, average="macro", labels=[0, 1, 2])
    return {"f1_macro": 100 * score}


@pytest.fixture(scope="module", autouse=True)
def registered():
    import seqio
    import tensorflow as tf

    import tasks

    def source(splits=("train", "validation")):
        def dataset(split, shuffle_files, seed=None):
            columns = zip(*EXAMPLES, strict=True)
            return tf.data.Dataset.from_tensor_slices(
                dict(zip(("inputs", "targets"), map(list, columns), strict=True))
            )

        return seqio.FunctionDataSource(dataset, splits=splits)

    vocabulary = seqio.ByteVocabulary()
    added = {"vocabulary": vocabulary}
    tasks.add_classification("known", source(), None, LABELS, [accuracy, f1_macro], **added)
    tasks.add_classification(
        "known_splits",
        source(("train", "validation_a")),
        None,
        LABELS,
        [accuracy],
        eval_splits=("validation_a", "validation_b"),
        **added,
    )
    tasks.add_classification("known_train_only", source(("train",)), None, LABELS, [], **added)
    # Bytes beyond the vocabulary's text all become one token.
    tasks.add_classification("known_prefix", source(), None, ("no", "no"[:1]), [accuracy], **added)
    tasks.add_image_task(
        "known_references",
        source(),
        _with_references,
        [cider, exact_match, seen],
        scored_by="exact_match",
        vocabulary=vocabulary,
    )
    seqio.TaskRegistry.add(
        "known_open",
        source=source(),
        preprocessors=tasks.text_to_text(None),
        output_features=tasks.output_features(vocabulary),
        metric_fns=[tasks.metrics.sequence_accuracy],
    )


def evaluator(model, *names, **settings):
    return Evaluator(model, names, **{"lengths": LENGTHS, "batch_size": 4, **settings})


def test_rank_classification_predicts_the_likeliest_label(model):
    results = evaluator(model, "known")(table(SAYS))
    split = results.tasks["known"].splits["validation"]
    assert [(p.inputs, p.target) for p in split.predictions] == EXAMPLES
    expected = [RANKS[text[0]] for text, _ in EXAMPLES]
    assert [p.prediction for p in split.predictions] == expected
    targets = [LABELS.index(target) for _, target in EXAMPLES]
    ids = [LABELS.index(label) for label in expected]
    assert split.metrics == {**accuracy(targets, ids), **f1_macro(targets, ids)}
    assert split.metrics["accuracy"] == 60.0
    assert split.invalid is None
    assert results.tasks["known"].score == pytest.approx(np.mean(list(split.metrics.values())))


def test_scores_are_summed_log_probabilities_with_eos(model):
    results = evaluator(model, "known")(table(SAYS))
    predictions = results.tasks["known"].splits["validation"].predictions
    total = np.log(np.exp(Known.SURE) + 299)
    for prediction in predictions:
        said = tokens_of(SAYS[prediction.inputs[0]])
        for label, score in prediction.scores.items():
            hits = sum(a == b for a, b in zip(tokens_of(label), said, strict=False))
            expected = hits * Known.SURE - len(tokens_of(label)) * total
            assert score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_generation_counts_outputs_that_are_no_label(model, mode):
    results = evaluator(model, "known", mode=mode)(table(SAYS))
    split = results.tasks["known"].splits["validation"]
    expected = [SAYS[text[0]] for text, _ in EXAMPLES]
    assert [p.prediction for p in split.predictions] == expected
    assert all(p.scores is None for p in split.predictions)
    assert split.invalid == 0.2
    # No label is right for "nonsense", so 5 of 10 are.
    assert split.metrics["accuracy"] == 50.0
    assert report(results)["mode"] == mode


def test_open_tasks_are_generated_and_not_ranked(model):
    with pytest.raises(UserError, match="'known_open' has no labels to rank.*'greedy'"):
        evaluator(model, "known", "known_open")
    split = evaluator(model, "known_open", mode="greedy")(table(SAYS)).tasks["known_open"].splits
    assert split["validation"].metrics == {"sequence_accuracy": 50.0}
    assert split["validation"].invalid is None


def test_references_reach_the_metrics_and_the_predictions(model, tmp_path):
    results = evaluator(model, "known_references", mode="greedy", limit=7)(table(SAYS))
    split = results.tasks["known_references"].splits["validation"]
    said = [SAYS[text[0]] for text, _ in EXAMPLES[:7]]
    expected = [[target, "no"] for _, target in EXAMPLES[:7]]
    assert SEEN == [(expected, said)]
    assert [one.references for one in split.predictions] == expected
    right = sum(text in {*some} for text, some in zip(said, expected, strict=True))
    assert split.metrics["exact_match"] == pytest.approx(100 * right / 7)
    # The score is the metric that the task names, not the mean with CIDEr.
    assert results.tasks["known_references"].score == split.metrics["exact_match"]
    found = report(results)["tasks"]["known_references"]["splits"]["validation"]
    assert (found["examples"], found["of_examples"]) == (7, 10)
    write(results, tmp_path)
    lines = (tmp_path / "predictions/known_references-validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["references"] for line in lines] == expected
    whole = evaluator(model, "known_references", mode="greedy")(table(SAYS))
    assert "of_examples" not in json.dumps(report(whole))


def test_absent_splits_are_left_out_and_named(model):
    evaluates = evaluator(model, "known_splits")
    assert evaluates.absent_splits == {"known_splits": ("validation_b",)}
    result = evaluates(table(SAYS)).tasks["known_splits"]
    assert list(result.splits) == ["validation_a"] and result.absent_splits == ("validation_b",)
    alone = evaluator(model, "known_train_only")
    assert alone.identity == {"known_train_only": {}}
    assert alone(table(SAYS)).tasks["known_train_only"].absent_splits == ("validation",)


@pytest.mark.parametrize("mode", ["rank_classification", "greedy", "beam"])
def test_metrics_of_likelihoods_get_those_of_targets_and_predictions(model, mode, monkeypatch):
    import seqio

    import tasks

    seen = {}

    def scores_of(targets, scores):
        return {"mean_score": float(np.mean(seen.setdefault("targets", scores)))}

    def aux_of(targets, predictions, aux_values):
        return {"mean_aux": float(np.mean(seen.setdefault("outputs", aux_values["scores"])))}

    task = seqio.TaskRegistry.get("known")
    monkeypatch.setitem(
        seqio.TaskRegistry._REGISTRY,
        "known_scores",
        task.replace(name="known_scores", metric_fns=[scores_of, aux_of]),
    )
    monkeypatch.setitem(tasks.LABELS, "known_scores", LABELS)
    split = evaluator(model, "known_scores", mode=mode)(table(SAYS)).tasks["known_scores"].splits
    total = np.log(np.exp(Known.SURE) + 299)

    def likelihood(said, text):
        hits = sum(a == b for a, b in zip(tokens_of(text), tokens_of(said), strict=False))
        return hits * Known.SURE - len(tokens_of(text)) * total

    found = split["validation"]
    expected = [likelihood(SAYS[text[0]], target) for text, target in EXAMPLES]
    np.testing.assert_allclose(seen["targets"], expected, rtol=1e-5)
    expected = [likelihood(SAYS[p.inputs[0]], p.prediction) for p in found.predictions]
    np.testing.assert_allclose(seen["outputs"], expected, rtol=1e-5)
    assert set(found.metrics) == {"mean_score", "mean_aux"}


def test_unknown_labels_give_predictions_and_no_metrics(model, monkeypatch):
    from adalink_jax.data import EvalExamples

    made = evaluator(model, "known")
    (split,) = made._tasks["known"].splits.values()
    assert isinstance(split.examples, EvalExamples)
    monkeypatch.setattr(split.examples, "labeled", False)
    found = made(table(SAYS)).tasks["known"]
    assert found.splits["validation"].metrics == {} and found.score is None
    assert len(found.splits["validation"].predictions) == len(EXAMPLES)


def test_the_split_to_score_can_be_chosen(model):
    chosen = evaluator(model, "known", "known_splits", split="validation")
    assert [list(splits) for splits in chosen.identity.values()] == [
        ["validation"],
        ["validation_a"],
    ]
    train = evaluator(model, "known", split="train").identity
    assert list(train["known"]) == ["train"]
    assert evaluator(model, "known", split="dev").absent_splits == {"known": ("dev",)}


def test_truncated_inputs_are_counted_and_the_limit_holds(model):
    split = evaluator(model, "known")(table(SAYS)).tasks["known"].splits["validation"]
    assert split.truncated == 1
    limited = evaluator(model, "known", limit=5)
    split = limited(table(SAYS)).tasks["known"].splits["validation"]
    assert [p.inputs for p in split.predictions] == [text for text, _ in EXAMPLES[:5]]
    assert split.truncated == 0


def test_every_task_goes_its_own_route(model):
    # One route on, what was said to "a" is said to "b".
    routes = {"known": 1, "known_splits": 0}
    results = evaluator(model, "known", "known_splits", routes=routes)(table(SAYS))
    moved = results.tasks["known"].splits["validation"].predictions
    plain = results.tasks["known_splits"].splits["validation_a"].predictions
    assert (moved[0].inputs[0], moved[0].prediction) == ("a", SAYS["b"])
    assert plain[0].prediction == SAYS["a"]
    with pytest.raises(UserError, match="no route for task 'known_splits'"):
        evaluator(model, "known_splits", routes={"known": 0})


def test_later_evaluations_compile_nothing_and_see_the_new_parameters(model):
    evaluates = evaluator(model, "known", "known_splits")
    first = evaluates(table(SAYS))
    calls = model.traced.calls
    second = evaluates(table({**SAYS, "a": "no"}))
    assert calls > 0, "tracing is counted"
    assert model.traced.calls == calls
    assert first.tasks["known"].splits["validation"].predictions[0].prediction == "yes"
    assert second.tasks["known"].splits["validation"].predictions[0].prediction == "no"


def test_mistakes_are_said_in_one_line(model):
    for given, message in (
        ({"mode": "gready"}, "evaluation mode is 'gready'.*did you mean 'greedy'"),
        ({"names": ("knwon",)}, "unknown task 'knwon'; did you mean 'known'"),
        ({"names": ()}, "no task"),
        ({"mode": "beam", "lengths": {"inputs": 24, "targets": 4}}, "'known' has 8 tokens.* 4 "),
        ({"limit": 0}, "at least one example"),
    ):
        names = given.pop("names", ("known",))
        with pytest.raises(UserError, match=message) as caught:
            evaluator(model, *names, **given)
        assert "\n" not in str(caught.value)


def test_labels_that_are_the_same_tokens_are_refused(model, monkeypatch):
    import tasks

    monkeypatch.setitem(tasks.LABELS, "known", ("yes", "no", "perhaps", "yes"))
    with pytest.raises(UserError, match="'yes' and 'yes' are the same tokens"):
        evaluator(model, "known")


def test_a_real_network_ranks_as_a_forward_pass_per_label():
    config = T5Config(
        vocab_size=259,
        emb_dim=8,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=4,
        mlp_dim=16,
    )
    network = Transformer(config)
    one = jnp.ones((1, 2), jnp.int32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: network.init(key, one, one, one, enable_dropout=False))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes["params"]
    )
    split = evaluator(network, "known")(params).tasks["known"].splits["validation"]
    scores_of_no = {p.scores["no"] for p in split.predictions}
    assert len(scores_of_no) == len(EXAMPLES), "the network tells inputs apart"
    pairs = [(text, label) for text, _ in EXAMPLES for label in LABELS]
    inputs = np.zeros((len(pairs), LENGTHS["inputs"]), np.int32)
    targets = np.zeros((len(pairs), max(len(tokens_of(label)) for label in LABELS)), np.int32)
    for i, (text, label) in enumerate(pairs):
        ids = tokens_of(text)
        ids = ids if len(ids) <= LENGTHS["inputs"] else [*ids[: LENGTHS["inputs"] - 1], 1]
        inputs[i, : len(ids)] = ids
        targets[i, : len(tokens_of(label))] = tokens_of(label)
    shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    forward = jax.jit(lambda *args: network.apply({"params": params}, *args, enable_dropout=False))
    log_probs = np.asarray(nn.log_softmax(forward(inputs, shifted, targets)), np.float64)
    chosen = np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    scores = np.sum(chosen * (targets > 0), axis=1).reshape(len(EXAMPLES), len(LABELS))
    for prediction, expected in zip(split.predictions, scores, strict=True):
        np.testing.assert_allclose(list(prediction.scores.values()), expected, rtol=1e-4, atol=1e-4)
        assert prediction.prediction == LABELS[int(np.argmax(expected))]
