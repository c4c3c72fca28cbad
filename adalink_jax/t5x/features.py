"""Routes in SeqIO's pipeline: from a mixture's tasks, through packing, to one route per token."""

from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method
from adalink_jax.runs.setup import task_routes

ROUTE = "route"


class RoutedFeatureConverter(seqio.EncDecFeatureConverter):
    """SeqIO's encoder-decoder converter for examples with a route number.

    It adds ``encoder_routes`` [T] and ``decoder_routes`` [L], 0 on padding, to SeqIO's model
    features. Task features and their configured lengths are still ``inputs`` and ``targets``.
    """

    MODEL_FEATURES = {
        **seqio.EncDecFeatureConverter.MODEL_FEATURES,
        "encoder_routes": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "decoder_routes": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    }

    def _convert_features(self, ds, task_feature_lengths) -> tf.data.Dataset:
        if ROUTE not in ds.element_spec:
            raise UserError(f"no feature '{ROUTE}': name the mixture through t5x.features.routed")

        def spread(example):
            # SeqIO's packer treats 0 as padding, so routes count from 1 inside it.
            return example | {
                f"{name}_routes": tf.fill(tf.shape(example[name]), example[ROUTE] + 1)
                for name in self.TASK_FEATURES
            }

        lengths = {f"{name}_routes": task_feature_lengths[name] for name in self.TASK_FEATURES}
        return super()._convert_features(ds.map(spread), {**task_feature_lengths, **lengths})

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        return {
            **super()._convert_example(features),
            "encoder_routes": tf.maximum(features["inputs_routes"] - 1, 0),
            "decoder_routes": tf.maximum(features["targets_routes"] - 1, 0),
        }

    def get_model_feature_lengths(self, task_feature_lengths) -> Mapping[str, int]:
        """Returns SeqIO's lengths, and those of the routes, which equal the tokens'."""
        return {
            **super().get_model_feature_lengths(task_feature_lengths),
            "encoder_routes": task_feature_lengths["inputs"],
            "decoder_routes": task_feature_lengths["targets"],
        }


class _RoutedMixture(seqio.Mixture):
    """A mixture that passes through the route of its examples."""

    def get_dataset(self, *args, **kwargs) -> tf.data.Dataset:
        return super().get_dataset(*args, **{**kwargs, "passthrough_features": [ROUTE]})


def routed(mixture_or_task_name: str, method: Method, route_names: Sequence[str] = ()) -> str:
    """Returns the name of a mixture or task whose examples have a route number.

    A task's route is its index in `route_names`; by default those are the mixture's tasks in
    alphabetical order, as in this project's runner. Routed copies are registered next to the
    originals, as ``TASK.route_K`` and ``MIXTURE.routed``. With one route, returns the name itself.

    Raises:
      UserError: the number of routes differs from the number of names, or a task has no route.
    """
    if method.routes == 1:
        return mixture_or_task_name
    original = seqio.get_mixture_or_task(mixture_or_task_name)
    tasks = seqio.get_subtasks(original)
    names = tuple(route_names) or tuple(task.name for task in tasks)
    if len(names) != method.routes:
        raise UserError(f"routes is {method.routes}, but the tasks are {', '.join(names)}")
    routes = task_routes(method, tuple(task.name for task in tasks), names)
    copies = [_with_route(task, routes[task.name]) for task in tasks]
    if isinstance(original, seqio.Task):
        return copies[0].name
    name = f"{mixture_or_task_name}.routed"
    rates = [(copy, original.get_rate(task)) for copy, task in zip(copies, tasks, strict=True)]
    # Gin calls this for every data set of a run; with other routes the name means another mixture.
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add_provider(name, _RoutedMixture(name, rates))
    return name


def _with_route(task: seqio.Task, route: int) -> seqio.Task:
    def add(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset.map(lambda example: example | {ROUTE: tf.constant(route)})

    name = f"{task.name}.route_{route}"
    copy = task.replace(name=name, preprocessors=[*task.preprocessors, add])
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add_provider(name, copy)
    return copy
