"""Counts parameters, and the FLOPs of matrix products, in the traced program.

A FLOP is a multiplication or an addition. Only matrix products are counted, two FLOPs per
multiply-add, for every method and however layers are repeated. Nothing is compiled or allocated.

In the backward pass, each product ``A · B`` costs one more product for each of A and B that needs
a gradient. Freezing a kernel saves the kernel's gradient. The gradient of the layer's input is
still needed if something trains before it: the backward pass goes through all frozen layers after
the first trained parameter, whatever the method. It skips what comes before (for example the
decoder up to its first cross-attention, if only the encoder's input is adapted).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adalink_jax.methods.base import Method, split
from adalink_jax.models.inputs import shapes_of_batch
from adalink_jax.models.parameters import abstract_params, stored_shapes
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.training.state import abstract_trees
from adalink_jax.training.step import loss_fn

FLOAT32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a batch, in rows and tokens.

    Attributes:
      batch: B.
      inputs: T, without the vectors that prompt tuning prepends.
      targets: L.
      images: M, vectors of images in each row.
    """

    batch: int
    inputs: int
    targets: int
    images: int = 0

    @property
    def tokens(self) -> str:
        """The lengths of a row in words, e.g. "512 + 16", or "257 of images + 32 + 16"."""
        images = f"{self.images} of images + " if self.images else ""
        return f"{images}{self.inputs} + {self.targets}"


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
      total: of base and method.
      trainable: parameters with gradients.
      stored: in the adapter's file (with prompt tuning's reparameterization folded in).
    """

    total: int
    trainable: int
    stored: int

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapter's arrays, which are float32."""
        return FLOAT32_BYTES * self.stored


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of one batch's matrix products.

    Attributes:
      forward: of the forward pass.
      train: of forward and backward pass; the optimizer has no matrix products.
      method: the part of `train` inside the method's own modules.
    """

    forward: int
    train: int
    method: int


def parameters(config: T5Config, method: Method) -> Parameters:
    """Counts the parameters of a base with a method, without allocating any."""
    trainable, frozen = map(_size, split(abstract_params(config, method)[0], method))
    return Parameters(trainable + frozen, trainable, stored_parameters(config, method))


def stored_parameters(config: T5Config, method: Method) -> int:
    """Returns the number of parameters in an adapter's file."""
    return _size(stored_shapes(config, method))


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def batch_of(config: T5Config, shape: Shape, make: Callable[[tuple, Any], Any]) -> dict[str, Any]:
    """Returns a batch's features, each made by ``make(shape, dtype)``."""
    sizes = (shape.batch, shape.inputs, shape.targets, shape.images)
    features = shapes_of_batch(config, *sizes)
    batch = {name: make(leaf.shape, leaf.dtype) for name, leaf in features.items()}
    return batch | {"decoder_loss_weights": make((shape.batch, shape.targets), jnp.float32)}


def traced_flops(config: T5Config, method: Method, shape: Shape, slots: int = 1) -> Flops:
    """Counts FLOPs of products in the jaxprs of the forward pass and of the step's gradients.

    Args:
      config: the base's architecture, with its dropout and dtype.
      method: any method.
      shape: the batch's shape.
      slots: the most routes that one row may use.
    """
    loss, arguments = _loss(config, method, shape, slots)
    forward, _ = product_flops(jax.make_jaxpr(loss)(*arguments).jaxpr)
    train, own = product_flops(_gradients(loss, arguments), method.scopes)
    return Flops(forward, train, own)


def traced_step_flops(config: T5Config, method: Method, shape: Shape) -> int:
    """Returns `Flops.train` of `traced_flops`, without tracing the forward pass by itself."""
    return product_flops(_gradients(*_loss(config, method, shape, 1)))[0]


def _loss(config: T5Config, method: Method, shape: Shape, slots: int) -> tuple[Callable, tuple]:
    """Returns the loss of a step, and the shapes of its arguments."""
    model = Transformer(config, method, slots)
    trainable, frozen = abstract_trees(config, method)
    batch = batch_of(config, shape, jax.ShapeDtypeStruct)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def loss(trainable, frozen, batch, key):
        return loss_fn(model, trainable, frozen, batch, key, 1e-4, 0.0)

    return loss, (trainable, frozen, batch, key)


def _gradients(loss: Callable, arguments: tuple) -> Any:
    """Returns the jaxpr of a step's gradients."""

    def gradients(*arguments):
        return jax.grad(loss, has_aux=True)(*arguments)

    return jax.make_jaxpr(gradients)(*arguments).jaxpr


def product_flops(jaxpr: Any, scopes: Sequence[str] = (), within: bool = False) -> tuple[int, int]:
    """Counts FLOPs of all matrix products in a jaxpr: two per multiply-add, loops unrolled.

    Args:
      jaxpr: a ``jax.core.Jaxpr``.
      scopes: the names of Flax modules.
      within: whether the whole jaxpr is inside one of them.

    Returns:
      The FLOPs of all products, and of those inside modules with these names. Flax names traced
      operations after their modules.

    Raises:
      ValueError: a product is in a loop whose number of iterations is not in the jaxpr.
    """
    total = own = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        modules = re.split(r"[/()]", str(equation.source_info.name_stack))
        inside = within or not set(scopes).isdisjoint(modules)
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            once = 2 * math.prod(left[axis] for axis in contracted) * equation.outvars[0].aval.size
            total, own = total + once, own + once * inside
            continue
        rounds = equation.params["length"] if name == "scan" else 1
        for inner in _inner_jaxprs(equation):
            of_all, of_scope = product_flops(inner, scopes, inside)
            if of_all and name == "while":
                raise ValueError("a while loop holds matrix products: their number is unknown")
            total, own = total + rounds * of_all, own + rounds * of_scope
    return total, own


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)  # Unwraps a closed jaxpr.
            if hasattr(item, "eqns"):
                yield item
