"""Routes from SeqIO's mixtures through the converter and T5X's model: recorded, and live."""

import functools

import numpy as np
import pytest

from tests.t5x import recorded

LENGTHS = {"inputs": 24, "targets": 14}


@pytest.fixture
def mixture(examples):
    """A mixture of three registered tasks, and their examples by task."""
    import seqio
    import tensorflow as tf

    vocabulary = seqio.PassThroughVocabulary(64, eos_id=1)
    feature = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
    data = {f"routed_{name}": examples(6, seed) for seed, name in enumerate("abc")}

    def source(rows):
        def generate(split, shuffle_files, seed=None):
            return tf.data.Dataset.from_generator(
                lambda: iter(rows),
                output_signature={
                    name: tf.TensorSpec([None], tf.int32) for name in ("inputs", "targets")
                },
            )

        return seqio.FunctionDataSource(generate, splits=["train", "validation"])

    for name, rows in data.items():
        seqio.TaskRegistry.add(
            name,
            source=source(rows),
            preprocessors=[],
            output_features={"inputs": feature, "targets": feature},
            metric_fns=[lambda targets, predictions: {"count": len(targets)}],
        )
    seqio.MixtureRegistry.add("routed_all", list(data), default_rate=1.0)
    yield "routed_all", data
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        for name in [name for name in registry.names() if name.startswith("routed_")]:
            registry.remove(name)


def converted(name: str, pack: bool, count: int) -> dict:
    """Rows of a training data set by SeqIO, as T5X asks for them."""
    import seqio
    import tensorflow as tf

    from adalink_jax.t5x.features import RoutedFeatureConverter

    tf.random.set_seed(None)  # Tokenizing a task sets it, and mixtures are drawn by it.
    rows = seqio.get_dataset(
        mixture_or_task_name=name,
        task_feature_lengths=LENGTHS,
        dataset_split="train",
        shuffle=False,
        num_epochs=None,
        seed=0,
        feature_converter=RoutedFeatureConverter(pack=pack),
    )
    return next(rows.batch(count).as_numpy_iterator())


def t5x_rows(name: str, pack: bool, count: int) -> dict:
    """The same as T5X's own function makes them."""
    from t5x import utils

    from adalink_jax.t5x.features import RoutedFeatureConverter

    config = utils.DatasetConfig(
        mixture_or_task_name=name,
        task_feature_lengths=LENGTHS,
        split="train",
        batch_size=count,
        shuffle=False,
        seed=0,
        pack=pack,
    )
    return next(utils.get_dataset(config, 0, 1, RoutedFeatureConverter).as_numpy_iterator())


def row_of(tokens: list[int], length: int) -> np.ndarray:
    return np.array([tokens + [0] * (length - len(tokens))], np.int32)


def both_stacks():
    from adalink_jax.methods.adalink import AdaLink

    return AdaLink(rank=4, routes=3, stacks=("encoder", "decoder"))


def ours_of(**fields):
    """Our network and the parameters that T5X was given."""
    from adalink_jax.models.parameters import abstract_params
    from adalink_jax.models.t5 import Transformer

    config, method = recorded.config("1.1"), both_stacks()
    params = recorded.parameters(abstract_params(config, method)[0])
    return Transformer(config, method, **fields), params


@pytest.mark.parametrize("name", ["routed_rows", "routed_decoding"])
def test_rows_of_a_mixture_are_those_recorded(name, mixture):
    from adalink_jax.t5x.features import routed

    expected = recorded.arrays(name)
    count = len(expected["encoder_input_tokens"])
    found = converted(routed(mixture[0], both_stacks()), name == "routed_rows", count)
    assert set(found) == set(expected) - {"logits", "tokens_1", "tokens_3"}
    for feature, rows in found.items():
        np.testing.assert_array_equal(rows, expected[feature], err_msg=feature)
    assert len(np.unique(found["encoder_routes"])) == 3


def test_logits_of_packed_routes_are_those_recorded():
    import jax

    batch = recorded.arrays("routed_rows")
    ours, params = ours_of(route_slots=3)
    names = {name for name in batch if name not in ("logits", "decoder_loss_weights")}
    given = {name: batch[name] for name in names}
    apply = jax.jit(functools.partial(ours.apply, enable_dropout=False))
    logits = apply({"params": params}, **given)
    real = batch["decoder_target_tokens"] > 0
    np.testing.assert_allclose(logits[real], batch["logits"][real], atol=1e-5, rtol=1e-5)


def test_decoding_of_routes_is_that_recorded():
    from adalink_jax.models import decoding

    batch = recorded.arrays("routed_decoding")
    ours, params = ours_of()
    given = (batch["encoder_input_tokens"], LENGTHS["targets"])
    routes = batch["encoder_routes"]
    found = decoding.beam_search(ours, params, *given, beam_size=3, routes=routes)
    np.testing.assert_array_equal(found, batch["tokens_3"])
    greedy = decoding.greedy(ours, params, *given, routes=routes)
    np.testing.assert_array_equal(greedy, batch["tokens_1"])


def test_the_model_passes_a_packed_rows_routes(mixture, model, update_goldens):
    import jax

    from adalink_jax.t5x.features import RoutedFeatureConverter, routed

    method = both_stacks()
    ours = model("1.1", method)
    assert ours.FEATURE_CONVERTER_CLS is RoutedFeatureConverter
    batch = t5x_rows(routed(mixture[0], method), True, 4)
    params = ours_of()[1]
    logits = np.asarray(jax.jit(ours._compute_logits)(params, batch))
    update_goldens("t5x/routed_rows.npz", {**batch, "logits": logits}, 1e-5)
    batch = t5x_rows(routed(mixture[0], method), False, 6)
    kept = dict(batch)
    for beams in (1, 3):
        predict = functools.partial(ours.predict_batch_with_aux, num_decodes=beams)
        kept[f"tokens_{beams}"] = np.asarray(jax.jit(predict)(params, batch)[0])
    update_goldens("t5x/routed_decoding.npz", kept)


def test_a_packed_mixture_gives_the_unpacked_examples_logits(mixture, model, perturbed):
    import jax

    from adalink_jax.t5x.features import routed

    name, data = mixture
    method = both_stacks()
    ours = model("1.1", method)
    batch = converted(routed(name, method), True, 4)
    shapes = {feature: value.shape for feature, value in batch.items()}
    params = ours.get_initial_variables(jax.random.key(0), shapes)["params"]
    params = perturbed(dict(params), method)
    logits_of = jax.jit(ours._compute_logits)
    packed = np.asarray(logits_of(params, batch))

    segments, routes = batch["encoder_segment_ids"], batch["encoder_routes"]
    met = {len(np.unique(r[s > 0])) for s, r in zip(segments, routes, strict=True)}
    assert max(met) > 1 and segments.max() > 2  # Several routes meet in one row.
    compared, largest = 0, 0.0
    for row in range(4):
        for segment in range(1, segments[row].max() + 1):
            where = segments[row] == segment
            target = batch["decoder_segment_ids"][row] == segment
            (route,) = np.unique(routes[row][where])
            assert set(batch["decoder_routes"][row][target]) == {route}
            example = {
                "inputs": batch["encoder_input_tokens"][row][where].tolist(),
                "targets": batch["decoder_target_tokens"][row][target].tolist(),
            }
            # The example belongs to the task whose place in the mixture the route is.
            assert example in data[sorted(data)[route]]
            alone = {
                "encoder_input_tokens": row_of(example["inputs"], LENGTHS["inputs"]),
                "decoder_input_tokens": row_of([0, *example["targets"][:-1]], LENGTHS["targets"]),
                "decoder_target_tokens": row_of(example["targets"], LENGTHS["targets"]),
                "encoder_routes": np.full((1, LENGTHS["inputs"]), route),
                "decoder_routes": np.full((1, LENGTHS["targets"]), route),
            }
            expected = np.asarray(logits_of(params, alone))[0, : target.sum()]
            largest = max(largest, np.abs(packed[row][target] - expected).max())
            compared += 1
    print(f"{compared} examples in 4 rows, largest difference {largest:.1e}")
    assert compared >= 12 and largest < 1e-5


def test_another_route_gives_other_logits(mixture, model, perturbed):
    """So that the test above could fail."""
    import jax

    from adalink_jax.methods.adalink import AdaLink
    from adalink_jax.t5x.features import routed

    method = AdaLink(rank=4, routes=3)
    ours, batch = model("1.1", method), converted(routed(mixture[0], method), True, 4)
    shapes = {feature: value.shape for feature, value in batch.items()}
    params = ours.get_initial_variables(jax.random.key(0), shapes)["params"]
    params = perturbed(dict(params), method)
    turned = {**batch, "encoder_routes": (batch["encoder_routes"] + 1) % 3}
    logits_of = jax.jit(ours._compute_logits)
    logits = [np.asarray(logits_of(params, given)) for given in (batch, turned)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-2


@pytest.mark.parametrize("beams", [1, 3])
def test_decoding_takes_each_rows_route(beams, mixture, model, perturbed):
    """Against a model of one route that has that route's module alone."""
    import jax

    from adalink_jax.methods.adalink import AdaLink
    from adalink_jax.methods.base import merge, split
    from adalink_jax.t5x.features import routed

    several, one = (AdaLink(4, routes=k, stacks=("encoder", "decoder")) for k in (3, 1))
    ours, single = model("1.1", several), model("1.1", one)
    batch = converted(routed(mixture[0], several), False, 6)
    shapes = {feature: value.shape for feature, value in batch.items()}
    params = ours.get_initial_variables(jax.random.key(0), shapes)["params"]
    params = perturbed(dict(params), several)
    adapter, base = split(params, several)
    predict, predict_one = (
        jax.jit(functools.partial(m.predict_batch_with_aux, num_decodes=beams))
        for m in (ours, single)
    )
    found, aux = predict(params, batch)
    assert len(set(batch["encoder_routes"][:, 0])) > 1
    for row, route in enumerate(batch["encoder_routes"][:, 0]):
        own = jax.tree.map(lambda leaf, k=route: leaf[k : k + 1], adapter)
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        expected, scores = predict_one(merge(base, own), alone)
        np.testing.assert_array_equal(found[row], expected[0])
        np.testing.assert_allclose(aux["scores"][row], scores["scores"][0], rtol=1e-5)


def test_seqios_evaluator_takes_routed_tasks_as_they_are(mixture):
    import seqio

    from adalink_jax.methods.adalink import AdaLink
    from adalink_jax.t5x.features import RoutedFeatureConverter, routed

    evaluator = seqio.Evaluator(
        routed(mixture[0], AdaLink(4, routes=3)),
        feature_converter=RoutedFeatureConverter(pack=False),
        eval_split="validation",
        logger_cls=(),
    )
    assert set(evaluator.model_feature_shapes) >= {"encoder_routes", "decoder_routes"}
    for k, task in enumerate(evaluator.eval_tasks):
        assert task.name == f"routed_{'abc'[k]}.route_{k}"
        rows = [row for _, row in evaluator.cached_model_datasets[task.name].as_numpy_iterator()]
        assert len(rows) == 6
        for row in rows:
            assert set(row["encoder_routes"][row["encoder_input_tokens"] > 0]) == {k}


def test_one_route_changes_no_name_and_no_converter(mixture, model):
    import seqio

    from adalink_jax.methods.adalink import AdaLink
    from adalink_jax.t5x.features import routed

    assert routed("routed_all", AdaLink(4)) == "routed_all"
    assert model("1.1", AdaLink(4)).FEATURE_CONVERTER_CLS is seqio.EncDecFeatureConverter


def test_a_task_of_another_mixture_keeps_its_route(mixture):
    from adalink_jax.methods.adalink import AdaLink
    from adalink_jax.t5x.features import routed

    names = ("routed_a", "routed_b", "routed_c")
    assert routed("routed_b", AdaLink(4, routes=3), names) == "routed_b.route_1"


def test_mistakes_are_said(mixture):
    from adalink_jax.errors import UserError
    from adalink_jax.methods.adalink import AdaLink
    from adalink_jax.t5x.features import routed

    with pytest.raises(UserError, match="routes is 2, but the tasks are routed_a, routed_b, rou"):
        routed("routed_all", AdaLink(4, routes=2))
    with pytest.raises(UserError, match="no route for task 'routed_b'"):
        routed("routed_b", AdaLink(4, routes=2), ("routed_a", "routed_c"))
    with pytest.raises(UserError, match="no feature 'route'"):
        converted("routed_all", True, 2)
