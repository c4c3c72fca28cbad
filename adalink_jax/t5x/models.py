"""T5X's encoder-decoder model with this project's network: a route for every token, and images."""

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import t5x.models
from flax import core, traverse_util

from adalink_jax.checkpoints import load_base
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Method, merge, split
from adalink_jax.models.inputs import FEATURES, IMAGES
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.t5x.checkpoints import stored_adapter
from adalink_jax.t5x.features import RoutedFeatureConverter


def t5_config(config: Any) -> T5Config:
    """Converts the ``network.T5Config`` of T5X's own model files.

    Raises:
      UserError: it has a field that this project's network does not know.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if unknown := sorted(fields.keys() - {field.name for field in dataclasses.fields(T5Config)}):
        raise UserError(f"T5Config has {unknown[0]!r}; take a model file of t5x/examples/t5")
    return T5Config(**fields)


# The network's inputs that T5X does not pass on, and the token features of the same stack.
_ADDED = {
    name: f"{name.partition('_')[0]}_input_tokens"
    for name in FEATURES
    if name in IMAGES or name.endswith("_routes")
}


class EncoderDecoderModel(t5x.models.EncoderDecoderModel):  # pyright: ignore[reportGeneralTypeIssues]: T5X is absent
    """T5X's `EncoderDecoderModel` for `adalink_jax.models.t5.Transformer`.

    If the method has several routes, batches contain them and every call of the network gets them.
    A new adapter starts as in this project's runner, or from a stored one.
    """

    def __init__(
        self,
        module: Transformer,
        *args,
        adapter_path: str | None = None,
        initial_checkpoint_path: str | None = None,
        labels: Sequence[str] = (),
        **kwargs,
    ):
        """Takes T5X's arguments, and what a new adapter starts from.

        That is the stored adapter at `adapter_path` (its folder or its run's), or the method's own
        initialization from the base at `initial_checkpoint_path` and the task's `labels`.
        """
        self._routes = module.method.routes
        if self._routes > 1:
            kwargs.setdefault("feature_converter_cls", RoutedFeatureConverter)
        super().__init__(module, *args, **kwargs)
        self._adapter_path, self._labels = adapter_path, labels
        self._initial_checkpoint_path = initial_checkpoint_path

    def get_initial_variables(self, rng, input_shapes, input_types=None) -> Any:
        """Returns T5X's variables with a new adapter's values; tokens are int32 by default."""
        input_types = {**dict.fromkeys(input_shapes, jnp.int32), **(input_types or {})}
        zeros = {name: jnp.zeros(shape, jnp.int32) for name, shape in input_shapes.items()}
        with self._given_rest(zeros):
            variables = super().get_initial_variables(rng, input_shapes, input_types)
        variables = core.unfreeze(variables)
        method = self.module.method
        adapter, base = split(variables["params"], method)
        if base and not all(map(method.owns, traverse_util.flatten_dict(adapter, sep="/"))):
            raise UserError(
                f"method '{method.scope}' trains parts of the base, whose values T5X restores with "
                "the base: train it with this project's own runner"
            )
        variables["params"] = merge(base, self._initialised(adapter, rng))
        return core.freeze(variables)

    def _initialised(self, adapter: Any, key: Array) -> Any:
        """Returns the method's tree, initialized from a stored adapter or from the base."""
        method, path = self.module.method, self._initial_checkpoint_path
        if self._adapter_path is not None:
            return jax.tree.map(jnp.asarray, stored_adapter(self._adapter_path).tree)
        if path is None or type(method).initialise is Method.initialise:
            return adapter
        ids = [self.input_vocabulary.encode(text) for text in method.texts(self._labels)]
        return method.initialise(adapter, load_base(path)[1], ids, key)

    def _compute_logits(self, params, batch, *args, **kwargs):
        model = copy.copy(self)
        if "encoder_segment_ids" in batch:
            # T5X's packer puts any number of examples into a row, so a row may use all routes.
            model.module = self.module.clone(route_slots=self._routes)
        with self._given_rest(batch):
            return super(EncoderDecoderModel, model)._compute_logits(params, batch, *args, **kwargs)

    def predict_batch_with_aux(self, params, batch, *args, **kwargs):
        """Decodes as T5X does, with the batch's routes and images."""
        with self._given_rest(batch):
            return super().predict_batch_with_aux(params, batch, *args, **kwargs)

    @contextlib.contextmanager
    def _given_rest(self, batch: Mapping[str, Array]) -> Iterator[None]:
        """Passes a batch's routes and images to every call of the network inside the block."""

        def add(call, args, kwargs, context):
            name = context.method_name
            if isinstance(context.module, Transformer) and name in ("__call__", "encode", "decode"):
                signature = inspect.signature(getattr(Transformer, name))
                given = signature.bind(context.module, *args, **kwargs).arguments
                for name, beside in _ADDED.items():
                    if name in batch and name in signature.parameters and beside in given:
                        kwargs[name] = _for_rows(batch[name], given[beside], name in IMAGES)
            return call(*args, **kwargs)

        with nn.intercept_methods(add):
            yield


def _for_rows(feature: Array, tokens: Array, is_image: bool) -> Array:
    """Returns a feature for the rows of tokens; while decoding, these are B·beams, or one token."""
    if is_image:
        return jnp.repeat(feature, tokens.shape[0] // feature.shape[0], axis=0)
    if feature.shape != tokens.shape:
        # While decoding, a row is one example.
        feature = jnp.repeat(feature[:, :1], tokens.shape[0] // feature.shape[0], axis=0)
    return jnp.broadcast_to(feature, tokens.shape)
