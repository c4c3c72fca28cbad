"""Loads an adapter and its base, and checks that they belong together."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.adapters.probe import fixed_images, fixed_inputs
from adalink_jax.checkpoints import (
    Adapter,
    AdapterRecord,
    StoredBase,
    check_tensors,
    fingerprint,
    load_adapter,
    open_base,
    shapes_of,
)
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.files import present_folder
from adalink_jax.methods.base import Array, Method, Params, merge, split
from adalink_jax.models.parameters import abstract_params
from adalink_jax.models.t5 import T5Config, Transformer


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """An adapter and the base it was trained on, checked against each other.

    Attributes:
      adapter: the loaded adapter.
      method: the adapter's method, with its settings.
      config: the base's architecture.
      base: the base's parameter tree.
      beside: the folder whose tokenizer belongs to the base; None if there is none.
    """

    adapter: Adapter
    method: Method
    config: T5Config
    base: Params
    beside: Folder | None

    @property
    def routes(self) -> tuple[str, ...]:
        """The names of the K routes."""
        return self.adapter.route_names

    @property
    def params(self) -> Params:
        """Base and adapter in one tree."""
        return merge(self.base, self.adapter.tree)

    def logits(self, route: int) -> np.ndarray:
        """Returns the adapted network's logits [B,L,V] on the fixed inputs, using one route."""
        return logits(self.config, self.params, self.method, route)

    def folded(self, route: int) -> tuple[T5Config, Params]:
        """Returns base and adapter folded into a plain base: its architecture and parameters.

        Raises:
          UserError: the method cannot be folded.
        """
        tree = self.method.fold(self.base, self.adapter.tree, route)
        own_table = "token_embedder" in tree["encoder"]
        return dataclasses.replace(self.config, separate_encoder_embedding=own_table), tree


def adapter_folder(path: str) -> pathlib.Path:
    """Returns the adapter's folder, given that folder or its run's."""
    inner = pathlib.Path(path) / "adapter"
    return inner if present_folder(inner).is_dir() else pathlib.Path(path)


def load_adaptation(adapter_path: str, base_path: str) -> Adaptation:
    """Loads an adapter and its base, and checks that they fit exactly.

    Args:
      adapter_path: the adapter's folder or its run's.
      base_path: the base it was trained on, in any format that `open_base` reads.

    Raises:
      UserError: one of them is damaged; or the base's architecture or fingerprint differs from
        the adapter's record; or the adapter's arrays are not those of its method on this base.
    """
    folder = adapter_folder(adapter_path)
    adapter = load_adapter(folder)
    stored = opened_base(base_path, adapter)
    adapter.check_base(folder, architecture=stored.config)  # Before the base's arrays are read.
    base = stored.load()
    check_belongs(adapter, stored.config, base, str(folder))
    return Adaptation(adapter, adapter.method, stored.config, base, stored.beside)


def opened_base(path: str, adapter: AdapterRecord) -> StoredBase:
    """Opens a base for an adapter.

    The arrays do not show which activations an MLP uses, or where images stand. Where the base's
    own files do not say it either, it is what the adapter was trained with.
    """
    stored, recorded, unseen = open_base(path), adapter.architecture, {}
    if len(recorded.mlp_activations) == len(stored.config.mlp_activations):
        unseen["mlp_activations"] = recorded.mlp_activations
    if stored.config.image_width is not None:
        unseen["image_positions"] = recorded.image_positions
    return open_base(path, dataclasses.replace(stored.config, **unseen)) if unseen else stored


def check_belongs(adapter: Adapter, config: T5Config, base: Params, where: str) -> None:
    """Raises `UserError` unless a base is the one an adapter was trained on, with its arrays."""
    adapter.check_base(where, architecture=config, base_fingerprint=fingerprint(base))
    check_adapter(config, adapter.method, adapter.tree, where)


def check_adapter(
    config: T5Config, method: Method, tree: Mapping[str, Any], where: str = "the adapter"
) -> None:
    """Raises `UserError` unless the tree has exactly the method's arrays for this architecture."""
    params, _ = abstract_params(config, method)
    expected, _ = split(params, method)
    check_tensors(shapes_of(tree), shapes_of(expected), where)


@functools.cache
def _forward(config: T5Config, method: Method) -> Callable[..., Array]:
    model = Transformer(config, method)

    @jax.jit
    def forward(
        params: Params, inputs: Array, targets: Array, images: dict[str, Array], route: int
    ) -> Array:
        return model.apply(
            {"params": params},
            inputs,
            targets,
            targets,
            **images,
            enable_dropout=False,
            encoder_routes=jnp.full_like(inputs, route),
            decoder_routes=jnp.full_like(targets, route),
        )

    return forward


def logits(
    config: T5Config, params: Params, method: Method | None = None, route: int = 0
) -> np.ndarray:
    """Returns float32 logits [B,L,V] on `probe.fixed_inputs`, with `fixed_images` if it takes them.

    Args:
      config: the architecture.
      params: base and adapter in one tree.
      method: the adapter's method; None for a base without an adapter.
      route: number of the module that adapts every token.
    """
    forward = _forward(config, method or Method())
    with jax.default_matmul_precision("float32"):
        given = *fixed_inputs(config.vocab_size), fixed_images(config.image_width)
        return np.asarray(forward(params, *given, route))


def largest(array: np.ndarray) -> float:
    """Returns the largest magnitude in an array: NaN if it holds one, 0 if it is empty."""
    return float(np.abs(array).max(initial=0.0))
