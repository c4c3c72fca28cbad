"""The interface of a method: hooks at named sites of the network, identities by default.

The network calls a hook at every place where a method may act, and knows no method. A method
knows the sites, and not the network. A method is a frozen dataclass, not a module. Its parameters
live in child scopes named after it (``encoder/adalink/down``). A parameter or a Dropout beside
the base's own would shift Flax's random-number counters and change the base's initialization. So
a hook makes a `flax.linen` module with ``name=self.scope``, which holds its parameters and
dropouts.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Self, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Bool, Float, Int, Num

from adalink_jax.errors import UserError, nearest
from adalink_jax.values import Checked, NotNegative, OneOf, Range

Params = Mapping[str, Any]
# Arrays on devices or on the host; jaxtyping checks their shapes under pytest.
Array = jax.Array | np.ndarray

_ATTENTION = ("query", "key", "value", "out")
_MLP = ("mlp/wi", "mlp/wi_0", "mlp/wi_1", "mlp/wo")

# The linear layers of each stack, as "block/layer". T5 1.0 has mlp/wi, T5 1.1 mlp/wi_0 and wi_1.
LINEAR_SITES: Mapping[str, tuple[str, ...]] = {
    "encoder": tuple(f"attention/{name}" for name in _ATTENTION) + _MLP,
    "decoder": tuple(
        f"{block}/{name}"
        for block in ("self_attention", "encoder_decoder_attention")
        for name in _ATTENTION
    )
    + _MLP,
}
Stacks = tuple[Annotated[str, OneOf(tuple(LINEAR_SITES))], ...]
Layers = tuple[Annotated[int, Range(0)], ...] | None
# Factors of the learning rate, by shell pattern over the names of leaves.
RateFactors = tuple[tuple[str, NotNegative], ...] | None


# What a token is of, in `Context.modalities`.
TEXT, IMAGE = 0, 1


@dataclasses.dataclass(frozen=True)
class Site:
    """A named place in the network, without the layer's number, since layers may be scanned.

    Attributes:
      stack: "encoder" or "decoder".
      block: "attention", "self_attention", "encoder_decoder_attention" or "mlp"; "" for a whole
        layer, and for the norm after the last one.
      layer: the linear layer inside the block; "" for the whole block.
    """

    stack: str
    block: str
    layer: str = ""

    @property
    def linear(self) -> str:
        """The site's name in `LINEAR_SITES`, e.g. "attention/query"."""
        return f"{self.block}/{self.layer}"


@flax.struct.dataclass
class Context:
    """What a hook knows about the sequence it runs on.

    In cross-attention the queries belong to the decoder's sequence, the keys and values to the
    encoder's.

    Attributes:
      mask: True where a token is real, False on padding.
      tokens: the token ids, for `Method.inputs`, 0 at images; None elsewhere.
      routes: which module adapts each token, in [0, K); None if the caller gave none.
      segment_ids: the packed example of each token, from 1; None if a row is one example.
      positions: position of each token in its example; None if a row is one example.
      modalities: whether each token is `TEXT` or `IMAGE`, the same in all rows; None if the base
        reads text alone.
      gate: 1.0; if layers are scanned, this layer's entry of `Method.gates`.
      shared: what `Method.prepare` returned for this stack.
      memory_bias: in self-attention, the biases of the `Method.memory_positions` in front of the
        sequence; T is the length that is decoded if there is a cache.
      stack: "encoder" or "decoder".
      width: D, the width of the stream.
      vocab_size: number of rows of the token table.
      route_slots: how many distinct routes one row may hold.
      deterministic: True if dropout is off.
    """

    mask: Bool[Array, "B T"]
    tokens: Int[Array, "B T"] | None = None
    routes: Int[Array, "B T"] | None = None
    segment_ids: Int[Array, "B T"] | None = None
    positions: Int[Array, "B T"] | None = None
    modalities: Int[Array, "B T"] | None = None
    gate: Any = 1.0
    shared: Any = None
    memory_bias: Float[Array, "1 N T P"] | None = None
    stack: str = flax.struct.field(pytree_node=False, default="encoder")
    width: int = flax.struct.field(pytree_node=False, default=0)
    vocab_size: int = flax.struct.field(pytree_node=False, default=0)
    route_slots: int = flax.struct.field(pytree_node=False, default=1)
    deterministic: bool = flax.struct.field(pytree_node=False, default=True)

    def example_positions(self) -> Int[Array, "#B T"]:
        """Returns the position of each token in its example."""
        if self.positions is not None:
            return self.positions
        place = jnp.arange(self.mask.shape[1])[None]
        if self.segment_ids is None:
            return place
        ids = self.segment_ids
        starts = jnp.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        return place - jax.lax.cummax(jnp.where(starts, place, 0), axis=1)

    def lengthened(self, extra: int) -> "Context":
        """Returns the context with `extra` real vectors of text in front, on the first route."""
        if extra == 0:
            return self

        def widen(x: Num[Array, "B T"] | None, value: int | None = None):
            if x is None:
                return None
            front = x[:, :1] if value is None else jnp.full_like(x[:, :1], value)
            return jnp.concatenate([jnp.repeat(front, extra, axis=1), x], axis=1)

        rest = {"routes": widen(self.routes), "modalities": widen(self.modalities, TEXT)}
        return dataclasses.replace(self, mask=widen(self.mask, 1), tokens=None, **rest)


@flax.struct.dataclass
class Memory:
    """Keys and values that a method adds to those of an attention block.

    Attributes:
      keys: P keys for each row.
      values: their values.
      mask: True where a query may see a key; None if all may see all.
      bias: added to the logits; None for zero.
      gate: each query's factor of the keys and of the values; None for one.
    """

    keys: Float[Array, "B P N C"]
    values: Float[Array, "B P N C"]
    mask: Bool[Array, "B Tq P"] | None = None
    bias: Float[Array, "#B N Tq P"] | None = None
    gate: Float[Array, "B Tq 1"] | None = None


@dataclasses.dataclass(frozen=True)
class Method(Checked):
    """The identity method, and the interface of all others.

    A method's fields are checked against their annotations when it is made (`adalink_jax.values`).
    Hooks are only called inside ``@nn.compact`` methods, and must not count layers in Python.
    """

    # The child scope of the method's parameters, and its key in `METHODS`.
    scope: ClassVar[str] = ""
    # Whether the base itself trains. The method then has no parameters of its own.
    trains_base: ClassVar[bool] = False
    # A method may declare the next four as fields; annotated here, they would come before others.
    # K, the number of independent modules that each leaf stacks on its leading axis.
    routes = 1
    # The adapted stacks, and the numbers of the adapted layers in each; None for all layers.
    stacks = cast(Stacks, ("encoder", "decoder"))
    layers = cast(Layers, None)
    # Factors of the learning rate of some leaves, e.g. (("*/up", 16.0),); 0 freezes a leaf.
    rate_factors = cast(RateFactors, None)
    # The field that sets how much is stored, e.g. "rank"; None if the method has only one size.
    size_field: ClassVar[str | None] = None
    # Whether an adapter padded with zeros to the shapes of `resized` computes the same, in a bank.
    widens: ClassVar[bool] = False
    # The fields that only training reads.
    training_only: ClassVar[tuple[str, ...]] = ()
    # Whether the method adapts images, so that a base of text is refused.
    needs_images = False
    # The most vectors of an input, of its images and its text; None for any number.
    longest_input = cast(int | None, None)

    @property
    def start(self) -> str:
        """How a new adapter's logits are to the base's: "base" (equal), "near" or "elsewhere"."""
        return "base"

    @property
    def routed(self) -> bool:
        """Whether the method's leaves have a leading axis of routes."""
        return any(field.name == "routes" for field in dataclasses.fields(self))

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of its parameters."""
        return (self.scope,) if self.scope else ()

    def part(self, name: str) -> "Method | None":
        """Returns the part that is the method of this name; None if there is none."""
        return self if name == self.scope else None

    def settings(self) -> dict[str, Any]:
        """Returns what JSON can hold and ``METHODS[method.scope](**settings)`` makes it of."""
        return dataclasses.asdict(self)

    def with_routes(self, routes: int) -> Self:
        """Returns the method with another number of routes."""
        return cast(Any, dataclasses.replace)(self, routes=routes)

    @property
    def size(self) -> int | None:
        """The value of `size_field`; None if the method has only one size."""
        return None if self.size_field is None else getattr(self, self.size_field)

    def resized(self, size: int) -> Self:
        """Returns the method with another size and all else the same."""
        if self.size_field is None:
            raise ValueError(f"method '{self.scope}' has one size")
        return dataclasses.replace(self, **{self.size_field: size})

    def variants(self, depths: Mapping[str, int]) -> Iterator[Self]:
        """Yields this method, then versions of it that store less at the same size, best first.

        Args:
          depths: the number of layers of each stack.
        """
        yield self

    def prepare(self, ctx: Context) -> Any:
        """Hook before the layers of a stack: what they share, which is `Context.shared` in them."""
        return None

    def inputs(
        self, x: Float[Array, "B T D"], ctx: Context
    ) -> tuple[Float[Array, "B T2 D"], Context]:
        """Hook between the embedding and block 0 of a stack, before the embedding's dropout.

        It may put P vectors in front of the encoder's sequence. It then returns the context of
        the longer sequence.
        """
        return x, ctx

    def norm(self, y: Float[Array, "B T D"], site: Site, ctx: Context) -> Float[Array, "B T D"]:
        """Hook after a layer norm: that of the site's block, or a stack's last one."""
        return y

    def operand(
        self, x: Float[Array, "B T Din"], site: Site, ctx: Context
    ) -> Float[Array, "B T Din"]:
        """Hook before a linear layer."""
        return x

    def linear(
        self,
        x: Float[Array, "B T Din"],
        y: Float[Array, "B T Dout"],
        kernel: Callable[[], Float[Array, "Din Dout"]],
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B T Dout"]:
        """Hook after a linear layer that mapped x to y. `kernel` returns its float32 weights."""
        return y

    def keys_values(
        self,
        x: Float[Array, "B Tq D"],
        k: Float[Array, "B T N C"],
        v: Float[Array, "B T N C"],
        site: Site,
        ctx: Context,
    ) -> Memory | None:
        """Hook before attention: keys and values in front of k and v, for the queries of `ctx`.

        x is the block's normed input, which the queries come from.
        """
        return None

    def memory_positions(self, stack: str) -> int:
        """Returns how many positions before a stack's text the keys of `keys_values` take.

        They have biases of relative position in self-attention (`Context.memory_bias`).
        """
        return 0

    def attended(
        self,
        q: Float[Array, "B Tq N C"],
        y: Float[Array, "B Tq N C"],
        project: Callable[..., tuple[Array, Array]],
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B Tq N C"]:
        """Hook on what attention gives the queries q, before its last linear layer.

        `project(vectors, routes)` returns the block's keys and values [B,P,N,C] of vectors [B,P,D]
        and their routes [B,P] (or None).
        """
        return y

    def sublayer(
        self,
        y: Float[Array, "B T D"],
        x: Float[Array, "B T D"],
        residual: Float[Array, "B T D"],
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B T D"]:
        """Hook on a block's output y, before its dropout and the residual add.

        x is the block's normed input, and `residual` the stream to which y is added.
        """
        return y

    def layer(self, x: Float[Array, "B T D"], site: Site, ctx: Context) -> Float[Array, "B T D"]:
        """Hook on the stream after a whole layer."""
        return x

    def gates(self, stack: str, num_layers: int) -> Any:
        """Returns which layers of a stack the method adapts, as bools [num_layers].

        Hooks are not called in the other layers. In scanned layers they are called in all, and
        multiply what they add by `Context.gate`; parameters of the other layers are zeros.
        """
        numbers = np.arange(num_layers)
        if self.layers is None:
            return numbers >= 0
        if stack in self.stacks and max(self.layers) >= num_layers:
            raise UserError(
                f"{type(self).__name__}.layers is {self.layers}; the {stack} has layers 0 to "
                f"{num_layers - 1}"
            )
        return np.isin(numbers, self.layers)

    def where(self, gate: Any) -> "Method":
        """Returns the method as it acts in a layer with this entry of `gates`."""
        return self if gate else Method()

    def owns(self, name: str) -> bool:
        """Returns whether a parameter, given by its "/"-joined name, belongs to the method."""
        return not set(self.scopes).isdisjoint(name.split("/"))

    def has_routes(self, name: str) -> bool:
        """Returns whether a parameter, given by its "/"-joined name, has the axis of routes.

        A leaf of the method's own may lack it in training; the tree of `export` has it everywhere.
        """
        return self.owns(name)

    def rate_factor(self, name: str) -> float:
        """Returns the factor of the learning rate of a leaf, given by its "/"-joined name."""
        return math.prod(f for pattern, f in self.rate_factors or () if fnmatchcase(name, pattern))

    def check_rate_factors(self, names: Sequence[str]) -> None:
        """Raises `UserError` if a pattern of `rate_factors` matches none of the trained leaves."""
        for pattern, _ in self.rate_factors or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(
                    f"{type(self).__name__}.rate_factors has {pattern!r}, which matches no trained "
                    f"parameter{nearest(pattern, names)}; the first of {len(names)} is {min(names)}"
                )

    def trainable(self, name: str) -> bool:
        """Returns whether a parameter, given by its "/"-joined name, trains.

        A method may unlock parts of the base, such as its norms. Their values are then part of
        the adapter. They start from the base's values and are shared by all routes.
        """
        return self.trains_base or self.owns(name)

    def texts(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Returns the texts whose token ids `initialise` needs, given the task's labels."""
        return ()

    def initialise(
        self, adapter: Params, base: Params, token_ids: Sequence[Sequence[int]], key: Array
    ) -> Params:
        """Sets the values that depend on the base. Called once, after the base is loaded.

        Args:
          adapter: the method's tree as the network initialized it.
          base: the base's tree.
          token_ids: the ids of each of `texts`, without EOS.
          key: a PRNG key.
        """
        return adapter

    def export(self, adapter: Params) -> tuple["Method", Params]:
        """Returns the method and the tree to store, with training-only parameters folded in."""
        return self, adapter

    def for_inference(self, adapter: Params) -> tuple["Method", Params]:
        """Returns the adapter in its inference form, in which equal methods share one program.

        Training-only fields take neutral values, and scales go into the leaves.
        """
        return self, adapter

    def lengthened(self, adapter: Params, length: int) -> tuple["Method", Params]:
        """Returns the adapter that also takes rows padded to `length`; the padding is unchanged."""
        return self, adapter

    def one_route(self, adapter: Params, route: int) -> tuple["Method", Params]:
        """Returns the adapter of one of the K modules, and its method; other leaves are unchanged.

        Raises:
          UserError: the method has no routes.
        """

        def of_route(leaf: Array) -> Array:
            each = len(leaf) // self.routes  # Several where each modality has its own.
            return leaf[each * route : each * (route + 1)]

        flat = self._flat_with_routes(adapter)
        one = {n: of_route(leaf) if self.has_routes(n) else leaf for n, leaf in flat.items()}
        return self.with_routes(1), traverse_util.unflatten_dict(one, sep="/")

    def stack(self, adapters: Sequence[Params]) -> tuple["Method", Params]:
        """Joins adapters of this method into one, with their modules as routes in the same order.

        Raises:
          UserError: the method has no routes, or an adapter holds parts of the base.
        """
        flat = [self._flat_with_routes(adapter) for adapter in adapters]
        if shared := [name for name in flat[0] if not self.owns(name)]:
            raise UserError(
                f"an adapter of method '{self.scope}' cannot be a route among others: it holds "
                f"{shared[0]} of the base, which all routes share"
            )
        joined = {name: np.concatenate([one[name] for one in flat]) for name in flat[0]}
        name, leaf = next(iter(joined.items()))
        routes = len(leaf) * self.routes // len(flat[0][name])
        tree = traverse_util.unflatten_dict(joined, sep="/")
        return self.with_routes(routes), tree

    def _flat_with_routes(self, adapter: Params) -> dict[str, Any]:
        if not self.routed:
            raise UserError(f"an adapter of method '{self.scope}' has no routes")
        return traverse_util.flatten_dict(dict(adapter), sep="/")

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Folds one route of the adapter into the base.

        The result computes on every token what base and adapter compute on that route. Its
        architecture follows from its arrays (`checkpoints.architecture.infer_config`) and may
        differ from the base's.

        Args:
          base: the base's tree, of arrays on the host.
          adapter: the method's tree, as stored (`export`).
          route: which of the K modules, in [0, K).

        Returns:
          The new tree: float32 NumPy arrays where it differs, else the base's arrays.

        Raises:
          UserError: no plain base computes the same.
        """
        raise UserError(f"an adapter of method '{self.scope}' cannot be folded into its base")


def merge(base: Params, adapter: Params) -> dict[str, Any]:
    """Merges two trees; where both have a leaf, the adapter's is taken.

    Raises:
      ValueError: the two have a leaf of the same name and different shapes.

    Examples:
      >>> params = al.merge(base, adapter)
      >>> sorted(params["encoder"])[:2]
      ['adalink', 'encoder_norm']
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(base), sep="/")
    extra: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
    for name in flat.keys() & extra.keys():
        shapes = [tuple(leaf.shape) for leaf in (flat[name], extra[name])]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"parameter '{name}' is {shapes[0]} in the base and {shapes[1]} in the adapter"
            )
    return traverse_util.unflatten_dict({**flat, **extra}, sep="/")


def split(params: Params, method: Method) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a tree into (trainable, frozen); the inverse of `merge`."""
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
    trainable = {name: leaf for name, leaf in flat.items() if method.trainable(name)}
    frozen = {name: leaf for name, leaf in flat.items() if name not in trainable}
    return (
        traverse_util.unflatten_dict(trainable, sep="/"),
        traverse_util.unflatten_dict(frozen, sep="/"),
    )
